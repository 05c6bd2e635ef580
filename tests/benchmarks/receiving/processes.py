"""What a process and its children cost, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY = 0.05
_FORGET_PEAK = "5"
_STEADY = 0.15


@dataclass(frozen=True, slots=True)
class Processor:
    """Seconds of user and system time."""

    receiver: float
    indexer: float

    def since(self, before: Processor) -> Processor:
        return Processor(self.receiver - before.receiver, self.indexer - before.indexer)


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of resident memory in bytes (VmHWM): of the receiver's processes that lived at the same
    time, added up, what they share counted once; of the largest; and of the indexer."""

    receiver: int = 0
    largest: int = 0
    indexer: int = 0

    def peak(self, other: Memory) -> Memory:
        return Memory(
            max(self.receiver, other.receiver),
            max(self.largest, other.largest),
            max(self.indexer, other.indexer),
        )


def family(pid: int) -> list[int]:
    """The process and its descendants, each before its own children."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # the thread ended meanwhile
                continue
    return found


def is_indexer(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"index" in arguments


def _seconds(pid: int) -> float:
    """Of the process and of those of its children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended and waited for: its parent has the time from now on
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS


def processor(pid: int) -> Processor:
    """Of a process and its descendants. Waits until the receiver has come to rest."""
    before = -1.0
    deadline = time.monotonic() + 5
    while True:
        receiver = indexer = 0.0
        for one in family(pid):
            if is_indexer(one):
                indexer += _seconds(one)
            else:
                receiver += _seconds(one)
        if receiver == before or time.monotonic() > deadline:
            return Processor(receiver, indexer)
        before = receiver
        time.sleep(_STEADY)


def memory(pid: int) -> Memory:
    receiver = largest = indexer = 0
    for one in family(pid):
        peak = _peak(one)
        if is_indexer(one):
            indexer += peak
        else:
            receiver += peak
            largest = max(largest, peak)
    return Memory(receiver, largest, indexer)


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _counted_again(pid: int) -> int:
    """Bytes that adding up the memory of the receiver's processes counts more than once: of pages
    that several hold, each process has its share in ``Pss`` and the whole in ``Rss``."""
    again = 0
    for one in family(pid):
        if is_indexer(one):
            continue
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            lines = (line.split() for line in text.splitlines()[1:])
            sizes = {line[0]: int(line[1]) for line in lines}
            again += (sizes["Rss:"] - sizes["Pss:"]) * 1024
    return again


class MemoryWatch:
    """The peak while it is open; a context manager. Looks every 50 ms, as children may end."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = Memory()

    def __enter__(self) -> MemoryWatch:
        for one in family(self._pid):
            with contextlib.suppress(OSError):  # ended, or a kernel without: then since its start
                Path(f"/proc/{one}/clear_refs").write_text(_FORGET_PEAK)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        whole = self.peak.peak(memory(self._pid))
        # Only now, as it takes the kernel a while.
        once = max(whole.receiver - _counted_again(self._pid), whole.largest)
        self.peak = replace(whole, receiver=once)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self.peak = self.peak.peak(memory(self._pid))
