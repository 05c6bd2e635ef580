"""How far a C-MOVE or C-GET has come: its sub-operations counted, and the status they make."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from plainpacs.scp.storage.store_scu import Sent, Step

_MOST_COUNTED = 0xFFFF
_LONGEST_LIST = 0xFFFE
"""Bytes of a UI in explicit VR: about a thousand UIDs."""


class RetrieveStatus(enum.IntEnum):
    """The Status of a C-MOVE-RSP or C-GET-RSP (PS3.4 Tables C.4-2 and C.4-3)."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    CANNOT_CALCULATE_MATCHES = 0xA701
    CANNOT_PERFORM = 0xA702
    DESTINATION_UNKNOWN = 0xA801
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    SOME_FAILED = 0xB000
    CANNOT_READ_IDENTIFIER = 0xC001
    CANCELLED = 0xFE00
    PENDING = 0xFF00


@dataclass(slots=True)
class Course:
    """How far a retrieve has come."""

    remaining: int
    completed: int = 0
    warned: int = 0
    failed: list[str] = field(default_factory=list)
    """The UIDs of the instances."""
    size: int = 0
    by_study: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, sent: Sent) -> None:
        self.remaining -= 1
        counts = self.by_study.setdefault(sent.instance.study, Counter())
        if sent.is_success or sent.is_warning:
            counts["sent"] += 1
            self.size += sent.size
            self.completed += sent.is_success
            self.warned += sent.is_warning
            return
        counts["failed"] += 1
        self.failed.append(sent.instance.sop_instance)
        refused = sent.step is Step.STATUS
        self.reasons[f"the peer answered {sent.status:04X}" if refused else sent.why] += 1

    def status(self) -> RetrieveStatus:
        """At the end."""
        if self.failed and not (self.completed or self.warned):
            return RetrieveStatus.CANNOT_PERFORM
        some = self.failed or self.warned
        return RetrieveStatus.SOME_FAILED if some else RetrieveStatus.SUCCESS

    def counts(self, status: RetrieveStatus) -> dict[str, int]:
        """Those that a response with this status has, by keyword; as far as 16 bits go."""
        counts = {
            "NumberOfCompletedSuboperations": self.completed,
            "NumberOfFailedSuboperations": len(self.failed),
            "NumberOfWarningSuboperations": self.warned,
        }
        if status in (RetrieveStatus.PENDING, RetrieveStatus.CANCELLED):
            counts["NumberOfRemainingSuboperations"] = self.remaining
        return {keyword: min(number, _MOST_COUNTED) for keyword, number in counts.items()}

    def failed_list(self) -> list[str]:
        """As many of those that failed as one element can hold."""
        length = 0
        for number, uid in enumerate(self.failed):
            length += len(uid) + 1
            if length > _LONGEST_LIST:
                return self.failed[:number]
        return self.failed
