"""The requests for storage commitment that are not answered yet: ``.plainpacs/commitments``.

One small JSON file for each, written durably before the request is accepted, gone once the asker
has its report. Whoever is at work on one holds its lock (``flock``), so that several processes
share the work, and what a dead one left is taken up by another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from dataclasses import asdict, dataclass, replace

import orjson

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import try_lock
from plainpacs.scp.commitment.check import Reference

MOST_WAITING = 10_000
"""Requests kept; one more is refused."""
_FIRST_DELAY = 10.0
_LONGEST_DELAY = 3600.0


class Full(Exception):
    """Too many requests wait already."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A request. Times in seconds since 1970: when it was ``asked``, and from when on it is
    ``due`` to be tried again. AE titles as the asker wrote them; ``peer`` is its address.

    ``is_duplicate``: the same AE title has another request with this Transaction UID waiting.
    """

    uid: str
    calling_ae: str
    called_ae: str
    peer: str
    references: tuple[Reference, ...]
    asked: float
    due: float
    tries: int = 0
    is_duplicate: bool = False

    @property
    def name(self) -> str:
        """Of its file: the same for the same request."""
        told = orjson.dumps([self.calling_ae, [asdict(one) for one in self.references]])
        return f"{self.uid}~{hashlib.sha256(told).hexdigest()[:16]}"

    def later(self) -> Transaction:
        """After a try that failed: due after a while that gets longer each time."""
        delay = min(_FIRST_DELAY * 2 ** min(self.tries, 16), _LONGEST_DELAY)
        return replace(self, tries=self.tries + 1, due=time.time() + delay)

    def encoded(self) -> bytes:
        return orjson.dumps(
            {
                "TransactionUID": self.uid,
                "calling_ae": self.calling_ae,
                "called_ae": self.called_ae,
                "peer": self.peer,
                "asked": self.asked,
                "due": self.due,
                "tries": self.tries,
                "duplicate": self.is_duplicate,
                "references": [[one.sop_class, one.sop_instance] for one in self.references],
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def decoded(cls, data: bytes) -> Transaction:
        """Raises ValueError when ``data`` is none."""
        try:
            told = orjson.loads(data)
            return cls(
                str(told["TransactionUID"]),
                str(told["calling_ae"]),
                str(told["called_ae"]),
                str(told["peer"]),
                tuple(Reference(str(one), str(other)) for one, other in told["references"]),
                float(told["asked"]),
                float(told["due"]),
                int(told["tries"]),
                bool(told["duplicate"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from None


class Claim:
    """A transaction that nobody else is at work on, until ``release``."""

    def __init__(self, root: int, fd: int, transaction: Transaction) -> None:
        self._root, self._fd = os.dup(root), fd
        self.transaction = transaction

    def done(self) -> None:
        """It waits no more. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(f"{layout.COMMITMENTS}/{self.transaction.name}", folder=self._root)

    def put_off(self) -> Transaction:
        """It is due again later. Raises OSError."""
        self.transaction = self.transaction.later()
        _write(self._root, self.transaction)
        return self.transaction

    def release(self) -> None:
        """Also after ``done`` and ``put_off``; again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._root)
            self._fd = -1


def put(root: int, transaction: Transaction) -> Transaction:
    """Keeps the request durably; one that waits already, as it is. Gives what is kept.

    ``root`` is open on the archive. Raises Full, OSError.
    """
    _make_folder(root)
    waiting = names(root)
    if transaction.name in waiting:
        kept = _read(root, transaction.name)
        if kept is not None:
            return kept
    if len(waiting) >= MOST_WAITING:
        raise Full(f"{MOST_WAITING} requests wait already")
    same_uid = (_read(root, name) for name in waiting if name.startswith(f"{transaction.uid}~"))
    if any(one is not None and one.calling_ae == transaction.calling_ae for one in same_uid):
        transaction = replace(transaction, is_duplicate=True)
    _write(root, transaction)
    return transaction


def names(root: int) -> list[str]:
    """The names of all that wait. Raises OSError."""
    try:
        folder = durable.open_folder(layout.COMMITMENTS, folder=root)
    except FileNotFoundError:
        return []
    try:
        return [name for name in os.listdir(folder) if is_name(name.partition("~")[0])]
    finally:
        os.close(folder)


def claim(root: int, name: str) -> Claim | None:
    """Takes the transaction; None when it is gone, cannot be read, or somebody is at work on it.

    Raises OSError.
    """
    path = f"{layout.COMMITMENTS}/{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd, fcntl.LOCK_EX) and _is_at(root, path, fd):
            transaction = _read(root, name)
            if transaction is not None:
                taken, fd = Claim(root, fd, transaction), -1
                return taken
    finally:
        if fd >= 0:
            os.close(fd)
    return None


def _is_at(root: int, path: str, fd: int) -> bool:
    """Whether the open file still is what lies there: it may have been replaced meanwhile."""
    try:
        there = os.stat(path, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    facts = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (facts.st_dev, facts.st_ino)


def _read(root: int, name: str) -> Transaction | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(f"{layout.COMMITMENTS}/{name}", flags, dir_fd=root), "rb") as file:
            found = Transaction.decoded(file.read())
    except (OSError, ValueError):
        return None
    return found if found.name == name else None


def _write(root: int, transaction: Transaction) -> None:
    durable.replace_file(root, f"{layout.COMMITMENTS}/{transaction.name}", transaction.encoded())


def _make_folder(root: int) -> None:
    with contextlib.suppress(FileExistsError):
        durable.make_folder(layout.COMMITMENTS, folder=root)
    durable.settle_folder(root, layout.INTERNAL)
