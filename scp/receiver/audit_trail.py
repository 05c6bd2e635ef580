"""What associations did, on its way to the audit log: few lines, whatever peers do.

Instances are counted by association and study, and one line is written for each study when the
association ends, and every ten seconds while it lasts. Of refusals that are alike (same caller,
same reason) the first of a minute is a line and the rest are counted in another at its end; of
callers and reasons there are so many in a minute, and the rest are counted all together: a peer
that asks again and again fills no disk.
"""

from __future__ import annotations

import threading
import time

from plainpacs.archive.store.audit import AuditLog, StudyCounts, uid_or_none
from plainpacs.archive.store.publish import Stored
from plainpacs.scp.receiver.statistics import Caller, Refusal, Refused

_AT_LEAST_EVERY = 10.0
_REFUSALS_TOGETHER = 60.0
_MOST_REFUSALS = 20


class Visit:
    """An association's part of the trail. ``AuditTrail.flush`` may be at work on it meanwhile."""

    def __init__(self, audit_trail: AuditTrail, caller: Caller) -> None:
        self._trail = audit_trail
        self._caller = caller
        self._counts = StudyCounts()
        self._known = False
        self.written = 0.0

    def stored(self, stored: Stored) -> None:
        """An instance was answered 0000. Costs no system call."""
        self._counts.add(stored)
        if not self._known:
            self._known = True
            self._trail.begin(self)

    def ended(self) -> None:
        if self._known:
            self._trail.end(self)
            self.write()

    def write(self) -> None:
        """Writes what came since the last time."""
        self.written = time.monotonic()
        for facts in self._counts.take():
            self._trail.audit.write("stored", **self._caller.log_fields(), **facts)


class AuditTrail:
    """All associations' of a process. Thread-safe; ``flush`` now and then, ``close`` at the end."""

    def __init__(self, audit: AuditLog) -> None:
        self.audit = audit
        self._lock = threading.Lock()
        self._visits: set[Visit] = set()
        self._refusals: dict[Refusal, int] = {}
        self._others = 0
        self._counting_since = time.monotonic()

    def begin(self, visit: Visit) -> None:
        visit.written = time.monotonic()
        with self._lock:
            self._visits.add(visit)

    def end(self, visit: Visit) -> None:
        with self._lock:
            self._visits.discard(visit)

    def refused(self, refusal: Refusal, sop_instance: str | None = None) -> None:
        """``sop_instance``: what the peer said is the UID of an instance."""
        if refusal.what is Refused.CONTEXTS:  # nothing was asked for yet
            return
        with self._lock:
            known = refusal in self._refusals
            if known:
                self._refusals[refusal] += 1
            elif len(self._refusals) < _MOST_REFUSALS:
                self._refusals[refusal] = 0
            else:
                self._others += 1
                return
        if not known:
            self._write_refusal(refusal, SOPInstanceUID=uid_or_none(sop_instance))

    def flush(self) -> None:
        """Writes what has waited long enough, and makes the log durable."""
        now = time.monotonic()
        with self._lock:
            waiting = [one for one in self._visits if now - one.written >= _AT_LEAST_EVERY]
            minute_over = now - self._counting_since >= _REFUSALS_TOGETHER
        for visit in waiting:
            visit.write()
        if minute_over:
            self._write_refusals()
        self.audit.flush()

    def close(self) -> None:
        """Writes all that is left; the audit log stays open."""
        self._write_refusals()
        self.audit.flush()

    def _write_refusals(self) -> None:
        with self._lock:
            counted, self._refusals = self._refusals, {}
            others, self._others = self._others, 0
            self._counting_since = time.monotonic()
        for refusal, count in counted.items():
            if count:
                self._write_refusal(refusal, more=count)
        if others:
            self.audit.write("refused", what="of many callers or reasons", more=others)

    def _write_refusal(self, refusal: Refusal, **facts: object) -> None:
        self.audit.write(
            "refused",
            what=refusal.what.value,
            status=refusal.status,
            why=refusal.why,
            **refusal.caller.log_fields(),
            **facts,
        )
