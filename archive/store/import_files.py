"""Taking in what others left: files, folders, and other archives with their provenance."""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from plainpacs.archive.errors import NotDICOM, RefusedInstance, StorageUnavailable
from plainpacs.archive.store.import_sources import Source, sources
from plainpacs.archive.store.store import Archive, Stored
from plainpacs.archive.tree.identity import InstanceKey

__all__ = ["Imported", "Source", "import_all", "sources"]

_THREADS = 4  # a store waits for the disk most of the time
_AHEAD = 32
_ENDINGS = (".dcm", ".dic", ".dicom", ".ima")


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one file: ``stored``, or ``error`` says why not.

    ``skipped``: it is no instance (not DICOM, a DICOMDIR), which nobody needs to act upon; but
    ``like_dicom`` it looks, by its first bytes or its name.
    """

    source: Source
    stored: Stored | None = None
    error: str = ""
    skipped: bool = False
    like_dicom: bool = False


def import_all(
    archive: Archive, files: Iterable[Source], stopped: Callable[[], bool] = bool
) -> Generator[Imported, None, None]:
    """Stores each of ``files``; yields what became of it, in their order.

    Of different files under one UID the first is the first to be stored. Safe to interrupt and
    repeat: each file is in or not in, and the same instance again changes nothing. Once ``stopped``
    is true no more are begun, and what became of those in hand is still yielded; so it is when the
    archive can take no more, or ``files`` cannot be listed, and StorageUnavailable is raised then.
    """
    waiting: deque[Future[Imported]] = deque()
    trouble: list[StorageUnavailable] = []
    turns = _Turns()

    def over() -> bool:
        return bool(trouble) or stopped()

    def done(left: int) -> Iterator[Imported]:
        """Until so many are left to wait for."""
        while len(waiting) > left:
            future = waiting.popleft()
            if not (over() and future.cancel()):
                try:
                    yield future.result()
                except StorageUnavailable as error:
                    trouble.append(error)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="import") as pool:
        try:
            for source in files:
                yield from done(0 if source.variant else _AHEAD - 1)
                if over():
                    break
                waiting.append(pool.submit(_import_one, archive, source, turns, turns.begin()))
        except StorageUnavailable as error:
            trouble.append(error)
        try:
            yield from done(0)
        finally:
            for future in waiting:
                future.cancel()
    if trouble:
        raise trouble[0]


class _Turns:
    """Lets those who store under one path do so in the order in which they began."""

    def __init__(self) -> None:
        self._begun = 0
        self._at_work: dict[int, InstanceKey | None] = {}
        self._changed = threading.Condition()

    def begin(self) -> int:
        with self._changed:
            self._begun += 1
            self._at_work[self._begun] = None
            return self._begun

    def wait(self, number: int, key: InstanceKey) -> None:
        """Until none who began before ``number`` stores the same, or may yet."""
        with self._changed:
            self._at_work[number] = key
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    not any(
                        other in (None, key) for n, other in self._at_work.items() if n < number
                    )
                )
            )

    def end(self, number: int) -> None:
        with self._changed:
            del self._at_work[number]
            self._changed.notify_all()


def _import_one(archive: Archive, source: Source, turns: _Turns, number: int) -> Imported:
    try:
        return _taken(archive, source, lambda key: turns.wait(number, key))
    finally:
        turns.end(number)


def _taken(archive: Archive, source: Source, turn: Callable[[InstanceKey], None]) -> Imported:
    if source.missing:
        return Imported(source, error=source.missing)
    try:
        if source.unpack:
            data = source.unpack()
            stored = archive.import_file(data, source.provenance, turn=turn)
        else:
            # Opening must not wait for a writer, should it be a pipe.
            with open(source.path, "rb", buffering=0, opener=_without_waiting) as file:
                fd = file.fileno()
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return Imported(source, error="it is not a file", skipped=True)
                stored = archive.import_file(
                    fd, source.provenance, may_replace=not source.variant, turn=turn
                )
        return Imported(source, stored=stored)
    except NotDICOM as error:
        like_dicom = error.prefixed or source.path.lower().endswith(_ENDINGS)
        return Imported(source, error=str(error), skipped=True, like_dicom=like_dicom)
    except RefusedInstance as error:
        return Imported(source, error=str(error))
    except OSError as error:
        return Imported(source, error=error.strerror or str(error))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
