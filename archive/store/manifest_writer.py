"""Appending to the sidecar manifests of one node, and to files kept like them."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict

from plainpacs.archive.tree import durable
from plainpacs.archive.tree.publisher import Folder, Publisher

log = logging.getLogger(__name__)

_OPEN_MANIFESTS = 128
_LOOK_EVERY = 1.0


class ManifestWriter:
    """Appends lines to the manifests of one node. Thread-safe.

    Keeps the last used manifests open; ``flush`` makes what was appended durable.
    """

    def __init__(self, publisher: Publisher, *, sync: bool = True) -> None:
        self._publisher = publisher
        self._sync = sync
        self._open: OrderedDict[str, _Manifest] = OrderedDict()
        self._looked = 0.0
        self._lock = threading.Lock()

    def append(self, path: str, line: bytes) -> None:
        """Adds ``line`` to the manifest at ``path`` in one write. Raises OSError.

        A short write is not continued: the next line begins on a line of its own.
        """
        self._append(path, line)

    def append_durably(self, path: str, lines: bytes) -> None:
        """As ``append``, and when this returns they outlive a power loss. Raises OSError."""
        self._append(path, lines).sync()

    def _append(self, path: str, line: bytes) -> _Manifest:
        for last in (False, True):
            manifest = self._manifest(path)
            try:
                manifest.append(line)
            except _Vanished:
                with self._lock:
                    if self._open.get(path) is manifest:
                        del self._open[path]
                self._publisher.forget(path.rpartition("/")[0])
                if last:
                    raise OSError(errno.ESTALE, "the manifest keeps vanishing", path) from None
            else:
                return manifest
        raise AssertionError("the last turn returns or raises")

    def _manifest(self, path: str) -> _Manifest:
        where, _, name = path.rpartition("/")
        folder = self._publisher.folder(where)
        with self._lock:
            manifest = self._open.get(path)
            # The folder was opened anew: what was open may lie in one that was moved away.
            if manifest is None or manifest.folder is not folder:
                manifest = _Manifest(folder, name)
                self._open[path] = manifest
            self._open.move_to_end(path)
            old = self._open.popitem(last=False)[1] if len(self._open) > _OPEN_MANIFESTS else None
        if old and self._sync:
            old.flush()
        return manifest

    def flush(self) -> None:
        """Syncs what was appended since the last flush; a failure is logged, never raised."""
        with self._lock:
            manifests = list(self._open.values()) if self._sync else []
        for manifest in manifests:
            manifest.flush()
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            self._let_go()

    def _let_go(self) -> None:
        """Closes what a purge replaced: as long as it is open, what was purged is on the disk."""
        with self._lock:
            for path in [path for path, one in self._open.items() if one.vanished()]:
                del self._open[path]

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._open.clear()


class _Vanished(Exception):
    """The open manifest has no name in the tree any more."""


class _Manifest:
    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self._name = name
        self._lock = threading.Lock()
        self._unsynced = False
        self._fd = durable.open_to_append(name, folder=folder.fd)
        self._torn = not durable.ends_with_newline(self._fd)

    def vanished(self) -> bool:
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:  # ESTALE: gone from the server of a network file system
            return True

    def append(self, line: bytes) -> None:
        with self._lock:
            if self.vanished():
                raise _Vanished
            data = b"\n" + line if self._torn else line
            self._torn = True
            self._unsynced = True
            if durable.write(self._fd, [data]) != len(data):
                raise OSError(errno.ENOSPC, "short write")
            self._torn = False

    def flush(self) -> None:
        try:
            self.sync()
        except OSError as error:
            log.warning("cannot sync manifest %s: %s", self._name, error.strerror)

    def sync(self) -> None:
        with self._lock:
            if not self._unsynced:
                return
            self._unsynced = False
            durable.sync_file(self._fd)
            durable.sync_folder(self.folder.fd)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)
        if fd is not None:
            os.close(fd)
