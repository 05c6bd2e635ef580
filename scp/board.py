"""What the receiver processes of one service share: how busy each is, with whom, and its note.

A file without a name, inherited, with a slot for each process, and behind the slots a list of each
one's peers: an address for each association. A process that dies leaves its slot
to the one that is started in its place; a lock of the system's that it held is gone with it.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import ipaddress
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache

_SLOT = 1 << 16
_HEAD = struct.Struct("<LLL")
"""Open connections, associations, and the length of the note that follows."""
_ADDRESS = 16
_MOST_ASSOCIATIONS = 10_000
"""What a process has room for in its list; settings allow no more."""


class Admission(enum.Enum):
    """Whether one association more may be."""

    ADMITTED = "admitted"
    FULL = "full"
    FULL_FOR_PEER = "full for this peer"


class Board:
    """One process's view: ``slot`` is its own of ``slots``. Thread-safe; close it."""

    def __init__(self, fd: int, slots: int, slot: int = 0) -> None:
        self.fd = fd
        self.slots = slots
        self._slot = slot
        self._peers: list[bytes] = []
        self._lock = threading.Lock()

    @classmethod
    def create(cls, slots: int) -> Board:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, slots * (_SLOT + _MOST_ASSOCIATIONS * _ADDRESS))
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

    def admit(self, peer: str, limit: int, limit_per_peer: int = 0) -> Admission:
        """Counts one association more with the address ``peer``, if all processes together have
        fewer than ``limit``, and with it fewer than ``limit_per_peer`` (0: as many as there are).
        """
        address = _packed(peer)
        with self._locked():
            counts = [self._head(slot)[1] for slot in range(self.slots)]
            if sum(counts) >= min(limit, _MOST_ASSOCIATIONS):
                return Admission.FULL
            if limit_per_peer and self._with(address, counts) >= limit_per_peer:
                return Admission.FULL_FOR_PEER
            os.pwrite(self.fd, address, self._place(self._slot, len(self._peers)))
            self._peers.append(address)
            self._count(associations=1)
            return Admission.ADMITTED

    def dismiss(self, peer: str) -> None:
        """An association that was admitted with ``peer`` is over."""
        with self._locked():
            at = self._peers.index(_packed(peer))
            last = self._peers.pop()
            if at < len(self._peers):  # the last takes its place
                self._peers[at] = last
                os.pwrite(self.fd, last, self._place(self._slot, at))
            self._count(associations=-1)

    def associations(self) -> int:
        """How many there are now, with all processes."""
        with self._locked():
            return sum(self._head(slot)[1] for slot in range(self.slots))

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

    def _with(self, address: bytes, counts: list[int]) -> int:
        """How many associations there are with ``address``, of ``counts`` by slot."""
        found = 0
        for slot, count in enumerate(counts):
            peers = os.pread(self.fd, count * _ADDRESS, self._place(slot, 0))
            found += sum(
                peers[at : at + _ADDRESS] == address for at in range(0, len(peers), _ADDRESS)
            )
        return found

    def _place(self, slot: int, number: int) -> int:
        return self.slots * _SLOT + (slot * _MOST_ASSOCIATIONS + number) * _ADDRESS

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


@lru_cache(maxsize=256)
def _packed(address: str) -> bytes:
    """An IP address as 16 bytes, of IPv4 the mapped form (RFC 4291 2.5.5.2)."""
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed
