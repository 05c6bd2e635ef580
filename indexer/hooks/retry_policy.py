"""What is to be done about a study's commands: decided from its log and from how far it has grown.

No clock but that of the retries, no files: ``hook_book`` has those, and says what the lines are.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.tree.root import stamp

BACK_OFF = (10.0, 60.0, 300.0, 1800.0)
"""Seconds to wait after the first, second … try that failed; the one after the last is final."""


class Kind(enum.Enum):
    """What a command is run for."""

    STUDY = "study"
    INSTANCE = "instance"


def command_of(settings: Settings, kind: Kind) -> str:
    """The command of this ``kind``; empty when there is none."""
    return settings.on_study_settled if kind is Kind.STUDY else settings.on_instance


class Level(NamedTuple):
    """How far a study has grown: its instances, and when the last was stored."""

    instances: int
    last_stored: str

    def above(self, before: Level | None, since: str) -> bool:
        """Whether an instance came after ``before``; with none before, after ``since``.

        The number is looked at too: clocks are set back, and those of several nodes differ.
        """
        if before is None:
            return self.last_stored >= since
        return self.last_stored > before.last_stored or self.instances > before.instances


@dataclass(frozen=True, slots=True)
class Tries:
    """How often a command was run for one thing, when last (nanoseconds), and with what result."""

    number: int
    ran: int
    exit: int

    @property
    def is_final(self) -> bool:
        return self.exit == 0 or self.number > len(BACK_OFF)

    def wait(self) -> float:
        """Seconds until it is to be tried again; 0.0: now."""
        if not self.number:
            return 0.0
        delay = BACK_OFF[min(self.number, len(BACK_OFF)) - 1]
        elapsed = (time.time_ns() - self.ran) / 1e9
        return max(0.0, delay - elapsed) if elapsed >= 0 else delay


class Verdict(enum.Enum):
    """What is to be done about a marker."""

    GREW = enum.auto()
    """STUDY: settles when nothing comes for a while. INSTANCE: some are to be given now."""
    RUN = enum.auto()
    LATER = enum.auto()
    """A try failed; see ``History.wait``."""
    DONE = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True)
class History:
    """What a study's log says."""

    settled: Level | None = None
    settled_at: str = ""
    given: Level | None = None
    tries: dict[str, Tries] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> History:
        """Takes every line that parses, and skips the rest."""
        history = cls()
        for raw in data.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                history._take(orjson.loads(raw))
        return history

    def _take(self, line: Mapping[str, Any]) -> None:
        if "of" in line:
            key, ran = str(line["of"]), datetime.fromisoformat(line["ran"])
            before = self.tries.get(key)
            number = 1 + (before.number if before else 0)
            self.tries[key] = Tries(number, round(ran.timestamp() * 1e9), int(line["exit"]))
        elif "again" in line:
            for key, tries in self.tries.items():
                if tries.exit:
                    self.tries[key] = Tries(0, 0, tries.exit)
        elif "settled" in line:
            self.settled = Level(int(line["instances"]), str(line["last_stored"]))
            self.settled_at = str(line["settled"])
        elif "given" in line:
            self.given = Level(int(line["instances"]), str(line["last_stored"]))

    def level(self, kind: Kind) -> Level | None:
        return self.settled if kind is Kind.STUDY else self.given

    def failing(self, kind: Kind) -> list[Tries]:
        """The tries of what did not succeed: of the last settling, or of the instances."""
        if kind is Kind.STUDY:
            last = self.tries.get(self.settled_at)
            return [last] if last and last.exit else []
        return [tries for key, tries in self.tries.items() if "/" in key and tries.exit]

    def verdict(self, kind: Kind, now: Level | None, since: str) -> Verdict:
        """``now``: the level of the study; None when there is nothing of it any more."""
        before = self.level(kind)
        if now is None:
            return Verdict.DONE
        if now.above(before, since):
            return Verdict.GREW
        if kind is Kind.STUDY and before and self.settled_at not in self.tries:
            return Verdict.RUN
        failing = self.failing(kind)
        if all(tries.is_final for tries in failing):
            return Verdict.FAILED if failing else Verdict.DONE
        return Verdict.LATER if self.wait(kind) else Verdict.RUN

    def wait(self, kind: Kind) -> float:
        """Seconds until the next try is due."""
        waits = [tries.wait() for tries in self.failing(kind) if not tries.is_final]
        return min(waits, default=0.0)


def settled_line(at: str, level: Level) -> dict[str, Any]:
    return {"settled": at, **level._asdict()}


def given_line(at: str, level: Level) -> dict[str, Any]:
    return {"given": at, **level._asdict()}


def ran_line(of: str, status: int) -> dict[str, Any]:
    return {"of": of, "ran": stamp(time.time_ns()), "exit": status}
