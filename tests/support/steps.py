"""Doing something at, or instead of, each change that an action makes to the tree.

A *step* is a call of one of ``durable``'s primitives; they are counted from 0.
"""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.tree import durable

PRIMITIVES = (
    *("sync_file", "sync_folder", "link", "rename", "unlink", "make_folder", "remove_folder"),
    *("create", "open_to_append", "touch", "write", "set_time", "truncate"),
)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of syncs of a disk take minutes."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="plainpacs-test-", dir=shm) as folder:
        yield Path(folder)


@contextmanager
def at_step(wanted: int, then: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Calls ``then(primitive)`` before step ``wanted``, once; yields how many steps there were."""
    count = 0

    def spy(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == wanted:
                then(name)
            return real(*args, **kwargs)

        return called

    before = {name: getattr(durable, name) for name in PRIMITIVES}
    try:
        for name, real in before.items():
            setattr(durable, name, spy(name, real))
        yield lambda: count
    finally:
        for name, real in before.items():
            setattr(durable, name, real)


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Runs ``action`` in a process of its own, killed before ``step``; False: it ended before."""
    child = os.fork()
    if not child:
        try:
            with at_step(step, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)
