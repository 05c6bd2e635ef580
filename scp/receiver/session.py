"""One association as the receiver sees it: who may, what is negotiated, what each message gets.

Every refusal is one line in the log that says who sent what, why it was refused, and which flag
would change it; every association that came about is one line when it ends. No line has patient
data.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import VerificationServiceClass

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.store.audit import COUNTED_AS, uid_or_none
from plainpacs.archive.store.store import Archive, Provenance, StoreOutcome
from plainpacs.scp.network.acceptor import RELEASED, Accepted
from plainpacs.scp.network.answers import NOT_AUTHORIZED, Rejection, StoreStatus
from plainpacs.scp.network.connection import Stopping
from plainpacs.scp.network.dimse import (
    RESPONSE,
    Command,
    CommandField,
    Drain,
    Message,
    ProtocolError,
    Spill,
    response,
)
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.negotiation import Context, Result, name_of
from plainpacs.scp.network.reader import ConnectionLost, PeerTimeout
from plainpacs.scp.receiver import services
from plainpacs.scp.receiver.access import Access
from plainpacs.scp.receiver.audit_trail import AuditTrail, Visit
from plainpacs.scp.receiver.statistics import Caller, Course, Refusal, Refused, Statistics
from plainpacs.scp.storage.store_scp import LargeInstance, StoreAnswer, StoreRequest, store

_LOG = logging.getLogger("plainpacs.scp")

_NAMES_SHOWN = 5

_WHY = {
    Result.USER_REJECTION: "the peer would be SCP, and asks for no C-GET",
    Result.ABSTRACT_SYNTAX_NOT_SUPPORTED: "not Verification, the storage of an instance, nor a "
    "service that is on (query_retrieve)",
    Result.TRANSFER_SYNTAXES_NOT_SUPPORTED: "no transfer syntax that can be kept",
}

_NO_NODE = "not a node of this archive: see its setting query_retrieve"

_NOT_OURS_TO_ANSWER = (ProtocolError, PeerTimeout, ConnectionLost, Stopping, Ended, OSError)


class Host(Protocol):
    """What a session has of its receiver."""

    settings: Settings
    archive: Archive
    statistics: Statistics
    audit_trail: AuditTrail

    def admit(self, access: Access, peer: str) -> Rejection | None: ...
    def dismiss(self, peer: str) -> None: ...
    def count(self, refusal: Refusal, sop_instance: str = "") -> None: ...
    def flush(self) -> None: ...


class ReceiverSession:
    """One connection. See ``acceptor.Session`` for what is called when."""

    def __init__(self, receiver: Host, access: Access, peer: str) -> None:
        self._receiver = receiver
        self._access = access
        self._settings = receiver.settings
        self._caller = Caller(peer)
        self._visit: Visit
        self._provenance = Provenance()
        self._contexts: dict[int, Context] = {}
        self._agreed: Mapping[str, bytes] = {}
        self._awaited: dict[int, services.Awaited] = {}
        self._admitted = False
        self._query_refusal: str | None = None
        """Once somebody queries: see ``Access.query_refusal``."""
        self._counts: Counter[str] = Counter()
        self._bytes = 0
        self._began = time.monotonic()

    # --- the association ----------------------------------------------------------------------

    @property
    def policy(self) -> object:
        return self._settings.query_retrieve == "off"

    def admit(self, calling_ae: str, called_ae: str, application: str) -> Rejection | None:
        self._caller = Caller(self._caller.peer, calling_ae, called_ae)
        peer = self._caller.peer
        rejection = self._access.rejection(calling_ae, called_ae, application, peer)
        rejection = rejection or self._receiver.admit(self._access, peer)
        if rejection is not None:
            self._log_rejection(rejection)
            return rejection
        self._admitted = True
        self._receiver.statistics.accepted()
        self._visit = Visit(self._receiver.audit_trail, self._caller)
        self._provenance = Provenance(calling_ae, called_ae, peer)
        return None

    def served(self) -> frozenset[str]:
        return services.served(self._settings)

    def agreed(self, wanted: Mapping[str, bytes]) -> dict[str, bytes]:
        return services.agreed(wanted, self.served())

    def established(self, association: Accepted) -> None:
        self._contexts = {one.id: one for one in map(Context.of, association.accepted_contexts)}
        self._log_refused_contexts(association.rejected_contexts)
        services.prepare({context.abstract_syntax for context in self._contexts.values()})
        wanted = association.requestor.sop_class_extended
        self._agreed = self.agreed({str(uid): value for uid, value in wanted.items()})

    def ended(self, how: str, fault: str) -> None:
        if not self._admitted:
            level = logging.WARNING if fault else logging.DEBUG
            _LOG.log(level, "connection ended: %s: %s", self._caller, fault or how)
            return
        self._receiver.dismiss(self._caller.peer)
        self._visit.ended()
        for awaited in self._awaited.values():
            awaited.ended()
        if how != RELEASED:
            self._receiver.statistics.aborted()
        if self._counts["stored"] or self._counts["conflicts"]:
            self._receiver.flush()
        _LOG.info(
            "association ended: %s: %s; %s",
            self._caller,
            f"{how}: {fault}" if fault else how,
            Course(self._counts, self._bytes, time.monotonic() - self._began),
        )

    # --- messages -----------------------------------------------------------------------------

    def serve(self, message: Message, association: Accepted) -> bytes | None:
        context = self._context(message.context_id)
        command = message.command
        if command.field & RESPONSE:
            awaited = self._awaited.pop(command.message_id, None)
            if awaited is not None:
                awaited.answered(command)
            return None
        if command.field == CommandField.C_CANCEL_RQ:
            return None  # what could be cancelled is over
        if command.field == CommandField.C_STORE_RQ:
            return self._store(context, command, message.data)
        if command.field == CommandField.C_ECHO_RQ:
            VerificationServiceClass(association).SCP(
                association.asked(message), context.negotiated
            )
            return None
        service = services.find(context.abstract_syntax, command.field)
        if service is not None:
            return self._ask(service, context, message, association)
        why = f"operation {command.field:04X}H is none that {_shown(context.abstract_syntax)} has"
        refused = StoreStatus.UNRECOGNIZED_OPERATION
        remedy = "no flag changes it"
        _LOG.warning("refused: %s: %04X %s; %s", self._caller, refused, why, remedy)
        self._count(Refused.OPERATION, f"{refused:04X}", why)
        return response(command, StoreStatus.UNRECOGNIZED_OPERATION)

    def _ask(
        self,
        service: type[services.Asked],
        context: Context,
        message: Message,
        association: Accepted,
    ) -> bytes | None:
        command, data = message.command, message.data
        if services.is_query_retrieve(context.abstract_syntax) and not self._may_query():
            return response(command, NOT_AUTHORIZED, _NO_NODE)
        if isinstance(data, Drain):
            why = "an identifier of some megabytes"
            _LOG.warning("refused: %s: %s", self._caller, why)
            return response(command, StoreStatus.CANNOT_UNDERSTAND, why)
        asked = service(
            association,
            context,
            data if isinstance(data, memoryview) else memoryview(b""),
            caller=self._caller,
            archive=self._receiver.archive,
            settings=self._settings,
            agreed=self._agreed.get(context.abstract_syntax, b""),
            awaited=self._awaited,
        )
        request = association.asked(message)
        try:
            asked.SCP(request, context.negotiated)
        except _NOT_OURS_TO_ANSWER:
            raise
        except Exception:
            _LOG.exception("a defect of plainpacs")
            return response(command, StoreStatus.PROCESSING_FAILURE)
        return None

    def _may_query(self) -> bool:
        """Whether queries and retrieves are answered; a refusal is logged and counted."""
        caller = self._caller
        if self._query_refusal is None:
            self._query_refusal = self._access.query_refusal(caller.calling_ae, caller.peer)
        why = self._query_refusal
        if why:
            _LOG.warning(
                "refused: %s: %04X a query or retrieve: %s; flag to answer it: --nodes with %s@%s, "
                "or --query-retrieve any",
                *(caller, NOT_AUTHORIZED, why),
                *(caller.log_fields().get("calling_ae", ""), caller.peer),
            )
            self._count(Refused.OPERATION, f"{NOT_AUTHORIZED:04X}", why)
        return not why

    def spill(self, context_id: int, command: Command) -> Spill:
        context = self._context(context_id)
        if command.field != CommandField.C_STORE_RQ:
            return Drain()
        request = self._request(context, command)
        return LargeInstance(self._receiver.archive, request, self._settings.refuse_sop_class)

    def _context(self, context_id: int) -> Context:
        context = self._contexts.get(context_id)
        if context is None:
            raise ProtocolError(f"a message came on context {context_id}, not accepted")
        return context

    def _request(self, context: Context, command: Command) -> StoreRequest:
        return StoreRequest(
            command.sop_class,
            command.sop_instance,
            context.abstract_syntax,
            context.transfer_syntax,
            self._provenance,
        )

    def _store(self, context: Context, command: Command, data: memoryview | Spill | None) -> bytes:
        if isinstance(data, LargeInstance):
            size = data.size
            answer = data.store()
        else:
            assert data is None or isinstance(data, memoryview), "a Drain is for other commands"
            request = self._request(context, command)
            refused = self._settings.refuse_sop_class
            answer = store(self._receiver.archive, request, data, refused)
            size = len(data or b"")
        self._bytes += size
        self._account(answer, command, size)
        return response(command, answer.status, answer.comment)

    def _account(self, answer: StoreAnswer, command: Command, size: int) -> None:
        if answer.stored is None:
            self._counts["refused"] += 1
            unforeseen = answer.status is StoreStatus.PROCESSING_FAILURE
            # The words of an error that is not ours may quote the data set.
            why = answer.comment if unforeseen else str(answer.error)
            uid = uid_or_none(command.sop_instance)
            named = f" {uid}" if uid else ""
            _LOG.warning(
                "refused: %s: %04X an instance%s of %s: %s; %s",
                self._caller,
                answer.status,
                named,
                _shown(command.sop_class),
                why,
                answer.remedy,
            )
            told = answer.comment or why
            self._count(Refused.INSTANCE, f"{answer.status:04X}", told, command.sop_instance)
            if unforeseen:
                _LOG.error("a defect of plainpacs", exc_info=answer.error)
            return
        outcome = answer.stored.outcome
        self._counts[COUNTED_AS[outcome]] += 1
        self._visit.stored(answer.stored)
        self._receiver.statistics.stored(outcome, self._caller, size)
        if outcome is StoreOutcome.CONFLICT:
            _LOG.warning(
                "conflict: %s sent other bytes under a stored SOP Instance UID; kept in %s",
                self._caller,
                answer.stored.path,
            )

    # --- refusals -----------------------------------------------------------------------------

    def _log_rejection(self, rejection: Rejection) -> None:
        known = {"called_ae": "", "calling_ae": "", **self._caller.log_fields()}  # printable
        remedy = rejection.remedy.format(**known)
        _LOG.warning(
            "refused association: %s: %s %s; %s",
            self._caller,
            rejection.code,
            rejection.what,
            remedy,
        )
        self._count(Refused.ASSOCIATION, rejection.code, rejection.what)

    def _log_refused_contexts(self, refused: Iterable[PresentationContext]) -> None:
        by_result: dict[Result, list[str]] = {}
        for context in refused:
            name = _shown(str(context.abstract_syntax or ""))
            by_result.setdefault(Result(context.result or 0), []).append(name)
        for result, names in by_result.items():
            distinct = list(dict.fromkeys(names))
            more = f" and {len(distinct) - _NAMES_SHOWN} more" * (len(distinct) > _NAMES_SHOWN)
            what = ", ".join(distinct[:_NAMES_SHOWN]) + more
            _LOG.warning(
                "refused contexts: %s: result %d for %s: %s; no flag changes it",
                self._caller,
                result,
                what,
                _WHY[result],
            )
            why = f"{what}: {_WHY[result]}"
            self._count(Refused.CONTEXTS, f"context {result:d}", why)

    def _count(self, what: Refused, code: str, why: str, sop_instance: str = "") -> None:
        self._receiver.count(Refusal(what, code, why, self._caller), sop_instance)


def _shown(uid: str) -> str:
    """``uid`` for the log: its name if registered. What is not spelled like one might be anything,
    a patient's name too."""
    if not uid:
        return "no UID"
    return name_of(uid) if uid_or_none(uid) else "a malformed UID"
