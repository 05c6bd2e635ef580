"""Associations by pynetdicom, each driven by the one thread that it has.

pynetdicom's state machine, ACSE, DIMSE and service classes are used as they are. What is ours is
who drives them. pynetdicom gives each association two threads that look for work every
millisecond, and whoever connects slowly, stalls or announces 4 GB holds them and their memory. Here
there is no second thread: whoever has to wait for the peer (ACSE for an acceptance, DIMSE for a
response) reads it by ``Provider.take``, with the deadlines and limits of ``reader``. What came goes
up to pynetdicom's state machine; but C-STORE, in and out, which would cost five times the
processor's time there (3.6 instead of 0.7 ms for a CT slice of 526 KB), is ours.

What goes wrong with the peer is raised to whoever waits: ProtocolError, PeerTimeout,
ConnectionLost, Ended, Stopping, OSError. None of them passes through a thread, so no answer is lost
between two.

This is the only module that touches what pynetdicom does not document. ``TOUCHED`` names all of it;
``test_engine`` tells which of it a new version changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from pydicom import config
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import (
    A_ABORT_RQ,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
)
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_RELEASE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from plainpacs.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from plainpacs.scp.network.connection import Transport
from plainpacs.scp.network.dimse import (
    COMMAND_BIT,
    LAST_BIT,
    RESPONSE,
    Command,
    CommandField,
    Drain,
    Message,
    ProtocolError,
    Spill,
)
from plainpacs.scp.network.reader import PDU, Limits, MessageReader

VERSIONS = ("3.0.4", "3.1")
"""Of pynetdicom: from the first, below the second, as pyproject.toml has it."""
TOUCHED = {
    "DULServiceProvider": (
        *("is_alive", "stop_dul", "send_pdu", "receive_pdu"),  # overridden
        *("_process_recv_primitive", "_recv_pdu", "_kill_thread"),
    ),
    "DIMSEServiceProvider": ("get_msg",),  # overridden
    "AssociationSocket": ("connect", "send", "close"),  # overridden
    "Association": (
        "_abort_blocking",
        "_is_paused",
        "_accepted_cx",
        "_rejected_cx",
    ),  # the first overridden
    "StateMachine": ("do_action", "transition", "current_state"),
}
"""By class: the names below the public API, and the public ones whose meaning within matters."""

# What pynetdicom says is said by us, in our words, or is of no use to whoever reads the log.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
# A peer's values are judged where they count; as warnings they would fill the log.
config.settings.reading_validation_mode = config.IGNORE
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False

_SENT_AT_ONCE = 1 << 18
"""Bytes that the peer has to take within the time for a PDU."""
_FIRST: dict[str, Collection[PDU]] = {
    "Sta2": (PDU.ASSOCIATE_RQ, PDU.ABORT),
    "Sta5": (PDU.ASSOCIATE_AC, PDU.ASSOCIATE_RJ, PDU.ABORT),
}
"""By state: what the peer may begin with."""
_RELEASING, _ENDED = "Sta7", "Sta13"
_REQUESTS = frozenset(CommandField) - {CommandField.C_STORE_RQ, CommandField.N_EVENT_REPORT_RQ}
_GOES_UP = _REQUESTS | {RESPONSE | field for field in CommandField}
"""The commands that DIMSE is given: C-STORE is ours, and N-EVENT-REPORT it would serve in a thread
of its own."""
_PDUS: dict[int, tuple[Any, str]] = {
    PDU.ASSOCIATE_RQ: (A_ASSOCIATE_RQ, "Evt6"),
    PDU.ASSOCIATE_AC: (A_ASSOCIATE_AC, "Evt3"),
    PDU.ASSOCIATE_RJ: (A_ASSOCIATE_RJ, "Evt4"),
    PDU.RELEASE_RQ: (A_RELEASE_RQ, "Evt12"),
    PDU.RELEASE_RP: (A_RELEASE_RP, "Evt13"),
    PDU.ABORT: (A_ABORT_RQ, "Evt16"),
}


class Ended(Exception):
    """The peer ended the association: ``how`` is RELEASE_RQ or ABORT."""

    def __init__(self, how: PDU) -> None:
        super().__init__(how.name)
        self.how = how


class Wire(AssociationSocket):
    """A connection of ours, open already, as pynetdicom knows them. Raises what it raises."""

    def __init__(self, association: Association, connection: Transport, seconds: float) -> None:
        super().__init__(association, client_socket=connection)  # type: ignore[arg-type]  # a socket's like
        self._connection = connection
        self.seconds = seconds
        self.acceptance = b""

    def connect(self, primitive: Any) -> None:
        primitive.result = "Evt2"
        self.provider_queue.put(primitive)

    def send(self, bytestream: bytes) -> None:
        if bytestream[0] == PDU.ASSOCIATE_AC:
            self.acceptance = bytestream
            echoed = self.assoc.accepting()  # type: ignore[attr-defined]  # it is Driven
            bytestream = bytestream[:10] + echoed + bytestream[74:]
        self._connection.send(bytestream, self.seconds)

    def close(self) -> None:
        self._connection.close()


class Provider(DULServiceProvider):
    """The upper layer, without a thread of its own."""

    _assoc: Driven

    def is_alive(self) -> bool:
        return not self._kill_thread

    def stop_dul(self) -> bool:
        self._kill_thread = True
        return True

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self.settle()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        while wait and self.to_user_queue.empty() and self.is_alive():
            self.take()
        return super().receive_pdu(False)

    def take(self) -> None:
        """Waits for one message or PDU, and deals with it or passes it on."""
        association = self._assoc
        first = _FIRST.get(self.state_machine.current_state)
        got = association.read_first(first) if first else association.reader.read()
        if isinstance(got, bytes):
            association.take_control(got)
        else:
            association.take(got)

    def pass_on(self, event: str, pdu: Any) -> None:
        """What the peer sent goes to the state machine."""
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)
        self.settle()

    def settle(self) -> None:
        """All that happened, through the state machine."""
        while not self.event_queue.empty() or self._process_recv_primitive():
            self.state_machine.do_action(self.event_queue.get())


class Messages(DIMSEServiceProvider):
    """DIMSE, which reads the peer where it has to wait."""

    def get_msg(self, block: bool = False) -> Any:
        """Raises Ended when the peer ends the association instead."""
        while block and self.msg_queue.empty():
            self.dul.take()  # type: ignore[attr-defined]  # it is a Provider
            self.assoc.heed_end()  # type: ignore[attr-defined]  # and this is Driven
        return super().get_msg(False)


_DEFAULTS: dict[Any, Any] = {}


class _Values:
    """A P-DATA-TF as the state machine asks of it."""

    def __init__(self, primitive: P_DATA) -> None:
        self.to_primitive = lambda: primitive


class _Nowhere(AddressInformation):
    """What plainpacs has no use for: it connects, and accepts, by itself."""

    address = ""
    as_tuple = ("", 0)

    def __init__(self) -> None:
        pass


class Negotiated(NamedTuple):
    """What came of a request for an association."""

    accepted: dict[int, PresentationContext]
    rejected: list[PresentationContext]
    request: A_ASSOCIATE
    answer: A_ASSOCIATE
    acceptance: bytes
    application: str


class Driven(Association):
    """An association over ``connection``, which it owns; base of both sides.

    All that waits, or sends, may raise ProtocolError, PeerTimeout, ConnectionLost, Ended, Stopping
    and OSError; then nothing is left but to abort it.
    """

    dul: Provider

    def __init__(
        self, mode: str, title: str, connection: Transport, limits: Limits, ends: Collection[PDU]
    ) -> None:
        super().__init__(_ENTITY if mode == "acceptor" else _entity(), mode)
        # Theirs, with our methods: to make others in their place takes as long as all the rest.
        self.dul.__class__ = Provider
        self.dimse.__class__ = Messages
        self._is_paused = True  # no other thread takes what was meant for this one
        self.connection = connection
        self.limits = limits
        self.reader = MessageReader(connection, limits, self.spill, ends)
        self.wire = Wire(self, connection, limits.pdu_timeout)
        self.set_socket(self.wire)
        self.requestor.address_info = self.acceptor.address_info = _NOWHERE
        us = self.acceptor if mode == "acceptor" else self.requestor
        us.ae_title = title
        us.maximum_length = limits.announced_pdu
        us.implementation_version_name = IMPLEMENTATION_VERSION_NAME

    # --- what comes -----------------------------------------------------------------------------

    def spill(self, context_id: int, command: Command) -> Spill:
        """Where a large data set goes to."""
        return Drain()

    def accepting(self) -> bytes:
        """What an acceptance, that is sent now, has to repeat of the request (PS3.8 9.3.3)."""
        return bytes(64)

    def read_first(self, kinds: Collection[PDU]) -> bytes:
        """The PDU that asks for an association, or answers ours."""
        return self.reader.read_first(kinds)

    def take(self, message: Message) -> None:
        """Deals with a message that came."""
        if self.dul.state_machine.current_state != _RELEASING:
            self.pass_up(message)

    def pass_up(self, message: Message) -> None:
        """By way of the state machine, which gives it to DIMSE. Raises ProtocolError."""
        command, data = message.command, message.data
        if command.field not in _GOES_UP:
            raise ProtocolError(f"operation {command.field:04X}H came, which was not asked for")
        control = COMMAND_BIT | LAST_BIT
        values = [(message.context_id, bytes((control,)) + command.encoded)]
        if data is not None:
            if not isinstance(data, memoryview):
                raise ProtocolError("an identifier of some megabytes")
            values.append((message.context_id, bytes((LAST_BIT,)) + bytes(data)))
        primitive = P_DATA()
        primitive.presentation_data_value_list.extend(values)
        try:
            self.dul.pass_on("Evt10", _Values(primitive))
        except OSError:
            raise
        except Exception as error:  # whatever its decoders raise
            raise ProtocolError("a message cannot be read") from error
        if self.dul.state_machine.current_state == _ENDED:
            raise ProtocolError("a message has a value that cannot be")

    def take_control(self, encoded: bytes) -> None:
        """A PDU other than a message goes to the state machine. Raises ProtocolError."""
        kind, event = _PDUS[encoded[0]]
        try:
            pdu = kind()
            pdu.decode(encoded)
            self.dul.pass_on(event, pdu)
        except (OSError, ProtocolError):
            raise
        except Exception as error:  # whatever its decoders raise
            raise ProtocolError(f"a PDU of type {encoded[0]} cannot be read") from error

    def heed_end(self) -> None:
        """Raises Ended when the peer has ended the association."""
        ended = self.dul.peek_next_pdu()
        if ended is not None:
            raise Ended(PDU.RELEASE_RQ if isinstance(ended, A_RELEASE) else PDU.ABORT)

    # --- negotiation ------------------------------------------------------------------------------

    def _drop_what_nobody_offered(self, proposed: Iterable[PresentationContext]) -> None:
        """Of the contexts that the peer accepted, for those that were ``proposed``."""
        offered = {one.context_id: one.transfer_syntax for one in proposed}
        self._accepted_cx = {
            number: one
            for number, one in self._accepted_cx.items()
            if one.transfer_syntax[0] in offered[number]
        }

    def negotiated(self) -> Negotiated:
        """For ``negotiate_again``."""
        request, answer = self.requestor.primitive, self.acceptor.primitive
        assert request is not None, "it was negotiated"
        assert answer is not None, "it was negotiated"
        return Negotiated(
            *(self._accepted_cx, self._rejected_cx, request, answer, self.wire.acceptance),
            str(request.application_context_name),
        )

    def negotiate_again(self, known: Negotiated) -> None:
        """Accepts a request that is like an earlier one, all but for the AE titles."""
        self._accepted_cx, self._rejected_cx = known.accepted, known.rejected
        self.requestor.primitive, self.acceptor.primitive = known.request, known.answer
        self.wire.send(known.acceptance)
        self.dul.state_machine.transition("Sta6")
        self.is_established = True

    # --- its end ----------------------------------------------------------------------------------

    def _abort_blocking(self, block: bool = True) -> None:
        """pynetdicom has a reason to abort: whoever waits is told, who does abort."""
        raise ProtocolError("what came is not the response that was waited for")

    def _bind_defaults(self) -> None:
        """What answers where nothing of ours is bound: the same for all."""
        if not _DEFAULTS:
            super()._bind_defaults()
            _DEFAULTS.update(self._handlers)
        self._handlers = _DEFAULTS.copy()

    def close(self) -> None:
        """Closes the connection, without a word."""
        self.reader.close()
        self.connection.close()


def _entity() -> AE:
    found = AE("PLAINPACS")
    found.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    return found


# Those that we ask for have one each: pynetdicom holds a lock of it while it decodes.
_ENTITY = _entity()
_NOWHERE = _Nowhere()
