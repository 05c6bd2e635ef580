"""What the service did since it started, for ``plainpacs status``. No patient data.

Written as JSON to ``.plainpacs/service.<node>.json``, one for all receiver processes:
``{"pid", "aets", "port", "reserve", "started", "stored", "duplicates", "conflicts", "refused",
"bytes", "accepted", "rejected", "aborted" (associations), "refusals": {status: count},
"last_stored": [{"time", "calling_ae", "peer"}, …],
"last_refusals": [{"time", "calling_ae", "called_ae", "peer", "status", "why"}, …]}``.
"""

from __future__ import annotations

import enum
import operator
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import orjson

from plainpacs.archive.store.audit import COUNTED_AS
from plainpacs.archive.store.store import StoreOutcome
from plainpacs.archive.tree.root import stamp

_COUNTED = (
    *("stored", "duplicates", "conflicts", "refused", "bytes"),
    *("accepted", "rejected", "aborted"),
)
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

    def log_fields(self) -> dict[str, str]:
        """What of it is known, for logs that have fields."""
        known = {"peer": self.peer, "calling_ae": self.calling_ae, "called_ae": self.called_ae}
        return {name: _printable(value) for name, value in known.items() if value}


class Refused(enum.Enum):
    """What may be refused."""

    ASSOCIATION = "association"
    CONTEXTS = "contexts"
    INSTANCE = "instance"
    OPERATION = "operation"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal. ``status``: an answer's code, or a rejection's ``result/source/reason``, or
    ``context`` and its result. ``why`` is in words of ours."""

    what: Refused
    status: str
    why: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class Course:
    """What an association came to. ``counts`` by kind; the time in seconds."""

    counts: Mapping[str, int]
    bytes: int
    seconds: float

    def __str__(self) -> str:
        kinds = ("stored", "duplicates", "conflicts", "refused")
        words = ", ".join(f"{self.counts.get(kind, 0)} {kind}" for kind in kinds)
        return f"{words}, {self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s"

    def log_fields(self) -> dict[str, object]:
        return {**self.counts, "bytes": self.bytes, "seconds": round(self.seconds, 3)}


@lru_cache(maxsize=256)  # AE titles and addresses: short ones
def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


class Statistics:
    """Counts and the last of each kind, newest first. Thread-safe."""

    def __init__(
        self, aets: tuple[str, ...], port: int, before: bytes = b"", reserve: str = ""
    ) -> None:
        """``before``: the note of the process in whose place this one is; it is gone on from."""
        self._reserve = reserve
        self._aets = aets
        self._port = port
        earlier = orjson.loads(before) if before else {}
        self._started = earlier.get("started", _now())
        self._counts = Counter({kind: int(earlier.get(kind, 0)) for kind in _COUNTED})
        self._refusals = Counter[str](earlier.get("refusals", {}))
        self._last_stored: deque[tuple[int, tuple[str, str]]] = deque(maxlen=_SENDERS_KEPT)
        self._last_refusals: deque[dict[str, str]] = deque(maxlen=_REFUSALS_KEPT)
        self._lock = threading.Lock()
        self._changed = True

    def accepted(self) -> None:
        """An association was accepted."""
        self._count("accepted")

    def aborted(self) -> None:
        """One that was accepted ended otherwise than by its release."""
        self._count("aborted")

    def _count(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1
            self._changed = True

    def stored(self, outcome: StoreOutcome, caller: Caller, size: int) -> None:
        """An instance was answered 0000, with a data set of ``size`` bytes. ``last_stored`` has one
        entry per sender."""
        sender = (caller.calling_ae, caller.peer)
        with self._lock:
            self._counts[COUNTED_AS[outcome]] += 1
            self._counts["bytes"] += size
            if self._last_stored and self._last_stored[0][1] == sender:
                self._last_stored.popleft()
            self._last_stored.appendleft((time.time_ns(), sender))
            self._changed = True

    def refused(self, refusal: Refusal) -> None:
        entry = {
            "time": _now(),
            "calling_ae": refusal.caller.calling_ae,
            "called_ae": refusal.caller.called_ae,
            "peer": refusal.caller.peer,
            "status": refusal.status,
            "why": refusal.why,
        }
        with self._lock:
            self._counts["refused"] += refusal.what is Refused.INSTANCE
            self._counts["rejected"] += refusal.what is Refused.ASSOCIATION
            self._refusals[refusal.status] += 1
            self._last_refusals.appendleft(entry)
            self._changed = True

    def note(self) -> bytes | None:
        """The JSON, when something changed since it was asked for last; else None."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
        return self.report()

    def report(self) -> bytes:
        """The JSON, as of now."""
        with self._lock:
            return orjson.dumps(
                {
                    "pid": os.getpid(),
                    "aets": self._aets,
                    "port": self._port,
                    "reserve": self._reserve,
                    "started": self._started,
                    **self._counts,
                    "refusals": self._refusals,
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
            "reserve": all_notes[0]["reserve"],
            "started": min(note["started"] for note in all_notes),
            **{kind: sum(note[kind] for note in all_notes) for kind in _COUNTED},
            "refusals": sum((Counter(note["refusals"]) for note in all_notes), Counter[str]()),
            "last_stored": by_sender[:_SENDERS_KEPT],
            "last_refusals": refusals[:_REFUSALS_KEPT],
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _now() -> str:
    return stamp(time.time_ns())
