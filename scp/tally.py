"""What the service did since it started, for ``plainpacs status``. No patient data.

Written as JSON to ``.plainpacs/service.<node>.json``, one for all receiver processes:
``{"pid", "aets", "port", "started", "stored", "duplicates", "conflicts", "refused",
"last_stored": [{"time", "calling_ae", "peer"}, …],
"last_refusals": [{"time", "calling_ae", "called_ae", "peer", "status", "why"}, …]}``.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from plainpacs.archive.archive import StoreOutcome
from plainpacs.archive.root import stamp

_COUNTED = ("stored", "duplicates", "conflicts", "refused")
_SENDERS_KEPT = 5
_REFUSALS_KEPT = 10


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end: AE titles as far as they are known, and the network address."""

    peer: str
    calling_ae: str = ""
    called_ae: str = ""

    def __str__(self) -> str:
        if not self.calling_ae and not self.called_ae:
            return f"somebody at {self.peer}"
        return f"{_printable(self.calling_ae)} at {self.peer} to {_printable(self.called_ae)}"


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


class Tally:
    """Counts and the last of each kind, newest first. Thread-safe."""

    def __init__(self, aets: tuple[str, ...], port: int, before: bytes = b"") -> None:
        """``before``: the note of the process in whose place this one is; it is gone on from."""
        self._aets = aets
        self._port = port
        earlier = orjson.loads(before) if before else {}
        self._started = earlier.get("started", _now())
        self._counts = {kind: int(earlier.get(kind, 0)) for kind in _COUNTED}
        self._last_stored: deque[tuple[int, tuple[str, str]]] = deque(maxlen=_SENDERS_KEPT)
        self._last_refusals: deque[dict[str, str]] = deque(maxlen=_REFUSALS_KEPT)
        self._lock = threading.Lock()
        self._changed = True

    def stored(self, outcome: StoreOutcome, caller: Caller) -> None:
        """An instance was answered 0000. ``last_stored`` has one entry per sender."""
        sender = (caller.calling_ae, caller.peer)
        with self._lock:
            self._counts[COUNTED_AS[outcome]] += 1
            if self._last_stored and self._last_stored[0][1] == sender:
                self._last_stored.popleft()
            self._last_stored.appendleft((time.time_ns(), sender))
            self._changed = True

    def refused(self, status: str, why: str, caller: Caller, *, instance: bool) -> None:
        """An association or context was refused, or (``instance``) an instance."""
        entry = {
            "time": _now(),
            "calling_ae": caller.calling_ae,
            "called_ae": caller.called_ae,
            "peer": caller.peer,
            "status": status,
            "why": why,
        }
        with self._lock:
            self._counts["refused"] += instance
            self._last_refusals.appendleft(entry)
            self._changed = True

    def note(self) -> bytes | None:
        """The JSON, when something changed since it was asked for last; else None."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            return orjson.dumps(
                {
                    "pid": os.getpid(),
                    "aets": self._aets,
                    "port": self._port,
                    "started": self._started,
                    **self._counts,
                    "last_stored": [
                        {"time": stamp(when), "calling_ae": calling_ae, "peer": peer}
                        for when, (calling_ae, peer) in self._last_stored
                    ],
                    "last_refusals": list(self._last_refusals),
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )


def merged(notes: Iterable[bytes]) -> bytes:
    """One note for the notes of several processes of one service, at least one; this one's pid."""
    all_notes = [orjson.loads(note) for note in notes]
    newest_first = operator.itemgetter("time")
    refusals = [one for note in all_notes for one in note["last_refusals"]]
    refusals.sort(key=newest_first, reverse=True)
    stored = [one for note in all_notes for one in note["last_stored"]]
    stored.sort(key=newest_first, reverse=True)
    senders = {(one["calling_ae"], one["peer"]): one for one in reversed(stored)}
    by_sender = sorted(senders.values(), key=newest_first, reverse=True)
    return orjson.dumps(
        {
            "pid": os.getpid(),
            "aets": all_notes[0]["aets"],
            "port": all_notes[0]["port"],
            "started": min(note["started"] for note in all_notes),
            **{kind: sum(note[kind] for note in all_notes) for kind in _COUNTED},
            "last_stored": by_sender[:_SENDERS_KEPT],
            "last_refusals": refusals[:_REFUSALS_KEPT],
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


COUNTED_AS = {
    StoreOutcome.STORED: "stored",
    StoreOutcome.DUPLICATE: "duplicates",
    StoreOutcome.CONFLICT: "conflicts",
}


def _now() -> str:
    return stamp(time.time_ns())
