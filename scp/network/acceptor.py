"""One association that a peer asks for, from its connection to its end, in the thread it has.

Straight-line: a request, the messages one after the other, the end. Whatever a peer does wrong is
an exception that ``_live`` turns into an A-ABORT and a word for the log. The negotiation is
pynetdicom's; the rules of it are given to it by ``negotiation``, on EVT_REQUESTED. pynetdicom takes
28 ms for 128 contexts that it has not seen before, so what the same bytes asked for, whoever called
whom, and were answered is remembered: then it is under one.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pynetdicom import evt

from plainpacs.archive.tree.identity import strip_padding
from plainpacs.scp.network import negotiation
from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.connection import Stopping, Transport
from plainpacs.scp.network.dimse import Command, CommandField, Message, ProtocolError, Reason, Spill
from plainpacs.scp.network.engine import Ended, Negotiated
from plainpacs.scp.network.exchange import Exchange
from plainpacs.scp.network.reader import HEADER, PDU, ConnectionLost, Limits, PeerTimeout

_LOG = logging.getLogger("plainpacs.scp")

RELEASED = "released"
"""How an association ends that nobody aborted, for ``Session.ended``."""

_MESSAGES_BETWEEN_LOOKS = 64
_TITLES = slice(10, 74)
"""Of a request or an acceptance: the AE titles, and reserved bytes that an acceptance repeats."""
_MOST_REMEMBERED = 64
_LONGEST_REMEMBERED = 32 << 10  # bytes of a request
_ITEMS = frozenset((0x10, 0x20, 0x30, 0x40, *range(0x50, 0x5A)))
_WITH_ITEMS = {0x20: 4, 0x50: 0}
"""The items that have others, and where those begin."""


class Session(Protocol):
    """One connection, from its being accepted to its end. Called by one thread at a time."""

    @property
    def policy(self) -> object:
        """What the negotiation depends on besides the request: of the same, the same comes."""

    def admit(self, calling_ae: str, called_ae: str, application: str) -> Rejection | None:
        """Why there is to be no association, if so."""

    def served(self) -> frozenset[str]:
        """The SOP Classes served besides Verification and storage."""

    def agreed(self, wanted: Mapping[str, bytes]) -> dict[str, bytes]:
        """The answer to a SOP Class Extended Negotiation (PS3.7 D.3.3.5)."""

    def established(self, association: Accepted) -> None:
        """The association is there, once the acceptance is sent that comes next."""

    def spill(self, context_id: int, command: Command) -> Spill:
        """Where the data set of this command goes to, which is not held in memory as a whole.

        It comes back in the message, whole, or is discarded. Raises ProtocolError to abort.
        """

    def serve(self, message: Message, association: Accepted) -> bytes | None:
        """The command set to answer with, on the same context; None when there is no answer, or it
        was given by way of ``association``.

        Does not return before the answer may be sent. Raises ProtocolError to abort.
        """

    def ended(self, how: str, fault: str) -> None:
        """The connection is gone, and ``how``; ``fault`` is what the peer did wrong, if it did.

        Always called, once, last.
        """


@dataclass(frozen=True, slots=True)
class _End:
    """How an association ended; ``fault`` is what the peer did wrong, if it did; ``farewell`` says
    it to the peer."""

    how: str
    fault: str = ""
    farewell: Callable[[], None] | None = None


_KNOWN: OrderedDict[tuple[bytes, object], Negotiated] = OrderedDict()


class Accepted(Exchange):
    """``run`` it. Of what a ``stranger`` asks for no more is read than who asks: the session will
    refuse it."""

    def __init__(
        self, connection: Transport, session: Session, limits: Limits, *, stranger: bool = False
    ) -> None:
        self._session = session
        super().__init__("acceptor", "PLAINPACS", connection, limits, (PDU.RELEASE_RQ, PDU.ABORT))
        self._stranger = stranger
        self._asked = b""
        self._known: Negotiated | None = None
        self._defect: Exception | None = None
        self.bind(evt.EVT_REQUESTED, self._requested)
        self.bind(evt.EVT_SOP_EXTENDED, lambda event: session.agreed(event.app_info))

    def run(self) -> None:
        """Serves the peer until the end; closes the connection. Raises nothing."""
        end = _End("a defect of plainpacs")
        try:
            end = self._live()
        except Exception:
            _LOG.exception("association ended by a defect of plainpacs")
        try:
            self.reader.close()
            if end.farewell:
                with contextlib.suppress(OSError):
                    end.farewell()
            self._session.ended(end.how, end.fault)
            if end.farewell:
                self.connection.await_close(self.limits.pdu_timeout)
        except Exception:
            _LOG.exception("association ended by a defect of plainpacs")
        finally:
            self.connection.close()

    def _live(self) -> _End:
        try:
            return self._establish() or self._serve()
        except ProtocolError as error:
            return _End("aborted by us", str(error), partial(self._abort, error.reason))
        except PeerTimeout as late:
            if not self.is_established:  # the connection is closed without a word (AA-2)
                return _End("no association was requested", "" if late.idle else str(late))
            reason = None if late.idle else Reason.NOT_SPECIFIED
            return _End("aborted by us", str(late), partial(self._abort, reason))
        except Stopping:
            farewell = partial(self._abort, None) if self.is_established else None
            return _End("aborted by us: plainpacs stops", farewell=farewell)
        except Ended as ended:
            return self._ended_by_peer(ended.how)
        except (ConnectionLost, OSError):
            return _End("connection lost")

    def _abort(self, reason: Reason | None) -> None:
        """``reason`` is that of the upper layer; None when the user wants to end."""
        state = self.dul.state_machine.current_state
        if state == "Sta2":  # what is wrong before is the user's to refuse (AA-1)
            self.dul.event_queue.put("Evt19")
            self.dul.settle()
        elif state not in ("Sta1", "Sta13"):
            self.acse.send_abort(0) if reason is None else self.acse.send_ap_abort(reason)

    # --- the request ------------------------------------------------------------------------------

    def _establish(self) -> _End | None:
        """Answers the request for an association; the end, if there is to be none."""
        self.dul.settle()
        self.requestor.primitive = self.dul.receive_pdu(wait=True)
        if self.requestor.primitive is None:
            if self.dul.state_machine.current_state == "Sta13":  # by the upper layer itself
                words = "the protocol version is not 1"
                return _End("rejected", words, lambda: None)
            return _End("aborted by the peer")
        evt.trigger(self, evt.EVT_REQUESTED, {})
        if self._defect is not None:  # which pynetdicom would go on after
            raise self._defect
        if self.is_rejected:
            return _End("rejected", farewell=lambda: None)
        if self._known is not None:
            self.negotiate_again(self._known)
        else:
            self.acse.negotiate_association()
            self._remember()
        return None

    def accepting(self) -> bytes:
        self._session.established(self)
        return self._asked[_TITLES]

    def _remember(self) -> None:
        key = self._key()
        if len(key[0]) <= _LONGEST_REMEMBERED:
            _KNOWN[key] = self.negotiated()
            if len(_KNOWN) > _MOST_REMEMBERED:
                with contextlib.suppress(KeyError):  # another thread did
                    _KNOWN.popitem(last=False)

    def _key(self) -> tuple[bytes, object]:
        return self._asked[:10] + self._asked[74:], self._session.policy

    def take_control(self, encoded: bytes) -> None:
        if encoded[0] == PDU.ASSOCIATE_RQ:
            self._asked = encoded
            version = int.from_bytes(encoded[6:8], "big") & 1
            known = None if self._stranger else _KNOWN.get(self._key())
            # pynetdicom takes no titles but ASCII's; and knows nobody who is not in need of it.
            plain = b"PEER".ljust(16) * 2 + bytes(32)
            body = version.to_bytes(2, "big") + encoded[8:10] + plain
            if known is None and not self._stranger:
                body += b"".join(_known_items(encoded, 74, len(encoded)))
            self._known = known
            encoded = HEADER.pack(PDU.ASSOCIATE_RQ, len(body)) + body
        super().take_control(encoded)

    def read_first(self, kinds: Any) -> bytes:
        return self.reader.read_first(kinds, _TITLES.stop if self._stranger else None)

    def _requested(self, event: evt.Event) -> None:
        """On EVT_REQUESTED: whether there is to be an association, and by which rules."""
        try:
            called, calling = (_title(self._asked[at : at + 16]) for at in (10, 26))
            request = self.requestor.primitive
            assert request is not None, "it is what was requested"
            application = self._known.application if self._known else ""
            if not application and not self._stranger:
                application = strip_padding(str(request.application_context_name or ""))
            rejection = self._session.admit(calling, called, application)
            if rejection is not None:
                self.acse.send_reject(rejection.result, rejection.source, rejection.reason)
            elif self._known is None:
                self.acceptor.supported_contexts = negotiation.supported(
                    request.presentation_context_definition_list,
                    {
                        str(uid): str(item.service_class_uid)
                        for uid, item in self.requestor.sop_class_common_extended.items()
                    },
                    {
                        str(uid): (bool(role.scu_role), bool(role.scp_role))
                        for uid, role in self.requestor.role_selection.items()
                    },
                    self._session.served(),
                )
        except Exception as error:
            self._defect = error

    # --- messages ---------------------------------------------------------------------------------

    def spill(self, context_id: int, command: Command) -> Spill:
        return self._session.spill(context_id, command)

    def _serve(self) -> _End:
        read, serve = self.reader.read, self._session.serve
        # Who has said nothing yet keeps a place from others.
        silent = self.limits.pdu_timeout < self.limits.idle_timeout
        if silent:
            self.reader.expect_within(self.limits.pdu_timeout)
        while True:
            # Else a stop is noticed only in waiting, and who has sent thousands of requests ahead
            # keeps us from it.
            self.heed_stop()
            for _ in range(_MESSAGES_BETWEEN_LOOKS):
                message = read()
                if silent:
                    silent = False
                    self.reader.expect_within(self.limits.idle_timeout, "--idle-timeout")
                if isinstance(message, bytes):
                    self.take_control(message)
                    self.heed_end()
                    continue
                answer = serve(message, self)
                if answer is not None:
                    self.send_message(message.context_id, answer)

    def take(self, message: Message) -> None:
        """What comes while a service is at work."""
        if self._awaited is None and message.command.field != CommandField.C_CANCEL_RQ:
            raise ProtocolError("a message came before the last request was answered")
        super().take(message)

    def asked(self, message: Message) -> Any:
        """A request, as pynetdicom reads it, but for its data set, of which it would make three
        copies. Raises ProtocolError."""
        data = None if message.data is None else memoryview(b"")
        self.pass_up(message._replace(data=data))
        return self.dimse.get_msg()[1]

    def _ended_by_peer(self, how: PDU) -> _End:
        if how is PDU.ABORT:
            return _End("aborted by the peer")
        return _End(RELEASED, farewell=partial(self.acse.send_release, is_response=True))


def _known_items(data: bytes, at: int, end: int) -> list[bytes]:
    """The items of a request that pynetdicom knows: others are passed over (PS3.8 9.3.1).

    Raises ProtocolError.
    """
    found = []
    while at < end:
        if at + 4 > end:
            raise ProtocolError("a request for an association ends within an item")
        kind, length = data[at], int.from_bytes(data[at + 2 : at + 4], "big")
        begin, at = at + 4, at + 4 + length
        if at > end:
            raise ProtocolError("an item is longer than what it lies in")
        if kind in _WITH_ITEMS:
            inner = begin + _WITH_ITEMS[kind]
            if inner > at:
                raise ProtocolError("a proposed context has no valid id")
            value = data[begin:inner] + b"".join(_known_items(data, inner, at))
        else:
            value = data[begin:at]
        if kind in _ITEMS:
            found.append(bytes((kind, 0)) + len(value).to_bytes(2, "big") + value)
    return found


def _title(encoded: bytes) -> str:
    return encoded.decode("ascii", "replace").strip(" \0")
