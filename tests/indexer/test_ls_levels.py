"""``ls`` of patients, series and instances, sorted, limited, with chosen fields and endings."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.commands.ls import SHOWN
from plainpacs.indexer.output import formats as output
from plainpacs.indexer.output.listing import COLUMNS, LEVELS
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Two patients: one of a study with two series, one of two studies."""
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        for number in range(3):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=str(3 - number))
        store(archive, SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", Modality="SR")
        for study, date in (("1.3", "20240228"), ("1.4", "20230101")):
            store(
                archive,
                StudyInstanceUID=study,
                SeriesInstanceUID=f"{study}.1",
                SOPInstanceUID=f"{study}.1.1",
                PatientName="Ångström^Anna",
                PatientID="P2",
                SpecificCharacterSet="ISO_IR 192",
                StudyDate=date,
                PixelData=bytes(4000),
            )
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def ls(path: str, *arguments: str) -> Result:
    done = CliRunner().invoke(cli.root, ["-a", path, "ls", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    return done


def records(path: str, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ls(path, *arguments).stdout.splitlines()]


def test_series(path: str) -> None:
    found = records(path, "--level", "series")
    uids = [one["SeriesInstanceUID"] for one in found]
    assert uids == ["1.3.1", "1.2.3.4", "1.2.3.5", "1.4.1"]
    assert found[1]["NumberOfSeriesRelatedInstances"] == 3
    assert found[1]["PatientName"] == "Doe^Jane"
    assert found[1]["paths"] == ["202401/1.2.3/1.2.3.4"]
    [only] = records(path, "--level", "series", "Modality=SR")
    assert only["SeriesInstanceUID"] == "1.2.3.5"


def test_instances(path: str) -> None:
    found = records(path, "--level", "instance", "PatientID=P1", "Modality=CT")
    assert [one["InstanceNumber"] for one in found] == [1, 2, 3]
    assert found[0]["path"] == "202401/1.2.3/1.2.3.4/1.2.3.4.2.dcm"
    assert len(found[0]["blake3"]) == 64
    paths = ls(path, "--level", "instance", "P1", "--format", "paths").stdout.splitlines()
    assert len(paths) == 4
    assert all(os.path.isfile(one) for one in paths)


def test_patients(path: str) -> None:
    found = records(path, "--level", "patient")
    assert [one["PatientID"] for one in found] == ["P2", "P1"]
    assert [one["NumberOfPatientRelatedStudies"] for one in found] == [2, 1]


def test_an_order_and_a_limit(path: str) -> None:
    def uids(*arguments: str) -> list[str]:
        return [one["StudyInstanceUID"] for one in records(path, *arguments)]

    assert uids("--sort", "StudyDate") == ["1.4", "1.2.3", "1.3"]
    assert uids("--sort", "PatientName,-StudyDate") == ["1.3", "1.4", "1.2.3"]
    assert uids("--sort", "-NumberOfStudyRelatedInstances", "--limit", "1") == ["1.2.3"]
    assert uids("--limit", "2") == ["1.3", "1.2.3"]
    series = records(path, "--level", "series", "--sort", "-bytes", "--limit", "2")
    assert {one["PatientID"] for one in series} == {"P2"}


def test_a_sorted_study_has_the_line_of_the_catalogue(path: str) -> None:
    natural = ls(path, "--month", "202401").stdout
    assert ls(path, "--month", "202401", "--sort", "PatientID").stdout == natural


def test_fields(path: str) -> None:
    asked = ("--fields", "patientid,StudyDate,AccessionNumber", "--sort", "StudyDate")
    assert ls(path, *asked).stdout.splitlines()[0] == '{"PatientID":"P2","StudyDate":"20230101"}'
    rows = list(csv.reader(io.StringIO(ls(path, *asked, "--format", "csv").stdout)))
    assert rows[:2] == [["PatientID", "StudyDate", "AccessionNumber"], ["P2", "20230101", ""]]
    table = ls(path, *asked, "--format", "table").stdout.splitlines()
    assert table[0].split() == ["PatientID", "StudyDate"]  # no study has the other
    assert table[1].split() == ["P2", "20230101"]
    [first, *_] = json.loads(ls(path, *asked, "--format", "json").stdout)
    assert list(first) == ["PatientID", "StudyDate"]


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_every_format_of_every_level(path: str, level: str) -> None:
    count = len(records(path, "--level", level))
    array = json.loads(ls(path, "--level", level, "--format", "json").stdout)
    assert array == records(path, "--level", level)
    text = ls(path, "--level", level, "--format", "csv").stdout
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == COLUMNS[LEVELS[level]]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(rows) == count + 1
    shown = ls(path, "--level", level, "--format", "table").stdout
    assert len(shown.splitlines()) == count + 1
    assert "Doe, Jane" in shown


def test_paths_with_nul(path: str) -> None:
    lines = ls(path, "--format", "paths").stdout
    assert ls(path, "-0").stdout == lines.replace("\n", "\0")
    for arguments in (["show", "1.2.3", "-v", "-0"], ["path", "1.2.3.4.1", "-0"]):
        done = CliRunner().invoke(cli.root, ["-a", path, *arguments])
        found = done.stdout.split("\0")
        assert found.pop() == ""
        assert all(os.path.isfile(one) for one in found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-0", "--format", "csv"], "-0"),
        (["--fields", "PatientID", "--format", "paths"], "--fields"),
        (["--fields", "PatientNmae"], "PatientName"),
        (["--fields", " , "], "names none"),
        (["--sort", "Rows"], "field of studies"),
        (["--sort", ""], "--sort names no key"),
        (["Rows=512"], "it is one of instances"),
    ],
)
def test_what_cannot_be_asked(path: str, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(cli.root, ["-a", path, "ls", *arguments])
    assert getattr(done.exception, "exit_code", None) == 2
    assert words in str(done.exception)


def test_no_match_names_the_level(path: str) -> None:
    done = CliRunner().invoke(cli.root, ["-a", path, "ls", "--level", "series", "Modality=MR"])
    assert isinstance(done.exception, NoMatch)
    assert str(done.exception) == "no series matches"


def test_a_terminal_shows_the_first(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Archive.open(path) as archive:
        for number in range(SHOWN + 5):
            store(archive, SOPInstanceUID=f"1.2.3.9.{number}", SeriesInstanceUID="1.2.3.9")
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    done = ls(path, "--level", "instance")
    assert len([line for line in done.stdout.splitlines() if "2024-" in line]) == SHOWN
    assert done.stderr == f"only the first {SHOWN} are shown: narrow the search, or add --all\n"
    assert ls(path, "--level", "instance", "--all").stderr == ""
    assert ls(path, "--level", "instance", "--limit", "7").stderr == ""


def test_what_matches_by_another_value_says_so(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive, SOPInstanceUID="1.2.3.4.7", PatientID="OTHER")
    with Indexer.open(path) as indexer:
        indexer.once()
    [found] = records(path, "PatientID=OTHER")
    assert found["PatientID"] == "P1"
    assert found["by_another_value"] == ["PatientID"]
    [found] = records(path, "PatientID=P1")
    assert "by_another_value" not in found
    text = ls(path, "PatientID=OTHER", "--format", "csv").stdout
    assert next(csv.DictReader(io.StringIO(text)))["by_another_value"] == "PatientID"
