"""The receiver: who may associate, what is negotiated, and that each instance is stored.

``Receiver`` binds, serves and stops; one ``_Session`` is one association. Every refusal is one
line in the log that says who sent what, why it was refused, and which flag would change it; every
association that came about is one line when it ends. No line has patient data.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable

from plainpacs.archive.archive import Archive, Provenance, StoreOutcome
from plainpacs.archive.audit import COUNTED_AS, uid_or_none
from plainpacs.archive.errors import InUse, PlainpacsError, StorageUnavailable
from plainpacs.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from plainpacs.archive.settings import Settings
from plainpacs.scp import status
from plainpacs.scp.association import Association
from plainpacs.scp.board import Board
from plainpacs.scp.connection import Connection
from plainpacs.scp.dimse import (
    RESPONSE,
    Command,
    CommandField,
    Drain,
    Message,
    ProtocolError,
    Spill,
    response,
)
from plainpacs.scp.negotiation import ContextResult, Result, answered_roles, name_of, negotiate
from plainpacs.scp.reading import Limits
from plainpacs.scp.server import Server, listen
from plainpacs.scp.session import RELEASED, Acceptance, Proposal
from plainpacs.scp.status import Rejection, StoreStatus
from plainpacs.scp.storing import LargeInstance, StoreAnswer, StoreRequest, store
from plainpacs.scp.tally import Caller, Course, Refusal, Refused, Tally
from plainpacs.scp.trail import Trail, Visit

_LOG = logging.getLogger("plainpacs.scp")

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
ANY_SCP = "ANY-SCP"
"""What DCMTK's clients call whom they were not told to call otherwise."""

_HOUSEKEEPING_SECONDS = 2.0
_NAMES_SHOWN = 5
# Connections that are not (yet) associations: reachability checks, scanners, rejected peers.
_SPARE_CONNECTIONS = 64

_WHY = {
    Result.USER_REJECTION: "the peer would be SCP, and plainpacs only receives",
    Result.ABSTRACT_SYNTAX_NOT_SUPPORTED: "not Verification, nor the storage of an instance",
    Result.TRANSFER_SYNTAXES_NOT_SUPPORTED: "no transfer syntax that can be kept",
}


class Receiver:
    """Listens from the moment it is made; accepts associations from ``start`` to ``stop``.

    As one of several processes it is given the socket that all listen on, which it takes over,
    and their board. Raises InUse when it cannot listen.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket | None = None,
        board: Board | None = None,
    ) -> None:
        self.settings = settings
        self.archive: Archive
        self._one_of_several = board is not None
        self._board = board or Board.create(1)
        listener = listener or open_listener(settings)
        self._limits = Limits(settings.pdu_timeout, settings.idle_timeout, settings.max_pdu)
        self._server = Server(
            listener,
            self._serve,
            settings.max_associations + _SPARE_CONNECTIONS,
            self._board,
        )
        before = self._board.own_note()
        self.tally = Tally(settings.aet, self.port, before, reserve=settings.reserve)
        self.trail: Trail
        self._associations = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper")

    @property
    def port(self) -> int:
        """The port it listens on, also when the system picked it."""
        return self._server.port

    def start(self, archive: Archive) -> None:
        """Accepts associations from now on, and stores into ``archive``."""
        self.archive = archive
        self.trail = Trail(archive.audit)
        self._write_note()
        self._housekeeper.start()
        self._server.start()

    def stop(self) -> None:
        """Accepts no more, answers the stores in hand, aborts the associations.

        When it returns no thread of the receiver uses the archive. Also ends one never started.
        """
        self._server.stop()
        self._stopping.set()
        if self._housekeeper.is_alive():
            self._housekeeper.join()
        self._board.close()

    def admit(self) -> bool:
        """Counts one association more, if the limit allows it."""
        return self._board.admit(self.settings.max_associations)

    def dismiss(self) -> None:
        self._board.dismiss()

    def flush(self) -> None:
        """Makes manifest lines durable. Failing to is logged: the instances are safe."""
        try:
            self.archive.flush()
        except (OSError, StorageUnavailable) as error:
            _LOG.warning("manifests could not be synced: %s", error)

    def _serve(self, connection: Connection, address: str) -> None:
        session = _Session(self, address)
        implementation = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)
        Association(connection, session, self._limits, implementation).run()

    def _keep_house(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_HOUSEKEEPING_SECONDS)
            self.flush()
            self.trail.flush()
            self._write_note()
        self.trail.close()

    def _write_note(self) -> None:
        note = self.tally.note()
        if note is None:
            return
        if self._one_of_several:
            self._board.write_note(note)
        else:
            try:
                self.archive.write_service_note(note)
            except (OSError, PlainpacsError) as error:
                _LOG.warning("the note for `plainpacs status` could not be written: %s", error)


def open_listener(settings: Settings) -> socket.socket:
    """The socket to listen on. Raises InUse."""
    try:
        return listen(settings.bind, settings.port)
    except OSError as error:
        raise InUse(_cannot_listen(settings, error)) from None


def _cannot_listen(settings: Settings, error: OSError) -> str:
    where = f"{settings.bind or 'all addresses'} port {settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: it is in use; stop the other program, or give --port"
    if error.errno == errno.EACCES:
        return f"cannot listen on {where}: not allowed; give --port 1024 or above"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: no such address here; give another --bind"
    return f"cannot listen on {where}: {error.strerror or error}"


class _Session:
    """One connection. See ``session.Session`` for what is called when."""

    def __init__(self, receiver: Receiver, peer: str) -> None:
        self._receiver = receiver
        self._settings = receiver.settings
        self._caller = Caller(peer)
        self._visit: Visit
        self._provenance = Provenance()
        self._contexts: dict[int, ContextResult] = {}
        self._admitted = False
        self._counts: Counter[str] = Counter()
        self._bytes = 0
        self._began = time.monotonic()

    # --- the association ----------------------------------------------------------------------

    def propose(self, proposal: Proposal) -> Acceptance | Rejection:
        self._caller = Caller(self._caller.peer, proposal.calling_ae, proposal.called_ae)
        rejection = self._rejection(proposal)
        if rejection is not None:
            self._log_rejection(rejection)
            return rejection
        self._admitted = True
        self._receiver.tally.accepted()
        self._visit = Visit(self._receiver.trail, self._caller)
        self._provenance = Provenance(proposal.calling_ae, proposal.called_ae, self._caller.peer)
        results = negotiate(proposal.contexts, proposal.declared, proposal.roles)
        self._contexts = {r.id: r for r in results if r.result is Result.ACCEPTED}
        self._log_refused_contexts(results)
        return Acceptance(tuple(results), answered_roles(proposal.roles, results))

    def _rejection(self, proposal: Proposal) -> Rejection | None:
        settings = self._settings
        if proposal.application_context != APPLICATION_CONTEXT:
            return status.APPLICATION_CONTEXT_UNKNOWN
        if settings.called_ae != "any" and proposal.called_ae not in (*settings.aet, ANY_SCP):
            return status.CALLED_AE_NOT_OURS
        if settings.calling_ae and proposal.calling_ae not in settings.calling_ae:
            return status.CALLING_AE_NOT_ALLOWED
        if not self._receiver.admit():
            return status.TOO_MANY_ASSOCIATIONS
        return None

    def ended(self, how: str, fault: str) -> None:
        if not self._admitted:
            level = logging.WARNING if fault else logging.DEBUG
            _LOG.log(level, "connection ended: %s: %s", self._caller, fault or how)
            return
        self._receiver.dismiss()
        self._visit.ended()
        if how != RELEASED:
            self._receiver.tally.aborted()
        if self._counts["stored"] or self._counts["conflicts"]:
            self._receiver.flush()
        _LOG.info(
            "association ended: %s: %s; %s",
            self._caller,
            f"{how}: {fault}" if fault else how,
            Course(self._counts, self._bytes, time.monotonic() - self._began),
        )

    # --- messages -----------------------------------------------------------------------------

    def serve(self, message: Message) -> bytes | None:
        context = self._context(message.context_id)
        command = message.command
        if command.field & RESPONSE or command.field == CommandField.C_CANCEL_RQ:
            return None  # nothing was asked of the peer, and nothing takes long enough to cancel
        if command.field == CommandField.C_ECHO_RQ:
            return response(command, StoreStatus.SUCCESS)
        if command.field == CommandField.C_STORE_RQ:
            return self._store(context, command, message.data)
        why = f"operation {command.field:04X}H is neither C-ECHO nor C-STORE"
        refused = StoreStatus.UNRECOGNIZED_OPERATION
        remedy = "no flag changes it: plainpacs only receives"
        _LOG.warning("refused: %s: %04X %s; %s", self._caller, refused, why, remedy)
        self._count(Refused.OPERATION, f"{refused:04X}", why)
        return response(command, StoreStatus.UNRECOGNIZED_OPERATION)

    def spill(self, context_id: int, command: Command) -> Spill:
        context = self._context(context_id)
        if command.field != CommandField.C_STORE_RQ:
            return Drain()
        request = self._request(context, command)
        return LargeInstance(self._receiver.archive, request, self._settings.refuse_sop_class)

    def _context(self, context_id: int) -> ContextResult:
        context = self._contexts.get(context_id)
        if context is None:
            raise ProtocolError(f"a message came on context {context_id}, not accepted")
        return context

    def _request(self, context: ContextResult, command: Command) -> StoreRequest:
        return StoreRequest(
            command.sop_class,
            command.sop_instance,
            context.abstract_syntax,
            context.transfer_syntax,
            self._provenance,
        )

    def _store(
        self, context: ContextResult, command: Command, data: memoryview | Spill | None
    ) -> bytes:
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
        self._receiver.tally.stored(outcome, self._caller, size)
        if outcome is StoreOutcome.CONFLICT:
            _LOG.warning(
                "conflict: %s sent other bytes under a stored SOP Instance UID; kept in %s",
                self._caller,
                answer.stored.path,
            )

    # --- refusals -----------------------------------------------------------------------------

    def _log_rejection(self, rejection: Rejection) -> None:
        remedy = rejection.remedy.format(
            called_ae=self._caller.called_ae, calling_ae=self._caller.calling_ae
        )
        _LOG.warning(
            "refused association: %s: %s %s; %s",
            self._caller,
            rejection.code,
            rejection.what,
            remedy,
        )
        self._count(Refused.ASSOCIATION, rejection.code, rejection.what)

    def _log_refused_contexts(self, results: Iterable[ContextResult]) -> None:
        by_result: dict[Result, list[str]] = {}
        for context in results:
            if context.result is not Result.ACCEPTED:
                by_result.setdefault(context.result, []).append(_shown(context.abstract_syntax))
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
        refusal = Refusal(what, code, why, self._caller)
        self._receiver.tally.refused(refusal)
        self._receiver.trail.refused(refusal, sop_instance)


def _shown(uid: str) -> str:
    """``uid`` for the log: its name if registered. What is not spelled like one might be anything,
    a patient's name too."""
    if not uid:
        return "no UID"
    return name_of(uid) if uid_or_none(uid) else "a malformed UID"
