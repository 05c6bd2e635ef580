"""Every fsync is needed: with any one of them left out, a promise of the power-loss suite breaks.

A sync changes nothing that a program can see, so a record without it is the record of a program
that lacks it. So of each site the syncs are struck from the records of the orders, and among the
states that the disk may then hold besides there must be one that breaks a promise.

In the orders of ``orders.py`` (storing, importing, indexing, starting) a site is a chain of
callers: that a sync is needed where one calls it does not excuse another. In those of
``orders_removal.py``, which share nearly all of their steps, it is a function that syncs. A site of
which nothing breaks is needless, or the model has a hole, or it stands in ``NEEDLESS`` with its
reason.


``PLAINPACS_TEST_POWER_STATES=0`` looks at every state before it calls a site needless.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from tests.crash.orders import Disk, recorded
from tests.crash.orders_removal import ORDERS
from tests.crash.power import Recorder, State, Sync, states
from tests.crash.test_power_loss import quiet, wrong_after_recovery, wrong_in_memory

__all__ = ["quiet"]

TRIED = 10**9 if os.environ.get("PLAINPACS_TEST_POWER_STATES") == "0" else 60
"""States recovered of a site in each order before it is called needless."""

FEW = {"pairs": 0, "random_each": 3}
"""Hardly any but those that lack one thing or have one more: they tell what a sync is for."""

NEEDLESS = {
    "sync_folder: try_file_system": "it finds out whether the file system can; no file is kept",
    "sync_file: replace_file < DirtyFlag.set": "whatever the flag holds is no boot that is",
    "sync_folder: replace_file < Rebuilder._write_study_json": "seen knows its time and length",
    "sync_folder: replace_file < _replace < rewrite": "it was right before, unless damaged by hand",
    "sync_file: replace_file < _replace": "a study that the catalogue lacks is indexed again",
    "sync_folder: replace_file < SplitStudies.make_anew": "where it is missing, it is made anew",
    "sync_folder: settle < SplitStudies.settle": "lines were added; its name is not new",
    "sync_file: replace_file < record_seen": "what does not parse was not seen",
    "sync_folder: replace_file < record_seen": "what was not seen is looked at again",
}
"""By the start of the site: why no promise breaks without this sync. All of these replace derived
files by the one function for it, whose other uses need the sync."""

FEWEST_SITES = 45
PARTS = 6  # of the work, so that none takes longer than a test may


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return {name: recorded(name, str(tmp_path_factory.mktemp(name))) for name in ORDERS}


def syncs(recorder: Recorder) -> list[Sync]:
    return [operation for operation in recorder.log if isinstance(operation, Sync)]


Records = dict[str, tuple[Recorder, Disk]]


class Gate:
    """The records, and which states are possible with every sync made."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._promised: dict[str, dict[object, int]] = {}

    def first_broken(self, without: Callable[[Sync], bool]) -> str:
        """A promise broken without some syncs; empty when none is found."""
        for name, (recorder, disk) in self._records.items():
            if not any(map(without, syncs(recorder))):
                continue
            found: list[State] = []
            for state in self._new_states(name, recorder, without):
                wrong = wrong_in_memory(state, disk)
                if wrong:
                    return wrong[0]
                found.append(state)
            for tried, state in enumerate(_promising(found)[:TRIED]):
                wrong = wrong_after_recovery(recorder, state, disk.checker())
                if wrong:
                    return f"{name}: {wrong[0]} ({tried} tried)"
        return ""

    def _new_states(
        self, name: str, recorder: Recorder, without: Callable[[Sync], bool]
    ) -> Iterator[State]:
        """Those that only the missing syncs make possible, or possible after more was promised."""
        if name not in self._promised:
            self._promised[name] = {
                state.print(): len(state.promises) for state in states(recorder, **FEW)
            }
        looked_at: dict[object, int] = dict(self._promised[name])
        for state in states(recorder, without=without, **FEW):
            key = state.print()
            if looked_at.get(key, -1) < len(state.promises):
                looked_at[key] = len(state.promises)
                yield state


def _promising(found: list[State]) -> list[State]:
    """Those first, by turns, that lack little and late, and any."""
    late = sorted(found, key=lambda state: (state.lost, -state.moment))
    luck = random.Random(0).sample(found, len(found))
    return [state for pair in zip(late, luck, strict=True) for state in pair]


@pytest.fixture(scope="module")
def gate(records: Records) -> Gate:
    return Gate(records)


def every_site(records: Records) -> list[tuple[str, Callable[[Sync], bool]]]:
    """Each with what tells its syncs."""
    chains: set[str] = set()
    places: set[str] = set()
    for name, (recorder, _) in records.items():
        aside = ORDERS[name][0].__module__.endswith(".orders_removal")
        for sync in syncs(recorder):
            (places if aside else chains).add(sync.place if aside else sync.site)
    found = [(one, lambda sync, one=one: sync.site == one) for one in sorted(chains)]
    return found + [(one, lambda sync, one=one: sync.place == one) for one in sorted(places)]


def test_there_are_sites(records: Records) -> None:
    every = [name for name, _ in every_site(records)]
    print(f"{len(every)} sites of fsync, of which the table calls needless:")
    for start, why in NEEDLESS.items():
        found = [one for one in every if one.startswith(start)]
        assert found, f"the table has a row for what is not there: {start}"
        print(f"{len(found)} {start}: {why}")
    assert len(every) >= FEWEST_SITES


@pytest.mark.timeout(7200 if TRIED > 1000 else 240)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_sync_is_needed(part: int, records: Records, gate: Gate) -> None:
    needless = []
    for site, is_of_it in every_site(records)[part::PARTS]:
        if not site.startswith(tuple(NEEDLESS)):
            broken = gate.first_broken(is_of_it)
            print(f"{site}\n    {broken or 'NOTHING BREAKS'}")
            needless += [] if broken else [site]
    assert not needless
