"""Associations that we ask for: to store elsewhere, to query and retrieve there, to report.

    with Requestor.open(node, "PLAINPACS", [build_context(Verification)], limits=limits) as one:
        status = one.send_c_echo()

What fails says at which step: connecting, TLS, the association, or later within it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import PresentationContext, PresentationContextTuple, build_role

from plainpacs.archive.errors import PlainpacsError
from plainpacs.scp.network.connection import Connection, Stopping, Transport
from plainpacs.scp.network.dimse import ProtocolError
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.exchange import Exchange
from plainpacs.scp.network.reader import PDU, ConnectionLost, Limits, PeerTimeout
from plainpacs.scp.network.tls import HandshakeFailed, TLSConnection

_CONNECT_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0
_ENDS = (PDU.RELEASE_RQ, PDU.RELEASE_RP, PDU.ABORT)
_OVER = ("Sta1", "Sta13")

# PS3.8 Table 9-21: by source, then by reason.
_REASONS = {
    1: {
        1: "no reason given",
        2: "the application context is not supported",
        3: "it does not know our calling AE title: have it entered there",
        7: "it does not know the called AE title: check how it is called",
    },
    2: {1: "no reason given", 2: "it does not speak this version of the protocol"},
    3: {1: "temporary congestion: try again later", 2: "its limit of associations is reached"},
}


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


class Requestor(Exchange):
    """An association with ``node``, established: pynetdicom's, with its ``send_c_*`` and
    ``send_n_*``. A context manager that releases it; left by an exception, it is aborted instead.

    ``contexts`` are those the peer accepted, by id.
    """

    node: Node
    contexts: Mapping[int, PresentationContextTuple]

    def __init__(
        self, node: Node, calling_ae: str, connection: Transport, limits: Limits
    ) -> None:  # fmt: skip
        super().__init__("requestor", calling_ae, connection, limits, _ENDS)
        self.node = node
        self.acceptor.ae_title = node.ae_title
        self.dul.event_queue.get()  # which says that a peer has connected to us

    @classmethod
    def open(
        cls,
        node: Node,
        calling_ae: str,
        contexts: Sequence[PresentationContext],
        *,
        limits: Limits,
        sent_to_us: Collection[str] = (),
        extended: Mapping[str, bytes] | None = None,
        stopping: int = -1,
    ) -> Self:
        """Connects and negotiates. ``sent_to_us``: the SOP Classes that we want to be SCP of
        (PS3.7 D.3.3.4); ``extended``: what is wanted of others by extended negotiation (D.3.3.5);
        ``stopping``: a descriptor that is readable once there is nothing more to wait for.

        Raises NoAssociation, also when the peer accepts none of the contexts; and Stopping.
        """
        one = cls(node, calling_ae, _connect(node, limits.pdu_timeout, stopping), limits)
        try:
            one._negotiate(contexts, sent_to_us, extended or {})
        except (ProtocolError, ConnectionLost, PeerTimeout, OSError) as error:
            one.close()
            raise NoAssociation(node, "association", _words(error)) from None
        except BaseException:
            one.close()
            raise
        return one

    def _negotiate(
        self,
        contexts: Sequence[PresentationContext],
        sent_to_us: Collection[str],
        extended: Mapping[str, bytes],
    ) -> None:
        for number, context in enumerate(contexts):
            context.context_id = 2 * number + 1
        self.requestor.requested_contexts = list(contexts)
        for uid in sent_to_us:
            self.requestor.add_negotiation_item(build_role(uid, scp_role=True))
        for uid, wanted in extended.items():
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid = uid
            item.service_class_application_information = wanted
            self.requestor.add_negotiation_item(item)
        self.acse.negotiate_association()
        answer = self.acceptor.primitive
        if answer is None:
            raise NoAssociation(self.node, "association", "the peer aborted it")
        if self.is_rejected:
            result, source, reason = answer.result, answer.result_source, answer.diagnostic
            words = _REASONS.get(source or 0, {}).get(
                reason or 0, "a reason that DICOM does not have"
            )
            raise NoAssociation(
                self.node,
                "association",
                f"{words} ({result}/{source}/{reason})",
                transient=result == 2,
            )
        self._drop_what_nobody_offered(contexts)
        self.contexts = {one.as_tuple.context_id: one.as_tuple for one in self.accepted_contexts}
        if not self.contexts:
            words = "the peer accepts none of what was proposed"
            raise NoAssociation(self.node, "association", words)

    def context_for(
        self, abstract_syntax: str, *transfer_syntaxes: str
    ) -> PresentationContextTuple | None:
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

    def next_status(self) -> int | None:
        """The status of the next response, of which nothing else is wanted."""
        _, message = self.dimse.get_msg(block=True)
        return message.Status if message is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.give_up()

    def release(self) -> None:
        """Ends the association in order (PS3.8 7.2). Raises nothing: what was done is done."""
        with contextlib.suppress(
            Ended, ProtocolError, ConnectionLost, PeerTimeout, Stopping, OSError
        ):
            self.reader.expect_within(self.limits.pdu_timeout)
            self.acse.negotiate_release()
        self.close()

    def give_up(self) -> None:
        """Ends the association at once (PS3.8 7.3)."""
        if self.dul.state_machine.current_state not in _OVER:
            self.wire.seconds = _LAST_WORDS_SECONDS
            with contextlib.suppress(Stopping, OSError):
                self.acse.send_abort(0)
        self.close()


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


def _words(error: BaseException) -> str:
    if isinstance(error, ConnectionLost):
        return "the peer closed the connection"
    return str(error) or os.strerror(getattr(error, "errno", None) or 0)
