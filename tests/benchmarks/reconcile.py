"""How long reconciliation takes on an archive where nothing changed: whole processes, medians.

    python -m tests.benchmarks.reconcile [--studies N] [--runs N] [--dir DIR]

Makes an archive of 120 months in a temporary folder of --dir: each study a folder with
``study.json``, a manifest, and one series folder without instances (reconciliation never looks into
it). So there are two directories and four inodes for each study. The first look finds nothing
recorded, the others nothing changed. The target is that of issue 5: 1,000,000 directories in 60 s
and 300 MB, on a machine that does nothing else; the processor seconds tell where others work, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from plainpacs.indexer.index import catalogue
from tests.benchmarks.lookup import Measured, Row
from tests.benchmarks.ls import MONTHS, make_archive

_TICK = 2.5
LOOK = """
import os, sys
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.service.reconcile import reconcile
path = sys.argv[1]
root = open_root(path)
print(reconcile(path, root, lambda study: None))
"""
START = """
import sys
from plainpacs.indexer.service.indexer import Indexer
with Indexer.open(sys.argv[1]):
    pass
"""


def make_studies(root: Path, studies: int) -> None:
    """``make_archive``, and in each study's folder what an indexed study has."""
    make_archive(root, studies)
    for month in MONTHS:
        for study, record, _ in catalogue.live((root / month / "studies.jsonl").read_bytes()):
            folder = f"{root}/{month}/{study}"
            os.mkdir(f"{folder}/{study}.1")
            for name, text in (
                ("study.json", orjson.dumps(record)),
                (f"{study}.1.k3f9.jsonl", b'{"file":"1.dcm"}\n'),
            ):
                fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
                os.write(fd, text)
                os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the archive is made")
    asked = parser.parse_args()
    table = Table("what", "studies differ", "elapsed s", "processor s", "most MB")
    with tempfile.TemporaryDirectory(prefix="plainpacs-reconcile-", dir=asked.dir) as folder:
        root = Path(folder) / "archive"
        with get_context("fork").Pool(1) as maker:  # its memory is not ours
            maker.apply(make_studies, (root, asked.studies))
        time.sleep(_TICK)  # what changed just now is not recorded
        for title, code, runs in (
            ("floor: find", "", asked.runs),
            ("the first look", LOOK, 0),
            ("another look", LOOK, asked.runs),
            ("starting an indexer", START, asked.runs),
        ):
            command = (sys.executable, "-c", code, str(root)) if code else _find(root)
            found, said = _measured(Row(title, command), runs)
            table.add_row(
                title, said, f"{found.elapsed:.2f}", f"{found.processor:.2f}",
                f"{found.memory / 1e6:.0f}",
            )  # fmt: skip
            print(f"{title}: {found.processor:.2f} s of processor", file=sys.stderr)
    table.title = f"{asked.studies:,} studies, {2 * asked.studies:,} directories"
    Console(width=100).print(table)


def _find(root: Path) -> tuple[str, ...]:
    return ("find", str(root), "-newermt", "2100-01-01")


def _measured(row: Row, runs: int) -> tuple[Measured, str]:
    """Medians of ``runs`` after one before; 0: of that one alone. And what it printed at last."""
    found = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.Popen(row.command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        said = process.stdout.read().strip()
        _, status, used = os.wait4(process.pid, 0)
        process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, row.command)
        elapsed = time.perf_counter() - began
        found.append(Measured(elapsed, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, 0))
    counted = found[1:] or found
    return Measured(
        statistics.median(one.elapsed for one in counted),
        statistics.median(one.processor for one in counted),
        max(one.memory for one in counted),
        0,
    ), said


if __name__ == "__main__":
    main()
