"""A process that writes to an archive: its node, its folder under ``incoming``, the dirty flag.

It notices when the root goes away beneath it or its disk fills up, and clears up after one that
died.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable

from plainpacs.archive.errors import InUse, OutOfSpace, StorageUnavailable
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.free_space import NO_RESERVE, UNBOUNDED, Reserve
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import (
    identity_of,
    make_internal_folders,
    open_root,
    read_marker_at,
    try_file_system,
    try_lock,
)

_NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "lustre_lite", "glusterfs", "gpfs"),
    *("beegfs", "9p", "afs", "ocfs2", "gfs2", "pvfs2", "orangefs", "virtiofs", "vboxsf", "prl_fs"),
}
_LOCAL_FUSE = {
    *("fuseblk", "fuse.bindfs", "fuse.mergerfs", "fuse.unionfs", "fuse.unionfs-fuse"),
    *("fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.exfat", "fuse.ext2", "fuse.fuse2fs", "fuse.zfs"),
    *("fuse.encfs", "fuse.gocryptfs", "fuse.cryfs", "fuse.ecryptfs", "fuse.securefs"),
}
"""Every other type of FUSE may be a network's: MooseFS shows as ``fuse`` alone."""
_NODE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_NODE_LENGTH = 16
_CHECK_SECONDS = 1.0
_CLAIM_SECONDS = 5.0
FILES_OF_ONE = 6
"""That storing an instance may make: itself, three folders, a manifest, a marker."""


def _on_network(root: int) -> str | None:
    """The type of the network file system that ``root`` is on; None for a local one."""
    device = os.fstat(root).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted and is_network_type(right.split()[0]):
                return right.split()[0]
    return None


def is_network_type(kind: str) -> bool:
    """Whether other machines may have what is mounted as ``kind``, too, as mountinfo(5) names it.

    >>> [is_network_type(one) for one in ("nfs4", "fuse", "fuse.ceph-fuse", "fuseblk", "ext4")]
    [True, True, True, False, False]
    """
    return kind in _NETWORK_FILE_SYSTEMS or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)


def host_node(name: str) -> str:
    """The node that a machine called ``name`` is by itself: its name's letters and digits.

    >>> host_node("CT-Archive.example.org"), host_node("radiology-archive-01")
    ('ctarchive', 'radiologya32104a')
    """
    letters = "".join(one for one in name.partition(".")[0].lower() if one in _NODE_LETTERS)
    if 1 <= len(letters) <= _NODE_LENGTH:
        return letters
    return letters[:10] + hashlib.blake2s(name.encode()).hexdigest()[:6]


def boot_id() -> str:
    """Differs after every boot of the machine; empty where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


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

    ``incoming`` is an open directory of this process alone, for unfinished files; ``forbidden`` is
    what may not be stored, as of the last ``check``.
    """

    def __init__(self, path: str, root: int, node: str, reserve: Reserve) -> None:
        self.path = path
        self.root = root
        self.node = node
        self.forbidden = Forbidden.load(root)
        self._reserve = reserve
        self._room = UNBOUNDED
        self._checked = 0.0
        self._device_and_inode = _identity(os.fstat(root))
        marker = os.stat(layout.MARKER, dir_fd=root)
        self._marker = _identity(marker)

    @classmethod
    def open(
        cls,
        path: str,
        node: str | None,
        sweep: Callable[[Writer, int], None],
        reserve: Reserve = NO_RESERVE,
        expected: str | None = None,
    ) -> Writer:
        """Claims ``node`` on the archive at ``path``; by default the marker's, and on a file system
        that other machines may write to, too, the name of this one.

        ``sweep(writer, folder)`` is called with each open folder under ``incoming`` that a dead
        process of this node left, and when the machine went down before a clean stop, everything
        that reconciliation remembers is dropped, so that it looks at every series anew.
        ``reserve`` is what ``check`` refuses to go below. ``expected`` is the ``identity`` that the
        root must have: another archive at the path, mounted there since, is refused.
        Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
        """
        root = open_root(path)
        try:
            if not node:
                shared = _on_network(root)
                node = (
                    host_node(socket.gethostname()) if shared else read_marker_at(root, path).node
                )
            writer = cls(path, root, node, reserve)
            if expected not in (None, writer.identity):
                raise _replaced(path)
            make_internal_folders(root, path)
            writer._claim(sweep)
        except OSError as error:
            os.close(root)
            raise StorageUnavailable(f"cannot write in {path}: {error.strerror}") from error
        except BaseException:
            os.close(root)
            raise
        return writer

    @property
    def identity(self) -> str:
        """Tells this root from any other on this machine, until it is unmounted."""
        return identity_of(self.root)

    def _claim(self, sweep: Callable[[Writer, int], None]) -> None:
        self._lock = durable.open_to_append(f"{layout.INTERNAL}/node.{self.node}", folder=self.root)
        try:
            self.dirty = DirtyFlag(self.root, self.node)
            alone = self._hold_node()
            try_file_system(self.root, self.path, f"{layout.INCOMING}/{self.node}.try")
            if alone:
                before = self.dirty.found()
                # Durable before the first store, so that a crash from here on is noticed.
                self.dirty.set()
                # After a clean stop, too: a power loss may bring back what that one removed.
                self._sweep(sweep)
                if before is not None and before != boot_id():
                    self._forget_seen()
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._incoming_name = f"{layout.INCOMING}/{self.node}.{secrets.token_hex(6)}"
            durable.make_folder(self._incoming_name, folder=self.root)
            try:
                self.incoming = durable.open_folder(self._incoming_name, folder=self.root)
                self._incoming_lock = durable.create("lock", folder=self.incoming)
                fcntl.flock(self._incoming_lock, fcntl.LOCK_EX)
            except BaseException:
                # On a full disk every attempt would leave one.
                with contextlib.suppress(OSError):
                    durable.remove_folder(self._incoming_name, folder=self.root)
                raise
        except BaseException:
            os.close(self._lock)
            raise

    def _hold_node(self) -> bool:
        """Locks the node: alone (True), or shared with other processes of this machine.

        The lock's file says which machine has the node, and which root. Raises InUse.
        """
        machine = f"{socket.gethostname()} {boot_id()} {self.identity}\n".encode()
        deadline = time.monotonic() + _CLAIM_SECONDS
        while True:
            if try_lock(self._lock, fcntl.LOCK_EX):
                durable.truncate(self._lock)
                durable.write_all(self._lock, [machine])
                return True
            if try_lock(self._lock, fcntl.LOCK_SH):
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
        for name in self._left():
            try:
                self.sweep_folder(f"{layout.INCOMING}/{name}", sweep)
            except NotADirectoryError:  # a file on which the file system was tried
                durable.unlink(f"{layout.INCOMING}/{name}", folder=self.root)

    def _left(self) -> list[str]:
        """The names under ``incoming`` that are this node's. Raises OSError."""
        folder = durable.open_folder(layout.INCOMING, folder=self.root)
        try:
            return [name for name in os.listdir(folder) if name.startswith(self.node + ".")]
        finally:
            os.close(folder)

    def sweep_folder(self, name: str, sweep: Callable[[Writer, int], None]) -> None:
        """Clears the folder ``name`` (a path) beneath ``incoming``, unless somebody holds its lock.

        Raises OSError.
        """
        folder = durable.open_folder(name, folder=self.root)
        try:
            lock = durable.open_to_append("lock", folder=folder)
            try:
                if not try_lock(lock, fcntl.LOCK_EX):
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

    def check(self, size: int = 0, files: int = FILES_OF_ONE) -> None:
        """Refuses ``size`` bytes more, in so many new ``files``, when the root was unmounted or
        replaced, or when they would leave less free than the reserve. Looks at most once a second,
        and counts in between.

        Raises StorageUnavailable, of which OutOfSpace is one.
        """
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._look()
            self._checked = now
        # Two threads may count one of their sizes only: the next look puts it right.
        left = self._room.less(size, files)
        if left.is_used_up:
            raise OutOfSpace(
                f"less is free in {self.path} than the reserve; make room, or give a smaller "
                "--reserve"
            )
        self._room = left

    def _look(self) -> None:
        try:
            there = _identity(os.stat(self.path)) == self._device_and_inode
            marker = os.stat(os.path.join(self.path, layout.MARKER))
            there = there and _identity(marker) == self._marker
        except OSError:
            there = False
        if not there:
            raise _replaced(self.path)
        self.forbidden = self.forbidden.anew(self.root)
        self._room = self._reserve.room(os.fstatvfs(self.root))

    def close(self) -> None:
        """Leaves nothing behind: the incoming folder, and the dirty flag if nobody else writes."""
        os.close(self._incoming_lock)
        with contextlib.suppress(OSError):
            durable.unlink("lock", folder=self.incoming)
            durable.remove_folder(self._incoming_name, folder=self.root)
        os.close(self.incoming)
        for _ in range(3):  # `status` may be looking
            if try_lock(self._lock, fcntl.LOCK_EX):
                with contextlib.suppress(OSError):
                    # What a killed process of this node left is to be swept yet.
                    if not self._left():
                        self.dirty.clear()
                break
            time.sleep(0.01)
        os.close(self._lock)
        os.close(self.root)


def _replaced(path: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{path} is no longer the archive that was opened; mount it again, or restart"
    )


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
