from __future__ import annotations

from pathlib import Path

import pytest

from plainpacs.archive.app.settings import TABLE, Settings, load
from plainpacs.archive.errors import BadSettings


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
