"""Which machine this is, and which others live, where several have one archive.

On a file system of one machine a lock (flock) says who lives. On one that several machines mount it
may be known to its own machine alone, dropped in a partition, or kept for a machine that died. So
whoever holds a lock there says in its file who that is, and touches the file every ten seconds, by
the file system's clock: a lock that is free is believed only where that has stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import file_system_now, is_locked

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A machine that was not heard of for so long has lost what it held."""
GONE_SECONDS = 600.0
"""A process on another machine that was not heard of for so long leaves its files to be cleared."""
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


def network_type(root: int) -> str | None:
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


def this_machine() -> str:
    """Its name, and since when it runs."""
    return f"{socket.gethostname()} {boot_id()}"


def this_process() -> str:
    """``this_machine``, the numbering of processes that this one is in, and its number there."""
    with contextlib.suppress(OSError):
        return f"{this_machine()} {os.stat('/proc/self/ns/pid').st_ino} {os.getpid()}"
    return f"{this_machine()} 0 {os.getpid()}"


def sign(fd: int, words: str) -> None:
    """Says in the lock file who holds it. Raises OSError."""
    durable.truncate(fd)
    durable.write_all(fd, [words.encode() + b"\n"])


def signature(fd: int) -> str:
    """What ``sign`` wrote; empty when the last to hold it gave it back. Raises OSError."""
    return os.pread(fd, 500, 0).decode("utf-8", "replace").strip()


def seconds_silent(root: int, fd: int) -> float:
    """Since when nobody touched the open lock file, by the file system's clock, or by ours where
    one may only read. Raises OSError."""
    try:
        now = file_system_now(root)
    except OSError:
        now = time.time_ns()
    return (now - os.fstat(fd).st_mtime_ns) / 1e9


def is_held_elsewhere(root: int, fd: int, machine: str) -> bool:
    """Whether another machine than ``machine`` holds the node of the lock file, whatever the lock
    says: it was heard of less than a minute ago. One of this name that was started anew does not.
    Raises OSError."""
    words = signature(fd)
    return bool(
        words
        and words.partition(" ")[0] != machine.partition(" ")[0]
        and seconds_silent(root, fd) < SILENT_SECONDS
    )


def is_gone(root: int, lock: str) -> bool:
    """Whether the process that made the folder of the lock file at the path ``lock`` is gone for
    good. Where that cannot be known it is taken to live."""
    if is_locked(root, lock):
        return False
    if network_type(root) is None:
        return True
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return True
    try:
        machine, _, process = signature(fd).rpartition(" ")
        if machine == _here():
            return not os.path.exists(f"/proc/{process}")
        return seconds_silent(root, fd) > GONE_SECONDS
    finally:
        os.close(fd)


def is_of_living_process(root: int, lock: str) -> bool:
    """Whether a process that lives on this machine signed the lock file at the path ``lock``."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return False
    try:
        machine, _, process = signature(fd).rpartition(" ")
        return machine == _here() and os.path.exists(f"/proc/{process}")
    finally:
        os.close(fd)


def _here() -> str:
    return this_process().rpartition(" ")[0]


def close(fd: int) -> None:
    """Closes what a network file system may refuse to: it is closed all the same."""
    with contextlib.suppress(OSError):
        os.close(fd)


def replace_fd(fd: int, by: int) -> None:
    """Has ``fd``, which others know by its number, stand for what ``by`` is. Raises OSError."""
    os.dup2(by, fd, inheritable=False)
    os.close(by)


class Heartbeat:
    """Touches the lock files in hand every ten seconds, in a thread, until ``stop``."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._files: set[int] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def add(self, fd: int) -> None:
        with self._lock:
            self._files.add(fd)

    def remove(self, fd: int) -> None:
        with self._lock:
            self._files.discard(fd)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_SECONDS):
            try:
                now = file_system_now(self._root)
                with self._lock:
                    for fd in self._files:
                        durable.set_time(fd, now)
            except OSError as error:
                log.debug("no heartbeat: %s", error)
