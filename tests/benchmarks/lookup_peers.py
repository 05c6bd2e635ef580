"""One PatientID among files made of real ones: plainpacs, ``find | dcmdump``, Orthanc. See
``lookup``."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pydicom.data
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from rich.console import Console
from rich.table import Table

from tests.benchmarks.receiving.receivers import Failed, Orthanc, Running, dcmtk, running

_LARGEST = 2 << 20
_FILES_IN_A_STUDY = 20
_NEEDED = ("PixelData", "StudyInstanceUID", "Modality")
_CLASSES = (CTImageStorage, MRImageStorage, ComputedRadiographyImageStorage)
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)  # which storescu offers by itself


def real_files() -> Iterator[Path]:
    """Real files, none of them large."""
    named = os.environ.get("PLAINPACS_TEST_DATA")
    shared = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    own = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted((shared if shared.is_dir() else own).rglob("*")):
        if path.is_file() and path.stat().st_size < _LARGEST:
            yield path


def make_files(folder: Path, count: int) -> str:
    """``count`` files with UIDs of their own, 20 to a study, a patient for each; one PatientID."""
    originals = []
    for path in real_files():
        # What is no DICOM, or lacks what a study needs, is no original.
        with contextlib.suppress(InvalidDicomError, AttributeError, OSError, ValueError):
            found = pydicom.dcmread(path)
            plain = found.file_meta.get("TransferSyntaxUID") in _UNCOMPRESSED
            if plain and found.SOPClassUID in _CLASSES and all(key in found for key in _NEEDED):
                originals.append(found)
        if len(originals) == 100:
            break
    for number in range(count):
        study = number // _FILES_IN_A_STUDY
        one = originals[number % len(originals)]
        one.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(study)])
        one.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(study), str(one.Modality)])
        one.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(number)])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PatientID = f"LOOKUP{study:06d}"
        where = folder / f"{study:06d}"
        where.mkdir(exist_ok=True)
        one.save_as(where / f"{number}.dcm")
    return f"LOOKUP{count // _FILES_IN_A_STUDY // 2:06d}"


def compare(folder: Path, count: int, runs: int) -> None:
    """Fills the servers, asks each ``runs`` times, and prints medians."""
    files = folder / "files"
    files.mkdir()
    patient = make_files(files, count)
    table = Table("one PatientID", "studies found", "elapsed s")
    table.title = f"{count:,} files made of real ones"
    rows: list[tuple[str, Callable[[], int]]] = []
    with contextlib.ExitStack() as stack:
        rows.append(("plainpacs ls", _plainpacs(folder / "archive", files, patient)))
        if dump := dcmtk("dcmdump"):
            rows.append(("find | dcmdump | grep", lambda: _dcmdump(dump, files, patient)))
        server = Orthanc()
        if server.program and (send := dcmtk("storescu")):
            (folder / "orthanc").mkdir()
            at = stack.enter_context(running(server, folder / "orthanc"))
            subprocess.run(
                [send, "+sd", "+r", "-R", "127.0.0.1", str(at.port), str(files)],
                check=False,
                capture_output=True,
                env={**os.environ, "TCP_NODELAY": "1"},
            )
            stored = len(server.arrived(at))
            rows.append((f"Orthanc /tools/find ({stored:,} stored)", lambda: _ask(at, patient)))
        for title, ask in rows:
            found, seconds = 0, []
            for _ in range(runs):
                began = time.perf_counter()
                found = ask()
                seconds.append(time.perf_counter() - began)
            table.add_row(title, str(found), f"{statistics.median(seconds):.3f}")
    Console(width=100).print(table)


def _plainpacs(archive: Path, files: Path, patient: str) -> Callable[[], int]:
    command = [sys.executable, "-m", "plainpacs"]
    own = {**os.environ, "PLAINPACS_ARCHIVE": str(archive)}
    subprocess.run([*command, "init", str(archive)], check=True, capture_output=True)
    for more in (["import", str(files)], ["index", "--once"]):
        subprocess.run([*command, *more], check=False, capture_output=True, env=own)

    def ask() -> int:
        asked = [*command, "ls", f"PatientID={patient}"]
        return subprocess.run(asked, env=own, capture_output=True, check=True).stdout.count(b"\n")

    return ask


def _dcmdump(dump: str, files: Path, patient: str) -> int:
    script = (
        f"find '{files}' -name '*.dcm' -print0 | xargs -0 -n 500 '{dump}' -q -M "
        f"+P PatientID +P StudyInstanceUID | grep -A1 -F '[{patient}]' | grep 0020,000d | sort -u"
    )
    return subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.count(b"\n")


def _ask(at: Running, patient: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", at.second_port, timeout=60)
    with contextlib.closing(connection):
        asked = {"Level": "Study", "Query": {"PatientID": patient}}
        connection.request("POST", "/tools/find", json.dumps(asked))
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise Failed(f"Orthanc answered {answer.status}")
        return len(json.loads(answer.read()))
