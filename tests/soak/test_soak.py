"""The soak tool still runs, for a few seconds, and notices when a promise is not kept."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import eventually, new_archive, store
from tests.support.mounts import tmpfs

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tests.soak", "--minutes", "0.05", "--volume", "none"]


def soak(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--megabytes", "20", "--dir", str(folder), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_a_short_run_keeps_every_promise(tmp_path: Path) -> None:
    done = soak(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.findall(r"^ *(\d+) (.+)$", done.stdout, re.MULTILINE)
    found = {what: int(number) for number, what in counted}
    for what in ("stores answered 0000", "promises there and equal at the end"):
        assert found[what] > 10, done.stdout
    assert "0 findings" in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_what_is_wrong_at_the_end_is_found(tmp_path: Path) -> None:
    harms = ("deleted", "changed", "cut", "never-sent", "unfinished")
    done = soak(tmp_path, *(word for harm in harms for word in ("--harm", harm)))
    assert done.returncode == 1, done.stdout + done.stderr
    for words in (
        r"\.dcm was answered 0000 and is missing",
        r"\.dcm was answered 0000 and has other bytes",
        r"1\.2\.99\.dcm was never sent",
        r"left behind after a clean stop: \.plainpacs/incoming/k\.1",
    ):
        assert re.search(words, done.stdout), done.stdout
    assert len(re.findall("and has other bytes", done.stdout)) == 2, done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_clears_up_when_it_is_stopped(number: int, tmp_path: Path) -> None:
    arguments = [*COMMAND[:4], "5", *COMMAND[5:], "--dir", str(tmp_path)]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    eventually(lambda: list(tmp_path.glob("*/volume/archive/*/*/*/*.dcm")))
    [root] = tmp_path.glob("*/volume/archive")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert not list(tmp_path.iterdir())
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _names(path, root)]
    assert not running


def _names(path: Path, root: Path) -> bool:
    try:
        return str(root).encode() in path.read_bytes()
    except OSError:
        return False


# --- what it found --------------------------------------------------------------------------------


def test_an_indexer_stops_in_order_on_a_full_disk(tmp_path: Path) -> None:
    # "ended by a defect of plainpacs": what it appended could not be compacted at the end
    (tmp_path / "disk").mkdir()
    with tmpfs(tmp_path / "disk", "size=4m") as disk, ThreadPoolExecutor(1) as pool:
        root = Path(new_archive(disk / "archive"))
        with Archive.open(str(root), sync=False) as archive, Indexer.open(str(root)) as indexer:
            running = pool.submit(indexer.run)
            catalogue = root / "202401/studies.jsonl"
            for count, study in enumerate(("1.9", "1.1"), 1):  # to be sorted by compaction
                store(archive, StudyInstanceUID=study, SOPInstanceUID=f"{study}.1")
                eventually(lambda at=count: read_lines(catalogue) == at)
            with (disk / "rest").open("wb", buffering=0) as rest, suppress(OSError):
                while True:
                    rest.write(bytes(4096))
            indexer.stop()
            running.result(30)
            assert read_lines(catalogue) == 2
            (disk / "rest").unlink()


def read_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
