"""The root command: help, errors and exit statuses, as a person meets them."""

from __future__ import annotations

import os
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


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert done.stdout.startswith("plainpacs ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["lss"], 2, "No such command"),
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
