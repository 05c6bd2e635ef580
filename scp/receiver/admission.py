"""What the receiver processes of one service share: how busy each is, with whom, and its note.

A file without a name, inherited and mapped to memory, with a slot for each process, and behind the
slots a list of each one's peers: an address for each association. A process that dies leaves its
slot to the one that is started in its place; a lock of the system's that it held is gone with it.

A slot begins with three numbers of four bytes, each read and written in one piece: how many
connections are open, how many associations there are, and how long the note is that follows. Only
its own process writes to a slot; what limits depend on is changed, and counted, under the lock.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import ipaddress
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache

_SLOT = 1 << 16
_CONNECTIONS, _ASSOCIATIONS, _NOTE, _HEAD = range(4)
"""Where in a slot, by numbers of four bytes."""
_NUMBER = 4
_ADDRESS = 16
_MOST_ASSOCIATIONS = 10_000
"""What a process has room for in its list; settings allow no more."""


class Admission(enum.Enum):
    """Whether one association more may be."""

    ADMITTED = "admitted"
    FULL = "full"
    FULL_FOR_PEER = "full for this peer"


class Admissions:
    """One process's view: ``slot`` is its own of ``slots``. Thread-safe; close it."""

    def __init__(self, fd: int, slots: int, slot: int = 0) -> None:
        self.fd = fd
        self.slots = slots
        self._slot = slot
        self._peers: list[bytes] = []
        self._lock = threading.Lock()
        self._bytes = memoryview(mmap.mmap(fd, _size(slots)))
        self._numbers = self._bytes.cast("I")

    @classmethod
    def create(cls, slots: int) -> Admissions:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("plainpacs-admissions")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        # Whole from the start: to write where a full disk has no block for it ends the process.
        os.write(fd, bytes(_size(slots)))
        return cls(fd, slots)

    def close(self) -> None:
        os.close(self.fd)

    def clear(self) -> None:
        """A process that begins has no connections, whatever the one before it had."""
        with self._locked():
            self._count(_CONNECTIONS, -self._number(self._slot, _CONNECTIONS))
            self._count(_ASSOCIATIONS, -self._number(self._slot, _ASSOCIATIONS))

    def opened(self) -> None:
        with self._lock:
            self._count(_CONNECTIONS, 1)

    def closed(self) -> None:
        with self._lock:
            self._count(_CONNECTIONS, -1)

    def admit(self, peer: str, limit: int, limit_per_peer: int = 0) -> Admission:
        """Counts one association more with the address ``peer``, if all processes together have
        fewer than ``limit``, and with it fewer than ``limit_per_peer`` (0: as many as there are).
        """
        address = _packed(peer)
        with self._locked():
            counts = self._all(_ASSOCIATIONS)
            if sum(counts) >= min(limit, _MOST_ASSOCIATIONS):
                return Admission.FULL
            if limit_per_peer and self._with(address, counts) >= limit_per_peer:
                return Admission.FULL_FOR_PEER
            self._put(len(self._peers), address)
            self._peers.append(address)
            self._count(_ASSOCIATIONS, 1)
            return Admission.ADMITTED

    def dismiss(self, peer: str) -> None:
        """An association that was admitted with ``peer`` is over."""
        with self._locked():
            at = self._peers.index(_packed(peer))
            last = self._peers.pop()
            if at < len(self._peers):  # the last takes its place
                self._peers[at] = last
                self._put(at, last)
            self._count(_ASSOCIATIONS, -1)

    def associations(self) -> int:
        """How many there are now, with all processes."""
        return sum(self._all(_ASSOCIATIONS))

    def is_busier(self) -> bool:
        """Whether another process has fewer connections than this one."""
        counts = self._all(_CONNECTIONS)
        return counts[self._slot] > min(counts)

    def write_note(self, note: bytes) -> None:
        """Replaces this process's note; one that has no room is not written."""
        begin = self._slot * _SLOT + _HEAD * _NUMBER
        if len(note) <= _SLOT - _HEAD * _NUMBER:
            with self._locked():
                self._bytes[begin : begin + len(note)] = note
                self._count(_NOTE, len(note) - self._number(self._slot, _NOTE))

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
            if self.slots == 1:
                yield
                return
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _number(self, slot: int, which: int) -> int:
        return self._numbers[slot * (_SLOT // _NUMBER) + which]

    def _all(self, which: int) -> list[int]:
        return self._numbers[which : self.slots * (_SLOT // _NUMBER) : _SLOT // _NUMBER].tolist()

    def _count(self, which: int, change: int) -> None:
        self._numbers[self._slot * (_SLOT // _NUMBER) + which] += change

    def _with(self, address: bytes, counts: list[int]) -> int:
        """How many associations there are with ``address``, of ``counts`` by slot."""
        found = 0
        for slot, count in enumerate(counts):
            begin = self._place(slot, 0)
            peers = bytes(self._bytes[begin : begin + count * _ADDRESS])
            found += sum(
                peers[at : at + _ADDRESS] == address for at in range(0, len(peers), _ADDRESS)
            )
        return found

    def _put(self, number: int, address: bytes) -> None:
        place = self._place(self._slot, number)
        self._bytes[place : place + _ADDRESS] = address

    def _place(self, slot: int, number: int) -> int:
        return self.slots * _SLOT + (slot * _MOST_ASSOCIATIONS + number) * _ADDRESS

    def _note(self, slot: int) -> bytes:
        begin = slot * _SLOT + _HEAD * _NUMBER
        return bytes(self._bytes[begin : begin + self._number(slot, _NOTE)])


def _size(slots: int) -> int:
    return slots * (_SLOT + _MOST_ASSOCIATIONS * _ADDRESS)


@lru_cache(maxsize=256)
def _packed(address: str) -> bytes:
    """An IP address as 16 bytes, of IPv4 the mapped form (RFC 4291 2.5.5.2)."""
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed
