"""The benchmark of the receive path still runs, with whichever peers are installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.peer import dcmtk

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = r"[\d.]+ \([\d.]+-[\d.]+\)"


def receive(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    dcmtk("storescu", "--version")  # which skips, or fails in CI, where it is not installed
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.receive", "--dir", str(folder), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_receivers_are_compared(tmp_path: Path) -> None:
    peers = [word for name in ("no-indexer", "storescp", "raw") for word in ("--receiver", name)]
    tiny = ("--rounds", "1", "--instances", "20", "--case", "tiny", "--markdown")
    done = receive(tmp_path, *tiny, *peers)
    assert done.returncode == 0, done.stderr
    assert "tiny: 2 KB x 20, one sender" in done.stdout
    assert re.search(rf"^ *plainpacs --sync off +{RATE} ", done.stdout, re.MULTILINE)
    for receiver in ("the same, no indexer", "storescp +B", "raw floor"):
        # Instances and megabytes per second, the ratio.
        row = rf"^ *{re.escape(receiver)} +{RATE} +\d+ +\d+\.\d\d \("
        assert re.search(row, done.stdout, re.MULTILINE), done.stdout
        row = rf"^\| 2 KB, one sender, .* \| [\d.]+ \| {re.escape(receiver)} \| [\d.]+ \| \d+\."
        assert re.search(row, done.stdout, re.MULTILINE), done.stdout
    assert "file system: " in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_receiver_that_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    tiny = ("--rounds", "1", "--instances", "4", "--case", "associations")
    peers = ("--receiver", "raw", "--receiver", "pynetdicom")
    done = receive(tmp_path, *tiny, *peers, "--serve=--no-such-flag")
    assert done.returncode == 1
    assert re.search(r"plainpacs --sync off +failed", done.stdout)
    assert "No such option" in done.stdout
    for receiver in ("raw floor", "stock pynetdicom"):
        assert re.search(rf"{receiver} +[\d.]+ \(", done.stdout), done.stdout


def test_finding_is_measured_beside_grep(tmp_path: Path) -> None:
    small = ("--studies", "3000", "--instances", "2560", "--runs", "1", "--dir", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.lookup", *small],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    for row in (
        "floor: grep for the PatientID │ 2 ",
        "one PatientID +│ 2 ",
        "all, jsonl +│ 3,000 ",
    ):
        assert re.search(row, done.stdout), done.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"
