"""Searching many months: one after the other, and when that takes long, by several processes.

Processes are forked, each for every so many-eth month, and hand their results over in the order of
the months, a month at a time: who reads on decides how far they get. Only a process with a single
thread forks, so a server never does.

Among 1,000,000 studies on two cores an exact identifier was found in 0.45 s instead of 0.57, and
``PatientName=Kowalski^Ruud*`` in 1.5 s instead of 2.3.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import signal
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

from plainpacs.archive.tree import layout
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.query.search_month import Finder, Found, in_month, make_found

# Bytes of catalogues. What comes first is enough for most who look at the newest alone; a fork and
# the way back cost about as much as searching what is worth it.
_ALONE = 24 << 20
_WORTH_IT = 64 << 20
_MOST_PROCESSES = 4
_LENGTH = 8


def scan(
    root: str, months: Sequence[str], finder: Finder, several: Container[str], note: Note
) -> Iterator[list[Found]]:
    """``in_month`` of each of the ``months``, in their order."""

    def look(month: str, note: Note) -> list[Found]:
        return in_month(root, month, finder, several, note)

    alone = 0
    while alone < len(months) and finder.bytes < _ALONE:
        yield look(months[alone], note)
        alone += 1
    left = months[alone:]
    # Everything is more to hand over than to search.
    large = not finder.everything and sum(_size(root, month) for month in left) >= _WORTH_IT
    count = _processes() if large else 1
    workers: list[_Worker] = []
    try:
        for number in range(count if count > 1 else 0):
            workers.append(_worker(left[number::count], look, workers))
        for position, month in enumerate(left):
            answer = workers[position % count].receive() if workers else None
            if answer is None:  # searched by nobody else
                yield look(month, note)
                continue
            notes, found = answer
            for line in notes:
                note(line)
            yield [make_found(one) for one in found]
    finally:
        for worker in workers:
            worker.end()


def _size(root: str, month: str) -> int:
    try:
        return os.stat(os.path.join(root, month, layout.CATALOGUE)).st_size
    except OSError:
        return 0


def _processes() -> int:
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return 1
    with contextlib.suppress(AttributeError):
        return min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    return min(_MOST_PROCESSES, os.cpu_count() or 1)


class _Worker(NamedTuple):
    """A process at work, and the pipe of its answers."""

    pid: int
    pipe: int

    def receive(self) -> Any:
        """The next answer; None when there will be none, as it was killed."""
        length = self._read(_LENGTH)
        answer = self._read(int.from_bytes(length)) if length else b""
        return marshal.loads(answer) if answer else None

    def _read(self, count: int) -> bytes:
        """So many bytes; none when the other side has gone before."""
        parts = []
        while count:
            part = os.read(self.pipe, min(count, 1 << 20))
            if not part:
                return b""
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        """Who stops early does not wait for what is left."""
        os.close(self.pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _worker(
    months: Sequence[str], look: Callable[[str, Note], list[Found]], elders: Sequence[_Worker]
) -> _Worker:
    """A process that searches these months."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Worker(pid, reading)
    try:
        # Nobody but the parent reads: when it is killed, writing ends in an error.
        for pipe in (reading, *(elder.pipe for elder in elders)):
            os.close(pipe)
        gc.disable()  # a short run that makes many objects, none of them in cycles
        for month in months:
            notes: list[str] = []
            found = look(month, notes.append)
            answer = marshal.dumps((notes, [tuple(one) for one in found]))
            _send(writing, len(answer).to_bytes(_LENGTH) + answer)
    finally:
        # Whatever happened: nothing of the parent's, such as its buffers, is ours to end.
        os._exit(0)


def _send(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]
