"""What may be missing or broken when the indexer starts: it lists and indexes all the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plainpacs.archive.store.store import Archive
from tests.support.archives import eventually, new_archive, store

INDEX = [sys.executable, "-P", "-m", "plainpacs", "index", "--hooks-at-once", "1"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def comes_into_the_index(path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with Archive.open(path) as archive:
        for study in ("1.2.1", "1.2.2"):
            store(archive, StudyInstanceUID=study)
            record = Path(path, "202401", study, "study.json")
            assert eventually(lambda record=record: record.exists() or process.poll() is not None)
            assert process.poll() is None, log.read_text()


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_without_inotify_the_folder_is_listed(path: str, tmp_path: Path, limit: str) -> None:
    # The limits of a user namespace of its own: nobody else on this machine feels them.
    inside = ["unshare", "-Ur", "sh", "-c"]
    setting = f"echo 0 > /proc/sys/user/{limit}"
    if not shutil.which("unshare") or subprocess.run([*inside, setting], check=False).returncode:
        pytest.skip("this system allows no user namespaces")
    log = tmp_path / "log"
    with running([*inside, f'{setting}; exec "$@"', "sh", *INDEX, path], log) as process:
        comes_into_the_index(path, process, log)
    assert log.read_text().count("it is listed every second") == 1
    assert "Traceback" not in log.read_text()


def hooks_is_a_file(internal: Path) -> None:
    internal.joinpath("hooks").write_text("")


def on_is_a_folder(internal: Path) -> None:
    internal.joinpath("hooks", "on").mkdir(parents=True)


def a_folder_lies_among_the_claims(internal: Path) -> None:
    internal.joinpath("indexing", "something").mkdir(parents=True)


def a_claim_cannot_be_given_back(internal: Path) -> None:
    internal.joinpath("indexing", "202401~1.2.9").mkdir(parents=True)
    internal.joinpath("pending", "202401~1.2.9").touch()


@pytest.mark.parametrize(
    "obstacle",
    [hooks_is_a_file, on_is_a_folder, a_folder_lies_among_the_claims, a_claim_cannot_be_given_back],
)
def test_nothing_stands_before_listing(
    path: str, tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    obstacle(Path(path, ".plainpacs"))
    log = tmp_path / "log"
    with running([*INDEX, "--on-instance", "true", path], log) as process:
        comes_into_the_index(path, process, log)
