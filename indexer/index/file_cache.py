"""Whole files, read once as long as they stay the same."""

from __future__ import annotations

import contextlib
import os
import threading
from io import FileIO

_MOST_REMEMBERED = 32 << 20
"""Bytes. Of more the same ones are kept, as all are asked for in turn."""

_Identity = tuple[int, int, int, int, int]


def read_file(path: str, folder: int | None = None) -> bytes | None:
    """The file at ``path``, beneath ``folder``; None when there is none. Raises OSError."""
    file = _open(path, folder)
    if file is None:
        return None
    with file:
        return file.read()


def _open(path: str, folder: int | None = None) -> FileIO | None:
    try:
        return FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder))
    except FileNotFoundError:
        return None


class FileCache:
    """The files that were read first, by path, as long as they stay the same. Thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[_Identity, bytes]] = {}
        self._room = _MOST_REMEMBERED
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes | None:
        """As ``read_file``."""
        known = self._kept.get(path)
        with contextlib.suppress(FileNotFoundError):
            if known and known[0] == _identity(os.stat(path)):
                return known[1]
        file = _open(path)
        if file is None:
            return None
        with file:
            # What is appended from here on is either read, too, or changes the size.
            identity = _identity(os.fstat(file.fileno()))
            data = file.read()
        self._keep(path, identity, data)
        return data

    def _keep(self, path: str, identity: _Identity, data: bytes) -> None:
        with self._lock:
            before = self._kept.pop(path, None)
            self._room += len(before[1]) if before else 0
            if len(data) <= self._room:
                self._room -= len(data)
                self._kept[path] = identity, data


def _identity(facts: os.stat_result) -> _Identity:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
