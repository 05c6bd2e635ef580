"""``stats``: what is counted is what there is."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import instances_in, new_archive, store

CT1, MR1 = Provenance("CT1", "DRDCM", "10.0.0.5"), Provenance("MR1", "DRDCM", "10.0.0.6")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A CT study with a report that another machine sent, an MR study, one of two months."""
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        for number in range(3):
            store(archive, CT1, SOPInstanceUID=f"1.2.3.4.{number}")
        store(archive, MR1, SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", Modality="SR")
        store(
            archive,
            MR1,
            StudyInstanceUID="2.1",
            SeriesInstanceUID="2.1.1",
            SOPInstanceUID="2.1.1.1",
            StudyDate="20240301",
            Modality="MR",
        )
        for number, date in enumerate(("20240131", "20240301")):
            store(
                archive,
                Provenance(origin="import"),
                StudyInstanceUID="3.1",
                SeriesInstanceUID="3.1.1",
                SOPInstanceUID=f"3.1.1.{number}",
                StudyDate=date,
                Modality=None,
            )
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def stats(path: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli.root, ["-a", path, "stats", *arguments])


def rows(path: str, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stats(path, *arguments).stdout.splitlines()]


def numbers(path: str, *arguments: str) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(str(row[key]) for key in row if key in ("month", "modality", "sender")): tuple(
            row[key] for key in ("studies", "series", "instances")
        )
        for row in rows(path, *arguments)
    }


def test_by_month(path: str) -> None:
    assert numbers(path) == {"202401": (2, 3, 5), "202403": (2, 2, 2)}
    sizes: Counter[str] = Counter()
    for name in instances_in(path):
        sizes[name[:6]] += Path(path, name).stat().st_size
    assert {row["month"]: row["bytes"] for row in rows(path)} == sizes


def test_by_modality(path: str) -> None:
    assert numbers(path, "--by", "modality") == {
        "": (1, 2, 2),
        "CT": (1, 1, 3),
        "MR": (1, 1, 1),
        "SR": (1, 1, 1),
    }


def test_by_sender(path: str) -> None:
    assert numbers(path, "--by", "sender") == {
        "CT1": (1, 1, 3),
        "MR1": (2, 2, 2),
        "import": (1, 2, 2),
    }


def test_by_several(path: str) -> None:
    found = numbers(path, "--by", "sender,month,modality")
    assert found["CT1/202401/CT"] == (1, 1, 3)
    assert found["import/202403/"] == (1, 1, 1)
    assert sum(instances for _, _, instances in found.values()) == len(instances_in(path))
    for by in ("month", "modality", "sender", "modality,month"):
        total = sum(instances for _, _, instances in numbers(path, "--by", by).values())
        assert total == len(instances_in(path)), by


def test_of_some_studies(path: str) -> None:
    assert numbers(path, "Modality=SR") == {"202401": (1, 2, 4)}
    assert numbers(path, "--stored", "1h", "--by", "modality", "StudyInstanceUID=2.1") == {
        "MR": (1, 1, 1)
    }
    done = stats(path, "nobody")
    assert "no study matches" in str(done.exception)


def test_formats(path: str) -> None:
    array = json.loads(stats(path, "--format", "json").stdout)
    assert array == rows(path)
    found = list(csv.reader(io.StringIO(stats(path, "--format", "csv").stdout)))
    assert found[0] == ["month", "studies", "series", "instances", "bytes"]
    assert found[1][:4] == ["202401", "2", "3", "5"]
    table = stats(path, "--by", "modality", "--format", "table").stdout.splitlines()
    assert table[0].split() == ["Modality", "Studies", "Series", "Instances", "Size"]
    assert table[1].split()[:4] == ["-", "1", "2", "2"]


@pytest.mark.parametrize("by", ["", "year", "month,,x"])
def test_what_cannot_be_counted_by(path: str, by: str) -> None:
    done = stats(path, "--by", by)
    assert getattr(done.exception, "exit_code", None) == 2
    assert "modality" in str(done.exception)


def test_a_copy_without_indexes(path: str) -> None:
    expected = numbers(path, "--by", "sender,modality,month")
    for derived in [*Path(path).glob("*/studies.jsonl"), *Path(path).glob("*/*/study.json")]:
        derived.unlink()
    assert numbers(path, "--by", "sender,modality,month") == expected
    assert numbers(path) == {"202401": (2, 3, 5), "202403": (2, 2, 2)}
