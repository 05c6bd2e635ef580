from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.archive.app.settings import (
    DOCUMENT,
    TABLE,
    Settings,
    environment,
    from_document,
    load,
    to_document,
)
from plainpacs.archive.errors import BadSettings

EXAMPLE = Path(__file__).resolve().parents[2] / "scp/deploy/plainpacs.toml"


def test_defaults() -> None:
    assert load({}, environ={}) == Settings()


def test_flags_win_over_variables_over_file(tmp_path: Path) -> None:
    config = tmp_path / "plainpacs.toml"
    config.write_text('aet = ["FILE"]\nport = 1\nmax-pdu = 65536\nsync = false\n')
    environ = {"PLAINPACS_PORT": "2", "PLAINPACS_AET": "VAR", "PLAINPACS_TEST_DATA": "/x"}
    got = load({"aet": "FLAG,OTHER", "port": None}, str(config), environ)
    assert got.aet == ("FLAG", "OTHER")
    assert got.port == 2
    assert got.max_pdu == 65536
    assert got.sync == "off"


def test_config_may_be_named_by_variable(tmp_path: Path) -> None:
    config = tmp_path / "p.toml"
    config.write_text("port = 104\n")
    assert load({}, environ={"PLAINPACS_CONFIG": str(config)}).port == 104


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "nearest is port"),
        ("port = 70000", "between 0 and 65535"),
        ("port = 'x'", "whole number"),
        ("aet = 'A\\\\B'", "AE title"),
        ("aet = 'seventeencharacters'", "AE title"),
        ("aet = []", "at least one AE title"),
        ("digest = 'md5'", "blake3, sha256"),
        ("idle-timeout = 0", "above 0"),
        ("refuse-sop-class = ['../x']", "characters"),
        ("node = 'Node 1'", "lower-case"),
        ("port = ", "not TOML"),
    ],
)
def test_bad_keys_and_values_are_named(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "p.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=r"p\.toml") as caught:
        load({}, str(config), {})
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(BadSettings, match="PLAINPACS_PROT is not a setting; the nearest is port"):
        load({}, environ={"PLAINPACS_PROT": "1"})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadSettings, match="cannot read the configuration /nowhere"):
        load({}, "/nowhere", {})


def test_every_default_is_one_that_may_be_given() -> None:
    for declaration in TABLE:
        default = getattr(Settings(), declaration.name)
        if default not in (None, ""):
            assert declaration.parse(default) == default


# --- where they are explained ---------------------------------------------------------------------


def test_the_settings_file_has_every_setting_in_order_with_its_default() -> None:
    text = EXAMPLE.read_text()
    named = re.findall(r"^(?:# )?([a-z_]+) = ", text, re.MULTILINE)
    assert named == [declaration.name for declaration in TABLE]
    assert load({}, str(EXAMPLE), {}) == Settings()
    # What has no default is shown by an example of it, as a comment.
    uncommented = set(re.findall(r"^([a-z_]+) = ", text, re.MULTILINE))
    assert set(named) - uncommented == {one.name for one in TABLE if one.default is None}


def test_it_says_which_are_read_again_at_a_signal() -> None:
    head, *sections = re.split(r"^# --- ([^-]+) -+$", EXAMPLE.read_text(), flags=re.MULTILINE)
    said = re.findall(r'"([^"]+)"', head.partition("Those under")[2].partition("are read")[0])
    found = [
        name
        for title, text in zip(sections[::2], sections[1::2], strict=True)
        if title in said
        for name in re.findall(r"^(?:# )?([a-z_]+) = ", text, re.MULTILINE)
    ]
    assert found == [declaration.name for declaration in TABLE if declaration.reloaded]


def test_its_examples_can_be_used(tmp_path: Path) -> None:
    examples = re.findall(r"^# e\.g\. (.+)$", EXAMPLE.read_text(), re.MULTILINE)
    assert len(examples) >= 5
    for line in examples:
        config = tmp_path / "one.toml"
        config.write_text(line)
        assert load({}, str(config), {}) != Settings(), line


def test_the_help_of_serve_has_every_setting_with_its_words() -> None:
    text = " ".join(CliRunner().invoke(cli.root, ["serve", "--help"]).output.split())
    for declaration in TABLE:
        assert f" {declaration.flag}" in text
        assert declaration.help in text, declaration.name


# --- for child processes --------------------------------------------------------------------------

ODD = {
    "nodes": ("WS@[fd00::7]:104", "PACS@pacs.example.org:2762/tls"),
    "ae_addresses": "CT1=10.0.0.0/8",
    "on_instance": "a 'b c' {path}",
    "metrics_port": 0,
    "tls_verify": "on",
}


def test_a_document_has_all_settings() -> None:
    settings = load(ODD, environ={})
    assert "\n" not in to_document(settings)
    assert from_document(to_document(settings)) == settings
    with pytest.raises(BadSettings, match="not a document"):
        from_document("[]")


def test_a_command_of_the_user_has_the_settings_of_serve_below_its_own(tmp_path: Path) -> None:
    config = tmp_path / "p.toml"
    config.write_text("port = 104\nmax_pdu = 8192\n")
    started = {"PLAINPACS_PORT": "1", "PLAINPACS_CONFIG": str(config), "PATH": "/bin"}
    settings = load({"port": 2, "aet": "FLAG"}, environ=started)
    inside = environment(settings, started)
    assert inside.keys() == {"PATH", DOCUMENT}
    assert load({}, environ=inside) == settings
    assert load({}, str(config), inside).port == 104
    own = load({"aet": "OWN"}, environ={**inside, "PLAINPACS_PORT": "3"})
    assert (own.aet, own.port, own.max_pdu) == (("OWN",), 3, 8192)
