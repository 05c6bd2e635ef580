"""The root command: help, errors and exit statuses, as a person meets them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from plainpacs.archive.app.cli import COMMANDS
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store


def run(
    *arguments: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plainpacs", *arguments]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PLAINPACS_")}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=env | variables, check=False
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        store(archive)
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def test_alone_it_shows_the_commands() -> None:
    done = run()
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in done.stdout
    assert "plainpacs serve --create ~/dicom" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"plainpacs {name}" in done.stdout
    assert "--archive" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_help_of_a_command_and_the_groups_of_commands() -> None:
    assert run("help", "import").stdout == run("import", "--help").stdout
    everything = run("help").stdout
    assert everything == run().stdout
    titles = ["Receive:", "Look:", "Keep:", "Exchange:"]
    assert [line for line in everything.splitlines() if line in titles] == titles
    assert run("-V").stdout == run("--version").stdout


def test_settings_are_found_in_the_archive_and_in_the_users_folder(
    path: str, tmp_path: Path
) -> None:
    def asked(**more: str) -> subprocess.CompletedProcess[str]:
        more["XDG_CONFIG_HOME"] = str(tmp_path / "config")
        return run("nodes", "-a", path, "--format", "jsonl", **more)

    assert asked().returncode == 1
    users, archives = tmp_path / "config/plainpacs", Path(path, ".plainpacs")
    users.mkdir(parents=True)
    (users / "plainpacs.toml").write_text('[nodes]\nUSERS = "127.0.0.1:11"')
    assert '"ae_title":"USERS"' in asked().stdout
    (archives / "plainpacs.toml").write_text('[nodes]\nARCHIVES = "127.0.0.1:11"')
    assert '"ae_title":"ARCHIVES"' in asked().stdout
    assert f"settings   {archives}/plainpacs.toml" in run("status", "-a", path).stdout
    (tmp_path / "named").write_text('[nodes]\nNAMED = "127.0.0.1:11"')
    assert '"ae_title":"NAMED"' in asked(PLAINPACS_CONFIG=str(tmp_path / "named")).stdout
    if os.getuid() == 0:
        os.chown(archives / "plainpacs.toml", 12345, -1)
        refused = asked()
        assert refused.returncode == 2
        assert "belongs to another user (12345)" in refused.stderr


def test_ctrl_c_is_130(path: str) -> None:
    script = (
        "import signal, sys; from plainpacs.archive.app import cli; "
        "import plainpacs.indexer.commands.stats as stats; "
        "sys.settrace(lambda frame, *_: signal.raise_signal(signal.SIGINT) "
        "if frame.f_code.co_name == 'archive_path' else None); "
        "cli.main(['stats', '-a', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_who_pipes_a_list_is_told_of_the_table(path: str) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "plainpacs", "ls", "-a", path],
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
        )
        assert done.stdout.startswith(b"{")
        assert b"--format table" in os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert done.stdout.startswith("plainpacs ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["lss"], 2, "No such command 'lss'. Did you mean 'ls'?"),
        (["shwo", "x"], 2, "Did you mean 'show'?"),
        (["help", "imprt"], 2, "Did you mean 'import'?"),
        (["ls", "--colour"], 2, "No such option"),
        (["ls", "-a", "/nowhere"], 3, "/nowhere does not exist; make it with `plainpacs init"),
        (["ls"], 3, "no archive here or above; name it with -a DIR"),
        (["show"], 2, "Missing argument"),
        (["import", "-a", "/nowhere", "x"], 3, "/nowhere does not exist"),
        (["import"], 2, "Missing argument"),
        (["index", "-a", "/"], 3, "/ is not a plainpacs archive"),
        (["init", "/proc/x"], 3, "cannot make /proc/x"),
        (["init", "x", "--node", "A B"], 2, "lower-case letters and digits"),
        (["serve", "/nowhere"], 3, "/nowhere does not exist"),
        (["serve", "--port", "99999", "x"], 2, "between 0 and 65535"),
    ],
)
def test_an_error_says_what_to_do(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr
    assert done.stdout == ""
    if status == 3:
        assert len(done.stderr.splitlines()) == 1


def test_the_archive_is_found(path: str, tmp_path: Path) -> None:
    for done in (
        run("ls", "-a", path),
        run("-a", path, "ls"),
        run("ls", PLAINPACS_ARCHIVE=path),
        run("ls", cwd=Path(path, "202401", "1.2.3")),
    ):
        assert done.returncode == 0
        assert orjson.loads(done.stdout)["StudyInstanceUID"] == "1.2.3"


def test_a_bad_variable_or_configuration_is_named(path: str, tmp_path: Path) -> None:
    config = tmp_path / "plainpacs.toml"
    config.write_text("aets = 'X'\n")
    done = run("serve", path, "--config", str(config))
    assert done.returncode == 2
    assert f"{config}: key aets is not a setting; the nearest is aet" in done.stderr
    done = run("serve", path, PLAINPACS_PROT="1")
    assert done.returncode == 2
    assert "the nearest is port" in done.stderr


def test_status(path: str) -> None:
    found = orjson.loads(run("status", "-a", path, "--format", "json").stdout)
    assert (found["studies"], found["series"], found["instances"]) == (1, 1, 1)
    assert (found["pending"], found["conflicts"], found["indexer_running"]) == (0, 0, False)
    with Archive.open(path) as archive, Indexer.open(path):
        store(archive, PatientName="Other^One")
        store(archive, SOPInstanceUID="1.9")
        found = orjson.loads(run("status", "-a", path, "--format", "json").stdout)
    assert (found["pending"], found["conflicts"], found["indexer_running"]) == (1, 1, True)
    text = run("status", "-a", path).stdout
    assert "studies    1 " in text
    assert "receiver   not running" in text
    assert "1.2.3" in text


def test_status_of_a_copy_that_may_not_be_read(path: str, tmp_path: Path) -> None:
    Path(path, ".plainpacs").rename(tmp_path / "away")
    done = run("status", "-a", path)
    assert done.returncode == 0
    assert "studies    1 " in done.stdout
    assert not Path(path, ".plainpacs").exists()
