"""Tidying the indexes: what a stop costs does not grow with the archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout
from plainpacs.indexer.index import instance_shards, rebuild
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store
from tests.support.promises import compact, derived


def fill(path: str, study: int, count: int = 40) -> None:
    with Archive.open(path) as archive:
        for number in range(count):
            store(
                archive,
                StudyInstanceUID=f"1.{study}",
                SeriesInstanceUID=f"1.{study}.1",
                SOPInstanceUID=f"1.{study}.1.{number}",
                StudyDate="20240105",
            )


def once(path: str, *, full: bool = False) -> None:
    """What is pending alone: a study just written is looked at once more when times are coarse."""
    with Indexer.open(path) as indexer:
        indexer.once(full=full, reconciling=False)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as a large one."""
    monkeypatch.setattr(rebuild, "_SMALL_CATALOGUE", 0)
    monkeypatch.setattr(rebuild, "_SMALL_SHARD", 0)
    monkeypatch.setattr(rebuild, "_REWRITTEN_AT_STOP", 0)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("running", [False, True])
def test_what_is_large_and_got_few_lines_is_not_written_anew(tmp_path: Path, running: bool) -> None:
    path = new_archive(tmp_path / "a")
    for study in range(12):
        fill(path, study, 120)
    once(path, full=True)
    once(path)  # it sees for the first time how they lie
    files = [
        tmp_path / "a/202401" / layout.CATALOGUE,
        *(tmp_path / "a" / layout.INSTANCES).iterdir(),
    ]
    before = {one: (one.stat().st_ino, one.read_bytes()) for one in files}
    fill(path, 99, 1)
    if running:
        with Indexer.open(path) as indexer:
            indexer.stop()
            indexer.run()
            indexer.once(reconciling=False)
    else:
        once(path)
    grown = [one for one in files if one.read_bytes() != before[one][1]]
    assert 1 < len(grown) <= 3
    for one in grown:
        assert one.stat().st_ino == before[one][0]
        assert one.read_bytes().startswith(before[one][1])
    assert instance_shards.find(path, "1.99.1.0") == ["202401/1.99/1.99.1/1.99.1.0.dcm"]
    # It is what making all anew gives, put in order.
    compact(path)
    kept = derived(path)
    once(path, full=True)
    assert derived(path) == kept


@pytest.mark.usefixtures("large")
def test_what_is_large_and_got_many_lines_is(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    fill(path, 5, 1)
    once(path)
    for study in (3, 2, 1):
        fill(path, study, 1)
    once(path)
    catalogue = tmp_path / "a/202401" / layout.CATALOGUE
    kept = catalogue.read_bytes()
    assert kept.splitlines() == sorted(kept.splitlines())
    assert len(kept.splitlines()) == 4


def test_small_ones_are_in_order_after_every_stop(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    for study in (1, 2):
        fill(path, study, 3)
        once(path)
    kept = derived(path)
    once(path, full=True)
    assert derived(path) == kept
