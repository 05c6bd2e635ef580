"""SIGKILL before every system call of an order that changes the tree or tells the sender.

``PLAINPACS_TEST_KILLS=all`` kills before every system call there is, which takes several times as
long and finds the same states of the tree again: calls that only read or sync change nothing that a
kill could leave.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.kills import ORDERS, Killer, why_not
from tests.support.promises import check, check_tree, digest_of, in_tree, kept_aside, recover

EVERY = os.environ.get("PLAINPACS_TEST_KILLS") == "all"
STOPS: dict[str, int] = {}
FEWEST = {
    "start and stop": 20,
    "store, new study": 12,
    "store, second instance": 8,
    "store, the same again": 5,
    "store, other bytes": 12,
    "store, as it comes": 10,
    "import": 30,
    "reindex": 35,
    "reindex --full": 35,
    "compact": 8,
    "rm, an instance": 20,
    "rm, a study": 25,
    "rm --purge": 40,
    "restore": 25,
    "conflicts --keep first": 15,
    "conflicts --keep second": 20,
    "repair": 20,
}


@dataclass(frozen=True)
class Room:
    """Where the archives of these tests lie. A kill, other than a power loss, does not care for
    what is on the disk: in memory, where there is such a place, the syncs take no time."""

    folder: Path
    killer: Killer


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    if why := why_not():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    memory = Path("/dev/shm")
    top = str(memory) if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="plainpacs.kills.", dir=top))
    try:
        with Killer(folder / "work") as killer:
            yield Room(folder, killer)
        print(f"\nkilled {sum(STOPS.values())} times: {STOPS}")
    finally:
        shutil.rmtree(folder)


@pytest.mark.timeout(1800 if EVERY else 120)
@pytest.mark.parametrize("name", ORDERS)
def test_killed_anywhere_every_promise_holds(name: str, room: Room) -> None:
    order, killer = ORDERS[name], room.killer
    template = room.folder / name.replace(" ", "_") / "template"
    template.parent.mkdir()
    order.prepare(str(template))
    source = template.with_name("source")
    if source.exists():
        source.rename(killer.copy(template).with_name("source"))
    kept = {*in_tree(template).values(), *kept_aside(template).values()}
    erased = {digest_of(data) for data in order.erases}
    known = {*kept, *map(digest_of, order.sends)}
    stops = killer.stops_of(name, killer.copy(template), every=EVERY)
    for stop in stops:
        path = killer.copy(template)
        ended = killer.kill_at(name, path, stop)
        why = f"{name}, killed before call {stop.number} of {stop.line}"
        assert ended.status == -9, (why, ended, killer.said())
        acknowledged = (kept - erased) | ended.acknowledged
        check_tree(path, acknowledged=acknowledged, known=known, why=why)
        recover(path)
        check(path, acknowledged=acknowledged, known=known, why=why)
        again = killer.carry_out(name, path)
        assert again.status == 0, (why, killer.said())
        check_tree(path, acknowledged=acknowledged | again.acknowledged, known=known, why=why)
        left = {*in_tree(path).values(), *kept_aside(path).values()} & erased
        assert not left, f"{why}: {len(left)} instances are not erased"
    STOPS[name] = len(stops)
    assert len(stops) >= FEWEST.get(name, 5)


def test_a_kill_comes_before_the_call(room: Room) -> None:
    """That these tests can fail: the tree is as it was before the call that was not made."""
    name = "store, new study"
    template = room.folder / "before"
    ORDERS[name].prepare(str(template))
    killer = room.killer
    stops = killer.stops_of(name, killer.copy(template), every=False)
    [link] = [stop for stop in stops if stop.call.startswith("link")]
    path = killer.copy(template)
    assert killer.kill_at(name, path, link).status == -9
    assert in_tree(path) == {}
    after = stops[stops.index(link) + 1]
    path = killer.copy(template)
    ended = killer.kill_at(name, path, after)
    assert (ended.status, len(in_tree(path))) == (-9, 1)
    with pytest.raises(AssertionError, match="is not what was sent"):
        check_tree(path, acknowledged=(), known=())
    with pytest.raises(AssertionError, match="1 acknowledged instances are lost"):
        check_tree(path, acknowledged=["gone"], known=in_tree(path).values())
