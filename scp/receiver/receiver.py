"""The receiver: who may associate, what is negotiated, and that each instance is stored.

``Receiver`` binds, serves and stops; one ``ReceiverSession`` is one
association.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time

from plainpacs.archive.app.settings import Settings, reloaded
from plainpacs.archive.errors import BadSettings, InUse, PlainpacsError, StorageUnavailable
from plainpacs.archive.store.store import Archive
from plainpacs.scp.network import answers
from plainpacs.scp.network.acceptor import Accepted
from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.connection import Connection, Stopping, Transport
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.tls import HandshakeFailed, TLSConnection
from plainpacs.scp.receiver.access import Access
from plainpacs.scp.receiver.admission import Admission, Admissions
from plainpacs.scp.receiver.audit_trail import AuditTrail
from plainpacs.scp.receiver.server import Server, listen
from plainpacs.scp.receiver.session import ReceiverSession
from plainpacs.scp.receiver.statistics import Caller, Refusal, Refused, Statistics

_LOG = logging.getLogger("plainpacs.scp")

_HOUSEKEEPING_SECONDS = 2.0
# Connections that are not (yet) associations: reachability checks, scanners, rejected peers.
_SPARE_CONNECTIONS = 64
_SPARE_FROM_ONE = 16
_LAST_WORDS_SECONDS = 5.0
_KEYS_SECONDS = 24 * 3600.0


class Receiver:
    """Listens from the moment it is made; accepts associations from ``start`` to ``stop``.

    As one of several processes it is given the socket that all listen on, which it takes over,
    and their admissions. Raises InUse when it cannot listen.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket | None = None,
        admissions: Admissions | None = None,
    ) -> None:
        self.settings = settings
        self.archive: Archive
        self.access = Access.of(settings)
        self._renewed = time.monotonic()
        self._one_of_several = admissions is not None
        listener = listener or open_listener(settings)
        self._admissions = admissions or Admissions.create(1)
        self._limits = Limits(settings.pdu_timeout, settings.idle_timeout, settings.max_pdu)
        self._server = Server(listener, self._serve, 0, self._admissions)
        self._set_limits()
        before = self._admissions.own_note()
        self.statistics = Statistics(settings.aet, self.port, before, reserve=settings.reserve)
        self.audit_trail: AuditTrail
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
        self.audit_trail = AuditTrail(archive.audit)
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
        self._admissions.close()

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
        self._server.most_from_one = per_peer + _SPARE_FROM_ONE

    def admit(self, access: Access, peer: str) -> Rejection | None:
        """Counts one association more with the address ``peer``, if the limits allow it."""
        admission = self._admissions.admit(peer, access.max_associations, access.max_per_peer)
        if admission is Admission.FULL:
            return answers.TOO_MANY_ASSOCIATIONS
        return answers.TOO_MANY_FROM_PEER if admission is Admission.FULL_FOR_PEER else None

    def dismiss(self, peer: str) -> None:
        """One that was admitted is over."""
        self._admissions.dismiss(peer)

    # --- how it is: see ``metrics.Service`` -----------------------------------------------------

    def report(self) -> bytes:
        return self.statistics.report()

    def associations(self) -> int:
        return self._admissions.associations()

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
            Accepted(
                transport,
                ReceiverSession(self, access, address),
                self._limits,
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
        """Puts a refusal into the statistics and the audit log."""
        self.statistics.refused(refusal)
        self.audit_trail.refused(refusal, sop_instance)

    def _keep_house(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_HOUSEKEEPING_SECONDS)
            self.flush()
            self.audit_trail.flush()
            self.archive.sweep()
            self._write_note()
            self._renew_keys()
        self.audit_trail.close()

    def _renew_keys(self) -> None:
        """What seals the tickets of TLS sessions is not to be used for ever (RFC 9325 3.4)."""
        if self.access.tls is not None and time.monotonic() - self._renewed > _KEYS_SECONDS:
            try:
                self.reload(self.settings)
            except BadSettings as error:
                self._renewed = time.monotonic()
                _LOG.error("the certificate in use stays: %s", error)

    def _write_note(self) -> None:
        note = self.statistics.note()
        if note is None:
            return
        if self._one_of_several:
            self._admissions.write_note(note)
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
