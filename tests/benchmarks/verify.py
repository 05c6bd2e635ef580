"""How long ``verify`` takes beside ``b3sum`` on the same files, and ``--fast`` on many instances.

    python -m tests.benchmarks.verify [--instances N] [--bytes N] [--many N] [--rounds N]

Whole processes, taking turns, the page cache warm, the same number of threads: seconds, and seconds
of processor time, which tell more on a machine that does other things too. The archive is made by
storing, in a temporary folder. Without ``b3sum`` (apt install b3sum) a bare loop that reads and
hashes is its stand-in.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.archive.tree.root import create_archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import data_set

PLAINPACS = (sys.executable, "-m", "plainpacs")
BARE = """
import sys, threading, blake3
def read(paths):
    buffer = memoryview(bytearray(1 << 17))
    for path in paths:
        digest = blake3.blake3()
        with open(path, "rb", buffering=0) as file:
            while taken := file.readinto(buffer):
                digest.update(buffer[:taken])
        digest.hexdigest()
paths = [line.split("  ")[1].rstrip() for line in open(sys.argv[1])]
count = int(sys.argv[2])
threads = [threading.Thread(target=read, args=(paths[i::count],)) for i in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
PER_STUDY = 400
PER_SERIES = 100


def make(root: Path, instances: int, size: int) -> None:
    """An archive of ``instances``, each with ``size`` bytes of pixels; 400 to a study."""
    create_archive(str(root))
    pixels = os.urandom(size)
    with Archive.open(str(root), sync=False) as archive:
        for number in range(instances):
            study, series = number // PER_STUDY, number // PER_SERIES
            body = data_set(
                StudyInstanceUID=f"1.2.840.113619.2.55.3.2831208458.{study}",
                SeriesInstanceUID=f"1.2.840.113619.2.55.3.2831208458.{study}.{series}",
                SOPInstanceUID=f"1.2.840.113619.2.55.3.2831208458.{study}.{series}.{number}",
                StudyDate=f"2024{study % 12 + 1:02}05",
                PixelData=pixels,
            )
            archive.store(body, EXPLICIT_LITTLE_ENDIAN, Provenance("CT1", "DRDCM", "10.0.0.5"))
    with Indexer.open(str(root)) as indexer:
        indexer.once()


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds, and seconds of processor time; the command must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: {done.stdout}{done.stderr}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beside(folder: Path, instances: int, size: int, threads: int, rounds: int) -> Table:
    """``verify`` and ``b3sum`` taking turns on the same archive."""
    root = folder / "archive"
    make(root, instances, size)
    sums = folder / "sums"
    listed = subprocess.run(
        [*PLAINPACS, "verify", "-a", str(root), "--sums", "blake3"], capture_output=True, check=True
    )
    sums.write_bytes(listed.stdout)
    peer = "b3sum -c" if shutil.which("b3sum") else "bare loop"
    commands = {
        peer: ["b3sum", "-c", "--quiet", f"--num-threads={threads}", str(sums)]
        if shutil.which("b3sum")
        else [sys.executable, "-c", BARE, str(sums), str(threads)],
        "verify": [*PLAINPACS, "verify", "-a", str(root), "--threads", str(threads)],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            took = timed(command, root)
            if number:  # the first warms the page cache
                times[name].append(took)
    megabytes = instances * size / 1e6
    table = Table(
        title=f"{instances:,} instances of {size:,} bytes, {megabytes:,.0f} MB, {threads} threads"
    )
    for column in ("", "s", "best s", "MB/s", "processor s", "ratio", "ratio of processor"):
        table.add_column(column, justify="right" if column else "left")
    first = _medians(times[peer])
    for name, some in times.items():
        seconds, processor = _medians(some)
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{min(one for one, _ in some):.2f}",
            f"{megabytes / seconds:,.0f}",
            f"{processor:.2f}",
            f"{seconds / first[0]:.2f}",
            f"{processor / first[1]:.2f}",
        )
    shutil.rmtree(root)
    return table


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return (
        statistics.median(seconds for seconds, _ in times),
        statistics.median(processor for _, processor in times),
    )


def fast(folder: Path, many: int, rounds: int) -> str:
    root = folder / "many"
    make(root, many, 64)
    times = [timed([*PLAINPACS, "verify", "--fast", "-a", str(root)], root) for _ in range(rounds)]
    seconds, processor = _medians(times)
    shutil.rmtree(root)
    return f"verify --fast, {many:,} instances: {seconds:.1f} s ({processor:.1f} s of processor)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.verify")
    parser.add_argument("--instances", type=int, default=4000)
    parser.add_argument("--bytes", type=int, default=526_000)
    parser.add_argument("--many", type=int, default=100_000, help="for --fast; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to make the archive")
    chosen = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="plainpacs.", dir=chosen.folder) as folder:
        if chosen.instances:
            console.print(
                beside(Path(folder), chosen.instances, chosen.bytes, chosen.threads, chosen.rounds)
            )
        if chosen.many:
            console.print(fast(Path(folder), chosen.many, chosen.rounds))


if __name__ == "__main__":
    main()
