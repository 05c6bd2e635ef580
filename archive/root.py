"""The archive's folder: finding it, making it, and who writes in it.

``find_archive`` and ``open_root`` serve readers: nothing is written, a copy or a read-only mount
will do. ``create_archive`` makes a root. ``Writer`` is a process that writes: it holds its node,
its folder under ``incoming`` and the dirty flag, and notices when the root goes away beneath it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from plainpacs.archive import durable, layout
from plainpacs.archive.errors import InUse, NotAnArchive, StorageUnavailable, UnsuitableFileSystem

FORMAT = 1
_NODE_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs"),
    *("9p", "afs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
}
_CHECK_SECONDS = 1.0
_CLAIM_SECONDS = 5.0


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
        _read_marker_at(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_marker(path: str) -> Marker:
    """The marker of the archive at ``path``. Raises NotAnArchive."""
    fd = open_root(path)
    try:
        return _read_marker_at(fd, path)
    finally:
        os.close(fd)


def _read_marker_at(root: int, path: str) -> Marker:
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


def create_archive(path: str, node: str | None = None) -> None:
    """Makes the folder at ``path`` an archive; what lies in it already is left alone.

    An archive that is there stays as it is. Raises NotAnArchive when it cannot be made, or
    UnsuitableFileSystem.
    """
    try:
        os.makedirs(path, exist_ok=True)
        root = durable.open_folder(path + "/.")
    except OSError as error:
        raise NotAnArchive(f"cannot make {path}: {error.strerror}") from None
    try:
        if os.path.lexists(os.path.join(path, layout.MARKER)):
            _read_marker_at(root, path)
            return
        _make_internal_folders(root, path)
        _try_file_system(root, path)
        marker = {
            "format": FORMAT,
            "node": node or "".join(secrets.choice(_NODE_LETTERS) for _ in range(4)),
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
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{date}.{rest // 1_000_000:03d}Z"


def _make_internal_folders(root: int, path: str) -> None:
    for name in layout.INTERNAL_FOLDERS:
        try:
            mode = 0o700 if name == layout.INTERNAL else 0o777
            durable.make_folder(name, mode, folder=root)
        except FileExistsError:
            pass
        except OSError as error:
            raise StorageUnavailable(f"cannot write in {path}: {error.strerror}") from None


def _try_file_system(root: int, path: str) -> None:
    """Refuses a file system that lacks what the order of a store rests on."""
    incoming = durable.open_folder(layout.INCOMING, folder=root)
    name, other = f"try.{secrets.token_hex(4)}", f"try.{secrets.token_hex(4)}"
    what = "write files"
    try:
        os.close(durable.create(name, folder=incoming))
        what = "make hard links"
        durable.link(name, other, folder=incoming, to_folder=incoming)
        what = "sync folders"
        durable.sync_folder(incoming)
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
                durable.unlink(made, folder=incoming)
        os.close(incoming)


def _on_network(root: int) -> str | None:
    """The type of the network file system that ``root`` is on; None for a local one."""
    device = os.fstat(root).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted and right.split()[0] in _NETWORK_FILE_SYSTEMS:
                return right.split()[0]
    return None


def file_system_now(root: int) -> int:
    """The file system's own clock, in nanoseconds (a server's may differ from ours).

    Only in an archive that one may write to. Raises OSError.
    """
    name = f"clock.{os.getpid()}.{threading.get_native_id()}"
    folder = durable.open_folder(layout.INDEXING, folder=root)
    try:
        durable.touch(name, folder=folder)
        now = os.stat(name, dir_fd=folder).st_ctime_ns
        durable.unlink(name, folder=folder)
    finally:
        os.close(folder)
    return now


def boot_id() -> str:
    """Differs after every boot of the machine; empty where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


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
        return not _try_lock(fd, fcntl.LOCK_EX if shared else fcntl.LOCK_SH)
    except OSError:
        return False
    finally:
        os.close(fd)


class DirtyFlag:
    """``.plainpacs/dirty.<name>``: that a writer is at work, and since which boot.

    Found at a start, its writer did not stop cleanly; with another boot id, the machine went down.
    """

    def __init__(self, root: int, name: str) -> None:
        self._root = root
        self._path = f"{layout.INTERNAL}/dirty.{name}"

    def found(self) -> str | None:
        """The boot id of an unclean stop; None after a clean one."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read(100).decode("ascii", "replace").strip()

    def set(self) -> None:
        """Durable when this returns. Raises OSError."""
        durable.replace_file(self._root, self._path, boot_id().encode() + b"\n")

    def clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(self._path, folder=self._root)


class Writer:
    """A process's place in an archive it writes to. Made by ``Writer.open``; close it.

    ``incoming`` is an open directory of this process alone, for unfinished files.
    """

    def __init__(self, path: str, root: int, node: str) -> None:
        self.path = path
        self.root = root
        self.node = node
        self._checked = 0.0
        self._device_and_inode = _identity(os.fstat(root))
        marker = os.stat(layout.MARKER, dir_fd=root)
        self._marker = _identity(marker)

    @classmethod
    def open(cls, path: str, node: str | None, sweep: Callable[[Writer, int], None]) -> Writer:
        """Claims ``node`` (the marker's by default) on the archive at ``path``.

        After an unclean stop ``sweep(writer, folder)`` is called with each open folder under
        ``incoming`` that a dead process of this node left, and after a reboot everything that
        reconciliation remembers is dropped, so that it looks at every series anew.
        Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
        """
        root = open_root(path)
        try:
            network = _on_network(root)
            if network and not node:
                raise UnsuitableFileSystem(
                    f"{path} is on a network file system ({network}); give this writer a name "
                    "of its own there with --node NAME"
                )
            writer = cls(path, root, node or _read_marker_at(root, path).node)
            _make_internal_folders(root, path)
            _try_file_system(root, path)
            writer._claim(sweep)
        except OSError as error:
            os.close(root)
            raise StorageUnavailable(f"cannot write in {path}: {error.strerror}") from error
        except BaseException:
            os.close(root)
            raise
        return writer

    def _claim(self, sweep: Callable[[Writer, int], None]) -> None:
        self._lock = durable.open_to_append(f"{layout.INTERNAL}/node.{self.node}", folder=self.root)
        try:
            self.dirty = DirtyFlag(self.root, self.node)
            if self._hold_node():
                before = self.dirty.found()
                # Durable before the first store, so that a crash from here on is noticed.
                self.dirty.set()
                if before is not None:
                    self._sweep(sweep)
                if before is not None and before != boot_id():
                    self._forget_seen()
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._incoming_name = f"{layout.INCOMING}/{self.node}.{secrets.token_hex(6)}"
            durable.make_folder(self._incoming_name, folder=self.root)
            self.incoming = durable.open_folder(self._incoming_name, folder=self.root)
            self._incoming_lock = durable.create("lock", folder=self.incoming)
            fcntl.flock(self._incoming_lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(self._lock)
            raise

    def _hold_node(self) -> bool:
        """Locks the node: alone (True), or shared with other processes of this machine.

        The lock's file says which machine has the node. Raises InUse.
        """
        machine = f"{socket.gethostname()} {boot_id()}\n".encode()
        deadline = time.monotonic() + _CLAIM_SECONDS
        while True:
            if _try_lock(self._lock, fcntl.LOCK_EX):
                os.ftruncate(self._lock, 0)
                durable.write_all(self._lock, [machine])
                return True
            if _try_lock(self._lock, fcntl.LOCK_SH):
                if os.pread(self._lock, 500, 0) == machine:
                    return False
                break
            # Held alone: by another machine, or for a moment by a process starting or stopping.
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        raise InUse(
            f"node {self.node} of {self.path} is in use by another machine; give this "
            "writer another name with --node NAME"
        )

    def _sweep(self, sweep: Callable[[Writer, int], None]) -> None:
        folder = durable.open_folder(layout.INCOMING, folder=self.root)
        try:
            names = [name for name in os.listdir(folder) if name.startswith(self.node + ".")]
        finally:
            os.close(folder)
        for name in names:
            self._sweep_one(f"{layout.INCOMING}/{name}", sweep)

    def _sweep_one(self, name: str, sweep: Callable[[Writer, int], None]) -> None:
        folder = durable.open_folder(name, folder=self.root)
        try:
            lock = durable.open_to_append("lock", folder=folder)
            try:
                if not _try_lock(lock, fcntl.LOCK_EX):
                    return
                sweep(self, folder)
                durable.unlink("lock", folder=folder)
            finally:
                os.close(lock)
        finally:
            os.close(folder)
        durable.remove_folder(name, folder=self.root)

    def _forget_seen(self) -> None:
        folder = durable.open_folder(layout.SEEN, folder=self.root)
        try:
            for name in os.listdir(folder):
                durable.unlink(name, folder=folder)
            durable.sync_folder(folder)
        finally:
            os.close(folder)

    def check(self) -> None:
        """Notices, at most once a second, a root that was unmounted or replaced.

        Raises StorageUnavailable.
        """
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        try:
            there = _identity(os.stat(self.path)) == self._device_and_inode
            marker = os.stat(os.path.join(self.path, layout.MARKER))
            there = there and _identity(marker) == self._marker
        except OSError:
            there = False
        if not there:
            raise StorageUnavailable(
                f"{self.path} is no longer the archive that was opened; mount it again, or restart"
            )
        self._checked = now

    def close(self) -> None:
        """Leaves nothing behind: the incoming folder, and the dirty flag if nobody else writes."""
        os.close(self._incoming_lock)
        with contextlib.suppress(OSError):
            durable.unlink("lock", folder=self.incoming)
            durable.remove_folder(self._incoming_name, folder=self.root)
        os.close(self.incoming)
        for _ in range(3):  # `status` may be looking
            if _try_lock(self._lock, fcntl.LOCK_EX):
                with contextlib.suppress(OSError):
                    self.dirty.clear()
                break
            time.sleep(0.01)
        os.close(self._lock)
        os.close(self.root)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
