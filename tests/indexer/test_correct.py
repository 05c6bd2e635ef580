"""The command ``correct``: values corrected in place, and taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest

from plainpacs.archive.store.store import Archive
from tests.support.archives import instances_in, new_archive, store, tree
from tests.support.commands import Run, run

__all__ = ["run"]  # the fixture


@pytest.fixture
def root(tmp_path: Path, run: Run) -> str:
    """Three studies: two of the patient A, one of B, who is the same person."""
    path = new_archive(tmp_path / "archive")
    with Archive.open(path) as archive:
        for number, patient in enumerate("AAB"):
            for instance in range(2):
                store(
                    archive,
                    StudyInstanceUID=f"1.{number}",
                    SeriesInstanceUID=f"1.{number}.1",
                    SOPInstanceUID=f"1.{number}.1.{instance}",
                    PatientID=patient,
                    PatientName={"A": "Doe^Jane", "B": "Doe^Janet"}[patient],
                    PatientBirthDate="19700101",
                    AccessionNumber=f"N{number}",
                )
    assert run("index", "--once", "-a", path).code == 0
    return path


def record(run: Run, root: str, study: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("-a", root, "show", study).out)
    return found


def pixels(root: str) -> dict[str, bytes]:
    return {
        path: pydicom.dcmread(Path(root, path), force=True).get("PixelData", b"")
        for path in instances_in(root)
    }


def test_a_study_is_corrected_and_the_correction_taken_back(run: Run, root: str) -> None:
    files, images = tree(root), pixels(root)
    done = run("-a", root, "correct", "1.0", "PatientName=Müller^Änne", "PatientSex=F", "--yes")
    assert done.code == 0, done.err
    assert "2 instances corrected" in done.err
    assert pixels(root) == images
    now = record(run, root, "1.0")
    assert (now["PatientName"], now["PatientSex"]) == ("Müller^Änne", "F")
    assert now["conflicting"] == {}
    assert record(run, root, "1.1")["PatientName"] == "Doe^Jane"
    [line] = run("-a", root, "ls", "PatientName=müller*", "--format", "jsonl").out.splitlines()
    assert json.loads(line)["StudyInstanceUID"] == "1.0"
    verified = run("-a", root, "verify")
    assert verified.code == 0, verified.out
    audit = run("-a", root, "audit", "--event", "correct", "--format", "jsonl")
    [line] = audit.out.splitlines()
    assert json.loads(line)["instances"] == 2
    assert json.loads(line)["attributes"] == ["PatientName", "PatientSex"]
    assert "ller" not in line
    again = run("-a", root, "correct", "1.0", "PatientName=Müller^Änne", "--yes")
    assert (again.code, "0 instances corrected, 0 failed, 2 left" in again.err) == (1, True)

    back = run("-a", root, "conflicts", "--keep", "second", "1.0")
    assert back.code == 0, back.err
    assert record(run, root, "1.0")["PatientName"] == "Doe^Jane"
    assert {path: files[path] for path in instances_in(root)} == {
        path: digest for path, digest in tree(root).items() if path.endswith(".dcm")
    }


def test_two_ids_of_one_person_become_one(run: Run, root: str) -> None:
    done = run("-a", root, "correct", "--merge", "B", "A", "--yes")
    assert done.code == 0, done.err
    assert "2 instances corrected" in done.err
    listed = run("-a", root, "ls", "PatientID=A", "--format", "jsonl").out.splitlines()
    assert {json.loads(line)["PatientName"] for line in listed} == {"Doe^Jane"}
    assert len(listed) == 3
    assert run("-a", root, "correct", "--merge", "A", "Z", "--yes").code == 1
    assert run("-a", root, "correct", "--merge", "B", "A", "--yes").code == 1  # none of B is left


def test_a_key_that_can_be_corrected_names_studies_with_where(run: Run, root: str) -> None:
    done = run(
        *("-a", root, "correct", "--where", "AccessionNumber=N1", "AccessionNumber=N7", "--yes")
    )
    assert done.code == 0, done.err
    assert record(run, root, "1.1")["AccessionNumber"] == "N7"
    assert record(run, root, "1.0")["AccessionNumber"] == "N0"
    dry = run("-a", root, "correct", "1.0", "PatientID=", "--dry-run")
    assert (dry.code, "2 instances would be corrected" in dry.err) == (0, True)
    assert record(run, root, "1.0")["PatientID"] == "A"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1.0",), "give KEY=VALUE"),
        (("PatientID=X",), "which study?"),
        (("1.0", "PatientBirthDate=1.1.1970"), "use YYYYMMDD"),
        (("1.0", "PatientID=X"), "nobody to ask"),
        (("--merge", "A", "B", "1.0"), "names the patients itself"),
    ],
)
def test_wrong_uses_are_said(run: Run, root: str, arguments: tuple[str, ...], words: str) -> None:
    before = tree(root)
    done = run("-a", root, "correct", *arguments)
    assert (done.code, words in done.err) == (2, True), done.err
    assert tree(root) == before


def test_what_cannot_be_corrected_is_named_and_stays(run: Run, root: str) -> None:
    with Archive.open(root) as archive:
        store(
            archive,
            StudyInstanceUID="1.0",
            SeriesInstanceUID="1.0.1",
            SOPInstanceUID="1.0.1.9",
            SpecificCharacterSet="ISO_IR 100",
            PatientID="A",
            PatientName="Doe^Jane",
        )
    done = run("-a", root, "correct", "1.0", "PatientName=山田", "--yes")
    assert done.code == 1
    assert "1.0.1.9.dcm stays as it is: its character set (ISO_IR 100) cannot carry" in done.err
    assert "2 instances corrected, 1 failed" in done.err
