"""The place of the one indexer of an archive, also where several machines have it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable

from plainpacs.archive.errors import InUse, StorageUnavailable
from plainpacs.archive.tree import durable, layout, machines
from plainpacs.archive.tree.root import try_lock

log = logging.getLogger(__name__)

_PATIENCE = 0.3


def lock_index(root: int, path: str, *, wait: Callable[[], bool] | None = None) -> int:
    """Takes the place of the one indexer of the archive open as ``root``; close to give it up.

    While another has it, waits as long as ``wait()`` is true. On a file system of several machines
    the place of one that was not heard of for a minute is taken, whatever its lock says: the lock
    file is replaced, and who had it sees that by ``has_index_lock``. Raises InUse.
    """
    said = False
    patience = time.monotonic() + _PATIENCE
    fd = durable.open_to_append(layout.INDEXER_LOCK, folder=root)
    try:
        while not _is_taken(root, fd):
            if not has_index_lock(root, fd):  # another machine replaced it meanwhile
                os.close(fd)
                fd = durable.open_to_append(layout.INDEXER_LOCK, folder=root)
            elif machines.network_type(root) and not _is_heard_of(root, fd):
                os.close(fd)
                fd = _replace_index_lock(root)
            elif time.monotonic() < patience:  # it may be `status`, looking whether we run
                time.sleep(0.02)
            elif wait is None or not wait():
                raise InUse(f"another indexer is at work on {path}; one is enough")
            elif not said:
                log.info("another indexer is at work on %s; waiting for it to end", path)
                said = True
        machines.sign(fd, machines.this_machine())
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_taken(root: int, fd: int) -> bool:
    if not try_lock(fd, fcntl.LOCK_EX):
        return False
    here = machines.this_machine()
    if machines.network_type(root) and machines.is_held_elsewhere(root, fd, here):
        fcntl.flock(fd, fcntl.LOCK_UN)  # its machine's locks do not reach us
        return False
    return has_index_lock(root, fd)


def _is_heard_of(root: int, fd: int) -> bool:
    return machines.seconds_silent(root, fd) <= machines.SILENT_SECONDS


def _replace_index_lock(root: int) -> int:
    log.warning("the indexer of another machine was not heard of for a minute: taking its place")
    folder, _, name = layout.INDEXER_LOCK.rpartition("/")
    where = durable.open_folder(folder, folder=root)
    try:
        new = f"{name}.{os.urandom(8).hex()}"
        fd = durable.open_to_append(new, folder=where)
        fcntl.flock(fd, fcntl.LOCK_EX)
        durable.rename(new, name, folder=where, to_folder=where)
    finally:
        os.close(where)
    return fd


def has_index_lock(root: int, fd: int) -> bool:
    """Whether ``fd``, got by ``lock_index``, is the lock file still. Raises OSError."""
    there = os.stat(layout.INDEXER_LOCK, dir_fd=root)
    return os.path.samestat(there, os.fstat(fd))


def check_index_lock(root: int, fd: int, path: str) -> None:
    """Raises StorageUnavailable when another machine's indexer has taken the place of ``fd``."""
    try:
        if has_index_lock(root, fd):
            return
        why = "another machine's indexer has taken its place"
    except OSError as error:
        why = f"its lock file cannot be read: {error.strerror}"
    raise StorageUnavailable(f"the indexer of {path} ends: {why}")


def release_index_lock(root: int, fd: int) -> None:
    """Gives up the place, whatever a network file system says to that."""
    with contextlib.suppress(OSError):
        if has_index_lock(root, fd):
            durable.truncate(fd)
    with contextlib.suppress(OSError):
        os.close(fd)
