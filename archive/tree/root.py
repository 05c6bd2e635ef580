"""The archive's folder: finding it, opening it, making it.

``find_archive`` and ``open_root`` serve readers: nothing is written, a copy or a read-only mount
will do. ``create_archive`` makes a root. Who writes to one is a ``writer.Writer``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from plainpacs.archive.errors import NotAnArchive, StorageUnavailable, UnsuitableFileSystem
from plainpacs.archive.tree import durable, layout, new_root

log = logging.getLogger(__name__)

FORMAT = 1
_NODE_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class Marker:
    """``plainpacs.json``: that this is an archive, of which format, and its default node."""

    format: int
    node: str


def find_archive(explicit: str | None = None) -> str:
    """The archive meant: ``explicit``, else $PLAINPACS_ARCHIVE, else the nearest parent folder
    with a marker. Raises NotAnArchive."""
    named = explicit or os.environ.get("PLAINPACS_ARCHIVE")
    if named:
        read_marker(named)
        return named
    folder = os.getcwd()
    while not os.path.lexists(os.path.join(folder, layout.MARKER)):
        above = os.path.dirname(folder)
        if above == folder:
            raise NotAnArchive(
                "no archive here or above; name it with -a DIR or $PLAINPACS_ARCHIVE"
            )
        folder = above
    read_marker(folder)
    return folder


def open_root(path: str) -> int:
    """An open directory on the archive at ``path``, its marker checked. Raises NotAnArchive."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotAnArchive(
            f"{path} does not exist; make it with `plainpacs init {path}`, or mount it"
        ) from None
    except OSError as error:
        raise NotAnArchive(f"cannot open {path}: {error.strerror}") from None
    try:
        read_marker_at(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_marker(path: str) -> Marker:
    """The marker of the archive at ``path``. Raises NotAnArchive."""
    fd = open_root(path)
    try:
        return read_marker_at(fd, path)
    finally:
        os.close(fd)


def read_marker_at(root: int, path: str) -> Marker:
    """The marker of the open ``root``; ``path`` is for the words. Raises NotAnArchive."""
    try:
        fd = os.open(layout.MARKER, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        raise NotAnArchive(
            f"{path} is not a plainpacs archive (no {layout.MARKER}): is its disk mounted? "
            f"`plainpacs init {path}` makes it one"
        ) from None
    except OSError as error:
        raise NotAnArchive(f"cannot read {path}/{layout.MARKER}: {error.strerror}") from None
    with open(fd, "rb") as file:
        text = file.read(1 << 16)
    try:
        marker: Any = orjson.loads(text)
        found = Marker(int(marker["format"]), str(marker["node"]))
    except (ValueError, KeyError, TypeError):
        raise NotAnArchive(
            f"{path}/{layout.MARKER} cannot be read; restore it from a copy of the archive"
        ) from None
    if found.format != FORMAT or not layout.is_node(found.node):
        raise NotAnArchive(
            f"{path} has format {found.format}; this plainpacs knows format {FORMAT}: update it"
        )
    return found


def create_archive(path: str, node: str | None = None, *, force: bool = False) -> None:
    """Makes the folder at ``path``, a new or an empty one, an archive.

    An archive that is there stays as it is. ``force``: the folder may hold other files, which are
    left alone; never one of a source tree. Raises NotAnArchive when it cannot be made or may not
    be one, or UnsuitableFileSystem.
    """
    new_root.refuse_source_tree(path)
    try:
        durable.make_path(path)
        root = durable.open_folder(path + "/.")
    except OSError as error:
        raise NotAnArchive(f"cannot make {path}: {error.strerror}") from None
    try:
        if os.path.lexists(os.path.join(path, layout.MARKER)):
            read_marker_at(root, path)
            return
        new_root.refuse_package(root, path)
        if not force:
            new_root.refuse_folder_in_use(root, path)
        make_internal_folders(root, path)
        try_file_system(root, path, f"{layout.INDEXING}/try")
        letters = (_NODE_LETTERS[byte % len(_NODE_LETTERS)] for byte in os.urandom(4))
        marker = {
            "format": FORMAT,
            "node": node or "".join(letters),
            "created": stamp(time.time_ns()),
        }
        # The marker last: what has one is an archive in working order.
        durable.replace_file(root, layout.MARKER, orjson.dumps(marker, option=_MARKER_STYLE))
    except OSError as error:
        raise NotAnArchive(f"cannot make {path}: {error.strerror}") from None
    finally:
        os.close(root)


_MARKER_STYLE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2


def stamp(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as ``2024-02-28T02:38:10.123Z``; below milliseconds is cut off."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}Z"


@lru_cache(maxsize=16)  # many instances come in one
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def make_internal_folders(root: int, path: str) -> None:
    """Makes what is missing of ``.plainpacs``. Raises StorageUnavailable."""
    for name in layout.INTERNAL_FOLDERS:
        try:
            mode = 0o700 if name == layout.INTERNAL else 0o777
            durable.make_folder(name, mode, folder=root)
        except FileExistsError:
            pass
        except OSError as error:
            raise StorageUnavailable(f"cannot write in {path}: {error.strerror}") from None
    _keep_private(root, path)


def _keep_private(root: int, path: str) -> None:
    """``.plainpacs`` is for its owner alone, also where something else made it (mkdir, a copy):
    it holds what was taken out of the archive, and who did what."""
    fd = durable.open_folder(layout.INTERNAL, folder=root)
    try:
        if os.fstat(fd).st_mode & 0o077:
            durable.set_mode(fd, 0o700)
    except OSError as error:
        log.warning(
            "others may read %s/%s, and its mode cannot be changed (%s); as its owner: chmod 700",
            path,
            layout.INTERNAL,
            error.strerror,
        )
    finally:
        os.close(fd)


def try_file_system(root: int, path: str, prefix: str) -> None:
    """Refuses a file system that lacks what the order of a store rests on.

    Tried on two files whose paths start with ``prefix``, which are gone afterwards; what a kill
    leaves of them is for the next start to clear. Raises UnsuitableFileSystem, StorageUnavailable.
    """
    where, _, start = prefix.rpartition("/")
    folder = durable.open_folder(where, folder=root)
    name, other = f"{start}.{os.urandom(4).hex()}", f"{start}.{os.urandom(4).hex()}"
    what = "write files"
    try:
        os.close(durable.create(name, folder=folder))
        what = "make hard links"
        durable.link(name, other, folder=folder, to_folder=folder)
        what = "sync folders"
        durable.sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise StorageUnavailable(f"cannot {what} in {path}: {error.strerror}") from None
        raise UnsuitableFileSystem(
            f"the file system of {path} cannot {what} ({error.strerror}), so nothing could be "
            "stored safely there; use a local disk or another kind of mount (reading still works)"
        ) from None
    finally:
        for made in (name, other):
            with contextlib.suppress(OSError):
                durable.unlink(made, folder=folder)
        os.close(folder)


def file_system_now(root: int) -> int:
    """The file system's own clock, in nanoseconds (a server's may differ from ours).

    Only in an archive that one may write to. Raises OSError.
    """
    name = f"clock.{os.urandom(8).hex()}"
    folder = durable.open_folder(layout.INDEXING, folder=root)
    try:
        durable.touch(name, folder=folder)
        now = os.stat(name, dir_fd=folder).st_ctime_ns
        durable.unlink(name, folder=folder)
    finally:
        os.close(folder)
    return now


def is_locked(root: int, path: str, *, shared: bool = False) -> bool:
    """Whether a process holds the lock file at ``path``; False when that cannot be known.

    ``shared``: also when it shares the lock, as those do that write as one node. Looking takes
    the lock for a moment, so whoever wants it tries more than once.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return False
    try:
        return not try_lock(fd, fcntl.LOCK_EX if shared else fcntl.LOCK_SH)
    except OSError:
        return False
    finally:
        os.close(fd)


def is_at_work(root: int) -> bool:
    """Whether a process stores into, or indexes, the archive open as ``root``: who only reads may
    then keep what is derived and disposable. A copy is never written to."""
    try:
        folder = durable.open_folder(layout.INTERNAL, folder=root)
        try:
            nodes = [name for name in os.listdir(folder) if name.startswith("node.")]
        finally:
            os.close(folder)
    except OSError:
        return False
    return any(is_locked(root, f"{layout.INTERNAL}/{name}", shared=True) for name in nodes)


@contextlib.contextmanager
def locked(root: int, path: str) -> Iterator[None]:
    """Waits until the lock file at ``path`` can be had alone, and has it. Raises OSError."""
    fd = durable.open_to_append(path, folder=root)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def identity_of(root: int) -> str:
    """Tells the open root from any other on this machine, until it is unmounted."""
    facts = os.fstat(root)
    return f"{facts.st_dev}:{facts.st_ino}"


def try_lock(fd: int, kind: int) -> bool:
    """Whether the flock of this ``kind`` could be had at once. Raises OSError."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
