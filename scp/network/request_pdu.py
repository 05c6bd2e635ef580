"""Our own requests for associations, and the answers, as bytes (PS3.8 9.3). Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plainpacs.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from plainpacs.archive.tree.identity import strip_padding
from plainpacs.scp.network.dimse import ProtocolError
from plainpacs.scp.network.negotiation import ContextResult, ProposedContext, Result, Role
from plainpacs.scp.network.pdu import (
    APPLICATION_CONTEXT,
    HEADER,
    PDU,
    Item,
    extended_item,
    item,
    items,
    read_role,
    role_item,
)

_HEAD = struct.Struct(">HH16s16s32x")
_LENGTH = struct.Struct(">L")

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
class Accepted:
    """What the peer made of a request. ``contexts``: those it accepted, by id."""

    contexts: Mapping[int, ContextResult]
    roles: Mapping[str, Role]
    longest_pdu: int
    """The longest P-DATA-TF it takes, without its header; 0 for any (PS3.8 D.1)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An A-ASSOCIATE-RJ in words, and whether it may be different later."""

    why: str
    transient: bool


def request(
    called_ae: str,
    calling_ae: str,
    contexts: Iterable[ProposedContext],
    announced_pdu: int,
    *,
    roles: Mapping[str, Role] | None = None,
    extended: Mapping[str, bytes] | None = None,
) -> bytes:
    """An A-ASSOCIATE-RQ. ``announced_pdu``: the longest P-DATA-TF we take; ``extended``: what is
    wanted of SOP Classes by extended negotiation (PS3.7 D.3.3.5)."""
    user = [
        item(Item.MAXIMUM_LENGTH, _LENGTH.pack(announced_pdu)),
        item(Item.IMPLEMENTATION_CLASS, IMPLEMENTATION_CLASS_UID.encode()),
        *(role_item(uid, role) for uid, role in (roles or {}).items()),
        *(extended_item(uid, wanted) for uid, wanted in (extended or {}).items()),
        item(Item.IMPLEMENTATION_VERSION, IMPLEMENTATION_VERSION_NAME.encode()),
    ]
    body = b"".join(
        (
            _HEAD.pack(1, 0, _title(called_ae), _title(calling_ae)),
            item(Item.APPLICATION_CONTEXT, APPLICATION_CONTEXT.encode()),
            *(item(Item.PROPOSED_CONTEXT, _context(context)) for context in contexts),
            item(Item.USER_INFORMATION, b"".join(user)),
        )
    )
    return HEADER.pack(PDU.ASSOCIATE_RQ, len(body)) + body


def _title(ae: str) -> bytes:
    return ae.encode("ascii", "replace")[:16].ljust(16)


def _context(context: ProposedContext) -> bytes:
    syntaxes = b"".join(
        item(Item.TRANSFER_SYNTAX, uid.encode()) for uid in context.transfer_syntaxes
    )
    abstract = item(Item.ABSTRACT_SYNTAX, context.abstract_syntax.encode())
    return bytes((context.id, 0, 0, 0)) + abstract + syntaxes


def read_acceptance(body: bytes, proposed: Sequence[ProposedContext]) -> Accepted:
    """What an A-ASSOCIATE-AC with the variable field ``body`` says to what was ``proposed``.

    Raises ProtocolError when it is malformed.
    """
    by_id = {context.id: context for context in proposed}
    contexts: dict[int, ContextResult] = {}
    roles: dict[str, Role] = {}
    longest = 0
    for kind, value in items(body, _HEAD.size):
        if kind == Item.CONTEXT_RESULT:
            accepted = _accepted(value, by_id)
            if accepted is not None:
                contexts[accepted.id] = accepted
        elif kind == Item.USER_INFORMATION:
            for inner, told in items(value, 0):
                if inner == Item.MAXIMUM_LENGTH and len(told) == _LENGTH.size:
                    longest = _LENGTH.unpack(told)[0]
                elif inner == Item.ROLE:
                    uid, roles[uid] = read_role(told)
    return Accepted(contexts, roles, longest)


def _accepted(value: bytes, proposed: Mapping[int, ProposedContext]) -> ContextResult | None:
    if len(value) < 4 or value[0] not in proposed or value[2] != Result.ACCEPTED:
        return None
    asked = proposed[value[0]]
    syntaxes = [uid for kind, uid in items(value, 4) if kind == Item.TRANSFER_SYNTAX]
    syntax = strip_padding(b"".join(syntaxes[:1]).decode("ascii", "replace"))
    if syntax not in asked.transfer_syntaxes:
        return None  # nobody offered it
    return ContextResult(asked.id, asked.abstract_syntax, syntax, Result.ACCEPTED)


def read_rejection(body: bytes) -> Refused:
    """What an A-ASSOCIATE-RJ with the variable field ``body`` says (PS3.8 9.3.4)."""
    if len(body) < 4:
        raise ProtocolError("a rejection ends early")
    _, result, source, reason = body[:4]
    words = _REASONS.get(source, {}).get(reason, "a reason that DICOM does not have")
    return Refused(f"{words} ({result}/{source}/{reason})", result == 2)
