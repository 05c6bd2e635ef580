"""The receiver: who may associate, what is negotiated, and that each instance is stored.

``Receiver`` binds, serves and stops; one ``_Session`` is one association. Every refusal is one
line in the log that says who sent what, why it was refused, and which flag would change it; every
association that came about is one line when it ends. No line has patient data.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable

from plainpacs.archive.archive import Archive, Provenance, StoreOutcome
from plainpacs.archive.audit import COUNTED_AS, uid_or_none
from plainpacs.archive.errors import BadSettings, InUse, PlainpacsError, StorageUnavailable
from plainpacs.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from plainpacs.archive.settings import Settings
from plainpacs.scp import status
from plainpacs.scp.access import Access, reloaded
from plainpacs.scp.association import Association
from plainpacs.scp.board import Admission, Board
from plainpacs.scp.connection import Connection, Stopping, Transport
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
from plainpacs.scp.tls import HandshakeFailed, TLSConnection
from plainpacs.scp.trail import Trail, Visit

_LOG = logging.getLogger("plainpacs.scp")

_HOUSEKEEPING_SECONDS = 2.0
_NAMES_SHOWN = 5
# Connections that are not (yet) associations: reachability checks, scanners, rejected peers.
_SPARE_CONNECTIONS = 64
_SPARE_FROM_ONE = 16
_LAST_WORDS_SECONDS = 5.0
_KEYS_SECONDS = 24 * 3600.0

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
        self.access = Access.of(settings)
        self._renewed = time.monotonic()
        self._one_of_several = board is not None
        listener = listener or open_listener(settings)
        self._board = board or Board.create(1)
        self._limits = Limits(settings.pdu_timeout, settings.idle_timeout, settings.max_pdu)
        self._server = Server(listener, self._serve, 0, self._board)
        self._set_limits()
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

    def reload(self, settings: Settings) -> list[str]:
        """Lets what of ``settings`` says who may associate hold from the next connection on.

        Gives the names of the other settings that differ; they want a restart. Raises BadSettings,
        and then nothing has changed.
        """
        merged, others = reloaded(self.settings, settings)
        self.access = Access.of(merged)
        self.settings = merged
        self._renewed = time.monotonic()
        self._set_limits()
        return others

    def _set_limits(self) -> None:
        most, per_peer = self.access.max_associations, self.access.max_per_peer
        self._server.most_connections = most + _SPARE_CONNECTIONS
        self._server.most_from_one = (
            per_peer + _SPARE_FROM_ONE if per_peer else self._server.most_connections
        )

    def admit(self, access: Access, peer: str) -> Rejection | None:
        """Counts one association more with the address ``peer``, if the limits allow it."""
        admission = self._board.admit(peer, access.max_associations, access.max_per_peer)
        if admission is Admission.FULL:
            return status.TOO_MANY_ASSOCIATIONS
        return status.TOO_MANY_FROM_PEER if admission is Admission.FULL_FOR_PEER else None

    def dismiss(self, peer: str) -> None:
        """One that was admitted is over."""
        self._board.dismiss(peer)

    # --- how it is: see ``metrics.Service`` -----------------------------------------------------

    def report(self) -> bytes:
        return self.tally.report()

    def associations(self) -> int:
        return self._board.associations()

    def fault(self) -> str:
        return "" if self._server.is_accepting else "the receiver does not listen"

    # --- what goes on ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Makes manifest lines durable. Failing to is logged: the instances are safe."""
        try:
            self.archive.flush()
        except (OSError, StorageUnavailable) as error:
            _LOG.warning("manifests could not be synced: %s", error)

    def _serve(self, connection: Connection, address: str) -> None:
        access = self.access
        transport: Transport | None = connection
        if access.tls is not None:
            transport = self._secured(connection, access.tls, address)
        if transport is not None:
            Association(
                transport,
                _Session(self, access, address),
                self._limits,
                (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME),
                stranger=access.is_stranger(address),
            ).run()

    def _secured(
        self, connection: Connection, context: ssl.SSLContext, address: str
    ) -> TLSConnection | None:
        """``connection`` with TLS over it; None when none came about, and it is closed."""
        secured = TLSConnection(connection, context, self._limits.pdu_timeout)
        try:
            secured.handshake()
        except Stopping:
            secured.close()
            return None
        except HandshakeFailed as failure:
            caller = Caller(address)
            if failure.quiet:
                _LOG.debug("connection ended: %s: %s", caller, failure)
            else:
                words = "refused association: %s: TLS %s; %s"
                _LOG.warning(words, caller, failure, failure.remedy)
                self.count(Refusal(Refused.ASSOCIATION, "TLS", str(failure), caller))
            if failure.told:
                secured.await_close(_LAST_WORDS_SECONDS)
            secured.close()
            return None
        _LOG.debug("TLS: somebody at %s: %s", address, secured.describe())
        return secured

    def count(self, refusal: Refusal, sop_instance: str = "") -> None:
        """Puts a refusal into the tally and the audit log."""
        self.tally.refused(refusal)
        self.trail.refused(refusal, sop_instance)

    def _keep_house(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_HOUSEKEEPING_SECONDS)
            self.flush()
            self.trail.flush()
            self._write_note()
            self._renew_keys()
        self.trail.close()

    def _renew_keys(self) -> None:
        """What seals the tickets of TLS sessions is not to be used for ever (RFC 9325 3.4)."""
        if self.access.tls is not None and time.monotonic() - self._renewed > _KEYS_SECONDS:
            try:
                self.reload(self.settings)
            except BadSettings as error:
                self._renewed = time.monotonic()
                _LOG.error("the certificate in use stays: %s", error)

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

    def __init__(self, receiver: Receiver, access: Access, peer: str) -> None:
        self._receiver = receiver
        self._access = access
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
        peer = self._caller.peer
        rejection = self._access.rejection(proposal, peer)
        rejection = rejection or self._receiver.admit(self._access, peer)
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

    def ended(self, how: str, fault: str) -> None:
        if not self._admitted:
            level = logging.WARNING if fault else logging.DEBUG
            _LOG.log(level, "connection ended: %s: %s", self._caller, fault or how)
            return
        self._receiver.dismiss(self._caller.peer)
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
        self._receiver.count(Refusal(what, code, why, self._caller), sop_instance)


def _shown(uid: str) -> str:
    """``uid`` for the log: its name if registered. What is not spelled like one might be anything,
    a patient's name too."""
    if not uid:
        return "no UID"
    return name_of(uid) if uid_or_none(uid) else "a malformed UID"
