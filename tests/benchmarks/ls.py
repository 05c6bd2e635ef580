"""How long ``ls`` takes on 100,000 studies over 120 months: whole processes, medians.

    python -m tests.benchmarks.ls [STUDIES]

Makes a catalogue and empty study folders (no instances) in a temporary folder.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from plainpacs.archive.tree.root import create_archive, open_root
from plainpacs.indexer.index.split_studies import SplitStudies

MONTHS = [f"{2014 + number // 12}{number % 12 + 1:02d}" for number in range(120)]
RUNS = 9
FAMILIES = (
    *("Doe", "Müller", "Okonkwo", "O'Neill", "García", "Nguyen", "Kowalski", "Rossi", "Jansen"),
    *("Ivanova", "Haddad", "Silva", "Novák", "Andersson", "Tanaka", "Chen", "Kim", "Singh"),
)
GIVEN = (
    *("Jane^Q", "Jörg", "Taiwo", "Anne", "José", "Linh", "Zofia", "Marco", "Ruud", "Olga"),
    *("Layla", "Caio", "Eva", "Sven", "Yuki", "Wei", "Min-jun", "Arjun", "Ada", "Noor"),
)
WRITTEN = "Yamada^Tarou=山田^太郎=やまだ^たろう"
SOP_CLASS = "1.2.840.10008.5.1.4.1.1"
STUDIES = (
    ("CT THORAX W CONTRAST", "CT", f"{SOP_CLASS}.2"),
    ("MR Schädel nativ", "MR", f"{SOP_CLASS}.4"),
    ("Echo", "US", f"{SOP_CLASS}.6.1"),
)
REPORT = f"{SOP_CLASS}.88.11"


def patient_id(number: int) -> str:
    """That of the study with this number; every patient has two."""
    return f"PID{number // 2:07d}"


def name(patient: int) -> str:
    """About as many different ones as there are among so many people: every third is its own."""
    chance = random.Random(patient)
    if chance.random() < 0.05:
        return WRITTEN
    family, given = chance.choice(FAMILIES), chance.choice(GIVEN)
    return f"{family}^{given}{chance.randrange(patient // 1000 + 1) or ''}"


def some_study(root: Path, month: str) -> str:
    """The UID of one of the month's studies."""
    names = sorted(path.name for path in (root / month).iterdir() if path.is_dir())
    return names[len(names) // 2]


def record(chance: random.Random, number: int, month: str) -> dict[str, object]:
    """A study as modalities make them: about 580 bytes of JSON (real ones have 500 and more)."""
    description, modality, sop_class = chance.choice(STUDIES)
    with_report = chance.random() < 0.4
    date = f"{month}{chance.randint(1, 28):02d}"
    at = f"{chance.randint(7, 19):02d}{chance.randint(0, 59):02d}{chance.randint(0, 59):02d}"
    stored = f"{date[:4]}-{date[4:6]}-{date[6:]}T{at[:2]}:{at[2:4]}:{at[4:]}"
    return {
        "StudyInstanceUID": f"1.2.840.113619.2.55.3.{chance.randrange(10**27, 10**28)}.{number}",
        "AccessionNumber": f"A{number:08d}",
        "ModalitiesInStudy": [modality, "SR"][: 1 + with_report],
        "NumberOfStudyRelatedInstances": chance.randint(1, 2000),
        "NumberOfStudyRelatedSeries": chance.randint(1, 12),
        "PatientBirthDate": f"{chance.randint(1930, 2010)}0{chance.randint(1, 9)}15",
        "PatientID": patient_id(number),
        "PatientName": name(number // 2),
        "PatientSex": chance.choice("FMO"),
        "SOPClassesInStudy": [sop_class, REPORT][: 1 + with_report],
        "StudyDate": date,
        "StudyDescription": description,
        "StudyID": str(number),
        "StudyTime": at,
        "bytes": chance.randint(10**5, 10**9),
        "conflicting": {},
        "first_stored": f"{stored}.123Z",
        "last_stored": f"{stored}.789Z",
    }


def make_archive(root: Path, studies: int) -> int:
    """Returns the bytes of its catalogues."""
    chance = random.Random(2)
    create_archive(str(root))
    size = 0
    each = -(-studies // len(MONTHS))
    for position, month in enumerate(MONTHS):
        numbers = range(position * each, min(studies, (position + 1) * each))
        records = sorted(
            (record(chance, number, month) for number in numbers),
            key=lambda one: str(one["StudyInstanceUID"]),
        )
        (root / month).mkdir()
        for one in records:
            os.mkdir(root / month / str(one["StudyInstanceUID"]))
        data = b"".join(orjson.dumps(one) + b"\n" for one in records)
        size += (root / month / "studies.jsonl").write_bytes(data)
    opened = open_root(str(root))
    SplitStudies(str(root), opened).make_anew()
    os.close(opened)
    return size


def measure(root: Path, arguments: list[str]) -> tuple[float, float, int]:
    """Median seconds and processor seconds of whole processes, and the lines printed to a pipe."""
    command = [sys.executable, "-m", "plainpacs", *arguments]
    environment = {**os.environ, "PLAINPACS_ARCHIVE": str(root)}
    times, processor = [], []
    lines = 0
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        times.append(time.perf_counter() - started)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
        lines = done.stdout.count(b"\n")
    return statistics.median(times), statistics.median(processor), lines


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    patient = f"PatientID=PID{studies // 4:07d}"
    rows = (
        ("start: ls --help", ["ls", "--help"], 0.15),
        ("all, jsonl", ["ls"], 0.6),
        ("PatientID, jsonl", ["ls", patient], 0.25),
        ("one month, jsonl", ["ls", "--month", MONTHS[70]], 0.25),
        ("StudyDate in a month, jsonl", ["ls", f"StudyDate={MONTHS[70]}01-{MONTHS[70]}31"], 0.25),
        ("a word, jsonl", ["ls", "müller"], None),
        ("PatientID, table", ["ls", patient, "--format", "table"], None),
        ("all, csv", ["ls", "--format", "csv"], None),
        ("all, table", ["ls", "--format", "table"], None),
    )  # fmt: skip
    table = Table("ls", "lines", "median s", "processor s", "target s")
    with tempfile.TemporaryDirectory(prefix="plainpacs-ls-") as folder:
        root = Path(folder) / "archive"
        size = make_archive(root, studies)
        for title, arguments, target in rows:
            seconds, processor, lines = measure(root, arguments)
            table.add_row(
                title, f"{lines:,}", f"{seconds:.3f}", f"{processor:.3f}", f"{target or ''}"
            )
    table.title = f"{studies:,} studies, {size / 1e6:.0f} MB of catalogue, {RUNS} runs each"
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
