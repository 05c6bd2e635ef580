"""Associations that we ask for: to store elsewhere, to query and retrieve there, to report.

    with Requestor.open(node, "PLAINPACS", contexts) as association:
        status = association.channel.request(context_id, command_set, 1, data_set).status

What fails says at which step: connecting, TLS, the association, or later within it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plainpacs.archive.errors import PlainpacsError
from plainpacs.scp.network import pdu, request_pdu
from plainpacs.scp.network.channel import Channel, Ended
from plainpacs.scp.network.connection import Connection, Stopping, Transport
from plainpacs.scp.network.dimse import Command, Drain, ProtocolError, Spill
from plainpacs.scp.network.negotiation import ContextResult, ProposedContext, Role
from plainpacs.scp.network.pdu import PDU
from plainpacs.scp.network.reader import ConnectionLost, Limits, MessageReader, PeerTimeout
from plainpacs.scp.network.request_pdu import Accepted
from plainpacs.scp.network.tls import HandshakeFailed, TLSConnection

_CONNECT_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Node:
    """A DICOM application elsewhere. ``tls``: what handshakes with it are made with, if any."""

    ae_title: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


class NoAssociation(PlainpacsError):
    """None came about. ``step``: connect, TLS or association. ``transient``: try again later."""

    exit_code = 3

    def __init__(self, node: Node, step: str, why: str, *, transient: bool = False) -> None:
        super().__init__(f"{node}: {step}: {why}")
        self.step = step
        self.why = why
        self.transient = transient


class Requestor:
    """An association with ``node``, established; a context manager that releases it.

    ``channel`` is there to talk over. Left by an exception, it is aborted instead. ``contexts``
    are those the peer accepted, by id, and ``roles`` the roles it agreed to.
    """

    def __init__(
        self, node: Node, connection: Transport, reader: MessageReader, accepted: Accepted,
        seconds: float,
    ) -> None:  # fmt: skip
        self.node = node
        self.contexts: Mapping[int, ContextResult] = accepted.contexts
        self.roles: Mapping[str, Role] = accepted.roles
        self.channel = Channel(connection, reader, accepted.longest_pdu, seconds)
        self._connection = connection
        self._reader = reader
        self._seconds = seconds

    @classmethod
    def open(
        cls,
        node: Node,
        calling_ae: str,
        contexts: Sequence[ProposedContext],
        *,
        limits: Limits,
        roles: Mapping[str, Role] | None = None,
        extended: Mapping[str, bytes] | None = None,
        spill: Callable[[int, Command], Spill] = lambda _, __: Drain(),
        stopping: int = -1,
    ) -> Requestor:
        """Connects and negotiates. ``spill``: where a large data set goes that the peer sends;
        ``stopping``: a descriptor that is readable once there is nothing more to wait for.

        Raises NoAssociation, also when the peer accepts none of the contexts; and Stopping.
        """
        connection = _connect(node, limits.pdu_timeout, stopping)
        reader = MessageReader(
            connection, limits, spill, (PDU.RELEASE_RQ, PDU.RELEASE_RP, PDU.ABORT)
        )
        try:
            asked = request_pdu.request(
                node.ae_title,
                calling_ae,
                contexts,
                limits.announced_pdu,
                roles=roles,
                extended=extended,
            )
            connection.send(asked, limits.pdu_timeout)
            accepted = _answer(node, reader, contexts)
        except (ProtocolError, ConnectionLost, PeerTimeout, OSError) as error:
            _drop(connection, reader)
            raise NoAssociation(node, "association", _words(error)) from None
        except BaseException:
            _drop(connection, reader)
            raise
        return cls(node, connection, reader, accepted, limits.pdu_timeout)

    def context_for(self, abstract_syntax: str, *transfer_syntaxes: str) -> ContextResult | None:
        """An accepted context for this abstract syntax, in one of the transfer syntaxes if any is
        named; None when there is none."""
        return next(
            (
                context
                for context in self.contexts.values()
                if context.abstract_syntax == abstract_syntax
                and (not transfer_syntaxes or context.transfer_syntax in transfer_syntaxes)
            ),
            None,
        )

    def __enter__(self) -> Requestor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def release(self) -> None:
        """Ends the association in order (PS3.8 7.2). Raises nothing: what was done is done."""
        with contextlib.suppress(
            Ended, ProtocolError, ConnectionLost, PeerTimeout, Stopping, OSError
        ):
            self._reader.expect_within(self._seconds)
            self._connection.send(pdu.RELEASE_RQ, self._seconds)
            while True:
                self.channel.read()  # until Ended
        self._close()

    def abort(self) -> None:
        """Ends the association at once (PS3.8 7.3)."""
        with contextlib.suppress(Stopping, OSError):
            self._connection.send(pdu.ABORT_BY_USER, _LAST_WORDS_SECONDS)
        self._close()

    def _close(self) -> None:
        _drop(self._connection, self._reader)


def _connect(node: Node, seconds: float, stopping: int) -> Transport:
    try:
        plain = socket.create_connection((node.host, node.port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise NoAssociation(node, "connect", why, transient=True) from None
    connection = Connection(plain, stopping)
    if node.tls is None:
        return connection
    secured = TLSConnection(connection, node.tls, seconds, server=node.host)
    try:
        secured.handshake()
    except HandshakeFailed as failure:
        secured.close()
        raise NoAssociation(node, "TLS", f"{failure}") from None
    except BaseException:
        secured.close()
        raise
    return secured


def _answer(node: Node, reader: MessageReader, proposed: Sequence[ProposedContext]) -> Accepted:
    kind, body = reader.read_answer()
    if kind == PDU.ASSOCIATE_RJ:
        refused = request_pdu.read_rejection(body)
        raise NoAssociation(node, "association", refused.why, transient=refused.transient)
    if kind == PDU.ABORT:
        raise NoAssociation(node, "association", "the peer aborted it")
    accepted = request_pdu.read_acceptance(body, proposed)
    if not accepted.contexts:
        raise NoAssociation(node, "association", "the peer accepts none of what was proposed")
    return accepted


def _drop(connection: Transport, reader: MessageReader) -> None:
    reader.close()
    connection.close()


def _words(error: BaseException) -> str:
    if isinstance(error, ConnectionLost):
        return "the peer closed the connection"
    return str(error) or os.strerror(getattr(error, "errno", None) or 0)
