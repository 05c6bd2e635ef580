"""What a study's index holds, by hand-made manifests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainpacs.indexer.index.manifest_facts import ManifestFacts, read_manifest
from plainpacs.indexer.index.study_record import instances, study_record

MTIME = 1_709_087_890_123_000_000
STORED = "2024-02-28T02:38:10.123Z"


def put(
    root: Path,
    series: str,
    instance: str,
    *lines: dict[str, Any] | bytes,
    node: str = "ab",
    size: int = 10,
) -> None:
    """An instance file of ``size`` bytes, and manifest lines that say so unless they differ."""
    folder = root / "202401" / "1.2" / series
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{instance}.dcm").write_bytes(b"x" * size)
    os.utime(folder / f"{instance}.dcm", ns=(MTIME, MTIME))
    with open(f"{folder}.{node}.jsonl", "ab") as manifest:
        for line in lines or ({},):
            own = {"file": f"{instance}.dcm", "bytes": size, "stored": STORED}
            raw = line if isinstance(line, bytes) else orjson.dumps(own | line) + b"\n"
            manifest.write(raw)


def record(root: Path) -> dict[str, Any]:
    found = study_record(str(root), "202401", "1.2")
    assert found is not None
    parsed = orjson.loads(found.study_json())
    line = found.catalogue_line()
    assert line.startswith(b'{"StudyInstanceUID":"1.2",')
    without = {key: value for key, value in parsed.items() if key != "series"}
    assert orjson.loads(line) == without
    assert isinstance(parsed, dict)
    return parsed


def test_the_whole_of_it(tmp_path: Path) -> None:
    one = {"PatientName": "A^B", "Modality": "CT", "SOPClassUID": "1.9", "SeriesNumber": 2}
    put(tmp_path, "1.3", "1.3.1", one, size=10)
    put(tmp_path, "1.3", "1.3.2", one | {"stored": "2024-02-28T02:38:11.000Z"}, size=30)
    put(tmp_path, "1.4", "1.4.1", {"PatientName": "A^B", "Modality": "SR", "SOPClassUID": "1.8"})
    assert record(tmp_path) == {
        "StudyInstanceUID": "1.2",
        "PatientName": "A^B",
        "conflicting": {},
        "ModalitiesInStudy": ["CT", "SR"],
        "SOPClassesInStudy": ["1.8", "1.9"],
        "NumberOfStudyRelatedSeries": 2,
        "NumberOfStudyRelatedInstances": 3,
        "bytes": 50,
        "first_stored": STORED,
        "last_stored": "2024-02-28T02:38:11.000Z",
        "series": [
            {
                "SeriesInstanceUID": "1.3",
                "Modality": "CT",
                "SeriesNumber": 2,
                "NumberOfSeriesRelatedInstances": 2,
                "bytes": 40,
            },
            {
                "SeriesInstanceUID": "1.4",
                "Modality": "SR",
                "NumberOfSeriesRelatedInstances": 1,
                "bytes": 10,
            },
        ],
    }
    found = study_record(str(tmp_path), "202401", "1.2")
    assert found
    assert found.study_json().endswith(b"}\n")
    keys = list(orjson.loads(found.study_json()))
    assert keys == sorted(keys)


def test_the_majority_is_kept_and_disagreement_named(tmp_path: Path) -> None:
    for index, name in enumerate(["B", "A", "B", "", None]):
        values = {"PatientName": name, "StudyDescription": f"d{index:02}"}
        put(tmp_path, "1.3", f"1.{index}", values)
    for index in range(30):
        put(tmp_path, "1.3", f"2.{index}", {"AccessionNumber": f"{index:03}"})
    found = record(tmp_path)
    assert found["PatientName"] == "B"
    assert found["conflicting"]["PatientName"] == ["A", "B"]
    assert found["StudyDescription"] == "d00", "a tie goes to the smallest"
    assert found["conflicting"]["AccessionNumber"] == [f"{index:03}" for index in range(20)]


def test_numbers_and_sequences_are_elected_too(tmp_path: Path) -> None:
    request = [{"RequestedProcedureID": "R1"}]
    for index, number in enumerate([10, 9, 10, 9]):
        values = {"SeriesNumber": number, "RequestAttributesSequence": request}
        put(tmp_path, "1.3", f"1.{index}", values)
    [series] = record(tmp_path)["series"]
    assert series["SeriesNumber"] == 9
    assert series["RequestAttributesSequence"] == request


@pytest.mark.parametrize(
    "lines",
    [
        # best first; only the first has the winning name
        [{"PatientName": "W"}, {"stored": "2025-01-01T00:00:00.000Z"}],
        [{"PatientName": "W"}, {"origin": "recovered"}],
        [{"PatientName": "W", "origin": "recovered"}, {"stored": "2025-01-01T00:00:00.000Z"}],
        [
            {"PatientName": "W", "stored": "2023-01-01T00:00:00.000Z"},
            {"stored": "2025-01-01T00:00:00.000Z", "origin": "recovered"},
        ],
        [
            {"PatientName": "W", "stored": "2025-01-02T00:00:00.000Z"},
            {"stored": "2025-01-01T00:00:00.000Z"},
        ],
        [{"PatientName": "W"}, {"PatientName": "V"}],
        [{"PatientName": "W"}, {"bytes": 11, "stored": STORED}],
        [{"PatientName": "W"}, {"removed": "2025-01-01T00:00:00.000Z", "bytes": None}],
    ],
)
def test_the_best_line_counts_in_any_order(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    put(tmp_path / "a", "1.3", "1.1", *lines)
    put(tmp_path / "b", "1.3", "1.1", *reversed(lines))
    put(tmp_path / "c", "1.3", "1.1", lines[0], node="n1")
    put(tmp_path / "c", "1.3", "1.1", *lines[1:], node="n0")
    for name in "abc":
        assert record(tmp_path / name)["PatientName"] == "W"


def test_what_is_not_there_or_not_ours_does_not_count(tmp_path: Path) -> None:
    put(tmp_path, "1.3", "1.1", {"PatientName": "A"})
    put(tmp_path, "1.3", "1.2", {"PatientName": "B"})
    study = tmp_path / "202401/1.2"
    (study / "1.3/1.2.dcm").unlink()
    for foreign in ("._1.1.dcm", ".DS_Store", "T1.nii", "1.5.DCM", ".nfs0001", "1.6.dcm"):
        (study / "1.3" / foreign).write_bytes(b"x" * 10)
    (study / "1.7").write_bytes(b"")
    (study / "1.3/1.8.dcm").mkdir()
    (study / "._1.3.ab.jsonl").write_bytes(b'{"file":"1.6.dcm","bytes":10,"stored":""}\n')
    found = record(tmp_path)
    assert found["NumberOfStudyRelatedInstances"] == 1
    assert found["PatientName"] == "A"


def test_garbage_nuls_and_torn_tails_are_skipped(tmp_path: Path) -> None:
    good = {"file": "1.1.dcm", "bytes": 10, "stored": STORED, "PatientName": "A"}
    raw = orjson.dumps(good)
    put(tmp_path, "1.3", "1.1", b"\0" * 64, b"\n", b"garbage\n", raw[:40], b"\n", raw, b"\n{\xff\n",
        b'["file"]\n', b'{"file":"1.1.dcm","bytes":"10","stored":1}\n', raw[:70])  # fmt: skip
    assert record(tmp_path)["PatientName"] == "A"


def test_no_instances_no_record(tmp_path: Path) -> None:
    assert study_record(str(tmp_path), "202401", "1.2") is None
    (tmp_path / "202401/1.2/1.3").mkdir(parents=True)
    assert study_record(str(tmp_path), "202401", "1.2") is None


def test_instances_in_order(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        put(tmp_path, "1.3", f"1.{9 - number}", {"InstanceNumber": number})
    found = instances(str(tmp_path), "202401", "1.2")
    assert [line["InstanceNumber"] for line in found] == [1, 2, 3]


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(1, 400), max_size=6))
def test_reading_on_equals_reading_all(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("m") / "1.ab.jsonl"
    whole = b"".join(
        orjson.dumps({"file": f"{n}.dcm", "bytes": n, "stored": str(n)}) + b"\n" for n in range(9)
    )
    known = ManifestFacts()
    position = 0
    for cut in [*cuts, len(whole)]:
        with open(path, "ab") as file:
            file.write(whole[position : position + cut])
        position = min(len(whole), position + cut)
        known = read_manifest(str(path), known)
    fresh = read_manifest(str(path))
    assert {name: set(lines) for name, lines in known.lines.items()} == {
        name: set(lines) for name, lines in fresh.lines.items()
    }
