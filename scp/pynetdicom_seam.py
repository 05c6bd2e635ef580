"""pynetdicom's classes, with what we need done otherwise.

This is the one place, with ``pynetdicom_upper_layer`` beneath it, that knows pynetdicom.

Checked against pynetdicom 3.0.4; dependency range ``>=3.0.4,<3.1``. ``PRIVATE_NAMES`` lists every
name used here that pynetdicom does not document, and a test fails when one goes or changes.

Ours is: reading PDUs and messages (deadlines and lengths that a peer cannot exceed, hardly any
copies), negotiation, serving, and the end. pynetdicom's is: encoding and decoding of association
PDUs and the state machine of PS3.8 9.2. What is otherwise here than there, and why:

* Threads wait for what happens (``Bell``, a pipe) instead of sleeping a millisecond at a time,
  so idle associations cost nothing and an answer leaves at once.
* Sockets are polled, because ``select`` fails from file descriptor 1024 on.
* No thread per connection beside the two of the association; no ``deepcopy`` of contexts; no
  handlers, whose default ones log each PDU.
* A peer that stalls within a PDU is cut off, one that sends without awaiting answers is not read
  faster than it is served, and no request, however malformed, ends a thread with a traceback.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_ASSOCIATE,
    A_P_ABORT,
    A_RELEASE,
    P_DATA,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import (
    AddressInformation,
    AssociationServer,
    AssociationSocket,
    RequestHandler,
)

from plainpacs.archive.identity import strip_padding
from plainpacs.scp.dimse import Message, ProtocolError, command_fragments
from plainpacs.scp.negotiation import ProposedContext, Result, Role
from plainpacs.scp.pynetdicom_upper_layer import WAIT, Bell, Limits, Socket, UpperLayer
from plainpacs.scp.session import Acceptance, Proposal, Session, SessionMaker
from plainpacs.scp.status import Rejection

PRIVATE_NAMES = {
    ACSE: ("negotiate_association", "send_accept", "send_reject", "send_release", "send_ap_abort"),
    Association: ("_bind_defaults", "abort", "run_reactor"),
    AssociationServer: ("_bind_defaults", "process_request", "server_bind", "service_actions"),
    AssociationSocket: ("_shutdown_socket", "close", "recv", "send", "ready"),
    DULServiceProvider: (
        *("_decode_pdu", "_is_transport_event", "_process_recv_primitive", "_read_pdu_data"),
        *("kill_dul", "send_pdu", "idle_timer_expired", "run_reactor"),
    ),
    RequestHandler: ("_create_association", "handle"),
}
"""Class to names used or replaced; the instance attributes are in ``PRIVATE_ATTRIBUTES``."""
PRIVATE_ATTRIBUTES = {
    "association": ("_server", "_accepted_cx", "_rejected_cx"),
    "dul": (
        *("_idle_timer", "artim_timer", "_run_loop_delay", "_recv_pdu", "event_queue"),
        *("to_user_queue", "to_provider_queue", "state_machine", "_kill_thread"),
    ),
    "socket": ("socket", "_is_connected"),
    "context": ("_abstract_syntax", "_transfer_syntax", "_context_id"),
}

_LOG = logging.getLogger("plainpacs.scp")

_INVALID_PDU_PARAMETER = 6  # PS3.8 Table 9-26


class _ACSE(ACSE):
    """Answers requests for associations with what the session decides."""

    assoc: _Association

    def negotiate_association(self) -> None:
        request = self.requestor.primitive
        assert request is not None, "only called with one"
        self.requestor.ae_title = request.calling_ae_title
        decision = self.assoc.session.propose(_proposal(request))
        if isinstance(decision, Rejection):
            self.send_reject(decision.result, decision.source, decision.reason)
            return
        contexts = [(result, _context(result)) for result in decision.contexts]
        self.assoc._accepted_cx = {
            result.id: context for result, context in contexts if result.result is Result.ACCEPTED
        }
        self.assoc._rejected_cx = [
            context for result, context in contexts if result.result is not Result.ACCEPTED
        ]
        for item in _role_items(decision):
            self.acceptor.add_negotiation_item(item)
        # Before the answer leaves: what follows it is to be served.
        self.assoc.is_established = True
        self.send_accept()


def _proposal(request: A_ASSOCIATE) -> Proposal:
    items = request.user_information
    return Proposal(
        request.calling_ae_title.strip(),
        request.called_ae_title.strip(),
        strip_padding(str(request.application_context_name or "")),
        tuple(
            ProposedContext(
                int(context.context_id or 0),
                str(context.abstract_syntax or ""),
                tuple(str(uid) for uid in context.transfer_syntax),
            )
            for context in request.presentation_context_definition_list
        ),
        {
            strip_padding(str(item.sop_class_uid)): strip_padding(str(item.service_class_uid))
            for item in items
            if isinstance(item, SOPClassCommonExtendedNegotiation)
        },
        {
            strip_padding(str(item.sop_class_uid)): Role(bool(item.scu_role), bool(item.scp_role))
            for item in items
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        },
    )


def _context(result: Any) -> PresentationContext:
    # The attributes, not the properties: those warn of every UID they do not know.
    context = PresentationContext()
    context._context_id = result.id
    context._abstract_syntax = UID(result.abstract_syntax)
    context._transfer_syntax = [UID(result.transfer_syntax)]
    context.result = int(result.result)
    return context


def _role_items(decision: Acceptance) -> list[SCP_SCU_RoleSelectionNegotiation]:
    items = []
    for uid, role in decision.roles.items():
        item = SCP_SCU_RoleSelectionNegotiation()
        item.sop_class_uid = UID(uid)
        item.scu_role, item.scp_role = role.scu, role.scp
        items.append(item)
    return items


class _Association(Association):
    """One association: its thread serves messages one after the other until it ends."""

    dul: UpperLayer

    def __init__(self, server: Server, client: socket.socket, session: Session) -> None:
        self.session = session
        self._limits = server.limits
        self._bell = Bell()
        self._forget = server.forget
        self._stopping = False
        super().__init__(server.ae, MODE_ACCEPTOR)
        self._server = server
        self.acse = _ACSE(self)
        self.dul = UpperLayer(self, self._bell, server.limits)
        self.acse_timeout = server.limits.pdu_timeout
        self.network_timeout = server.limits.idle_timeout
        self.set_socket(Socket(self, client, server.limits))

    def _bind_defaults(self) -> None:
        """No handlers: nothing is triggered that somebody listens to."""

    def run_reactor(self) -> None:
        how = "a defect of plainpacs"
        try:
            self.dul.start()
            how = self._live()
        except Exception:
            _LOG.exception("association ended by a defect of plainpacs")
        finally:
            self._wind_up(how)

    def stop(self) -> None:
        """Ends the association soon: after the answer to the store in hand, before any other."""
        self._stopping = True
        self._bell.ring()

    def _live(self) -> str:
        request = self._await_request()
        if request is None:
            return "no association was requested"
        self.requestor.primitive = request
        self.acse.negotiate_association()
        return self._serve_until_end() if self.is_established else "rejected"

    def _await_request(self) -> A_ASSOCIATE | None:
        deadline = time.monotonic() + self._limits.pdu_timeout
        while self.dul.is_alive() and not self._stopping and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                primitive = self.dul.to_user_queue.get_nowait()
                return primitive if isinstance(primitive, A_ASSOCIATE) else None
            self._bell.wait(WAIT)
        return None

    def _serve_until_end(self) -> str:
        while not self._stopping:
            message = self._next_message()
            if message is None:
                ended = self._ending()
                if not ended:
                    self._bell.wait(WAIT)
            else:
                ended = self._serve(message)
            if ended:
                return ended
        # Goes out behind the answer to the last store, which waits in the same queue.
        self.abort(block=False)
        return "aborted by us: plainpacs stops"

    def _next_message(self) -> Message | None:
        try:
            message = self.dul.inbox.get_nowait()
        except queue.Empty:
            return None
        self.dul.socket.wake()  # there is room for the next
        return message

    def _serve(self, message: Message) -> str:
        """Serves and answers; says how the association ended, if by this."""
        try:
            answer = self.session.serve(message)
        except ProtocolError as error:
            self.dul.fault = str(error)
            self.acse.send_ap_abort(_INVALID_PDU_PARAMETER)
            return "aborted by us"
        if answer is not None:
            self._send(message.context_id, answer)
        # The time that we took is not the peer's silence.
        self.dul._idle_timer.restart()
        return ""

    def _send(self, context_id: int, command_set: bytes) -> None:
        for fragment in command_fragments(command_set, self.requestor.maximum_length or 0):
            primitive = P_DATA()
            primitive.presentation_data_value_list.append((context_id, fragment))
            self.dul.send_pdu(primitive)

    def _ending(self) -> str:
        """How the association ended; empty when it did not."""
        with contextlib.suppress(queue.Empty):
            primitive = self.dul.to_user_queue.get_nowait()
            if isinstance(primitive, A_RELEASE):
                self.acse.send_release(is_response=True)
                self.is_released = True
                return "released"
            if isinstance(primitive, A_ABORT):
                return "aborted by the peer"
            if isinstance(primitive, A_P_ABORT):
                self.is_aborted = bool(self.dul.fault)
                return "aborted by us" if self.dul.fault else "connection lost"
        if not self.dul.is_alive():
            return "connection lost"
        if self.dul.idle_timer_expired():
            self.abort(block=False)
            self.dul.fault = f"silent for {self._limits.idle_timeout:g} s (--idle-timeout)"
            return "aborted by us"
        return ""

    def _wind_up(self, how: str) -> None:
        self.is_established = False
        started = self.dul.ident is not None  # not, when the system has no threads left
        if started and (self.is_rejected or self.is_released or self.is_aborted):
            # What is queued to be sent goes out, then the peer gets a moment to close first.
            self.dul.join(3 * WAIT)
        self.dul.kill_dul()
        self.dul.socket._shutdown_socket()
        if started:
            self.dul.join()
        self.dul.socket.release()
        self._forget(self)
        self.session.ended(how, self.dul.fault)


class _Handler(RequestHandler):
    """Starts an association for each connection."""

    server: Server

    def handle(self) -> None:
        client: socket.socket = self.request
        # An answer is one small segment: it must not wait for the acknowledgement of another.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = str(self.client_address[0])
        association = _Association(self.server, client, self.server.make_session(address))
        association.name = f"association from {address}"
        association.requestor.address_info = self.remote
        association.acceptor.address_info = self.local
        association.acceptor.maximum_length = self.server.limits.announced_pdu
        association.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        association.acceptor.implementation_version_name = self.ae.implementation_version_name
        self.server.remember(association)
        try:
            association.start()
        except BaseException:
            self.server.forget(association)
            association.dul.socket.release()
            raise


class Server(AssociationServer):
    """Listens, and gives each connection an association with a session of its own.

    Raises OSError when it cannot listen on ``address``. Nothing is accepted before ``start``.
    """

    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        make_session: SessionMaker,
        *,
        implementation: tuple[str, str],
        limits: Limits,
        most_connections: int,
    ) -> None:
        self.make_session = make_session
        self.limits = limits
        self._most_connections = most_connections
        self._living: set[_Association] = set()
        self._living_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        ae = AE("PLAINPACS")  # our titles are the session's business; this one is never sent
        ae.implementation_class_uid, ae.implementation_version_name = UID(implementation[0]), None
        ae.implementation_version_name = implementation[1]
        ae.network_timeout = None  # would make accept() fail now and then
        super().__init__(ae, address, "PLAINPACS", [], request_handler=_Handler)

    def _bind_defaults(self) -> None:
        """No handlers."""

    def service_actions(self) -> None:
        """Not a full garbage collection every half minute."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuses connections far beyond the limit of associations, which get no answer."""
        with self._living_lock:
            full = len(self._living) >= self._most_connections
        if full:
            _LOG.warning(
                "connection refused: somebody at %s: %d connections are open already; "
                "flag to accept more: --max-associations N",
                client_address[0],
                self._most_connections,
            )
        return not full

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.exception("connection failed: somebody at %s", client_address[0])

    def remember(self, association: _Association) -> None:
        with self._living_lock:
            self._living.add(association)

    def forget(self, association: _Association) -> None:
        with self._living_lock:
            self._living.discard(association)

    def start(self) -> None:
        """Accepts connections from now on, in a thread of its own."""
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="listener", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Accepts no more, lets the stores in hand be answered, ends every association."""
        if self._thread is not None:
            self.shutdown_listening()
            self._thread.join()
        self.server_close()
        with self._living_lock:
            living = list(self._living)
        for association in living:
            association.stop()
        for association in living:
            association.join()

    def shutdown_listening(self) -> None:
        """Ends ``serve_forever``, without what pynetdicom adds for servers its AE started."""
        super(AssociationServer, self).shutdown()


def address_of(bind: str, port: int) -> tuple[str, int]:
    """The address to listen on. Raises OSError when ``bind`` has none."""
    return AddressInformation(bind, port).address, port
