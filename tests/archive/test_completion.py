"""Completion as a shell asks for it, and in the shells that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plainpacs.archive.app.cli import COMMANDS
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.output.proposals import MOST, studies
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store

COMMAND = f"'{sys.executable}' -m plainpacs"


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        for number in range(3):
            store(
                archive,
                StudyInstanceUID=f"1.2.{number}",
                SeriesInstanceUID=f"1.2.{number}.1",
                SOPInstanceUID=f"1.2.{number}.1.1",
                StudyDescription="chest\x1b[2J",
            )
        store(archive, StudyInstanceUID="7.7", SeriesInstanceUID="7.8", SOPInstanceUID="7.9")
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def asked(shell: str, *words: str, **variables: str) -> str:
    """What a shell is told when the last of ``words`` is being typed."""
    env = {
        **os.environ,
        **variables,
        "_PLAINPACS_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["plainpacs", *words]),
        "COMP_CWORD": words[-1] if shell == "fish" else str(len(words)),
    }
    script = "from plainpacs.archive.app.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_commands(path: str) -> None:
    found = asked("bash", "re", PLAINPACS_ARCHIVE=path).split()
    assert found == [f"plain,{name}" for name in COMMANDS if name.startswith("re")]
    assert "Show one study." in asked("zsh", "sho", PLAINPACS_ARCHIVE=path)
    assert "plain,--level" in asked("bash", "ls", "--le", PLAINPACS_ARCHIVE=path).split()
    assert "plain,series" in asked("bash", "ls", "--level", "s", PLAINPACS_ARCHIVE=path).split()


@pytest.mark.parametrize("command", ["show", "path", "rm", "export", "verify"])
def test_study_uids(path: str, command: str) -> None:
    found = asked("bash", command, "1.2", PLAINPACS_ARCHIVE=path).split()
    assert sorted(found) == ["plain,1.2.0", "plain,1.2.1", "plain,1.2.2"]


def test_of_the_archive_that_is_named(path: str, tmp_path: Path) -> None:
    assert "plain,7.7" in asked("bash", "-a", path, "show", "7").split()
    assert "plain,7.7" in asked("bash", "show", "-a", path, "7").split()
    assert asked("bash", "show", "7", PLAINPACS_ARCHIVE=str(tmp_path / "none")).strip() == ""


def test_what_a_study_is_goes_with_it_and_nothing_hidden(path: str) -> None:
    found = asked("fish", "show", "1.2.1", PLAINPACS_ARCHIVE=path)
    assert found == "plain,1.2.1\t2024-01-31  CT  Doe, Jane  chest\ufffd[2J\n"


def test_no_proposal_hides_others(path: str) -> None:
    os.makedirs(Path(path, "202312"))
    line = '{"StudyInstanceUID":"9.1%04d","StudyDate":"20231201"}\n'
    text = "".join(line % number for number in range(MOST + 20))
    Path(path, "202312", "studies.jsonl").write_text(text)
    found = [uid for uid, _ in studies(path, "9.1")]
    assert len(found) == MOST + 1
    assert found[-1] == "9.1", "so that what all have in common is no more than was typed"
    assert len(list(studies(path, "1.2"))) == 3
    assert list(studies(path, "1*")) == []


def test_the_scripts_in_their_shells(path: str, tmp_path: Path) -> None:
    tried = 0
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            ["sh", "-c", f"{COMMAND} completion {shell}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "_PLAINPACS_COMPLETE" in done.stdout
        if shutil.which(shell):
            script = tmp_path / shell
            script.write_text(done.stdout)
            flag = "--no-execute" if shell == "fish" else "-n"
            subprocess.run([shell, flag, str(script)], check=True)
            tried += 1
    assert tried, "there is no shell here"


def test_bash_completes(path: str, tmp_path: Path) -> None:
    """As bash does it: the function of the script, with the words of a line."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    program = bin_ / "plainpacs"
    program.write_text(f'#!/bin/sh\nexec {COMMAND} "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(plainpacs completion bash)"; COMP_WORDS=(plainpacs show 1.2); COMP_CWORD=2;'
        ' _plainpacs_completion plainpacs; echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PLAINPACS_ARCHIVE": path}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == ["1.2.0", "1.2.1", "1.2.2"]
