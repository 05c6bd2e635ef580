"""One association, from its connection to its end, in the one thread it has (PS3.8 9.2).

Straight-line: a request, the messages one after the other, the end. Whatever a peer does wrong is
an exception that ``_live`` turns into an A-ABORT and a word for the log.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from plainpacs.scp.network import answers, pdu
from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.channel import Channel
from plainpacs.scp.network.connection import Stopping, Transport
from plainpacs.scp.network.dimse import ProtocolError, Reason
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.reader import (
    ABORT_BY_USER,
    PDU,
    ConnectionLost,
    Limits,
    MessageReader,
    PeerTimeout,
)
from plainpacs.scp.network.session_protocol import RELEASED, Session

_LOG = logging.getLogger("plainpacs.scp")

_MESSAGES_BETWEEN_LOOKS = 64


@dataclass(frozen=True, slots=True)
class _End:
    """How an association ended; ``fault`` is what the peer did wrong, if it did."""

    how: str
    fault: str = ""
    farewell: bytes = b""
    """The PDU to send last."""


class Association:
    """What ``run`` does to ``connection``. ``implementation``: our class UID and version name.

    Of what a ``stranger`` asks for no more is read than who asks: the session will refuse it.
    """

    def __init__(
        self,
        connection: Transport,
        session: Session,
        limits: Limits,
        implementation: tuple[str, str],
        *,
        stranger: bool = False,
    ) -> None:
        self._connection = connection
        self._session = session
        self._limits = limits
        self._implementation = implementation
        self._stranger = stranger
        self._reader = MessageReader(connection, limits, session.spill)
        self._established = False
        self._channel: Channel

    def run(self) -> None:
        """Serves the peer until the end; closes the connection. Raises nothing."""
        end = _End("a defect of plainpacs")
        try:
            end = self._live()
        except Exception:
            _LOG.exception("association ended by a defect of plainpacs")
        try:
            self._reader.close()
            if end.farewell:
                self._say_farewell(end.farewell)
            self._session.ended(end.how, end.fault)
            if end.farewell:
                self._connection.await_close(self._limits.pdu_timeout)
        except Exception:
            _LOG.exception("association ended by a defect of plainpacs")
        finally:
            self._connection.close()

    def _live(self) -> _End:
        try:
            return self._establish() or self._serve()
        except ProtocolError as error:
            # Before there is an association, what is wrong is the user's to refuse (AA-1).
            known = self._established
            farewell = pdu.abort(error.reason) if known else ABORT_BY_USER
            return _End("aborted by us", str(error), farewell)
        except PeerTimeout as late:
            if not self._established:  # the connection is closed without a word (AA-2)
                return _End("no association was requested", "" if late.idle else str(late))
            farewell = ABORT_BY_USER if late.idle else pdu.abort(Reason.NOT_SPECIFIED)
            return _End("aborted by us", str(late), farewell)
        except Stopping:
            farewell = ABORT_BY_USER if self._established else b""
            return _End("aborted by us: plainpacs stops", farewell=farewell)
        except Ended as ended:
            return _ended_by_peer(ended.how)
        except (ConnectionLost, OSError):
            return _End("connection lost")

    def _establish(self) -> _End | None:
        """Answers the request for an association; the end, if there is to be none."""
        if self._stranger:
            body = self._reader.read_request(pdu.TITLES_END)
        else:
            body = self._reader.read_request()
        if body is None:
            return _End("aborted by the peer")
        request = pdu.read_request(body)
        if not request.speaks_version_1:
            rejection = answers.PROTOCOL_VERSION_UNKNOWN
            return _End("rejected", rejection.what, pdu.reject(rejection))
        decision = self._session.propose(request.proposal)
        if isinstance(decision, Rejection):
            return _End("rejected", farewell=pdu.reject(decision))
        self._channel = Channel(
            self._connection, self._reader, request.longest_pdu, self._limits.pdu_timeout
        )
        self._established = True
        announced = self._limits.announced_pdu
        self._send(pdu.accept(request, decision, announced, self._implementation))
        return None

    def _serve(self) -> _End:
        channel = self._channel
        while True:
            # Else a stop is noticed only in waiting, and who has sent thousands of requests ahead
            # keeps us from it.
            channel.heed_stop()
            for _ in range(_MESSAGES_BETWEEN_LOOKS):
                message = self._reader.read()
                if isinstance(message, bytes):
                    return _ended_by_peer(PDU(message[0]))
                answer = self._session.serve(message, channel)
                if answer is not None:
                    channel.send(message.context_id, answer)

    def _send(self, encoded: bytes) -> None:
        self._connection.send(encoded, self._limits.pdu_timeout)

    def _say_farewell(self, encoded: bytes) -> None:
        with contextlib.suppress(OSError):
            self._send(encoded)


def _ended_by_peer(how: PDU) -> _End:
    if how is PDU.ABORT:
        return _End("aborted by the peer")
    return _End(RELEASED, farewell=pdu.RELEASE_RP)
