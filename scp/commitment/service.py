"""Storage Commitment Push Model as SCP: a request is kept, and reported on (PS3.4 Annex J).

The request is answered once it is kept durably (``requests``). While the peer then says nothing,
the instances are looked at (``check``), and the report goes out on the same association. A peer
that goes on, or releases, is reported to on an association of our own: by ``reports``, which also
takes up what was not taken here.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.service_class_n import StorageCommitmentServiceClass

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.identifier import BadIdentifier, read
from plainpacs.archive.dicom.identifier_writing import Value, encode
from plainpacs.archive.errors import InvalidUID, PlainpacsError
from plainpacs.archive.store.audit import AuditLog
from plainpacs.archive.tree.identity import as_name
from plainpacs.archive.tree.root import open_root
from plainpacs.scp.commitment import requests
from plainpacs.scp.commitment.check import (
    FailureReason,
    Interrupted,
    PutOff,
    Reference,
    Verdict,
    judge,
)
from plainpacs.scp.commitment.requests import Claim, Full, Transaction
from plainpacs.scp.network.dimse import Command
from plainpacs.scp.receiver.services import Asked
from plainpacs.scp.receiver.statistics import Caller

_LOG = logging.getLogger("plainpacs.scp")

SOP_CLASS = "1.2.840.10008.1.20.1"
SOP_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The one well-known instance there is (PS3.4 J.3.5)."""
_REQUEST_COMMITMENT = 1
_ALL_COMMITTED, _SOME_FAILED = 1, 2

_LONGEST = 2 << 20
_MOST_PARTS = 3 * 10_000 + 100
"""A request may refer to 10,000 instances: an item of two elements each."""
_LARGE = 1000
_SHORTEST_REFERENCE = 32  # bytes
_READING, _REPORTING = threading.Lock(), threading.Lock()
"""For requests with more references: one at a time, as each takes megabytes."""
_QUIET_SECONDS = 0.5
"""A peer that releases does it sooner, and is not to find our request in its way."""
_REASONS_LOGGED = 3
_TAKEN = frozenset((0x0000, 0x0001, 0x0107, 0x0116))


class ActionStatus(enum.IntEnum):
    """The Status of an N-ACTION-RSP (PS3.7 10.1.4.1.10)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_SOP_INSTANCE = 0x0112
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_SOP_CLASS = 0x0118
    NO_SUCH_ACTION = 0x0123
    RESOURCE_LIMITATION = 0x0213


class _Refused(Exception):
    """The words are ours alone."""

    def __init__(self, status: ActionStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class Commitment(Asked, StorageCommitmentServiceClass):
    """Answers an N-ACTION."""

    def serve(self) -> None:
        try:
            with _one_at_a_time(len(self.data) // _SHORTEST_REFERENCE):
                transaction = _transaction(self)
            root = _open(self)
        except _Refused as refused:
            words = "refused: %s: %04X commitment: %s; no flag changes it"
            _LOG.warning(words, self.caller, refused.status, refused)
            self._answer(refused.status, str(refused))
            return
        claim: Claim | None = None
        try:
            try:
                self.archive.check(len(self.data))
                with _one_at_a_time(len(transaction.references)):
                    name = requests.put(root, transaction).name
                    del transaction
                    claim = requests.claim(root, name)
            except (Full, OSError, PlainpacsError) as error:
                status = ActionStatus.RESOURCE_LIMITATION
                why = getattr(error, "strerror", None) or str(error)
                _LOG.warning("refused: %s: %04X commitment: %s", self.caller, status, why)
                self._answer(status, "the request cannot be kept")
                return
            self._answer(ActionStatus.SUCCESS)
            if claim is not None and self.assoc.is_silent_for(_QUIET_SECONDS):
                claim = _report_here(self, claim)
        finally:
            if claim is not None:
                claim.release()
            os.close(root)

    def _answer(self, status: ActionStatus, comment: str = "") -> None:
        told = self.request
        more = {
            "AffectedSOPInstanceUID": told.RequestedSOPInstanceUID,
            "ActionTypeID": told.ActionTypeID,
        }
        self.answer(status, comment, more=more)


def _one_at_a_time(references: int) -> contextlib.AbstractContextManager[object]:
    return _READING if references > _LARGE else contextlib.nullcontext()


def _open(asked: Asked) -> int:
    try:
        return open_root(asked.archive.root)
    except PlainpacsError:
        raise _Refused(ActionStatus.PROCESSING_FAILURE, "the archive is not there") from None


# --- the request ----------------------------------------------------------------------------------


def _transaction(asked: Asked) -> Transaction:
    request = asked.request
    if request.RequestedSOPClassUID != SOP_CLASS:
        raise _Refused(ActionStatus.NO_SUCH_SOP_CLASS, "the SOP Class is not that of the context")
    if request.RequestedSOPInstanceUID != SOP_INSTANCE:
        raise _Refused(ActionStatus.NO_SUCH_SOP_INSTANCE, "not the well-known SOP Instance UID")
    if request.ActionTypeID != _REQUEST_COMMITMENT:
        raise _Refused(ActionStatus.NO_SUCH_ACTION, "the Action Type ID is not 1")
    try:
        told = read(
            asked.data, asked.context.transfer_syntax, longest=_LONGEST, most_parts=_MOST_PARTS
        )
        uid = as_name("TransactionUID", told.text("TransactionUID"))
        references = tuple(
            Reference(
                as_name("ReferencedSOPClassUID", item.text("ReferencedSOPClassUID")),
                as_name("ReferencedSOPInstanceUID", item.text("ReferencedSOPInstanceUID")),
            )
            for item in told.items("ReferencedSOPSequence")
        )
    except (BadIdentifier, InvalidUID) as error:
        raise _Refused(ActionStatus.INVALID_ARGUMENT_VALUE, str(error)) from None
    if not references:
        words = "the Referenced SOP Sequence has no item"
        raise _Refused(ActionStatus.INVALID_ARGUMENT_VALUE, words)
    who = asked.caller
    return Transaction(uid, who.calling_ae, who.called_ae, who.peer, references, time.time())


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of the instances of a transaction."""

    transaction: Transaction
    verdicts: Sequence[Verdict]

    @classmethod
    def of(
        cls, root: str, transaction: Transaction, settings: Settings, interrupted: Interrupted
    ) -> Report:
        """Raises as ``check.judge``."""
        if transaction.is_duplicate:
            why = Verdict(FailureReason.DUPLICATE_TRANSACTION_UID, "its Transaction UID is in use")
        elif settings.sync != "on":
            words = "nothing is synced; flag to change it: --sync on"
            why = Verdict(FailureReason.PROCESSING_FAILURE, words)
        else:
            return cls(transaction, judge(root, transaction.references, interrupted))
        return cls(transaction, [why] * len(transaction.references))

    @property
    def failed(self) -> int:
        return sum(one.reason is not FailureReason.COMMITTED for one in self.verdicts)

    @property
    def event(self) -> int:
        """Event Type ID (PS3.4 J.3.3.1)."""
        return _SOME_FAILED if self.failed else _ALL_COMMITTED

    def information(self, settings: Settings) -> dict[str, Value]:
        """Event Information (PS3.4 Table J.3-2)."""
        good: list[dict[str, Value]] = []
        bad: list[dict[str, Value]] = []
        for one, verdict in zip(self.transaction.references, self.verdicts, strict=True):
            item: dict[str, Value] = {
                "ReferencedSOPClassUID": one.sop_class,
                "ReferencedSOPInstanceUID": one.sop_instance,
            }
            if verdict.reason is FailureReason.COMMITTED:
                good.append(item)
            else:
                bad.append(item | {"FailureReason": int(verdict.reason)})
        told: dict[str, Value] = {"TransactionUID": self.transaction.uid}
        if settings.query_retrieve != "off":
            told["RetrieveAETitle"] = our_title(self.transaction, settings)
        if good:
            told["ReferencedSOPSequence"] = good
        if bad:
            told["FailedSOPSequence"] = bad
        return told

    def log(self) -> None:
        """Says what is not committed, and why; no more than a few."""
        bad = [
            (one, verdict)
            for one, verdict in zip(self.transaction.references, self.verdicts, strict=True)
            if verdict.reason is not FailureReason.COMMITTED
        ]
        for one, verdict in bad[:_REASONS_LOGGED]:
            _LOG.warning(
                "not committed: %04X %s: %s", verdict.reason, one.sop_instance, verdict.words
            )
        if len(bad) > _REASONS_LOGGED:
            _LOG.warning("not committed: %d more of the same request", len(bad) - _REASONS_LOGGED)

    def taken(self, status: int, by: object) -> bool:
        """Whether a response with this status says that the asker has the report. Logs it."""
        if status in _TAKEN or status & 0xF000 == 0xB000:
            count = len(self.verdicts)
            words = "commitment reported: %s: %d of %d instances"
            _LOG.info(words, by, count - self.failed, count)
            return True
        words = "commitment: %s answers the report with %04X; it is sent again later"
        _LOG.warning(words, by, status)
        return False

    def record(self, audit: AuditLog) -> None:
        """That the asker has it, into the audit log: what is committed it may delete."""
        audit.write(
            "commitment",
            calling_ae=self.transaction.calling_ae,
            called_ae=self.transaction.called_ae,
            TransactionUID=self.transaction.uid,
            committed=len(self.verdicts) - self.failed,
            failed=self.failed or None,
        )


def our_title(transaction: Transaction, settings: Settings) -> str:
    """The AE title that we were called, if it is ours."""
    called = transaction.called_ae
    return called if called in settings.aet else settings.aet[0]


class _Awaited:
    """A report on its way over the association of the request; see ``services.Awaited``."""

    def __init__(self, claim: Claim, report: Report, caller: Caller, audit: AuditLog) -> None:
        self._claim, self._report, self._caller, self._audit = claim, report, caller, audit

    def answered(self, command: Command) -> None:
        try:
            if self._report.taken(command.status, self._caller):
                self._report.record(self._audit)
                self._claim.done()
        except OSError as error:
            _LOG.warning("commitments cannot be kept: %s", error.strerror)
        finally:
            self._claim.release()

    def ended(self) -> None:
        self._claim.release()


def _report_here(asked: Asked, claim: Claim) -> Claim | None:
    """Sends the report, to be answered when the peer comes to it; gives the claim back when the
    peer says something else before. Raises what the association raises."""
    if len(claim.transaction.references) <= _LARGE:
        return _report_now(asked, claim)
    while not _REPORTING.acquire(timeout=_QUIET_SECONDS):
        if not asked.assoc.is_silent_for(0.0):
            return claim
    try:
        return _report_now(asked, claim)
    finally:
        _REPORTING.release()


def _report_now(asked: Asked, claim: Claim) -> Claim | None:
    association = asked.assoc
    try:
        report = Report.of(
            asked.archive.root,
            claim.transaction,
            asked.settings,
            lambda: not association.is_silent_for(0.0),
        )
    except (PutOff, PlainpacsError, OSError):
        return claim
    report.log()
    request = N_EVENT_REPORT()
    request.MessageID = max(asked.awaited, default=0) % 0xFFFF + 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = SOP_CLASS, SOP_INSTANCE
    request.EventTypeID = report.event
    information = report.information(asked.settings)
    request.EventInformation = BytesIO(encode(information, asked.context.transfer_syntax))
    awaited = _Awaited(claim, report, asked.caller, asked.archive.audit)
    asked.awaited[request.MessageID] = awaited
    asked.dimse.send_msg(request, asked.context.id)
    return None
