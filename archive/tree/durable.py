"""Every change to the tree: the only system calls that change files. Nothing else makes one.

Tests replace the primitives to record, fail and interleave. What is made of them below serves
derived files; ``publisher`` gives instances their names. Names are resolved relative to open
directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.tree import layout

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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


def open_file(path: str, *, folder: int | None = None) -> int:
    """A file to read; if a link lies there instead, that is an error."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def read_file(path: str, *, folder: int) -> bytes | None:
    """All of it; None when there is none."""
    try:
        with open(open_file(path, folder=folder), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


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
    temporary = f"{os.urandom(8).hex()}.new"
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
            fd = open_file(name, folder=folder)
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


def clear_folder(name: str, *, folder: int) -> None:
    """Removes for good the files that the folder ``name`` has. Raises OSError."""
    fd = open_folder(name, folder=folder)
    try:
        for one in os.listdir(fd):
            unlink(one, folder=fd)
        sync_folder(fd)
    finally:
        os.close(fd)


def ends_with_newline(fd: int) -> bool:
    """Whether a line appended now starts a line of its own."""
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"
