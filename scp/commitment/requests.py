"""The requests for storage commitment that are not answered yet: ``.plainpacs/commitments``.

One small JSON file for each, written durably before the request is accepted, gone once the asker
has its report. Whoever is at work on one holds its lock (``flock``), so that no two processes
report on it, and what a dead one left is taken up by another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from dataclasses import asdict, dataclass, replace

import orjson

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import try_lock
from plainpacs.scp.commitment.check import Reference

MOST_WAITING = 10_000
"""Requests kept; one more is refused."""


class Full(Exception):
    """Too many requests wait already."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A request, ``asked`` in seconds since 1970. AE titles as the asker wrote them; ``peer`` is
    its address.

    ``is_duplicate``: the same AE title has another request with this Transaction UID waiting.
    """

    uid: str
    calling_ae: str
    called_ae: str
    peer: str
    references: tuple[Reference, ...]
    asked: float
    is_duplicate: bool = False

    @property
    def name(self) -> str:
        """Of its file: the same for the same request."""
        told = orjson.dumps([self.calling_ae, [asdict(one) for one in self.references]])
        return f"{self.uid}~{hashlib.sha256(told).hexdigest()[:16]}"

    def encoded(self) -> bytes:
        return orjson.dumps(
            {
                "TransactionUID": self.uid,
                "calling_ae": self.calling_ae,
                "called_ae": self.called_ae,
                "peer": self.peer,
                "asked": self.asked,
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
            durable.unlink(_path(self.transaction.name), folder=self._root)

    def release(self) -> None:
        """Also after ``done``; again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._root)
            self._fd = -1


def put(root: int, transaction: Transaction) -> Transaction:
    """Keeps the request durably; one that waits already, as it is. Gives what is kept.

    ``root`` is open on the archive. Raises Full, OSError.
    """
    with contextlib.suppress(FileExistsError):
        durable.make_folder(layout.COMMITMENTS, folder=root)
    durable.settle_folder(root, layout.INTERNAL)
    waiting = names(root)
    same_uid = [name for name in waiting if name.startswith(f"{transaction.uid}~")]
    if transaction.name in same_uid and (kept := _read(root, transaction.name)):
        return kept
    if len(waiting) >= MOST_WAITING:
        raise Full(f"{MOST_WAITING} requests wait already")
    others = (_read(root, name) for name in same_uid)
    if any(one is not None and one.calling_ae == transaction.calling_ae for one in others):
        transaction = replace(transaction, is_duplicate=True)
    durable.replace_file(root, _path(transaction.name), transaction.encoded())
    return transaction


def names(root: int) -> list[str]:
    """The names of all that wait, sorted. Raises OSError."""
    try:
        folder = durable.open_folder(layout.COMMITMENTS, folder=root)
    except FileNotFoundError:
        return []
    try:
        return sorted(name for name in os.listdir(folder) if is_name(name.partition("~")[0]))
    finally:
        os.close(folder)


def claim(root: int, name: str) -> Claim | None:
    """Takes the transaction; None when it is gone, cannot be read, or somebody is at work on it.

    Raises OSError.
    """
    try:
        fd = durable.open_file(_path(name), folder=root)
    except FileNotFoundError:
        return None
    transaction = _read(root, name) if try_lock(fd, fcntl.LOCK_EX) else None
    if transaction is None or not os.fstat(fd).st_nlink:  # done meanwhile
        os.close(fd)
        return None
    return Claim(root, fd, transaction)


def _path(name: str) -> str:
    return f"{layout.COMMITMENTS}/{name}"


def _read(root: int, name: str) -> Transaction | None:
    try:
        found = Transaction.decoded(durable.read_file(_path(name), folder=root) or b"")
    except (OSError, ValueError):
        return None
    return found if found.name == name else None
