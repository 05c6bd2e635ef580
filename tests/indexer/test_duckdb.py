"""The catalogues can be asked with DuckDB, as the guide says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store

GUIDE = Path(__file__).parents[2] / "indexer/README.md"
ROWS = {
    "month": [("202401", "CT", 3, None), ("202402", "MR", 1, None)],
    "n > 3": [],
    "20240331": [("1.4", "20240205")],
    "copy": [(4,)],
}
"""What each query gives, by words in it."""


def studies(path: str) -> None:
    with Archive.open(path) as archive:
        for number in range(5):
            store(
                archive,
                StudyInstanceUID=f"1.{number}",
                SOPInstanceUID=f"1.{number}.9",
                StudyDate="20240205" if number == 4 else "20240105",
                Modality="MR" if number == 4 else "CT",
                PatientID=f"P{number % 2}",
            )


def test_the_queries_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb: Any = pytest.importorskip("duckdb", reason="duckdb is not installed")
    path = new_archive(tmp_path / "a")
    studies(path)
    with Indexer.open(path) as indexer:
        indexer.once()
    catalogue = tmp_path / "a/202401/studies.jsonl"
    with catalogue.open("ab") as file:
        file.write(catalogue.read_bytes().splitlines()[0] + b"\n")  # a line that is superseded
        file.write(b'{"StudyInstanceUID":"1.0","removed":true}\n{"StudyInstanceUID":"1.')
    monkeypatch.chdir(path)
    blocks = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    connection = duckdb.connect()
    asked = [one.strip() for one in "".join(blocks).split(";") if one.strip()]
    assert asked[0].startswith("create view studies")
    connection.execute(asked.pop(0))
    assert len(asked) == len(ROWS)
    for query, (words, expected) in zip(asked, ROWS.items(), strict=True):
        assert words in query
        rows = connection.execute(query).fetchall()
        if words == "month":
            rows = [(*row[:3], None) for row in rows]
        elif words == "20240331":
            rows = [(row[0], row[1]) for row in rows]
        assert rows == expected, query
    assert connection.execute("select count(*) from 'studies.parquet'").fetchall() == [(4,)]
