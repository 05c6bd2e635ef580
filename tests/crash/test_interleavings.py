"""Receivers, indexer, recovery and removal at work at the same time, in every order that matters.

Each scenario starts from a small archive; its actors run in every order with one switch from one to
another (``interleave.py``), in many with two, and in some random ones; and in each one of them may
be killed at any of its stops. Whatever the order: what was acknowledged is there, whole; nothing
partial has a final name; what the indexer then finds pending is all it needs; and after a start
nothing is left over, a second one changes nothing, and the indexes are what a rebuild makes.

``PLAINPACS_TEST_SWITCHES=N`` tries all orders with at most N switches, and many more random ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store.store import Archive, Stored, StoreOutcome
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import create_archive
from plainpacs.archive.tree.targets import Target, present
from plainpacs.indexer.service.indexer import Indexer
from tests.crash.interleave import Actor, Choice, Run, Stage, explore
from tests.crash.orders import FIRST_BOOT, FROM_CT, Disk, one_stored
from tests.crash.recovery import (
    ARCHIVE,
    Checker,
    Files,
    Said,
    booted,
    files_in,
    kept,
    kept_somewhere,
    partial,
    quick_folder,
    unkept,
)
from tests.support.archives import data_set

WANTED = int(os.environ.get("PLAINPACS_TEST_SWITCHES", "0"))
SWITCHES, AT_MOST, LUCKY = (WANTED, 10**9, 1000) if WANTED else (2, 130, 20)
FEWEST = {"service_and_a_start": 30}
"""Orders of a scenario; fewer, and there are fewer stops than there were. Of all others: 120."""

STORED, DUPLICATE, CONFLICT = StoreOutcome.STORED, StoreOutcome.DUPLICATE, StoreOutcome.CONFLICT


@dataclass
class Theatre:
    """One execution: an archive, the processes at work on it, and what they do."""

    root: str
    processes: list[Archive | Indexer | Removal] = field(default_factory=list)
    actors: list[Callable[[], Any]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)

    def open(self, process: Any) -> Any:
        self.processes.append(process)
        return process

    def receiver(
        self, body: bytes, archive: Archive | None = None, *, removed: bool = False
    ) -> None:
        """An actor that stores ``body``, in a process of its own unless one is given.

        ``removed``: another actor may take it out again.
        """
        to = archive or self.open(Archive.open(self.root))

        def store() -> Stored:
            stored = to.store(body, EXPLICIT_LITTLE_ENDIAN, FROM_CT)
            holds = kept_somewhere(body) if removed else kept(stored.path, body)
            self.said.append((f"{stored.outcome} {stored.path}", holds))
            return stored

        self.actors.append(store)

    def indexer(self) -> Indexer:
        """An actor that indexes what is pending."""
        indexer = self.open(Indexer.open(self.root))
        self.actors.append(lambda: index_pending(indexer))
        return indexer

    def removal(self, instance: str = "1.2.3.4.5") -> None:
        """An actor that takes an instance out, or all of the study."""
        removal = self.open(Removal.open(self.root))
        series = "1.2.3.4" if instance else ""
        target = Target("202401", "1.2.3", series, instance)
        self.actors.append(lambda: removal.remove(present(removal.root, [target])))


def index_pending(indexer: Indexer) -> None:
    studies, _ = indexer._pending.waiting()
    for study in sorted(studies):
        indexer._index(study)


Scenario = Callable[[Theatre], None]
SCENARIOS: dict[str, tuple[Scenario, bool]] = {}
"""By name: the scenario, and whether an instance is stored before."""


def scenario(*, stored: bool = False) -> Callable[[Scenario], Scenario]:
    def add(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = (function, stored)
        return function

    return add


DOE, TOO, OTHER = data_set(), data_set(SOPInstanceUID="1.2.3.4.6"), data_set(PatientName="Other^O")


@scenario()
def the_same_instance_twice(on: Theatre) -> None:
    on.receiver(DOE)
    on.receiver(DOE)


@scenario()
def two_instances_of_a_new_study(on: Theatre) -> None:
    on.receiver(DOE)
    on.receiver(TOO)


@scenario()
def two_associations_of_a_process(on: Theatre) -> None:
    archive = on.open(Archive.open(on.root))
    on.receiver(DOE, archive)
    on.receiver(TOO, archive)


@scenario()
def other_bytes_under_a_uid(on: Theatre) -> None:
    on.receiver(DOE)
    on.receiver(OTHER)


@scenario()
def three_receivers(on: Theatre) -> None:
    on.receiver(DOE)
    on.receiver(DOE)
    on.receiver(OTHER)


@scenario(stored=True)
def receiver_and_indexer(on: Theatre) -> None:
    on.receiver(TOO)
    on.indexer()


@scenario()
def receiver_and_recovery(on: Theatre) -> None:
    """The indexer finds the file before its line is there: it is the receiver's to write."""
    on.receiver(DOE)
    indexer = on.open(Indexer.open(on.root))
    on.actors.append(lambda: [indexer._rebuilder.rebuild(("202401", "1.2.3")) for _ in range(2)])
    on.said.append(("no instance has two lines", lambda files: most_lines(files) <= 1))


@scenario(stored=True)
def receiver_and_removal(on: Theatre) -> None:
    """What is stored in the series meanwhile, which may be empty for a moment, stays."""
    on.receiver(TOO)
    on.removal()


@scenario(stored=True)
def receiver_and_removal_of_the_study(on: Theatre) -> None:
    """What is stored meanwhile is taken out with the rest, or stays."""
    on.receiver(TOO, removed=True)
    on.removal("")


@scenario(stored=True)
def the_removed_instance_comes_again(on: Theatre) -> None:
    on.receiver(DOE, removed=True)
    on.removal()


@scenario(stored=True)
def other_bytes_for_the_removed_instance(on: Theatre) -> None:
    on.receiver(OTHER, removed=True)
    on.removal()


@scenario(stored=True)
def removal_and_indexer(on: Theatre) -> None:
    on.removal()
    on.indexer()


@scenario(stored=True)
def receiver_removal_and_indexer(on: Theatre) -> None:
    on.receiver(TOO)
    on.removal()
    on.indexer()


@scenario()
def service_and_a_start(on: Theatre) -> None:
    """An indexer that starts clears what a dead one left; a receiver replaces a file meanwhile."""
    archive = on.open(Archive.open(on.root))
    indexer = on.open(Indexer.open(on.root))
    on.actors.append(lambda: archive.write_service_note(b"{}"))
    on.actors.append(indexer._pending.recover)


def most_lines(files: Files) -> int:
    """The number of lines of the instance that has most."""
    lines = [
        line.partition(b",")[0]
        for path, data in files.items()
        if layout.series_of_manifest(path.rpartition("/")[2]) and path.count("/") == 3
        for line in data.splitlines()
    ]
    return max(map(lines.count, lines), default=0)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """Archives to start from: ``new``, and ``stored`` with an instance that is not indexed yet."""
    with quick_folder() as folder:
        for name in ("new", "stored"):
            os.mkdir(f"{folder}/{name}")
            with booted(FIRST_BOOT):
                if name == "stored":
                    one_stored(Disk(f"{folder}/{name}", folder))
                else:
                    create_archive(f"{folder}/{name}/{ARCHIVE}", "n1")
        yield folder


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def leave(process: Archive | Indexer | Removal, *, killed: bool) -> None:
    """Ends a process: as it should, or with nothing but what the system does for a dead one."""
    if not killed:
        process.close() if isinstance(process, Archive) else process.__exit__()
        return
    one = process.writer if isinstance(process, Removal) else process._writer
    assert isinstance(one, Writer)
    for fd in (one._incoming_lock, one.incoming, one._lock, one.root):
        os.close(fd)
    if not isinstance(process, Archive):
        os.close(process._lock)


class Performance:
    """Plays a scenario in one order after another, and looks at what comes of it."""

    def __init__(self, name: str, base: str, folder: str) -> None:
        self._scenario, stored = SCENARIOS[name]
        self._base = f"{base}/{'stored' if stored else 'new'}"
        self._folder = f"{folder}/disk"
        self._stage = Stage()
        self._checker = Checker({DOE, TOO, OTHER}, compacted=False)
        self._seen: set[object] = set()
        self.outcomes: set[tuple[str, ...]] = set()
        self.recovered = 0

    def runs(self) -> Iterator[Run]:
        limits = {"switches": SWITCHES, "at_most": AT_MOST, "lucky": LUCKY}
        with booted(FIRST_BOOT):
            yield from explore(self._stage, self._play, **limits)

    def _new_theatre(self) -> Theatre:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._base, self._folder)
        on = Theatre(f"{self._folder}/{ARCHIVE}")
        with booted(FIRST_BOOT):
            self._scenario(on)
        return on

    def _play(self, choose: Callable[[list[Choice], int], Choice]) -> tuple[list[Actor], list[str]]:
        with self._stage.set_up():
            on = self._new_theatre()
            actors, told = self._stage.run(on.actors, choose)
        dead = {one.number for one in actors if one.killed}
        for number, process in reversed(list(enumerate(on.processes))):
            # Of one process with several associations all die.
            leave(process, killed=number in dead or (len(on.processes) == 1 and bool(dead)))
        wrong = [f"{one.number}: {one.error!r}" for one in actors if one.error]
        wrong += self._wrong(on, anybody_died=bool(dead))
        assert not wrong, "\n".join([*map(str, wrong), *told])
        self.outcomes.add(tuple(_outcome(one) for one in actors))
        return actors, told

    def _wrong(self, on: Theatre, *, anybody_died: bool) -> list[str]:
        files = files_in(self._folder)
        key = _alike(files, self._folder, on, anybody_died)
        if key in self._seen:
            return []
        self._seen.add(key)
        self.recovered += 1
        wrong = unkept(files, on.said) + partial(files, {DOE, TOO, OTHER})
        if not anybody_died:
            with Indexer.open(on.root) as indexer:
                index_pending(indexer)
                indexer._rebuilder.compact(everything=True)
            wrong += [f"pending was not all: {one}" for one in self._checker.stale(self._folder)]
        return wrong + self._checker.broken(self._folder, on.said, FIRST_BOOT)


def _outcome(actor: Actor) -> str:
    if actor.killed:
        return "killed"
    return actor.result.outcome.name if isinstance(actor.result, Stored) else "done"


def _alike(files: dict[str, bytes], top: str, on: Theatre, died: bool) -> object:
    """Equal for trees that differ in times and random names only."""
    told = frozenset(words for words, _ in on.said)
    found = []
    for path, data in files.items():
        parts = path.split("/")
        if parts[2:3] == ["incoming"] and len(parts) > 4:
            parts[3] = "process"
        line_count = data.count(b"\n") if path.endswith(layout.MANIFEST_ENDING) else data
        links = os.lstat(os.path.join(top, path)).st_nlink if not path.endswith("/") else 0
        name = "/".join(parts).partition("~2")[0]  # the trash has the time of removal in names
        found.append((name, line_count if "service." not in path else b"", links))
    return frozenset(found), told, died


EXPECTED = {
    "the_same_instance_twice": {("STORED", "DUPLICATE"), ("DUPLICATE", "STORED")},
    "two_instances_of_a_new_study": {("STORED", "STORED")},
    "two_associations_of_a_process": {("STORED", "STORED")},
    "other_bytes_under_a_uid": {("STORED", "CONFLICT"), ("CONFLICT", "STORED")},
    "receiver_and_indexer": {("STORED", "done")},
    "receiver_and_recovery": {("STORED", "done")},
    "receiver_and_removal": {("STORED", "done")},
    "receiver_and_removal_of_the_study": {("STORED", "done")},
    "the_removed_instance_comes_again": {("STORED", "done"), ("DUPLICATE", "done")},
    "other_bytes_for_the_removed_instance": {("STORED", "done"), ("CONFLICT", "done")},
    "removal_and_indexer": {("done", "done")},
}
"""What the actors may come to when nobody is killed; each must come about."""


@pytest.mark.timeout(120 if not WANTED else 7200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_in_every_order(name: str, base: str) -> None:
    with quick_folder() as folder:
        performance = Performance(name, base, folder)
        count = kills = 0
        for run in performance.runs():
            count += 1
            kills += any(one.killed for one in run.actors)
    print(f"{name}: {count} orders, {kills} with a kill, {performance.recovered} trees recovered")
    whole = {outcome for outcome in performance.outcomes if "killed" not in outcome}
    assert name not in EXPECTED or whole == EXPECTED[name]
    assert count >= FEWEST.get(name, 120)
    assert kills >= count // 10
