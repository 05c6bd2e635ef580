"""Temporary files in ``incoming``: bytes go in, are hashed as they pass, and are made durable."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import time
from typing import Any, Self

import blake3

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import NotDICOM, UnreadableDataSet
from plainpacs.archive.tree import durable
from plainpacs.archive.tree.root import stamp

PATIENCE = 15 * 60
"""Seconds after which a file with a second link is no longer taken for one being received."""

_CHUNK = 1 << 20
_MILLISECOND = 1_000_000


def new_digest(name: str) -> Any:
    """A hash object for ``name``: blake3 or sha256. Both hash large buffers without the GIL."""
    return blake3.blake3() if name == "blake3" else hashlib.sha256()


class Temporary:
    """A name in ``incoming`` of a file that is about to get its place in the tree: the ``name``,
    too, for the file ``of`` in ``folder``, which is whole and durable. Methods raise OSError.

    A context manager: whatever happens, the name is gone afterwards.
    """

    __slots__ = ("_incoming", "name")

    def __init__(self, incoming: int, name: str, *, of: str, folder: int) -> None:
        self.name = name
        self._incoming = incoming
        durable.link(of, name, folder=folder, to_folder=incoming)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def sync(self) -> None:
        """Makes the file's bytes and time durable, if they are not yet."""

    def discard(self) -> None:
        """Takes the name away; what was published under another stays."""
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(self.name, folder=self._incoming)


class TemporaryFile(Temporary):
    """A new file ``name`` in the open directory ``incoming``; ``sync`` false: never synced."""

    __slots__ = ("_digest", "_fd", "_sync", "size")

    def __init__(self, incoming: int, name: str, digest: str, *, sync: bool = True) -> None:
        self.name = name
        self.size = 0
        self._incoming = incoming
        self._sync = sync
        self._digest = new_digest(digest)
        self._fd = durable.create(name, 0o444, folder=incoming)

    def discard(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)  # where it may fail: a quota on a network file system
            finally:
                super().discard()

    def write(self, *buffers: Buffer) -> None:
        """Adds bytes, and to the digest."""
        self.size += durable.write_all(self._fd, buffers)
        for buffer in buffers:
            self._digest.update(buffer)

    def copy(self, source: int) -> None:
        """Makes it a copy of a whole file; the file system shares the blocks where it can.

        Raises UnreadableDataSet when the source cannot be read.
        """
        offset = 0
        # Whatever it fails at, the plain way finds out whose fault it is, or that it can. After
        # success too: some file systems (procfs, FUSE) claim there is nothing to copy.
        with contextlib.suppress(OSError):
            while taken := durable.copy_range(source, self._fd, 1 << 30, offset):
                offset += taken
        while chunk := _read_source(source, offset):
            offset += durable.write_all(self._fd, [chunk])
        self.size = offset
        if offset:
            self._digest.update(self.view())

    def date(self, stored: int | None) -> str:
        """Gives the file its time (nanoseconds; None: now), and returns that as a stamp."""
        now = time.time_ns() if stored is None else stored
        now -= now % _MILLISECOND
        durable.set_time(self._fd, now)
        return stamp(now)

    def sync(self) -> None:
        if self._sync:
            durable.sync_file(self._fd)

    def hexdigest(self) -> str:
        return str(self._digest.hexdigest())

    def view(self) -> memoryview:
        """All bytes so far. Raises NotDICOM when there are none."""
        return mapped(self._incoming, self.name)


def mapped(folder: int, name: str) -> memoryview:
    """The bytes of a file that nobody cuts short (ours): a view of it mapped to memory.

    Unmapped when the last view of it is gone, which a traceback may hold on to for a while.
    Raises OSError, NotDICOM when it is empty.
    """
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(fd).st_size == 0:
            raise NotDICOM("the file is empty")
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)


def _read_source(source: int, offset: int) -> bytes:
    try:
        return os.pread(source, _CHUNK, offset)
    except OSError as error:
        raise UnreadableDataSet(f"it cannot be read: {error.strerror}") from None
