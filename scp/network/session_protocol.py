"""What the network layer and the receiver say to each other, as plain data.

The network layer (``association``) makes one ``Session`` for each connection and tells it what
comes; the session decides. Neither knows more of the other than is written here, so that either
can be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.dimse import Command, Message, Spill
from plainpacs.scp.network.negotiation import ContextResult, ProposedContext, Role

if TYPE_CHECKING:  # which is made of PDUs, which carry what is defined here
    from plainpacs.scp.network.channel import Channel

RELEASED = "released"
"""How an association ends that nobody aborted, for ``Session.ended``."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An A-ASSOCIATE-RQ: who wants what. AE titles come without their padding."""

    calling_ae: str
    called_ae: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    declared: Mapping[str, str] = field(default_factory=dict)
    """SOP Class Common Extended Negotiation: SOP Class UID to Service Class UID."""
    roles: Mapping[str, Role] = field(default_factory=dict)
    extended: Mapping[str, bytes] = field(default_factory=dict)
    """SOP Class Extended Negotiation: SOP Class UID to what is wanted of it (PS3.7 D.3.3.5)."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An A-ASSOCIATE-AC: a result for each context, and roles and extended negotiation where they
    were proposed."""

    contexts: tuple[ContextResult, ...]
    roles: Mapping[str, Role]
    extended: Mapping[str, bytes] = field(default_factory=dict)


class Session(Protocol):
    """One connection, from its being accepted to its end. Called by one thread at a time."""

    def propose(self, proposal: Proposal) -> Acceptance | Rejection:
        """The answer to the request for an association."""

    def spill(self, context_id: int, command: Command) -> Spill:
        """Where the data set of this command goes to, which is not held in memory as a whole.

        It comes back in the message, whole, or is discarded. Raises ProtocolError to abort.
        """

    def serve(self, message: Message, channel: Channel) -> bytes | None:
        """The command set to answer with, on the same context; None when there is no answer, or it
        was given by way of ``channel``.

        Does not return before the answer may be sent. Raises ProtocolError to abort.
        """

    def ended(self, how: str, fault: str) -> None:
        """The connection is gone, and ``how``; ``fault`` is what the peer did wrong, if it did.

        Always called, once, last.
        """


class SessionMaker(Protocol):
    def __call__(self, peer: str) -> Session:
        """A session for a connection from the address ``peer``."""
