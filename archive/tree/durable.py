"""Every change to the tree, and the order that makes it durable. Nothing else changes files.

The primitives at the top are the only system calls that change the tree; tests replace them to
record, fail and interleave. ``Publisher.publish`` is the middle of the order of a store
(design, section 3): link the finished temporary file to its final name, then sync the directories
on the way that this process has not itself synced.

Names are resolved relative to open directories, so that nothing lands beneath a mount point whose
mount went away, nor through a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.tree import layout

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_VANISHED = (errno.ENOENT, errno.ESTALE)
_OPEN_FOLDERS = 256


# --- primitives: one system call each ---------------------------------------------------------


def sync_file(fd: int) -> None:
    """The bytes and length of the file outlive a power loss once this returns."""
    os.fsync(fd)


def sync_folder(fd: int) -> None:
    """The names in the directory outlive a power loss once this returns."""
    os.fsync(fd)


def link(name: str, to: str, *, folder: int, to_folder: int) -> None:
    os.link(name, to, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)


def rename(name: str, to: str, *, folder: int, to_folder: int) -> None:
    os.rename(name, to, src_dir_fd=folder, dst_dir_fd=to_folder)


def symlink(to: str, name: str, *, folder: int) -> None:
    """A symbolic link that says ``to``, as in the trees for people; an archive has none."""
    os.symlink(to, name, dir_fd=folder)


def unlink(name: str, *, folder: int) -> None:
    os.unlink(name, dir_fd=folder)


def make_folder(name: str, mode: int = 0o777, *, folder: int) -> None:
    os.mkdir(name, mode, dir_fd=folder)


def remove_folder(name: str, *, folder: int) -> None:
    os.rmdir(name, dir_fd=folder)


def create(name: str, mode: int = 0o666, *, folder: int) -> int:
    """A new, empty file open for writing; FileExistsError when the name is taken."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=folder)


def open_to_append(name: str, *, folder: int) -> int:
    """A file, made when absent, of which every write goes to the end; readable too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o666, dir_fd=folder)


def touch(name: str, *, folder: int) -> None:
    """An empty file, in one system call; one that is there already will do."""
    try:
        os.mknod(name, 0o666 | stat.S_IFREG, dir_fd=folder)
    except FileExistsError:
        pass
    except PermissionError:  # mknod is for root alone on some systems (macOS)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o666, dir_fd=folder))


def write(fd: int, buffers: Sequence[Buffer]) -> int:
    """Writes once; returns the number of bytes taken, which may be fewer than given."""
    return os.writev(fd, buffers)


def copy_range(source: int, to: int, length: int, offset: int) -> int:
    """Copies up to ``length`` bytes in the kernel, sharing blocks where it can; 0 at the end."""
    return os.copy_file_range(source, to, length, offset_src=offset)


def set_time(fd: int, nanoseconds: int) -> None:
    os.utime(fd, ns=(nanoseconds, nanoseconds))


def set_mode(fd: int, mode: int) -> None:
    """Of an open file or directory. Raises PermissionError to all but its owner."""
    os.fchmod(fd, mode)


def truncate(fd: int) -> None:
    """Leaves nothing in the file. Of lock files alone; nothing else is ever cut short."""
    os.ftruncate(fd, 0)


# --- what is made of them ---------------------------------------------------------------------


def open_folder(name: str, *, folder: int | None = None) -> int:
    """An open directory. Raises FileNotFoundError, NotADirectoryError; a link is not followed."""
    return os.open(name, _DIRECTORY, dir_fd=folder)


def make_path(path: str) -> None:
    """The folder at ``path``, and those above it that are missing, made and durable.

    That ``path`` itself is known to the folder above it is made durable in any case: it may have
    been made a moment ago. Raises OSError.
    """
    above, name = os.path.split(os.path.abspath(path))
    there = os.path.isdir(path)
    if not name:
        return
    if not there and not os.path.isdir(above):
        make_path(above)
    try:
        parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not there:
                with contextlib.suppress(FileExistsError):
                    make_folder(name, folder=parent)
            sync_folder(parent)
        finally:
            os.close(parent)
    except OSError:
        # Who may write in a folder need not be allowed to read the one above it.
        if not there:
            raise


def write_all(fd: int, buffers: Iterable[Buffer]) -> int:
    """Writes all of ``buffers``, of any number; returns their length. Raises OSError."""
    rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    total = sum(map(len, rest))
    while rest:
        taken = write(fd, rest[:64])
        if taken == total:  # as nearly always
            break
        while rest and taken >= len(rest[0]):
            taken -= len(rest.pop(0))
        if taken:
            rest[0] = rest[0][taken:]
    return total


def replace_file(root: int, path: str, data: Buffer | Iterable[Buffer]) -> None:
    """Puts ``data`` at ``path`` beneath the open ``root`` at once and for good. Raises OSError.

    For derived files only: readers see the old content or the new, also after a power loss. The
    unfinished file lies in ``.plainpacs/indexing``, where the indexer clears it at its start.
    """
    where, _, name = path.rpartition("/")
    buffers = [data] if isinstance(data, (bytes, bytearray, memoryview)) else list(data)
    scratch = open_folder(layout.INDEXING, folder=root)
    temporary = f"{os.getpid()}.{threading.get_native_id()}.new"
    try:
        folder = open_folder(where or ".", folder=root)
        try:
            for last in (False, False, True):
                _create_whole(temporary, buffers, scratch)
                try:
                    rename(temporary, name, folder=scratch, to_folder=folder)
                    break
                except FileNotFoundError:  # an indexer that starts took it for a dead one's
                    if last:
                        raise
            sync_folder(folder)
        finally:
            os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            unlink(temporary, folder=scratch)
        os.close(scratch)


def _create_whole(name: str, buffers: Iterable[Buffer], folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        unlink(name, folder=folder)
    fd = create(name, folder=folder)
    try:
        write_all(fd, buffers)
        sync_file(fd)
    finally:
        os.close(fd)


def append_lines(root: int, path: str, lines: bytes) -> None:
    """Adds whole ``lines`` (ending in a newline) to the derived file ``path`` in one write.

    A tail torn by a crash is closed with a newline first. Raises OSError, also when the write
    was short.
    """
    where, _, name = path.rpartition("/")
    folder = open_folder(where or ".", folder=root)
    try:
        fd = open_to_append(name, folder=folder)
    finally:
        os.close(folder)
    try:
        if not ends_with_newline(fd):
            lines = b"\n" + lines
        if write(fd, [lines]) != len(lines):
            raise OSError(errno.EIO, "short write")
    finally:
        os.close(fd)


def settle(root: int, path: str) -> None:
    """What was appended to the derived file ``path`` is there for good, or, when it is not there,
    that it is gone. Raises OSError."""
    where, _, name = path.rpartition("/")
    folder = open_folder(where or ".", folder=root)
    try:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                sync_file(fd)
            finally:
                os.close(fd)
        sync_folder(folder)
    finally:
        os.close(folder)


def settle_folder(root: int, path: str) -> None:
    """The names in the folder ``path`` are there for good. Raises OSError."""
    folder = open_folder(path, folder=root)
    try:
        sync_folder(folder)
    finally:
        os.close(folder)


def ends_with_newline(fd: int) -> bool:
    """Whether a line appended now starts a line of its own."""
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


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
            make_folder(name, folder=parent.fd)
        self.sync(parent)
        made = Folder(open_folder(name, folder=parent.fd), path)
        with self._lock:
            self._folders[path] = made
            while len(self._folders) > _OPEN_FOLDERS:
                self._folders.popitem(last=False)
        return made

    def sync(self, folder: Folder) -> None:
        """Makes the names in ``folder`` durable. Raises StorageUnavailable."""
        self._sync_once(sync_folder, folder.fd, folder.path)

    def sync_published(self, fd: int, path: str) -> None:
        """Makes the bytes of the open file that lies at ``path`` durable.

        Raises StorageUnavailable.
        """
        self._sync_once(sync_file, fd, path.rpartition("/")[0])

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

    def publish(self, temporary: str, temporary_folder: int, path: str) -> bool:
        """Links the finished, synced file ``temporary`` to ``path``, durably.

        True: ``path`` is that file now. False: another file has the name; nothing was changed,
        and its directory entry is durable. Raises OSError, StorageUnavailable; after an error the
        file may stay under ``path``, whole.
        """
        where, _, name = path.rpartition("/")
        for last in (False, False, True):
            try:
                folder = self.folder(where)
                try:
                    link(temporary, name, folder=temporary_folder, to_folder=folder.fd)
                    ours = True
                except OSError as error:
                    # An error is no proof that nothing was linked (NFS repeats lost answers).
                    ours = same_file(temporary, temporary_folder, name, folder.fd)
                    if not ours and error.errno != errno.EEXIST:
                        raise
                if self._in_place(folder):
                    self.sync(folder)
                    return ours
            except OSError as error:
                if error.errno not in _VANISHED or last:
                    raise
            # The folder was removed or moved away beneath us: what we hold open is not the tree.
            self.forget(where)
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
        link(temporary, second, folder=temporary_folder, to_folder=temporary_folder)
        try:
            there = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) != before or not self._in_place(folder):
                return False
            rename(second, name, folder=temporary_folder, to_folder=folder.fd)
        except FileNotFoundError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                unlink(second, folder=temporary_folder)
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
