"""Failing the primitives of ``durable``, at a chosen call of them."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from plainpacs.archive.tree import durable

ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS),
    *(errno.EMFILE, errno.EACCES, errno.EXDEV, errno.ESTALE),
)
SHORT = -1
"""Instead of an errno: a write takes half of what it is given; the next one finds the disk full."""


def primitives() -> list[str]:
    """The functions that change the tree, as ``durable`` sets them apart; and opening a folder."""
    source = inspect.getsource(durable)
    part = source.partition("# --- primitives")[2].partition("# --- what is made of them")[0]
    names = [line[4:].partition("(")[0] for line in part.splitlines() if line.startswith("def ")]
    return [*names, "open_folder"]


@dataclass
class Failing:
    """Which call fails: the one of this index, with ``number``; ``for_good``: all after it too.

    ``calls`` are the names of the primitives called so far. ``at=None``: none fails.
    """

    at: int | None = None
    number: int = errno.EIO
    for_good: bool = False
    calls: list[str] = field(default_factory=list)

    def now(self) -> bool:
        index = len(self.calls) - 1
        return self.at is not None and (index == self.at or (self.for_good and index > self.at))

    @property
    def words(self) -> str:
        number = "a short write" if self.number == SHORT else errno.errorcode[self.number]
        return f"{number} {'from' if self.for_good else 'at'} call {self.at} of {self.calls}"

    @contextlib.contextmanager
    def put_in(self) -> Iterator[None]:
        """Within, the primitives are counted and fail."""
        with pytest.MonkeyPatch.context() as patch:
            for name in primitives():
                patch.setattr(durable, name, self._watched(name, getattr(durable, name)))
            yield

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def primitive(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if not self.now():
                return real(*args, **kwargs)
            if self.number != SHORT:
                raise OSError(self.number, os.strerror(self.number))
            if len(self.calls) - 1 == self.at:
                fd, [first, *_] = args
                return real(fd, [memoryview(first)[: len(first) // 2]])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return primitive
