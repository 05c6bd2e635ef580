"""The UIDs that are refused: ``.plainpacs/forbidden``, which ``rm --forbid`` adds to.

Only ever appended to, one JSON object a line; of several for a UID the last counts:

    {"uid":"1.2.3","forbidden":"2024-02-28T02:38:10.123Z"}
    {"uid":"1.2.3","allowed":"2024-03-01T09:00:00.000Z"}

A UID stands for the study, series or instance that has it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from plainpacs.archive.errors import ForbiddenInstance, StorageUnavailable
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import stamp

_Facts = tuple[int, int, int]
_MISSING: _Facts = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What is forbidden, as it was when it was read: since when, by UID."""

    since: Mapping[str, str] = field(default_factory=dict)
    _facts: _Facts = _MISSING

    @classmethod
    def load(cls, root: int) -> Forbidden:
        """What is forbidden in the archive open as ``root``; nothing where the list is missing.

        Raises StorageUnavailable when it cannot be read: what is forbidden is then not known.
        """
        try:
            fd = os.open(layout.FORBIDDEN, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise _unreadable(error) from error
        try:
            with open(fd, "rb") as file:
                facts = _facts_of(os.fstat(fd))
                return cls(_since(file.read()), facts)
        except OSError as error:
            raise _unreadable(error) from error

    def anew(self, root: int) -> Forbidden:
        """The same, or what is forbidden now when the list was changed since.

        One system call when it was not. Raises StorageUnavailable.
        """
        try:
            facts = _facts_of(os.stat(layout.FORBIDDEN, dir_fd=root))
        except FileNotFoundError:
            facts = _MISSING
        except OSError as error:
            raise _unreadable(error) from error
        return self if facts == self._facts else Forbidden.load(root)

    def covers(self, study: str, series: str, instance: str) -> bool:
        """Whether the instance is refused, for itself or for its series or study."""
        since = self.since
        return bool(since) and (study in since or series in since or instance in since)

    def check(self, key: InstanceKey) -> None:
        """Raises ForbiddenInstance when the instance is refused."""
        if self.covers(key.study, key.series, key.instance):
            raise ForbiddenInstance("the instance was removed and forbidden to come back")


def forbid(root: int, uids: Iterable[str]) -> None:
    """From now on the ``uids`` are refused; durable when this returns. Raises OSError."""
    _append(root, uids, "forbidden")


def allow(root: int, uids: Iterable[str]) -> None:
    """The ``uids`` are no longer refused; durable when this returns. Raises OSError."""
    _append(root, uids, "allowed")


def _append(root: int, uids: Iterable[str], what: str) -> None:
    now = stamp(time.time_ns())
    lines = [orjson.dumps({"uid": uid, what: now}) + b"\n" for uid in uids]
    durable.append_lines(root, layout.FORBIDDEN, b"".join(lines))
    durable.settle(root, layout.FORBIDDEN)


def _since(data: bytes) -> dict[str, str]:
    since: dict[str, str] = {}
    for raw in data.split(b"\n"):
        if not raw:
            continue
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(line, dict) or not isinstance(line.get("uid"), str):
            continue
        if isinstance(line.get("forbidden"), str):
            since[line["uid"]] = line["forbidden"]
        elif "allowed" in line:
            since.pop(line["uid"], None)
    return since


def _facts_of(facts: os.stat_result) -> _Facts:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _unreadable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"cannot read {layout.FORBIDDEN}: {error.strerror}")
