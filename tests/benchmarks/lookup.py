"""How long finding takes among 1,000,000 studies and 10,000,000 instances: whole processes.

    python -m tests.benchmarks.lookup [--studies N] [--instances N] [--runs N] [--dir DIR]
                                      [--peers FILES]

Makes catalogues of 120 months and empty study folders, and the shard of ``.plainpacs/instances``
that is asked, in a temporary folder of --dir. Prints medians of elapsed and processor seconds (of
all its processes) and the most memory, beside the floor: ``grep`` for the same bytes in the same
files, in the same run. The targets are elapsed seconds on a machine that does nothing else.

--peers FILES: also so many files with different UIDs, made of real ones ($PLAINPACS_TEST_DATA, else
../shared/data, else pydicom's): finding one PatientID with plainpacs, with ``find | dcmdump``, and
with Orthanc's /tools/find.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.layout import INSTANCES, instance_path
from plainpacs.indexer.index import instance_shards
from tests.benchmarks.ls import MONTHS, make_archive, patient_id, some_study

PLAINPACS = (sys.executable, "-m", "plainpacs")
MONTH = MONTHS[70]


@dataclass(frozen=True, slots=True)
class Row:
    """A command, and the elapsed seconds that it is to take at most."""

    title: str
    command: tuple[str, ...]
    seconds: float | None = None
    shell: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians in seconds; the most memory of a process in bytes; the lines it printed."""

    elapsed: float
    processor: float
    memory: int
    lines: int


def measure(row: Row, environment: Mapping[str, str], runs: int) -> Measured:
    """Runs the command ``runs`` times, and once before. Raises CalledProcessError."""
    once = [_run(row, environment) for _ in range(runs + 1)][1:]
    return Measured(
        statistics.median(one.elapsed for one in once),
        statistics.median(one.processor for one in once),
        max(one.memory for one in once),
        once[0].lines,
    )


def _run(row: Row, environment: Mapping[str, str]) -> Measured:
    command = ["sh", "-c", row.command[0]] if row.shell else list(row.command)
    began = time.perf_counter()
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = 0
    while data := os.read(process.stdout.fileno(), 1 << 20):
        lines += data.count(b"\n")
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(elapsed, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, lines)


def make_shard(root: Path, count: int) -> str:
    """A shard as each of 256 is among ``count`` instances; the UID of one instance in it."""
    chance = random.Random(3)
    lines = []
    kept = ""
    for number in range(max(1, count // len(instance_shards.SHARDS))):
        uid = f"1.2.840.113619.2.55.3.{chance.randrange(10**27, 10**28)}.{number}"
        key = InstanceKey(MONTHS[0], f"{uid}.8", f"{uid}.9", uid)
        lines.append(f'{{"SOPInstanceUID":"{uid}","path":"{instance_path(key)}"}}\n')
        if not kept:
            kept, file = uid, root / instance_path(key)
    (root / INSTANCES / instance_shards.shard_of(kept)).write_text("".join(sorted(lines)), "ascii")
    file.parent.mkdir(parents=True)
    file.touch()
    return kept


def rows(root: Path, studies: int, instance: str) -> list[Row]:
    """What is measured. ``instance`` is one that a shard has."""
    patient, uid = patient_id(studies // 2), some_study(root, MONTH)
    files = f"'{root}'/*/studies.jsonl"
    return [
        Row("floor: python -c pass", (sys.executable, "-c", "pass")),
        Row("start: ls --help", (*PLAINPACS, "ls", "--help")),
        Row("floor: grep for the PatientID", (f"grep -hF '\"{patient}\"' {files}",), shell=True),
        Row("one PatientID", (*PLAINPACS, "ls", f"PatientID={patient}"), 0.5),
        Row("one AccessionNumber", (*PLAINPACS, "ls", f"AccessionNumber=A{studies // 2:08d}"), 0.5),
        Row("one StudyInstanceUID", (*PLAINPACS, "ls", f"StudyInstanceUID={uid}"), 0.5),
        Row("a name, wildcard", (*PLAINPACS, "ls", "PatientName=okonkwo^t*"), 0.8),
        Row("one month, a name", (*PLAINPACS, "ls", "--month", MONTH, "PatientName=*o*"), 0.2),
        Row("one month, Modality", (*PLAINPACS, "ls", "--month", MONTH, "Modality=MR"), 0.2),
        Row("the newest 50", (*PLAINPACS, "ls", "--limit", "50"), 0.3),
        Row("all, jsonl", (*PLAINPACS, "ls"), 3.0),
        Row("a word", (*PLAINPACS, "ls", "okonkwo, taiwo")),
        Row("path of an instance", (*PLAINPACS, "path", instance), 0.3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--instances", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the archive is made")
    parser.add_argument("--peers", type=int, metavar="FILES", help="beside dcmdump and Orthanc")
    asked = parser.parse_args()
    table = Table("what", "lines", "elapsed s", "processor s", "most MB", "target s")
    with tempfile.TemporaryDirectory(prefix="plainpacs-lookup-", dir=asked.dir) as folder:
        root = Path(folder) / "archive"
        # Elsewhere, as what a process has ever used counts as used by those it starts, too.
        with get_context("fork").Pool(1) as maker:
            size = maker.apply(make_archive, (root, asked.studies))
            instance = maker.apply(make_shard, (root, asked.instances))
        environment = {**os.environ, "LC_ALL": "C", "PLAINPACS_ARCHIVE": str(root)}
        fill(table, rows(root, asked.studies, instance), environment, asked.runs)
    table.title = (
        f"{asked.studies:,} studies, {size / 1e6:.0f} MB of catalogue, "
        f"{asked.instances:,} instances, {asked.runs} runs each"
    )
    Console(width=100).print(table)
    if asked.peers:
        from tests.benchmarks import lookup_peers  # pydicom is slow to load

        with tempfile.TemporaryDirectory(prefix="plainpacs-lookup-", dir=asked.dir) as folder:
            lookup_peers.compare(Path(folder), asked.peers, asked.runs)


def fill(table: Table, measured: Sequence[Row], environment: Mapping[str, str], runs: int) -> None:
    """A row of the table for each."""
    for row in measured:
        found = measure(row, environment, runs)
        table.add_row(
            row.title,
            f"{found.lines:,}",
            f"{found.elapsed:.3f}",
            f"{found.processor:.3f}",
            f"{found.memory / 1e6:.0f}",
            f"{row.seconds or ''}",
        )
        print(f"{row.title}: {found.elapsed:.3f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
