"""``import plainpacs``: reading an archive from Python."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

import plainpacs
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.query.find import Level, find
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store
from tests.support.mounts import may_mount, mounted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two studies of two series with two instances each; a third lies in two months."""
    path = new_archive(tmp_path_factory.mktemp("api") / "a")
    with Archive.open(path, sync=False) as archive:
        for study, modality, patient in (("1.1", "CT", "Doe^Jane"), ("1.2", "MR", "Roe^Ann")):
            for number in range(4):
                store(
                    archive,
                    StudyInstanceUID=study,
                    StudyDate=f"2024010{study[-1]}",
                    PatientName=patient,
                    Modality=modality,
                    SeriesInstanceUID=f"{study}.{number % 2}",
                    SeriesNumber=str(9 - number % 2),
                    SOPInstanceUID=f"{study}.{number % 2}.{number}",
                    InstanceNumber=str(9 - number),
                )
        for date in ("20231231", "20240101"):
            store(
                archive,
                StudyInstanceUID="1.3",
                SeriesInstanceUID="1.3.1",
                SOPInstanceUID=f"1.3.1.{date}",
                StudyDate=date,
            )
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def uids(found: plainpacs.Results[plainpacs.Study]) -> list[str]:
    return [study.StudyInstanceUID for study in found]


@pytest.mark.parametrize(
    ("terms", "keys", "same"),
    [
        ([], {}, []),
        (["Modality=MR"], {"PatientID": "P1"}, ["Modality=MR", "PatientID=P1"]),
        (["doe"], {"StudyDate": "20240101-"}, ["doe", "StudyDate=20240101-"]),
        ([], {"Modality": ("CT", "MR")}, ["Modality=CT", "Modality=MR"]),
        ([], {"NumberOfStudyRelatedInstances": 4}, ["NumberOfStudyRelatedInstances=4"]),
        ([], {"PatientID": "nobody"}, ["PatientID=nobody"]),
    ],
)
def test_terms_are_those_of_ls(path: str, terms: list[str], keys: dict, same: list[str]) -> None:
    archive = plainpacs.open(path)
    for level, results in (
        (Level.STUDY, archive.studies(*terms, **keys)),
        (Level.SERIES, archive.series(*terms, **keys)),
        (Level.INSTANCE, archive.instances(*terms, **keys)),
    ):
        records = list(find(path, parse(same, level=level), pytest.fail))
        assert len(results.dicts()) == len(records)
        for found, record in zip(results, records, strict=True):
            there = record.pop("paths", None) or [record.pop("path")]
            assert [str(one) for one in found.paths] == [f"{path}/{one}" for one in there]
            given = found.dict()
            assert (given.pop("paths", None) or [given.pop("path")]) == list(map(str, found.paths))
            assert given == record


def test_order_limit_and_time_of_storing(path: str) -> None:
    archive = plainpacs.open(path)
    assert uids(archive.studies()) == ["1.2", "1.1", "1.3"]
    assert uids(archive.studies(sort="StudyInstanceUID")) == ["1.1", "1.2", "1.3"]
    assert uids(archive.studies(sort="-StudyInstanceUID", limit=1)) == ["1.3"]
    assert uids(archive.studies(stored="today", limit=2)) == ["1.2", "1.1"]
    assert uids(archive.studies(stored="20200101")) == []


def test_from_the_study_to_the_data_set(path: str) -> None:
    study = plainpacs.open(path).study("1.2")
    assert (study.PatientName, study.get("StudyID", "-")) == ("Roe^Ann", "-")
    assert study.path == Path(path, "202401/1.2")
    assert [series.SeriesNumber for series in study.series] == [8, 9]
    by_series = [one.SOPInstanceUID for series in study.series for one in series.instances]
    assert by_series == ["1.2.1.3", "1.2.1.1", "1.2.0.2", "1.2.0.0"]
    assert [one.SOPInstanceUID for one in study.instances] == by_series
    for series in study.series:
        assert series.path.parent == study.path
        for instance in series.instances:
            assert instance.path.parent == series.path
            assert (instance.PatientName, instance.calling_ae) == ("Roe^Ann", "CT1")
            assert instance.dcmread() == pydicom.dcmread(instance.path)
            assert "PixelData" not in instance.dcmread(stop_before_pixels=True)


def test_results_are_read_anew(path: str) -> None:
    results = plainpacs.open(path).study("1.2").instances
    first = iter(results)
    assert next(first).SOPInstanceUID == next(iter(results)).SOPInstanceUID
    assert len(list(results)) == len(list(results)) == 4


def test_a_study_of_two_months_is_whole(path: str) -> None:
    study = plainpacs.open(path).study("1.3")
    assert study.paths == [Path(path, "202312/1.3"), Path(path, "202401/1.3")]
    with pytest.raises(plainpacs.NoMatch, match="lies in 2 folders: use paths"):
        study.path  # noqa: B018 - a property that raises
    [series] = study.series
    assert len(series.paths) == 2
    assert [one.path.parts[-4] for one in series.instances] == ["202312", "202401"]


def test_what_a_study_lacks_is_an_attribute_error(path: str) -> None:
    study = plainpacs.open(path).study("1.1")
    with pytest.raises(AttributeError, match="this study has no StudyID"):
        study.StudyID  # noqa: B018 - an attribute that is not there
    assert getattr(study, "StudyID", "") == ""
    assert "PatientName" in dir(study)
    assert repr(study) == "<plainpacs.Study 1.1>"
    again = pickle.loads(pickle.dumps(study))
    assert (again.dict(), again.path) == (study.dict(), study.path)
    study.dict().clear()
    assert study.PatientName == "Doe^Jane"


def test_errors(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(plainpacs.NotAnArchive, match="does not exist"):
        plainpacs.open(tmp_path / "none")
    with pytest.raises(plainpacs.NotAnArchive, match="not a plainpacs archive"):
        plainpacs.open(tmp_path)
    archive = plainpacs.open(path)
    with pytest.raises(plainpacs.BadQuery, match="nearest is PatientID"):
        archive.studies(PatentID="P1")
    with pytest.raises(plainpacs.BadQuery, match="it is one of instances"):
        archive.studies("Rows=512")
    with pytest.raises(plainpacs.BadQuery):
        archive.series(StudyDate="yesterday or so")
    with pytest.raises(plainpacs.BadQuery, match="no field of studies"):
        archive.studies(sort="Rows")
    with pytest.raises(plainpacs.NoMatch, match="no study 9"):
        archive.study("9.9")
    monkeypatch.setenv("PLAINPACS_ARCHIVE", path)
    assert plainpacs.open().root == Path(path)
    monkeypatch.chdir(Path(path).parent)
    assert plainpacs.open("a").root == Path(path)
    with pytest.raises(AttributeError, match="module 'plainpacs' has no attribute 'opne'"):
        plainpacs.opne  # type: ignore[attr-defined]  # noqa: B018 - as a person mistypes it


def everything(root: str | Path) -> list[tuple[str, os.stat_result]]:
    """All there is, and when it was changed."""
    return sorted(
        (path, (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
        for folder, _, names in os.walk(root)
        for path in (folder, *(os.path.join(folder, name) for name in names))
        for facts in [os.lstat(path)]
    )


@pytest.mark.parametrize("lacks", ["nothing", "indexes", "all but instances and manifests"])
def test_it_never_writes(
    path: str, tmp_path: Path, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", path, copy], check=True)
    if lacks != "nothing":
        for index in [*copy.glob("2*/studies.jsonl"), *copy.glob("2*/*/study.json")]:
            index.unlink()
    if lacks.startswith("all"):
        subprocess.run(["rm", "-r", copy / ".plainpacs"], check=True)
    before = everything(copy)
    archive = plainpacs.open(copy)
    assert sorted(uids(archive.studies())) == ["1.1", "1.2", "1.3"]
    assert len(archive.instances().dicts()) == 10
    assert [one.dcmread().SOPInstanceUID for one in archive.study("1.2").instances]
    assert everything(copy) == before
    said = [record.getMessage() for record in caplog.records if record.name == "plainpacs"]
    assert bool(said) == (lacks != "nothing")


def test_a_read_only_mount(path: str, tmp_path: Path) -> None:
    may_mount(tmp_path / "mount")
    with mounted("-o", "bind,ro", path, at=tmp_path / "mount") as copy:
        assert len(plainpacs.open(copy).instances().dicts()) == 10


def test_only_what_is_used_is_loaded(path: str) -> None:
    script = f"""if True:
    import sys, plainpacs
    assert plainpacs.__version__
    assert not [name for name in sys.modules if name.startswith("plainpacs.")]
    assert "open" in dir(plainpacs)
    archive = plainpacs.open({path!r})
    assert len(archive.studies().dicts()) == 3
    assert not sys.modules.keys() & {{"pydicom", "numpy", "click", "rich", "watchdog"}}
    archive.study("1.1").instances.__iter__().__next__().dcmread()
    assert "pydicom" in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_name_it_exports_is_there() -> None:
    for name in plainpacs.__all__:
        assert getattr(plainpacs, name).__doc__
