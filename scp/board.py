"""What the receiver processes of one service share: how busy each is, and its note.

A file without a name, inherited, with a slot for each process. A process that dies leaves its slot
to the one that is started in its place; a lock of the system's that it held is gone with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
import threading
from collections.abc import Iterator

_SLOT = 1 << 16
_HEAD = struct.Struct("<LLL")
"""Open connections, associations, and the length of the note that follows."""


class Board:
    """One process's view: ``slot`` is its own of ``slots``. Thread-safe; close it."""

    def __init__(self, fd: int, slots: int, slot: int = 0) -> None:
        self.fd = fd
        self.slots = slots
        self._slot = slot
        self._lock = threading.Lock()

    @classmethod
    def create(cls, slots: int) -> Board:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, slots * _SLOT)
        return cls(fd, slots)

    def close(self) -> None:
        os.close(self.fd)

    def clear(self) -> None:
        """A process that begins has no connections, whatever the one before it had."""
        with self._locked():
            os.pwrite(self.fd, bytes(8), self._slot * _SLOT)

    def opened(self) -> None:
        with self._locked():
            self._count(connections=1)

    def closed(self) -> None:
        with self._locked():
            self._count(connections=-1)

    def admit(self, limit: int) -> bool:
        """Counts one association more, if all processes together have fewer than ``limit``."""
        with self._locked():
            if sum(self._head(slot)[1] for slot in range(self.slots)) >= limit:
                return False
            self._count(associations=1)
            return True

    def dismiss(self) -> None:
        with self._locked():
            self._count(associations=-1)

    def is_busier(self) -> bool:
        """Whether another process has fewer connections than this one."""
        counts = [self._head(slot)[0] for slot in range(self.slots)]
        return counts[self._slot] > min(counts)

    def write_note(self, note: bytes) -> None:
        """Replaces this process's note; one that has no room is not written."""
        if len(note) <= _SLOT - _HEAD.size:
            with self._locked():
                connections, associations, _ = self._head(self._slot)
                head = _HEAD.pack(connections, associations, len(note))
                os.pwrite(self.fd, head + note, self._slot * _SLOT)

    def own_note(self) -> bytes:
        """What this slot's process before said last; empty when there was none."""
        with self._locked():
            return self._note(self._slot)

    def notes(self) -> list[bytes]:
        """The notes of all processes that ever wrote one."""
        with self._locked():
            return [note for slot in range(self.slots) if (note := self._note(slot))]

    # --- the file -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:  # the system's lock is the process's, not the thread's
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _count(self, connections: int = 0, associations: int = 0) -> None:
        before, admitted, length = self._head(self._slot)
        head = _HEAD.pack(before + connections, admitted + associations, length)
        os.pwrite(self.fd, head, self._slot * _SLOT)

    def _head(self, slot: int) -> tuple[int, int, int]:
        connections, associations, length = _HEAD.unpack(
            os.pread(self.fd, _HEAD.size, slot * _SLOT)
        )
        return connections, associations, length

    def _note(self, slot: int) -> bytes:
        return os.pread(self.fd, self._head(slot)[2], slot * _SLOT + _HEAD.size)
