"""The power fails at every moment of every order, and the disk holds whatever it may.

Each order of ``orders.py`` is recorded on a real folder, the states a disk may be in are built
from the record (``power.py`` says which), and of each it is checked in memory that what was
promised is there whole. A sample of them is put into a folder, on which plainpacs starts in a new
boot: everything promised is there byte for byte, nothing partial has a final name, no unfinished
work is left, a second recovery changes nothing, and the indexes are what a rebuild makes.

``PLAINPACS_POWER_STATES=N`` recovers up to N states of each order (the default is DEFAULT; 0: all,
with more pairs and random subsets).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from orders import ORDERS, Disk, recorded
from power import Recorder, State, build, states
from recovery import Checker, Said, partial, quick_folder, unkept

DEFAULT = 150
WANTED = int(os.environ.get("PLAINPACS_POWER_STATES", DEFAULT))
COUNTS: dict[str, tuple[int, int, int]] = {}
"""Of each order: its operations, the different states found, and those recovered."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def different(recorder: Recorder, *, without: str = "", full: bool = False) -> list[State]:
    """The different states, each at the last moment at which it may occur: most was promised."""
    more = {"pairs": 24, "random_each": 30} if full else {}
    found: dict[object, State] = {}
    for state in states(recorder, without=without, **more):
        key = state.print()
        found.pop(key, None)
        found[key] = state
    return list(found.values())


def wrong_in_memory(state: State, disk: Disk) -> list[str]:
    files = state.files()
    return unkept(files, _pairs(state)) + (partial(files, disk.offered) if disk.careful else [])


def _pairs(state: State) -> list[Said]:
    return [(promise.words, promise.holds) for promise in state.promises]


def wrong_after_recovery(recorder: Recorder, state: State, checker: Checker) -> list[str]:
    with quick_folder() as folder:
        build(recorder, state, f"{folder}/disk")
        return checker.broken(f"{folder}/disk", _pairs(state), "boot-2")


def say(state: State, recorder: Recorder, wrong: list[str]) -> str:
    done = "\n".join(
        f"  {'*' if n in state.chosen else ' '} {n} {operation!r}"[:160]
        for n, operation in enumerate(recorder.log[: state.moment])
    )
    return f"{wrong}\nafter (* unpinned, but there):\n{done}\nfiles: {sorted(state.files())}"


@pytest.mark.parametrize("name", ORDERS)
def test_power_loss(name: str, tmp_path: Path) -> None:
    recorder, disk = recorded(name, str(tmp_path))
    found = different(recorder, full=WANTED == 0)
    for state in found:
        wrong = wrong_in_memory(state, disk)
        assert not wrong, say(state, recorder, wrong)
    sample = found
    if WANTED and len(found) > WANTED:
        sample = random.Random(name).sample(found, WANTED)
    checker = Checker(disk.offered, careful=disk.careful)
    for state in sample:
        wrong = wrong_after_recovery(recorder, state, checker)
        assert not wrong, say(state, recorder, wrong)
    COUNTS[name] = (len(recorder.log), len(found), len(sample))
