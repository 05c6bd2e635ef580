"""A process that writes to an archive: its node, its folder under ``incoming``, the dirty flag.

It notices when the root goes away beneath it or its disk fills up, and clears up after one that
died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from plainpacs.archive.errors import InUse, OutOfSpace, StorageUnavailable
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.free_space import NO_RESERVE, UNBOUNDED, Reserve
from plainpacs.archive.tree import durable, layout, machines
from plainpacs.archive.tree.root import (
    identity_of,
    make_internal_folders,
    open_root,
    read_marker_at,
    try_file_system,
    try_lock,
)

_CHECK_SECONDS = 1.0
_CLAIM_SECONDS = 5.0
FILES_OF_ONE = 6
"""That storing an instance may make: itself, three folders, a manifest, a marker."""


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
        self._is_shared = machines.network_type(root) is not None
        self._heartbeat: machines.Heartbeat | None = None
        self._mending = threading.Lock()

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
                node = (
                    machines.host_node(socket.gethostname())
                    if machines.network_type(root)
                    else read_marker_at(root, path).node
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
            self.dirty = machines.DirtyFlag(self.root, self.node)
            alone = self._hold_node()
            try_file_system(self.root, self.path, f"{layout.INCOMING}/{self.node}.try")
            if alone:
                before = self.dirty.found()
                # Durable before the first store, so that a crash from here on is noticed.
                self.dirty.set()
                # After a clean stop, too: a power loss may bring back what that one removed.
                self._sweep(sweep)
                if before is not None and before != machines.boot_id():
                    durable.clear_folder(layout.SEEN, folder=self.root)
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._incoming_name, self.incoming, self._incoming_lock = self._new_incoming()
        except BaseException:
            os.close(self._lock)
            raise
        if self._is_shared:
            self._heartbeat = machines.Heartbeat(self.root)
            self.keep_alive(self._lock)
            self.keep_alive(self._incoming_lock)

    def _new_incoming(self) -> tuple[str, int, int]:
        """A folder for unfinished files: its path, it and its lock file open. Raises OSError."""
        name = f"{layout.INCOMING}/{self.node}.{secrets.token_hex(6)}"
        durable.make_folder(name, folder=self.root)
        opened: list[int] = []
        try:
            opened.append(durable.open_folder(name, folder=self.root))
            opened.append(durable.create("lock", folder=opened[0]))
            fcntl.flock(opened[1], fcntl.LOCK_EX)
            machines.sign(opened[1], machines.this_process())
        except BaseException:
            # On a full disk every attempt would leave one.
            with contextlib.suppress(OSError):
                if opened[1:]:
                    durable.unlink("lock", folder=opened[0])
                durable.remove_folder(name, folder=self.root)
            for fd in opened:
                machines.close(fd)
            raise
        folder, lock = opened
        return name, folder, lock

    def keep_alive(self, lock: int) -> None:
        """Touches the open lock file from now on, where other machines look at that."""
        if self._heartbeat is not None:
            self._heartbeat.add(lock)

    def let_go(self, lock: int) -> None:
        """Touches it no more."""
        if self._heartbeat is not None:
            self._heartbeat.remove(lock)

    def _signature(self) -> str:
        """Which machine has the node, and of which root: a copy has the lock's file, too."""
        return f"{machines.this_machine()} {self.identity}"

    def _hold_node(self) -> bool:
        """Locks the node: alone (True), or shared with other processes of this machine.

        The lock's file says which machine has the node, and which root. Raises InUse.
        """
        machine = self._signature()
        deadline = time.monotonic() + _CLAIM_SECONDS
        while True:
            if try_lock(self._lock, fcntl.LOCK_EX):
                if self._is_shared and machines.is_held_elsewhere(self.root, self._lock, machine):
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                    raise InUse(
                        f"node {self.node} of {self.path} was in use by another machine less than "
                        "a minute ago, though its lock is free; give this writer another name with "
                        "--node NAME, or wait a minute if that machine has died"
                    )
                machines.sign(self._lock, machine)
                return True
            if try_lock(self._lock, fcntl.LOCK_SH):
                if machines.signature(self._lock) == machine:
                    return False
                fcntl.flock(self._lock, fcntl.LOCK_UN)
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
        for name in self.left():
            try:
                self.sweep_folder(f"{layout.INCOMING}/{name}", sweep)
            except NotADirectoryError:  # a file on which the file system was tried
                durable.unlink(f"{layout.INCOMING}/{name}", folder=self.root)

    def left(self) -> list[str]:
        """The names under ``incoming`` that are this node's. Raises OSError."""
        folder = durable.open_folder(layout.INCOMING, folder=self.root)
        try:
            return [name for name in os.listdir(folder) if name.startswith(self.node + ".")]
        finally:
            os.close(folder)

    def sweep_folder(self, name: str, sweep: Callable[[Writer, int], None]) -> None:
        """Clears the folder ``name`` (a path) beneath ``incoming``, unless its process lives.

        Raises OSError.
        """
        if self._is_shared and not machines.is_gone(self.root, f"{name}/lock"):
            return
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

    def check_root(self) -> None:
        """Raises StorageUnavailable when the root was unmounted or replaced. Looks at most once a
        second."""
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._look()
            self._checked = now

    def check(self, size: int = 0, files: int = FILES_OF_ONE, path: str = "") -> None:
        """As ``check_root``, and refuses ``size`` bytes more, in so many new ``files``, when they
        would leave less free than the reserve, unless something lies at ``path`` already: what is
        stored again needs no room. Where room is scarce, the system is asked each time, since
        others write, too; else once a second, and counted in between.

        Raises StorageUnavailable, of which OutOfSpace is one.
        """
        self.check_root()
        # Two threads may count one of their sizes only: the next look puts it right.
        left = self._room.less(size, files)
        if left.is_scarce:
            left = self._reserve.room(os.fstatvfs(self.root)).less(size, files)
        if left.is_used_up and not (path and self._exists(path)):
            raise OutOfSpace(
                f"less is free in {self.path} than the reserve; make room, or give a smaller "
                "--reserve"
            )
        self._room = left

    def _exists(self, path: str) -> bool:
        try:
            os.stat(path, dir_fd=self.root, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _look(self) -> None:
        try:
            there = _identity(os.stat(self.path)) == self._device_and_inode
            marker = os.stat(os.path.join(self.path, layout.MARKER))
            there = there and _identity(marker) == self._marker
        except OSError:
            there = False
        if not there:
            raise _replaced(self.path)
        with self._mending:
            try:
                self._hold_on()
            except (OSError, InUse) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise StorageUnavailable(f"cannot write in {self.path}: {why}") from None
        self.forbidden = self.forbidden.anew(self.root)
        self._room = self._reserve.room(os.fstatvfs(self.root))

    def _hold_on(self) -> None:
        """Takes again what a cut of a network file system, or somebody's hand, took away: the
        open root, the node, the folder for unfinished files. What is in hand fails; what comes
        next is stored. Raises OSError, InUse."""
        if self._is_shared:
            try:
                mine = try_lock(self._lock, fcntl.LOCK_SH)
                mine = mine and machines.signature(self._lock) == self._signature()
            except OSError:  # ESTALE: the server has forgotten what we had open
                machines.replace_fd(self.root, self._opened_again())
                name = f"{layout.INTERNAL}/node.{self.node}"
                machines.replace_fd(self._lock, durable.open_to_append(name, folder=self.root))
                mine = False
            if not mine and self._hold_node():
                fcntl.flock(self._lock, fcntl.LOCK_SH)
        if not self._has_incoming():
            make_internal_folders(self.root, self.path)
            self._incoming_name, folder, lock = self._new_incoming()
            machines.replace_fd(self.incoming, folder)
            machines.replace_fd(self._incoming_lock, lock)

    def _opened_again(self) -> int:
        """The root. Raises StorageUnavailable when another archive lies there by now."""
        root = open_root(self.path)
        if _identity(os.fstat(root)) != self._device_and_inode:
            os.close(root)
            raise _replaced(self.path)
        return root

    def _has_incoming(self) -> bool:
        try:
            there = os.stat(f"{self._incoming_name}/lock", dir_fd=self.root)
            same = _identity(there) == _identity(os.fstat(self._incoming_lock))
            return same and (not self._is_shared or try_lock(self._incoming_lock, fcntl.LOCK_EX))
        except OSError:
            return False

    def close(self) -> None:
        """Leaves nothing behind: the incoming folder, and the dirty flag if nobody else writes."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        machines.close(self._incoming_lock)
        with contextlib.suppress(OSError):
            durable.unlink("lock", folder=self.incoming)
            durable.remove_folder(self._incoming_name, folder=self.root)
        machines.close(self.incoming)
        with contextlib.suppress(OSError):
            self._leave_node()
        machines.close(self._lock)
        machines.close(self.root)

    def _leave_node(self) -> None:
        for _ in range(3):  # `status` may be looking
            if try_lock(self._lock, fcntl.LOCK_EX):
                # What a killed process of this node left is to be swept yet.
                if not self.left():
                    self.dirty.clear()
                if machines.signature(self._lock) == self._signature():
                    durable.truncate(self._lock)
                break
            time.sleep(0.01)


def _replaced(path: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{path} is no longer the archive that was opened; mount it again, or restart"
    )


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
