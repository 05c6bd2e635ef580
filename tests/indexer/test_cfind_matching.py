"""Queries answered as DCMTK's dcmqrscp answers them, loaded with the same instances.

Asked of attributes and kinds of matching that it supports; of names in plain ASCII, as it knows no
other, and to the letter, as it does not fold case.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, file_meta
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.query.find import Level, find
from plainpacs.indexer.query.query import asked
from plainpacs.indexer.service.indexer import Indexer
from tests.indexer.test_levels import data_set
from tests.support.archives import eventually, new_archive
from tests.support.peer import dcmtk

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
UNIQUE = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}
PATIENTS = (
    ("P1", "DOE^JANE", "19600229"),
    ("P2", "DOE^JOHN^Q", "19700101"),
    ("P22", "ROE^RICHARD", ""),
    ("X-1", "O'NEILL^ANNE", "20010911"),
)


def data_sets() -> Iterator[tuple[str, bytes]]:
    """(SOP Instance UID, data set): two studies a patient, two series a study, two instances."""
    for number, (patient, name, birth) in enumerate(PATIENTS):
        for study in range(2):
            for series in range(2):
                for instance in range(2):
                    uid = f"1.9.{number}.{study}.{series}"
                    yield (
                        f"{uid}.{instance}",
                        data_set(
                            SOPClassUID=MR if series else CT,
                            SOPInstanceUID=f"{uid}.{instance}",
                            SeriesInstanceUID=uid,
                            StudyInstanceUID=f"1.9.{number}.{study}",
                            PatientID=patient,
                            PatientName=name,
                            PatientBirthDate=birth,
                            StudyDate=f"2024{number + 1:02}{10 + study}",
                            StudyTime=f"{8 + number:02}{30 * study:02}00",
                            AccessionNumber=f"ACC{number}{study}",
                            StudyID=str(number),
                            StudyDescription="KNEE LEFT" if study else "KNEE",
                            Modality="MR" if series else "CT",
                            SeriesNumber=str(series + 1),
                            InstanceNumber=str(instance + 1),
                        ),
                    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = new_archive(tmp_path_factory.mktemp("ours") / "a")
    with Archive.open(path) as archive:
        for _, body in data_sets():
            archive.store(body, EXPLICIT_LITTLE_ENDIAN, Provenance())
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def program(name: str) -> str:
    """The path of a program of DCMTK; not that of pynetdicom's of the same name."""
    dcmtk(name, "--version")  # which skips, or fails in CI, where it is not installed
    own = os.path.dirname(sys.executable)
    folders = [one for one in os.get_exec_path() if os.path.realpath(one) != own]
    found = shutil.which(name, path=os.pathsep.join(folders))
    assert found
    return found


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a dcmqrscp listens that has the same instances."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "stored").mkdir()
    command = program("dcmqrscp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {number}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
        f"THEIRS {folder / 'stored'} RW (500, 1024mb) ANY\nAETable END\n"
    )
    names = []
    for uid, body in data_sets():
        name = folder / "stored" / f"{uid}.dcm"
        sop_class = MR if uid.split(".")[4] == "1" else CT
        name.write_bytes(file_meta(sop_class, uid, EXPLICIT_LITTLE_ENDIAN) + body)
        names.append(str(name))
    done = dcmtk("dcmqridx", str(folder / "stored"), *names)
    assert done.returncode == 0, done.stderr
    server = subprocess.Popen(
        [command, "-c", str(folder / "dcmqrscp.cfg")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _answers(number))
        yield number
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    return dcmtk("echoscu", "-aec", "THEIRS", "127.0.0.1", str(port)).returncode == 0


def theirs(port: int, folder: Path, level: Level, keys: dict[str, str]) -> list[str]:
    wanted = {UNIQUE[level]: "", **keys}
    model = "-P" if level is Level.PATIENT else "-S"
    flags = [word for key, value in wanted.items() for word in ("-k", f"{key}={value}")]
    found = folder / "found"
    found.mkdir()
    done = dcmtk(
        *("findscu", model, "-aec", "THEIRS", "-X", "-od", str(found)),
        *("-k", f"QueryRetrieveLevel={level.value}", *flags, "127.0.0.1", str(port)),
    )
    assert done.returncode == 0, done.stderr
    answers = [pydicom.dcmread(one, force=True) for one in found.iterdir()]
    return sorted(str(answer.get(UNIQUE[level])) for answer in answers)


STUDY_11 = {"StudyInstanceUID": "1.9.1.1"}
SERIES_110 = {**STUDY_11, "SeriesInstanceUID": "1.9.1.1.0"}
ASKED: list[tuple[Level, dict[str, str]]] = [
    (Level.PATIENT, {}),
    (Level.PATIENT, {"PatientID": "P2"}),
    (Level.PATIENT, {"PatientID": "P?"}),
    (Level.PATIENT, {"PatientName": "DOE*"}),
    (Level.PATIENT, {"PatientName": "*R?CH*"}),
    (Level.PATIENT, {"PatientBirthDate": "19600101-19991231"}),
    (Level.STUDY, {}),
    (Level.STUDY, {"PatientID": ""}),
    (Level.STUDY, {"PatientID": "P2"}),
    (Level.STUDY, {"PatientID": "P2*"}),
    (Level.STUDY, {"PatientID": "p2"}),
    (Level.STUDY, {"PatientName": "DOE^JANE"}),
    (Level.STUDY, {"PatientName": "*^J*"}),
    (Level.STUDY, {"PatientName": "NOBODY"}),
    (Level.STUDY, {"StudyInstanceUID": "1.9.1.1"}),
    (Level.STUDY, {"StudyInstanceUID": "1.9.1.1\\1.9.2.0\\7.7"}),
    (Level.STUDY, {"AccessionNumber": "ACC20"}),
    (Level.STUDY, {"AccessionNumber": "ACC?1"}),
    (Level.STUDY, {"StudyID": "3"}),
    (Level.STUDY, {"StudyDate": "20240210"}),
    (Level.STUDY, {"StudyDate": "20240211-20240310"}),
    (Level.STUDY, {"StudyDate": "-20240211"}),
    (Level.STUDY, {"StudyDate": "20240311-"}),
    (Level.STUDY, {"StudyTime": "083000-100000"}),
    (Level.STUDY, {"StudyTime": "093000"}),
    (Level.STUDY, {"StudyDescription": "KNEE"}),
    (Level.STUDY, {"StudyDescription": "KNEE*"}),
    (Level.STUDY, {"StudyDescription": "*LEFT", "PatientName": "DOE*"}),
    (Level.SERIES, STUDY_11),
    (Level.SERIES, STUDY_11 | {"Modality": "MR"}),
    (Level.SERIES, STUDY_11 | {"Modality": "?T"}),
    (Level.SERIES, STUDY_11 | {"SeriesNumber": "2"}),
    (Level.SERIES, STUDY_11 | {"SeriesInstanceUID": "1.9.1.1.0"}),
    (Level.SERIES, {"StudyInstanceUID": "7.7"}),
    (Level.INSTANCE, SERIES_110),
    (Level.INSTANCE, SERIES_110 | {"InstanceNumber": "2"}),
    (Level.INSTANCE, SERIES_110 | {"SOPInstanceUID": "1.9.1.1.0.1"}),
    (Level.INSTANCE, SERIES_110 | {"SOPInstanceUID": "1.9.1.1.0.1\\1.9.1.1.0.0"}),
]


@pytest.mark.parametrize(("level", "keys"), ASKED)
def test_it_finds_what_dcmqrscp_finds(
    path: str, port: int, tmp_path: Path, level: Level, keys: dict[str, str]
) -> None:
    ours = [str(one[UNIQUE[level]]) for one in find(path, asked(keys, level), lambda _: None)]
    assert sorted(ours) == theirs(port, tmp_path, level, keys)


def test_the_comparison_finds_something(path: str) -> None:
    found = [len(list(find(path, asked(keys, level), lambda _: None))) for level, keys in ASKED]
    assert sum(bool(count) for count in found) > 30
    assert len(set(found)) > 5
