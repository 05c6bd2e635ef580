"""Real clients query: DCMTK's findscu, pynetdicom and Orthanc, on made-up and real instances."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.indexer.query import find as levels
from plainpacs.indexer.query.find import Level
from plainpacs.indexer.query.query import asked
from tests.support.orthanc import orthanc
from tests.support.peer import dcmtk
from tests.support.queries import PATIENT_ROOT, STUDY_ROOT, fill, index
from tests.support.receiver import Running, Start

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")


@pytest.fixture
def running(start: Start) -> Running:
    one = start()
    fill(one)
    return one


# --- DCMTK ----------------------------------------------------------------------------------------

_ELEMENT = re.compile(
    r"\(([0-9a-f]{4}),([0-9a-f]{4})\) \w\w (?:\[(.*?)\]|\(no value available\)|(\S+)).*#"
)


def findscu(running: Running, model: str, level: str, *keys: str) -> list[dict[str, str]]:
    """The answers, as values by tag."""
    told = [word for key in (f"QueryRetrieveLevel={level}", *keys) for word in ("-k", key)]
    where = ("-aec", "DRDCM", "127.0.0.1", str(running.port))
    done = dcmtk("findscu", "-v", model, *told, *where)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, str]] = []
    for line in (done.stdout + done.stderr).splitlines():
        if "Find Response:" in line or "Find SCP" in line:
            answers.append({})
        elif (found := _ELEMENT.search(line)) and answers:
            value = found[3] if found[3] is not None else found[4] or ""
            answers[-1][f"{found[1]}{found[2]}".upper()] = value.rstrip(" \0")
    final = [line for line in (done.stdout + done.stderr).splitlines() if "Final Find" in line]
    assert len(final) == 1
    assert "Success" in final[0]
    return [answer for answer in answers if answer]


STUDY, SERIES, SOP, PATIENT = "0020000D", "0020000E", "00080018", "00100020"


@pytest.mark.parametrize(
    ("model", "level", "keys", "tag", "expected"),
    [
        ("-P", "PATIENT", ["PatientID", "PatientName"], PATIENT, ["", "P1", "P3"]),
        ("-P", "STUDY", ["PatientID=P1", "StudyInstanceUID"], STUDY, ["1.1"]),
        ("-P", "SERIES", ["PatientID=P1", "StudyInstanceUID=1.1"], SERIES, ["1.1.1", "1.1.2"]),
        (
            "-P",
            "IMAGE",
            ["PatientID=P1", "StudyInstanceUID=1.1", "SeriesInstanceUID=1.1.1", "SOPInstanceUID"],
            SOP,
            ["1.1.1.1", "1.1.1.2"],
        ),
        ("-S", "STUDY", ["StudyInstanceUID", "PatientName=*"], STUDY, ["1.1", "1.2", "1.3"]),
        ("-S", "STUDY", ["StudyInstanceUID", "StudyDate=20240301-"], STUDY, ["1.2"]),
        ("-S", "SERIES", ["StudyInstanceUID=1.1", "Modality=SR"], SERIES, ["1.1.2"]),
        ("-S", "IMAGE", ["StudyInstanceUID=1.2", "SeriesInstanceUID=1.2.1"], SOP, ["1.2.1.1"]),
        ("-S", "STUDY", ["StudyInstanceUID=1.9"], STUDY, []),
    ],
)
def test_findscu(
    running: Running, model: str, level: str, *, keys: list[str], tag: str, expected: list[str]
):
    answers = findscu(running, model, level, *keys)
    assert sorted(answer[tag] for answer in answers) == expected
    assert {answer["00080052"] for answer in answers} <= {level}
    assert {answer["00080054"] for answer in answers} <= {"DRDCM"}


def test_findscu_cancels(running: Running):
    where = ("-aec", "DRDCM", "127.0.0.1", str(running.port))
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
    done = dcmtk("findscu", "-v", "-S", "--cancel", "1", *keys, *where)
    # It asks for no more after the first; all three may have been sent by then.
    assert done.returncode == 0
    assert re.search("Final Find Response.*(Cancel|Success)", done.stdout + done.stderr)


# --- pynetdicom -----------------------------------------------------------------------------------


@pytest.fixture
def association(running: Running) -> Iterator[Association]:
    yield from associated(running.port)


def associated(port: int, *items: Any) -> Iterator[Association]:
    ae = AE(ae_title="VIEWER")
    for model in (STUDY_ROOT, PATIENT_ROOT):
        ae.add_requested_context(model)
    found = ae.associate("127.0.0.1", port, ae_title="DRDCM", ext_neg=list(items))
    assert found.is_established
    try:
        yield found
    finally:
        found.release()


def find(
    association: Association, level: str, model: str = STUDY_ROOT, **keys: Any
) -> list[Dataset]:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    found: list[Dataset] = []
    statuses = []
    for status, answer in association.send_c_find(identifier, model):
        statuses.append(status.Status)
        if answer is not None:
            found.append(answer)
    # Else pynetdicom's own thread may take the first answer to the next query.
    while association._is_paused:
        time.sleep(0.0001)
    assert statuses[-1] == 0, statuses
    assert set(statuses[:-1]) <= {0xFF00, 0xFF01}
    return found


def test_pynetdicom(association: Association):
    found = find(
        association, "STUDY", PatientName="müller*", StudyInstanceUID="", ModalitiesInStudy=""
    )
    [study] = found
    assert (study.StudyInstanceUID, str(study.PatientName)) == ("1.1", "Müller^Jörg")
    assert list(study.ModalitiesInStudy) == ["CT", "SR"]
    assert study.RetrieveAETitle == "DRDCM"
    patients = find(association, "PATIENT", PATIENT_ROOT, PatientID="P3", PatientName="")
    assert [str(one.PatientName) for one in patients] == ["Yamada^Tarou=山田^太郎"]


def test_pynetdicom_agrees_on_relational_queries(running: Running):
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid = STUDY_ROOT
    item.service_class_application_information = b"\1\0\1\1\0"
    for association in associated(running.port, item):
        agreed = association.acceptor.sop_class_extended
        assert agreed == {STUDY_ROOT: b"\1\0\0\0\0"}
        found = find(association, "IMAGE", Modality="CT")
        assert sorted(one.SOPInstanceUID for one in found) == ["1.1.1.1", "1.1.1.2", "1.3.1.1"]


# --- Orthanc --------------------------------------------------------------------------------------


def test_orthanc_queries_us(running: Running, tmp_path: Path):
    with orthanc(tmp_path / "orthanc", {"us": ("DRDCM", running.port)}) as other:
        assert other.call("POST", "/modalities/us/echo", {}) == {}

        def query(level: str, **keys: str) -> list[dict[str, str]]:
            body = {"Level": level, "Query": keys}
            made = other.call("POST", "/modalities/us/query", body)
            return [
                other.call("GET", f"{made['Path']}/answers/{number}/content?simplify")
                for number in other.call("GET", f"{made['Path']}/answers")
            ]

        patients = query("Patient", PatientID="P*", PatientName="")
        assert sorted(one["PatientID"] for one in patients) == ["P1", "P3"]
        [study] = query("Study", PatientName="Müller*", ModalitiesInStudy="")
        assert (study["StudyInstanceUID"], study["PatientName"]) == ("1.1", "Müller^Jörg")
        assert study["ModalitiesInStudy"] == "CT\\SR"
        series = query("Series", StudyInstanceUID="1.1", PatientID="P1", Modality="")
        assert sorted(one["Modality"] for one in series) == ["CT", "SR"]
        keys = {"PatientID": "P1", "StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"}
        instances = query("Instance", **keys, SOPInstanceUID="", InstanceNumber="")
        assert sorted(one["InstanceNumber"] for one in instances) == ["10", "9"]


# --- real instances -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_instances(real_folders: tuple[Path, ...]) -> list[str]:
    return [
        str(path)
        for folder in real_folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < 20_000_000
    ]


def test_all_real_instances_are_found_level_by_level(start: Start, real_instances: list[str]):
    """From patient to instance by pynetdicom, every UID and every text as the indexes have them."""
    running = start()
    for _ in import_all(running.archive, sources(real_instances)):
        pass
    index(running)
    expected: dict[str, set[str]] = defaultdict(set)
    notes: list[str] = []
    for one in levels.find(str(running.root), asked({}, Level.INSTANCE), notes.append):
        expected[one["SeriesInstanceUID"]].add(one["SOPInstanceUID"])
    assert sum(map(len, expected.values())) >= 50
    studies = {
        one["StudyInstanceUID"]: one
        for one in levels.find(str(running.root), asked({}), notes.append)
    }
    found: dict[str, set[str]] = defaultdict(set)
    for association in associated(running.port):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = find(
                association, "STUDY", StudyInstanceUID="", PatientName="", StudyDescription=""
            )
            assert sorted(str(one.StudyInstanceUID) for one in told) == sorted(studies)
            for study in told:
                uid = str(study.StudyInstanceUID)
                record = studies[uid]
                assert str(study.PatientName or "") == record.get("PatientName", "").rstrip("=")
                assert (study.StudyDescription or "") == record.get("StudyDescription", "")
                for series in find(
                    association, "SERIES", StudyInstanceUID=uid, SeriesInstanceUID=""
                ):
                    own = str(series.SeriesInstanceUID)
                    keys = {"StudyInstanceUID": uid, "SeriesInstanceUID": own}
                    answers = find(association, "IMAGE", **keys, SOPInstanceUID="", KVP="")
                    found[own].update(str(one.SOPInstanceUID) for one in answers)
    assert found == expected


def test_every_real_patient_is_found_by_findscu(start: Start, real_instances: list[str]):
    running = start()
    for _ in import_all(running.archive, sources(real_instances)):
        pass
    index(running)
    records = levels.find(str(running.root), asked({}, Level.PATIENT), lambda _: None)
    expected = sorted(one.get("PatientID", "") for one in records)
    answers = findscu(running, "-P", "PATIENT", "PatientID", "PatientName")
    assert sorted(answer[PATIENT] for answer in answers) == expected


def test_the_benchmark_runs(tmp_path: Path):
    dcmtk("storescu", "--version")  # which skips, or fails in CI, where it is not installed
    few = ("--studies", "6", "--large", "600", "--rounds", "1", "--dir", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.find", *few],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert re.search("all studies .* plainpacs .* 6 ", done.stdout)
    assert re.search("one PatientID .* 2 ", done.stdout)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
