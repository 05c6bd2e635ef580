"""Patients, studies, series and instances by one call, and what is told of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.index import lookup
from plainpacs.indexer.query import sorting
from plainpacs.indexer.query.find import Level, find
from plainpacs.indexer.query.query import Query, asked, parse
from plainpacs.indexer.query.sorting import in_order, sort_keys
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import CT_IMAGE_STORAGE, PYDICOM_FILES, new_archive

Record = dict[str, Any]

SR = "1.2.840.10008.5.1.4.1.1.88.11"


def data_set(**values: Any) -> bytes:
    """A data set in Explicit VR Little Endian."""
    dataset = Dataset()
    defaults = {"SOPClassUID": CT_IMAGE_STORAGE, "PatientID": "P1", "StudyDate": "20240131"}
    for keyword, value in (defaults | values).items():
        items = keyword == "RequestAttributesSequence"
        setattr(dataset, keyword, [_item(**item) for item in value] if items else value)
    buffer = BytesIO()
    dataset.file_meta = FileMetaDataset()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def _item(**values: str) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


HEAD: Record = {"StudyInstanceUID": "1.1", "StudyTime": "1000", "PatientName": "Doe^Jane"}
LUNG = HEAD | {
    "SeriesInstanceUID": "1.1.1",
    "Modality": "CT",
    "SeriesNumber": "2",
    "SeriesDescription": "Lunge Ä",
    "SpecificCharacterSet": "ISO_IR 192",
    "SeriesDate": "20240131",
    "SeriesTime": "1015",
    "RequestAttributesSequence": [
        {"ScheduledProcedureStepID": "STEP-1", "RequestedProcedureID": "PROC-1"},
        {"ScheduledProcedureStepID": "STEP-2", "RequestedProcedureID": "PROC-2"},
    ],
}
STORED: list[Record] = [
    LUNG | {"SOPInstanceUID": "1.1.1.1", "InstanceNumber": "10", "SliceThickness": "0.750"},
    LUNG | {"SOPInstanceUID": "1.1.1.2", "InstanceNumber": "9", "Rows": 512, "Columns": 256},
    # A report of another patient, by mistake under the same study.
    HEAD
    | {
        "SeriesInstanceUID": "1.1.2",
        "SOPInstanceUID": "1.1.2.1",
        "SOPClassUID": SR,
        "Modality": "SR",
        "SeriesNumber": "1",
        "PatientID": "P2",
        "PatientName": "Roe^Richard",
    },
    # After midnight, at the end of a month.
    {
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1",
        "SOPInstanceUID": "1.2.1.1",
        "StudyTime": "2350",
        "Modality": "MR",
        "InstanceNumber": "1",
    },
    {
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1",
        "SOPInstanceUID": "1.2.1.2",
        "StudyDate": "20240201",
        "StudyTime": "0010",
        "Modality": "MR",
        "InstanceNumber": "-2",
    },
    # Neither a patient's ID nor a date.
    {
        "StudyInstanceUID": "1.3",
        "SeriesInstanceUID": "1.3.1",
        "SOPInstanceUID": "1.3.1.1",
        "PatientID": "",
        "PatientName": "Nobody",
        "StudyDate": "",
        "Modality": "CT",
    },
]
SENDER = Provenance("CT1", "DRDCM", "10.0.0.5")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = new_archive(tmp_path_factory.mktemp("levels") / "a")
    with Archive.open(path) as archive:
        for values in STORED:
            archive.store(data_set(**values), EXPLICIT_LITTLE_ENDIAN, SENDER)
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def no_indexes(path: str) -> None:
    shutil.rmtree(Path(path, ".plainpacs"))
    for derived in [*Path(path).glob("*/studies.jsonl"), *Path(path).glob("*/*/study.json")]:
        derived.unlink()


def no_internal(path: str) -> None:
    shutil.rmtree(Path(path, ".plainpacs"))


def nothing(path: str) -> None:
    """As it is."""


@pytest.fixture(scope="module", params=[nothing, no_internal, no_indexes])
def path(request: pytest.FixtureRequest, filled: str, tmp_path_factory: Any) -> str:
    copy = str(tmp_path_factory.mktemp("copy") / "a")
    shutil.copytree(filled, copy)
    request.param(copy)
    return copy


UID = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}


def uids(path: str, level: Level, query: Query) -> list[str]:
    return [str(record.get(UID[level], "")) for record in find(path, query, lambda _: None)]


def test_without_terms_it_is_everything_in_order(path: str) -> None:
    found = {level: uids(path, level, parse([], level=level)) for level in Level}
    assert found == {
        Level.PATIENT: ["P1", ""],  # P2 is what some instances of a study of P1 say
        Level.STUDY: ["1.2", "1.1", "1.3"],
        Level.SERIES: ["1.2.1", "1.1.2", "1.1.1", "1.3.1"],
        Level.INSTANCE: ["1.2.1.1", "1.2.1.2", "1.1.2.1", "1.1.1.2", "1.1.1.1", "1.3.1.1"],
    }


TERMS: list[tuple[Level, list[str], list[str]]] = [
    (Level.PATIENT, ["PatientID=P1"], ["P1"]),
    (Level.PATIENT, ["PatientID=P2"], ["P1"]),  # marked, see below
    (Level.PATIENT, ["nobody"], [""]),
    (Level.PATIENT, ["Modality=MR"], ["P1"]),
    (Level.STUDY, ["Modality=SR"], ["1.1"]),
    (Level.STUDY, ["SOPClassUID=" + SR], ["1.1"]),
    (Level.STUDY, ["StudyDateTime=202401312300-202402010500"], ["1.2"]),
    (Level.STUDY, ["StudyDateTime=202401310900-202401311000"], ["1.1"]),
    (Level.SERIES, ["Modality=CT"], ["1.1.1", "1.3.1"]),
    (Level.SERIES, ["Modality=CT", "PatientID=P1"], ["1.1.1"]),
    (Level.SERIES, ["SeriesDescription=*lunge a"], ["1.1.1"]),
    (Level.SERIES, ["lunge"], ["1.1.1"]),
    (Level.SERIES, ["SeriesNumber=1-"], ["1.1.2", "1.1.1"]),
    (Level.SERIES, ["SeriesInstanceUID=1.1.2\\1.3.1"], ["1.1.2", "1.3.1"]),
    (Level.SERIES, ["SeriesInstanceUID=7.7"], []),
    (Level.SERIES, ["StudyInstanceUID=1.2"], ["1.2.1"]),
    (Level.SERIES, ["SeriesDateTime=202401311000-202401311100"], ["1.1.1"]),
    (Level.SERIES, ["RequestedProcedureID=PROC-1"], ["1.1.1"]),
    (Level.SERIES, ["RequestedProcedureID=PROC-1", "ScheduledProcedureStepID=STEP-1"], ["1.1.1"]),
    # Both, but no item has both.
    (Level.SERIES, ["RequestedProcedureID=PROC-1", "ScheduledProcedureStepID=STEP-2"], []),
    (Level.SERIES, ["NumberOfSeriesRelatedInstances=2"], ["1.2.1", "1.1.1"]),
    (Level.INSTANCE, ["SOPInstanceUID=1.1.2.1"], ["1.1.2.1"]),
    (Level.INSTANCE, ["SOPInstanceUID=1.1.2.1", "SeriesInstanceUID=1.1.1"], []),
    (Level.INSTANCE, ["SeriesInstanceUID=1.1.1"], ["1.1.1.2", "1.1.1.1"]),
    (Level.INSTANCE, ["SOPClassUID=" + SR], ["1.1.2.1"]),
    (Level.INSTANCE, ["PatientID=P2"], ["1.1.2.1"]),  # each by what it says itself
    (Level.INSTANCE, ["PatientID=P1", "StudyInstanceUID=1.1"], ["1.1.1.2", "1.1.1.1"]),
    (Level.INSTANCE, ["InstanceNumber=-2"], ["1.2.1.2"]),
    (Level.INSTANCE, ["SliceThickness=7.5e-1"], ["1.1.1.1"]),
    (Level.INSTANCE, ["Rows=500-600", "Columns=256"], ["1.1.1.2"]),
    (Level.INSTANCE, ["StudyDate=20240201"], ["1.2.1.2"]),
    (Level.INSTANCE, ["calling_ae=CT1", "Modality=MR"], ["1.2.1.1", "1.2.1.2"]),
    (Level.INSTANCE, ["calling_ae=CT2"], []),
    (Level.INSTANCE, ["1.1.1.1"], ["1.1.1.1"]),
]


@pytest.mark.parametrize(("level", "terms", "expected"), TERMS)
def test_terms(path: str, level: Level, terms: list[str], expected: list[str]) -> None:
    assert uids(path, level, parse(terms, level=level)) == expected


@pytest.mark.parametrize("level", Level)
def test_stored(path: str, level: Level) -> None:
    assert uids(path, level, parse([], "1h", level=level)) == uids(path, level, Query(level=level))
    assert uids(path, level, parse([], "-20200101", level=level)) == []


def test_what_a_series_and_an_instance_are_told_with(path: str) -> None:
    query = parse(["SeriesInstanceUID=1.2.1"], level=Level.SERIES)
    [series] = find(path, query, lambda _: None)
    assert series["NumberOfSeriesRelatedInstances"] == 2  # in both months
    assert series["paths"] == ["202401/1.2/1.2.1", "202402/1.2/1.2.1"]
    assert series["PatientID"] == "P1"
    assert series["StudyDate"] == "20240131"
    assert series["NumberOfStudyRelatedInstances"] == 2
    assert series["ModalitiesInStudy"] == ["MR"]
    assert "series" not in series
    query = parse(["SOPInstanceUID=1.2.1.2"], level=Level.INSTANCE)
    [instance] = find(path, query, lambda _: None)
    assert instance["path"] == "202402/1.2/1.2.1/1.2.1.2.dcm"
    assert os.path.getsize(Path(path, instance["path"])) == instance["bytes"]
    assert instance["StudyDate"] == "20240201"  # its own
    assert instance["NumberOfSeriesRelatedInstances"] == 2
    assert instance["calling_ae"] == "CT1"
    assert "instances" not in instance


def test_what_matches_by_another_value_is_marked(path: str) -> None:
    for level in (Level.PATIENT, Level.STUDY, Level.SERIES):
        terms = parse(["PatientID=P2"], level=level)
        for record in find(path, terms, lambda _: None):
            assert record["PatientID"] == "P1"
            assert record["by_another_value"] == ["PatientID"]
            assert record["conflicting"]["PatientID"] == ["P1", "P2"]
    for record in find(path, parse(["PatientID=P1"]), lambda _: None):
        assert "by_another_value" not in record


def test_patients_have_all_their_studies_counted(path: str) -> None:
    [patient] = find(path, parse(["PatientName=doe*"], level=Level.PATIENT), lambda _: None)
    assert patient["NumberOfPatientRelatedStudies"] == 2  # of which one has no name
    assert patient["NumberOfPatientRelatedSeries"] == 3
    assert patient["NumberOfPatientRelatedInstances"] == 5
    assert patient["PatientName"] == "Doe^Jane"
    assert not patient.keys() & {"StudyInstanceUID", "StudyDate", "ModalitiesInStudy"}


def test_sorted_and_limited(path: str) -> None:
    def found(sort: str, limit: int | None = None, level: Level = Level.INSTANCE) -> list[str]:
        query = parse([], level=level)
        records = find(path, query, lambda _: None, sort=sort_keys(sort, level), limit=limit)
        return [record[UID[level]] for record in records]

    every = ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1", "1.2.1.2", "1.3.1.1"]
    assert found("SOPInstanceUID") == every
    assert found("-SOPInstanceUID", 2) == ["1.3.1.1", "1.2.1.2"]
    # By number, not by spelling; those without one last, up or down.
    numbers = ["1.2.1.2", "1.2.1.1", "1.1.1.2", "1.1.1.1", "1.1.2.1", "1.3.1.1"]
    assert found("instancenumber,SOPInstanceUID") == numbers
    assert found("-InstanceNumber,SOPInstanceUID") == [*numbers[3::-1], *numbers[4:]]
    assert found("-StudyDate", 1, Level.STUDY) == ["1.2"]
    assert found("StudyDate,StudyTime", None, Level.STUDY) == ["1.1", "1.2", "1.3"]
    assert list(find(path, Query(), lambda _: None, limit=0)) == []


@given(
    st.lists(st.sampled_from([None, 1, 2, 2.5, "a", "Ä", "b", ["c"], ""]), max_size=8),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_values_can_be_sorted(values: list[Any], down: bool, limit: int) -> None:
    records = [{"K": value, "n": number} for number, value in enumerate(values)]
    ordered = list(in_order(records, ["-K" if down else "K"]))
    there = [r for r in ordered if r["K"] not in (None, "")]
    assert ordered[: len(there)] == there
    assert sorted(r["n"] for r in ordered) == list(range(len(values)))
    weights = [sorting.sort_value(r, "K") for r in there]
    assert weights == sorted(weights, reverse=down)
    assert list(in_order(records, ["-K" if down else "K"], limit)) == ordered[:limit]


def test_a_limit_bounds_what_is_held() -> None:
    def many() -> Any:
        for number in range(30_000):
            yield {"K": (number * 7919) % 30_000}

    assert [r["K"] for r in in_order(many(), ["-K"], 3)] == [29_999, 29_998, 29_997]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sort_keys("PatientsName", Level.STUDY), "nearest is PatientName"),
        (lambda: sort_keys("SeriesNumber", Level.STUDY), "no field of studies"),
        (lambda: sort_keys(" , ", Level.STUDY), "names no key"),
        (lambda: parse(["Rows=5"], level=Level.SERIES), "it is one of instances"),
        (lambda: parse(["SliceThickness=thin"], level=Level.INSTANCE), "takes a number"),
        (lambda: asked({"PatientID": {"X": "1"}}), "has no items"),
        (lambda: asked({"StudyDate": "2024"}), "takes a date"),
        (lambda: asked({"SeriesDescription": "x"}), "it is one of series"),
    ],
)
def test_what_cannot_be_asked(make: Callable[[], object], words: str) -> None:
    with pytest.raises(Exception, match=words) as error:
        make()
    assert error.value.exit_code == 2  # type: ignore[attr-defined]  # a BadQuery


def test_keys_as_c_find_has_them(path: str) -> None:
    def found(keys: Any, level: Level = Level.STUDY, **more: Any) -> list[str]:
        return uids(path, level, asked(keys, level, **more))

    assert found({"PatientID": "", "StudyDate": ""}) == ["1.2", "1.1", "1.3"]  # universal
    assert found({"PatientID": []}) == ["1.2", "1.1", "1.3"]
    assert found({"StudyInstanceUID": ["1.1", "1.3"]}) == ["1.1", "1.3"]
    assert found({"StudyInstanceUID": "1.1\\1.3"}) == ["1.1", "1.3"]
    assert found({"PatientName": "DOE^JANE"}) == ["1.1"]
    assert found({"SeriesDescription": "lunge ä"}, Level.SERIES) == []  # to the letter
    assert found({"SeriesDescription": "Lunge ?"}, Level.SERIES) == ["1.1.1"]
    items = {"RequestedProcedureID": "PROC-2", "ScheduledProcedureStepID": "STEP-2"}
    assert found({"RequestAttributesSequence": items}, Level.SERIES) == ["1.1.1"]
    items["RequestedProcedureID"] = "PROC-1"
    assert found({"RequestAttributesSequence": items}, Level.SERIES) == []
    assert found({"RequestAttributesSequence": {}}, Level.SERIES) == found({}, Level.SERIES)
    # Apart, the times are of every day; together they are one range.
    night = {"StudyDate": "20240131-20240201", "StudyTime": "2300-0030"}
    assert found(night, combined=True) == ["1.2"]
    day = {"StudyDate": "20240131-20240201", "StudyTime": "0900-1100"}
    assert found(day) == ["1.1"]
    assert found(day, combined=True) == ["1.2", "1.1"]


def test_a_study_without_its_series_is_looked_for_nowhere_else(path: str) -> None:
    # Narrowed by the shards where there are any, else by reading every study.
    known = lookup.studies_holding(path, ["1.1.1"])
    assert known == ({"1.1"} if Path(path, ".plainpacs").is_dir() else None)


# --- real instances -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Record]]:
    """An archive of pydicom's own files, and every instance of it as read without our lookup."""
    path = new_archive(tmp_path_factory.mktemp("real") / "a")
    with Archive.open(path) as archive:
        for _ in import_all(archive, sources([str(PYDICOM_FILES)])):
            pass
    with Indexer.open(path) as indexer:
        indexer.once()
    instances = []
    for manifest in Path(path).glob("*/*/*.jsonl"):
        study = manifest.parent.name
        index = [orjson.loads(one.read_bytes()) for one in Path(path).glob(f"*/{study}/study.json")]
        for raw in manifest.read_bytes().splitlines():
            line = orjson.loads(raw)
            series = next(
                one
                for part in index
                for one in part["series"]
                if one["SeriesInstanceUID"] == line["SeriesInstanceUID"]
            )
            instances.append({**index[0], **series, **line})
    return path, instances


REAL: list[tuple[list[str], Callable[[Record], bool]]] = [
    ([], lambda r: True),
    (["Modality=CT"], lambda r: r.get("Modality") == "CT"),
    (["Modality=MR\\US"], lambda r: r.get("Modality") in ("MR", "US")),
    (["Rows=512"], lambda r: r.get("Rows") == 512),
    (["Rows=100-300"], lambda r: 100 <= r.get("Rows", 0) <= 300),
    (["PatientName=*^*"], lambda r: "^" in r.get("PatientName", "")),
    (["PatientID=?*"], lambda r: bool(r.get("PatientID"))),
    (["NumberOfFrames=2-"], lambda r: r.get("NumberOfFrames", 0) >= 2),
    (["ImageType=ORIGINAL"], lambda r: "ORIGINAL" in r.get("ImageType", [])),
    (["BodyPartExamined=?*"], lambda r: bool(r.get("BodyPartExamined"))),
    (["SeriesNumber=1"], lambda r: r.get("SeriesNumber") == 1),
    (["StudyDate=20000101-20101231"], lambda r: "2000" <= r.get("StudyDate", "")[:4] <= "2010"),
    (["transfer_syntax=1.2.840.10008.1.2"], lambda r: r["transfer_syntax"] == "1.2.840.10008.1.2"),
]


@pytest.mark.parametrize(("terms", "holds"), REAL)
def test_real_instances_are_those_of_a_naive_reading(
    real: tuple[str, list[Record]], terms: list[str], holds: Callable[[Record], bool]
) -> None:
    path, instances = real
    query = parse(terms, level=Level.INSTANCE)
    found = sorted(r["path"].rpartition("/")[2] for r in find(path, query, lambda _: None))
    assert found == sorted(r["file"] for r in instances if holds(r))
    assert found


def test_real_series_and_studies_are_told_as_study_json_has_them(
    real: tuple[str, list[Record]],
) -> None:
    path, instances = real
    series = list(find(path, Query(level=Level.SERIES), lambda _: None))
    assert {one["SeriesInstanceUID"] for one in series} == {
        one["SeriesInstanceUID"] for one in instances
    }
    assert sum(one["NumberOfSeriesRelatedInstances"] for one in series) == len(instances)
    patients = list(find(path, Query(level=Level.PATIENT), lambda _: None))
    studies = list(find(path, Query(), lambda _: None))
    assert sum(one["NumberOfPatientRelatedStudies"] for one in patients) == len(studies)
    assert sum(one["NumberOfPatientRelatedInstances"] for one in patients) == len(instances)
    assert sum(one["bytes"] for one in patients) == sum(one["bytes"] for one in instances)
