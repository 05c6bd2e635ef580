"""From a UID to its places and records, with and without indexes; parts in two months."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index import merge as merging
from plainpacs.indexer.index.merge import merge
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.query.search import search
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store, tree

SPLIT = "1.9"
"""A study over midnight, at the end of a month; one of its series too."""


def fill(path: str) -> None:
    with Archive.open(path) as archive:
        for number in range(3):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=str(number))
        for number, date in enumerate(["20240131", "20240131", "20240201"]):
            store(
                archive,
                StudyInstanceUID=SPLIT,
                SeriesInstanceUID="1.9.1",
                SOPInstanceUID=f"1.9.1.{number}",
                StudyDate=date,
                PatientName="Doe^Jane" if number else "Doe^J",
            )
        store(
            archive,
            StudyInstanceUID=SPLIT,
            SeriesInstanceUID="1.9.2",
            SOPInstanceUID="1.9.2.1",
            StudyDate="20240201",
            PatientID="other",
            Modality="SR",
        )


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = new_archive(tmp_path / "a")
    fill(path)
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


@pytest.fixture
def notes() -> list[str]:
    return []


def remove_study_json(path: str) -> None:
    for index in Path(path).glob("*/*/study.json"):
        index.unlink()


def damage_study_json(content: bytes) -> Callable[[str], None]:
    def damage(path: str) -> None:
        for index in Path(path).glob("*/*/study.json"):
            index.write_bytes(content)

    return damage


def garbage_in_manifests(path: str) -> None:
    remove_study_json(path)
    for manifest in Path(path).glob("*/*/*.jsonl"):
        data = manifest.read_bytes()
        manifest.write_bytes(
            b"\0" * 99 + b"\n{torn\n[]\n7\n" + data + b'{"file":"1.2.3.4.0.dcm","by'
        )


DAMAGES: list[Callable[[str], None]] = [
    remove_study_json,
    damage_study_json(b""),
    damage_study_json(b"{"),
    damage_study_json(b"[]"),
    damage_study_json(b'{"StudyInstanceUID":"7.7","series":[]}'),
    damage_study_json(b'{"StudyInstanceUID":"1.2.3"}'),
    damage_study_json(b'{"StudyInstanceUID":"1.2.3","series":[1]}'),
    garbage_in_manifests,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_study_json_is_made_again_in_memory(
    path: str, notes: list[str], damage: Callable[[str], None]
) -> None:
    whole = [lookup.study(path, uid, notes.append) for uid in ("1.2.3", SPLIT)]
    assert notes == []
    damage(path)
    before = tree(path, internal=True)
    assert [lookup.study(path, uid, notes.append) for uid in ("1.2.3", SPLIT)] == whole
    assert tree(path, internal=True) == before
    assert [note.split(" ")[0] for note in notes] == [
        "202401/1.2.3/study.json",
        "202401/1.9/study.json",
        "202402/1.9/study.json",
    ]


def test_a_study_in_two_months_is_one(path: str, notes: list[str]) -> None:
    study = lookup.study(path, SPLIT, notes.append)
    january = orjson.loads(Path(path, "202401", SPLIT, "study.json").read_bytes())
    february = orjson.loads(Path(path, "202402", SPLIT, "study.json").read_bytes())
    assert study["NumberOfStudyRelatedInstances"] == 4
    assert study["NumberOfStudyRelatedSeries"] == 2  # one of them lies in both months
    assert study["bytes"] == january["bytes"] + february["bytes"]
    assert study["StudyDate"] == "20240131"  # as many instances each: the earlier month
    assert study["PatientID"] == "P1"
    assert study["ModalitiesInStudy"] == ["CT", "SR"]
    assert study["conflicting"] == {
        "PatientID": ["P1", "other"],
        "PatientName": ["Doe^J", "Doe^Jane"],
        "StudyDate": ["20240131", "20240201"],
    }
    assert study["first_stored"] == min(january["first_stored"], february["first_stored"])
    assert study["last_stored"] == max(january["last_stored"], february["last_stored"])
    numbers = {s["SeriesInstanceUID"]: s["NumberOfSeriesRelatedInstances"] for s in study["series"]}
    assert numbers == {"1.9.1": 3, "1.9.2": 1}


def test_a_study_in_two_months_is_one_row_however_it_is_found(path: str, notes: list[str]) -> None:
    terms: list[tuple[list[str], tuple[str, ...]]] = [
        ([SPLIT], ()),
        (["PatientID=other"], ()),
        (["PatientID=other", "StudyInstanceUID=1.9"], ()),
        (["StudyDate=20240201"], ()),
        (["StudyDate=20240131", "NumberOfStudyRelatedInstances=4"], ()),
        (["Modality=SR", "PatientName=doe^j"], ()),  # no part has both
        ([], ("202402",)),
    ]
    rows = [
        found
        for words, months in terms
        for found in search(path, parse(words, months=months), notes.append)
    ]
    assert [(row.study, row.months) for row in rows] == [(SPLIT, ("202401", "202402"))] * len(terms)
    assert len({row.line for row in rows}) == 1
    shown = lookup.study(path, SPLIT, notes.append)
    del shown["series"]
    assert orjson.loads(rows[0].line) == shown
    assert notes == []


def test_a_lost_catalogue_is_read_from_the_studies(path: str, notes: list[str]) -> None:
    whole = search(path, parse([]), notes.append)
    assert [found.study for found in whole] == ["1.2.3", SPLIT]
    Path(path, "202401", "studies.jsonl").unlink()
    assert search(path, parse([]), notes.append) == whole
    assert search(path, parse(["StudyInstanceUID=1.2.3"]), notes.append) == whole[:1]
    assert notes == ["202401/studies.jsonl is missing: read from the 2 study folders instead"] * 2
    remove_study_json(path)
    Path(path, "202402", "studies.jsonl").unlink()
    assert search(path, parse([]), notes.append) == whole


def test_a_folder_without_instances_is_no_study(path: str, notes: list[str]) -> None:
    os.makedirs(Path(path, "202401", "5.5", "5.5.5"))
    Path(path, "202401", ".DS_Store").touch()
    Path(path, "202401", "studies.jsonl").unlink()
    assert [one.study for one in search(path, parse([]), notes.append)] == ["1.2.3", SPLIT]
    with pytest.raises(NoMatch, match=r"no study 5\.5"):
        lookup.study(path, "5.5", notes.append)


def test_where_things_lie(path: str, notes: list[str]) -> None:
    def places(uid: str) -> list[str]:
        return lookup.places(path, uid, notes.append)

    expected = {
        "1.2.3": ["202401/1.2.3"],
        "1.2.3.4": ["202401/1.2.3/1.2.3.4"],
        "1.2.3.4.1": ["202401/1.2.3/1.2.3.4/1.2.3.4.1.dcm"],
        SPLIT: ["202401/1.9", "202402/1.9"],
        "1.9.1": ["202401/1.9/1.9.1", "202402/1.9/1.9.1"],
        "1.9.1.2": ["202402/1.9/1.9.1/1.9.1.2.dcm"],
    }
    assert {uid: places(uid) for uid in expected} == expected
    assert notes == []
    shutil.rmtree(Path(path, ".plainpacs", "instances"))
    assert {uid: places(uid) for uid in expected} == expected
    assert len(notes) == 4  # studies need no index
    assert places("7.7") == []


def test_an_index_that_is_behind_leads_nowhere(path: str, notes: list[str]) -> None:
    shutil.move(Path(path, "202401", "1.2.3"), Path(path, "202403"))
    os.makedirs(Path(path, "202404"))
    shutil.move(Path(path, "202403"), Path(path, "202404", "1.2.3"))
    assert lookup.places(path, "1.2.3.4.1", notes.append) == ["202404/1.2.3/1.2.3.4/1.2.3.4.1.dcm"]
    assert len(notes) == 1


def test_an_index_cannot_lead_out_of_the_archive(path: str, notes: list[str]) -> None:
    secret = Path(path).parent / "secret"
    secret.mkdir()
    for shard in Path(path, ".plainpacs", "instances").iterdir():
        shard.write_bytes(b'{"SeriesInstanceUID":"1.2.3.4","path":"../secret/1.2.3.4"}\n')
    (secret / "1.2.3.4").mkdir()
    assert lookup.places(path, "1.2.3.4", notes.append) == ["202401/1.2.3/1.2.3.4"]


@pytest.mark.parametrize(
    "text", ["", " ", "../x", "/etc/passwd", "1.2\0/3", "1" * 65, "study.json"]
)
def test_what_cannot_be_a_uid_names_nothing(path: str, text: str, notes: list[str]) -> None:
    assert lookup.named(path, text, notes.append) is None


def test_a_pasted_uid_is_stripped(path: str, notes: list[str]) -> None:
    assert lookup.named(path, " 1.2.3\n", notes.append) == ("1.2.3", ("202401/1.2.3",), b"")


def test_instances_are_those_present(path: str, notes: list[str]) -> None:
    Path(path, "202401/1.2.3/1.2.3.4/1.2.3.4.0.dcm").unlink()
    parts = lookup.study_parts(path, "1.2.3", notes.append)
    [(month, part)] = lookup.with_instances(path, parts, notes.append)
    assert month == "202401"
    [series] = part["series"]
    assert [line["file"] for line in series["instances"]] == ["1.2.3.4.1.dcm", "1.2.3.4.2.dcm"]


# --- merging, by itself -----------------------------------------------------------------------

VALUES = st.sampled_from([None, "", "A", "B", "C", 7, ["x"]])
PARTS = st.lists(
    st.fixed_dictionaries(
        {"StudyInstanceUID": st.just("1.2")},
        optional={
            "PatientID": VALUES,
            "StudyDate": VALUES,
            "NumberOfStudyRelatedInstances": st.integers(0, 5),
            "bytes": st.one_of(st.integers(0, 5), VALUES),
            "conflicting": st.one_of(
                VALUES, st.fixed_dictionaries({}, optional={"PatientID": st.lists(VALUES)})
            ),
            "series": st.one_of(VALUES, st.lists(st.fixed_dictionaries({}))),
            "first_stored": VALUES,
        },
    ),
    min_size=1,
    max_size=4,
)


@given(PARTS)
def test_merging_takes_anything_and_its_order_does_not_count(parts: list[dict[str, Any]]) -> None:
    named = [(f"2024{number + 1:02}", part) for number, part in enumerate(parts)]
    whole = merge(named)
    assert merge(named[::-1]) == whole
    assert whole["StudyInstanceUID"] == "1.2"
    if len(parts) > 1:
        assert whole["bytes"] == sum(
            part["bytes"] for part in parts if isinstance(part.get("bytes"), int)
        )
        for values in whole["conflicting"].values():
            assert 1 < len(values) <= merging.MOST_CONFLICTING


def test_at_most_twenty_conflicting_values() -> None:
    parts = [
        (f"20{n:02}01", {"PatientID": f"P{n:02}", "conflicting": {"PatientID": [f"Q{n:02}"]}})
        for n in range(30)
    ]
    assert merge(parts)["conflicting"]["PatientID"] == [f"P{n:02}" for n in range(20)]
