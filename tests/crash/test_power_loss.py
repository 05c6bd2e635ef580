"""The power fails at every moment of every order, and the disk holds whatever it may.

Each order of ``orders.py`` is recorded on a real folder, the states a disk may be in are built
from the record (``power.py`` says which), and of each it is checked in memory that what was
promised is there whole. A sample of them is put into a folder, on which plainpacs starts in a new
boot: everything promised is there byte for byte, nothing partial has a final name, no unfinished
work is left, a second recovery changes nothing, and the indexes are what a rebuild makes.

``PLAINPACS_TEST_POWER_STATES=N`` recovers up to N states of each order (the default is DEFAULT; 0:
all, with more pairs and random subsets).
"""

from __future__ import annotations

import ast
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from plainpacs.archive.tree import durable
from tests.crash.orders import Disk, recorded
from tests.crash.orders_removal import ORDERS
from tests.crash.power import PRIMITIVES, Recorder, State, build, states
from tests.crash.recovery import Checker, Said, partial, quick_folder, unkept

DEFAULT = 60
WANTED = int(os.environ.get("PLAINPACS_TEST_POWER_STATES", DEFAULT))
FEWEST = 4
"""Different states for each moment of an order; fewer, and the model has shrunk."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def different(recorder: Recorder, *, full: bool = False) -> list[State]:
    """The different states, each at the last moment at which it may occur: most was promised."""
    more = {"pairs": 24, "random_each": 30} if full else {}
    found: dict[object, State] = {}
    for state in states(recorder, **more):
        key = state.print()
        found.pop(key, None)
        found[key] = state
    return list(found.values())


def wrong_in_memory(state: State, disk: Disk) -> list[str]:
    files = state.files()
    return unkept(files, said(state)) + (partial(files, disk.offered) if disk.careful else [])


def said(state: State) -> list[Said]:
    return [(promise.words, promise.holds) for promise in state.promises]


def wrong_after_recovery(recorder: Recorder, state: State, checker: Checker) -> list[str]:
    with quick_folder() as folder:
        build(recorder, state, f"{folder}/disk")
        return checker.broken(f"{folder}/disk", said(state), "boot-2")


def tell(state: State, recorder: Recorder, wrong: list[str]) -> str:
    done = "\n".join(
        f"  {'*' if number in state.chosen else ' '} {number} {operation!r}"[:160]
        for number, operation in enumerate(recorder.log[: state.moment])
    )
    return f"{wrong}\nafter (*: reached the disk unasked):\n{done}\n{sorted(state.files())}"


CHANGING = {
    *("fsync", "fdatasync", "link", "symlink", "rename", "replace", "unlink", "remove", "mkdir"),
    *("rmdir", "mknod", "write", "writev", "pwrite", "pwritev", "utime", "copy_file_range"),
    *("sendfile", "ftruncate", "truncate", "chmod", "fchmod", "chown", "fchown", "O_CREAT"),
}


def primitives() -> set[str]:
    """The functions of ``durable`` that ask the system to change something."""
    assert durable.__file__
    return {
        function.name
        for function in ast.parse(Path(durable.__file__).read_text()).body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr in CHANGING) == ("os", True)
    }


def test_every_primitive_is_recorded() -> None:
    # Symbolic links lie in trees for people, of which nothing is promised.
    assert primitives() == {*PRIMITIVES, "symlink"}


@pytest.mark.timeout(120 if WANTED == DEFAULT else 3600)
@pytest.mark.parametrize("name", ORDERS)
def test_power_loss(name: str, tmp_path: Path) -> None:
    recorder, disk = recorded(name, str(tmp_path))
    found = different(recorder, full=WANTED == 0)
    for state in found:
        wrong = wrong_in_memory(state, disk)
        assert not wrong, tell(state, recorder, wrong)
    sample = found
    if 0 < WANTED < len(found):
        sample = random.Random(name).sample(found, WANTED)
    checker = disk.checker()
    for state in sample:
        wrong = wrong_after_recovery(recorder, state, checker)
        assert not wrong, tell(state, recorder, wrong)
    print(f"{name}: {len(recorder.log)} moments, {len(found)} states, {len(sample)} recovered")
    assert len(found) >= FEWEST * len(recorder.log)
    assert len(sample) >= min(DEFAULT, len(found))
