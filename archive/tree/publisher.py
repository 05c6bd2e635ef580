"""Giving finished files their final names, durably: the middle of the order of a store.

Names are resolved relative to open directories, so that nothing lands beneath a mount point whose
mount went away, nor through a symbolic link.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.tree import durable

_VANISHED = (errno.ENOENT, errno.ESTALE)
_OPEN_FOLDERS = 256
_ATTEMPTS = 3


class Linked(enum.Enum):
    """What came of giving a file a name."""

    OURS = enum.auto()
    """The name is that file's now."""
    TAKEN = enum.auto()
    """Another file has the name; nothing was changed."""
    NOWHERE = enum.auto()
    """The folder that was open was removed or moved away: it is not in the tree."""


def same_file(name: str, folder: int, other_name: str, other_folder: int) -> bool:
    """Whether both names are of one file. False when either is not there."""
    try:
        one = os.stat(name, dir_fd=folder, follow_symlinks=False)
        other = os.stat(other_name, dir_fd=other_folder, follow_symlinks=False)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


class Folder:
    """An open directory that closes itself when nothing holds it any more."""

    __slots__ = ("fd", "identity", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        facts = os.fstat(fd)
        self.identity = (facts.st_dev, facts.st_ino)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class Publisher:
    """Gives finished temporary files their final names beneath an open root. Thread-safe.

    ``sync=False`` leaves out every fsync (``--sync off``).
    """

    def __init__(self, root: int, *, sync: bool = True) -> None:
        self._root = Folder(os.dup(root), "")
        self._sync = sync
        self._folders: OrderedDict[str, Folder] = OrderedDict()
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def folder(self, path: str) -> Folder:
        """The folder at ``path`` (relative), made when absent, durable up to the root.

        Each directory is made durable before anything is put in it: one that is found there may
        have been made a moment ago by somebody who has not synced it yet.
        Raises OSError, StorageUnavailable.
        """
        if not path:
            return self._root
        with self._lock:
            known = self._folders.get(path)
            if known:
                self._folders.move_to_end(path)
                return known
        above, _, name = path.rpartition("/")
        parent = self.folder(above)
        with contextlib.suppress(FileExistsError):
            durable.make_folder(name, folder=parent.fd)
        self.sync(parent)
        made = Folder(durable.open_folder(name, folder=parent.fd), path)
        with self._lock:
            self._folders[path] = made
            while len(self._folders) > _OPEN_FOLDERS:
                self._folders.popitem(last=False)
        return made

    def sync(self, folder: Folder) -> None:
        """Makes the names in ``folder`` durable. Raises StorageUnavailable."""
        self._sync_once(durable.sync_folder, folder.fd, folder.path)

    def sync_published(self, fd: int, path: str) -> None:
        """Makes the bytes of the open file that lies at ``path`` durable.

        Raises StorageUnavailable.
        """
        self._sync_once(durable.sync_file, fd, path.rpartition("/")[0])

    def _sync_once(self, sync: Callable[[int], None], fd: int, folder: str) -> None:
        """The kernel reports a failed write-back once and then forgets the pages: a folder in which
        an fsync failed is refused from then on, as a second fsync would claim what is not so."""
        if not self._sync:
            return
        if folder in self._failed:
            raise StorageUnavailable(
                f"folder {folder or '.'} failed to sync before; check the disk, then restart"
            )
        try:
            sync(fd)
        except OSError as error:
            self._failed.add(folder)
            why = error.strerror or str(error)
            raise StorageUnavailable(
                f"cannot sync folder {folder or '.'}: {why}; check the disk, then restart"
            ) from error

    def attempts(self, path: str) -> Iterator[Folder]:
        """The ``folder`` at ``path``; whoever asks for another found it moved away, and gets it
        opened anew, a few times. Raises OSError, StorageUnavailable."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                folder = self.folder(path)
            except OSError as error:
                if error.errno not in _VANISHED or not left:
                    raise
            else:
                yield folder
            self.forget(path)

    def link(self, temporary: str, temporary_folder: int, folder: Folder, name: str) -> Linked:
        """Gives the file ``temporary`` the ``name`` in ``folder``, too. Durable, whoever's it is,
        after ``sync(folder)``. Raises OSError."""
        try:
            durable.link(temporary, name, folder=temporary_folder, to_folder=folder.fd)
            ours = True
        except OSError as error:
            # An error is no proof that nothing was linked (NFS repeats lost answers).
            ours = same_file(temporary, temporary_folder, name, folder.fd)
            if not ours and error.errno in _VANISHED:
                return Linked.NOWHERE
            if not ours and error.errno != errno.EEXIST:
                raise
        if not self._in_place(folder):
            return Linked.NOWHERE
        return Linked.OURS if ours else Linked.TAKEN

    def publish(self, temporary: str, temporary_folder: int, path: str) -> bool:
        """Links the finished, synced file ``temporary`` to ``path``, durably.

        True: ``path`` is that file now. False: another file has the name; nothing was changed,
        and its directory entry is durable. Raises OSError, StorageUnavailable; after an error the
        file may stay under ``path``, whole.
        """
        where, _, name = path.rpartition("/")
        for folder in self.attempts(where):
            linked = self.link(temporary, temporary_folder, folder, name)
            if linked is not Linked.NOWHERE:
                self.sync(folder)
                return linked is Linked.OURS
        raise StorageUnavailable(f"folder {where} keeps moving away")

    def replace(
        self, temporary: str, temporary_folder: int, path: str, before: tuple[int, int]
    ) -> bool:
        """Gives the finished, synced file ``temporary`` the name ``path``, durably, in place of the
        file ``before`` (device and inode). There is no moment when nothing lies at ``path``.

        ``temporary`` stays, as after ``publish``: until it is unlinked, the file's second link says
        that its store is not finished. False: something else, or nothing, lies at ``path``;
        nothing was changed. Whoever replaces holds ``layout.REPLACING_LOCK``, and so does whoever
        takes a file away. Raises OSError, StorageUnavailable; after an error either file may lie
        at ``path``, whole.
        """
        where, _, name = path.rpartition("/")
        folder = self.folder(where)
        second = f"{temporary}.second"
        durable.link(temporary, second, folder=temporary_folder, to_folder=temporary_folder)
        try:
            there = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) != before or not self._in_place(folder):
                return False
            durable.rename(second, name, folder=temporary_folder, to_folder=folder.fd)
        except FileNotFoundError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                durable.unlink(second, folder=temporary_folder)
        self.sync(folder)
        return True

    def _in_place(self, folder: Folder) -> bool:
        """Whether the open ``folder`` still is what its path leads to."""
        try:
            there = os.stat(folder.path, dir_fd=self._root.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == folder.identity

    def forget(self, path: str) -> None:
        """Opens the folders on the way to ``path`` anew next time."""
        with self._lock:
            while path:
                self._folders.pop(path, None)
                path = path.rpartition("/")[0]
