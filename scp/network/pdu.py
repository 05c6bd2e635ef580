"""The PDUs of associations (PS3.8 9.3), as bytes and as what they say. Pure functions.

Requests are read and answers written here by struct: pynetdicom's classes take 10 ms for a request
of 128 contexts with one transfer syntax each and 27 ms for four, this takes less than one. The
tests hold both to the same answer.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from plainpacs.archive.tree.identity import strip_padding
from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.dimse import ProtocolError, Reason
from plainpacs.scp.network.negotiation import ProposedContext, Role
from plainpacs.scp.network.reader import HEADER, PDU
from plainpacs.scp.network.session_protocol import Acceptance, Proposal

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ITEM = struct.Struct(">BxH")
_REQUEST = struct.Struct(">H2x16s16s32x")
TITLES_END = _REQUEST.size
"""How much of an A-ASSOCIATE-RQ says who calls whom; ``read_request`` takes that alone too."""
_SHORT = struct.Struct(">H")
_LONG = struct.Struct(">L")
_VALUE = struct.Struct(">LB")
_DATA = struct.Struct(">BxLLBB")

_PROTOCOL_VERSION_BIT = 1
_MOST_REMEMBERED = 8 << 10  # bytes of a request


class Item(enum.IntEnum):
    """The items of requests for associations and of their answers (PS3.8 9.3.2, PS3.7 D.3.3)."""

    APPLICATION_CONTEXT = 0x10
    PROPOSED_CONTEXT = 0x20
    CONTEXT_RESULT = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS = 0x52
    ROLE = 0x54
    IMPLEMENTATION_VERSION = 0x55
    EXTENDED = 0x56
    COMMON_EXTENDED = 0x57


@dataclass(frozen=True, slots=True)
class Request:
    """An A-ASSOCIATE-RQ."""

    proposal: Proposal
    speaks_version_1: bool
    longest_pdu: int
    """The longest P-DATA-TF the peer takes, without its header; 0 for any (PS3.8 D.1)."""
    echoed: bytes
    """The AE titles and reserved bytes, which an acceptance has to repeat."""


def read_request(body: bytes) -> Request:
    """The A-ASSOCIATE-RQ with the variable field ``body``. Items unknown here are passed over.

    Raises ProtocolError when it is malformed. What it gives is shared: not to be changed.
    """
    return _read_again(body) if len(body) <= _MOST_REMEMBERED else _read_request(body)


def _read_request(body: bytes) -> Request:
    if len(body) < _REQUEST.size:
        raise ProtocolError("a request for an association ends early")
    version, called, calling = _REQUEST.unpack_from(body)
    application = ""
    contexts: list[ProposedContext] = []
    declared: dict[str, str] = {}
    roles: dict[str, Role] = {}
    extended: dict[str, bytes] = {}
    known: dict[bytes, tuple[str, ...]] = {}
    longest = 0
    for kind, value in items(body, _REQUEST.size):
        if kind == Item.PROPOSED_CONTEXT:
            contexts.append(_proposed_context(value, known))
        elif kind == Item.APPLICATION_CONTEXT:
            application = strip_padding(_text(value))
        elif kind == Item.USER_INFORMATION:
            for sub_kind, sub_value in items(value, 0):
                if sub_kind == Item.MAXIMUM_LENGTH:
                    longest = _number(_LONG, sub_value, 0)
                elif sub_kind == Item.ROLE:
                    uid, roles[uid] = read_role(sub_value)
                elif sub_kind == Item.EXTENDED:
                    uid, at = _counted(sub_value, 0)
                    extended[uid] = sub_value[at:]
                elif sub_kind == Item.COMMON_EXTENDED:
                    uid, at = _counted(sub_value, 0)
                    declared[uid] = _counted(sub_value, at)[0]
    proposal = Proposal(
        _title(calling), _title(called), application, tuple(contexts), declared, roles, extended
    )
    echoed = body[4 : _REQUEST.size]
    return Request(proposal, bool(version & _PROTOCOL_VERSION_BIT), longest, echoed)


# Who opens an association for each instance asks the same each time.
_read_again = lru_cache(maxsize=64)(_read_request)


def items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Type and value of each item from ``at`` on. Raises ProtocolError."""
    while at < len(data):
        if at + _ITEM.size > len(data):
            raise ProtocolError("a request for an association ends within an item")
        kind, length = _ITEM.unpack_from(data, at)
        at += _ITEM.size
        if at + length > len(data):
            raise ProtocolError("an item is longer than what it lies in")
        yield kind, data[at : at + length]
        at += length


def _proposed_context(value: bytes, known: dict[bytes, tuple[str, ...]]) -> ProposedContext:
    """``known``: the encoded lists of transfer syntaxes read so far; senders repeat one list."""
    if len(value) < 4 or not value[0] & 1:
        raise ProtocolError("a proposed context has no valid id")
    abstract, at = "", 4
    if len(value) >= 8 and value[4] == Item.ABSTRACT_SYNTAX:
        at = 8 + _number(_SHORT, value, 6)
        if at > len(value):
            raise ProtocolError("an abstract syntax is longer than what it lies in")
        abstract = _text(value[8:at])
    encoded = value[at:]
    syntaxes = known.get(encoded)
    if syntaxes is None:
        syntaxes = tuple(
            _text(uid) for kind, uid in items(encoded, 0) if kind == Item.TRANSFER_SYNTAX
        )
        known[encoded] = syntaxes
    return ProposedContext(value[0], abstract, syntaxes)


def _number(shape: struct.Struct, value: bytes, at: int) -> int:
    if at + shape.size > len(value):
        raise ProtocolError("an item ends within a number")
    return int(shape.unpack_from(value, at)[0])


def _counted(value: bytes, at: int) -> tuple[str, int]:
    """The UID at ``at``, which its length precedes, and where it ends."""
    end = at + 2 + _number(_SHORT, value, at)
    if end > len(value):
        raise ProtocolError("a UID is longer than the item it lies in")
    return strip_padding(_text(value[at + 2 : end])), end


def read_role(value: bytes) -> tuple[str, Role]:
    """A role selection: of which SOP Class, and the requestor's roles (PS3.7 D.3.3.4)."""
    uid, at = _counted(value, 0)
    if len(value) < at + 2:
        raise ProtocolError("a role selection ends early")
    return uid, Role(value[at] == 1, value[at + 1] == 1)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace")


def _title(value: bytes) -> str:
    return _text(value).strip(" \0")


# --- what we send ---------------------------------------------------------------------------------


def accept(
    request: Request, acceptance: Acceptance, announced_pdu: int, implementation: tuple[str, str]
) -> bytes:
    """An A-ASSOCIATE-AC. ``implementation``: our class UID and version name."""
    user = [
        item(Item.MAXIMUM_LENGTH, _LONG.pack(announced_pdu)),
        item(Item.IMPLEMENTATION_CLASS, implementation[0].encode()),
    ]
    user += [role_item(uid, role) for uid, role in acceptance.roles.items()]
    user += [extended_item(uid, agreed) for uid, agreed in acceptance.extended.items()]
    user.append(item(Item.IMPLEMENTATION_VERSION, implementation[1].encode()))
    contexts = [
        item(
            Item.CONTEXT_RESULT,
            bytes((one.id, 0, one.result, 0))
            + item(Item.TRANSFER_SYNTAX, one.transfer_syntax.encode("ascii", "replace")),
        )
        for one in acceptance.contexts
    ]
    body = b"".join(
        (
            b"\0\1\0\0",
            request.echoed,
            item(Item.APPLICATION_CONTEXT, request.proposal.application_context.encode()),
            *contexts,
            item(Item.USER_INFORMATION, b"".join(user)),
        )
    )
    return HEADER.pack(PDU.ASSOCIATE_AC, len(body)) + body


def role_item(uid: str, role: Role) -> bytes:
    """A role selection (PS3.7 D.3.3.4)."""
    told = uid.encode("ascii", "replace")
    value = _SHORT.pack(len(told)) + told + bytes((int(role.scu), int(role.scp)))
    return item(Item.ROLE, value)


def extended_item(uid: str, agreed: bytes) -> bytes:
    """An extended negotiation (PS3.7 D.3.3.5)."""
    told = uid.encode("ascii", "replace")
    return item(Item.EXTENDED, _SHORT.pack(len(told)) + told + agreed)


def item(kind: int, value: bytes) -> bytes:
    """One item, with its type and length before it."""
    return _ITEM.pack(kind, len(value)) + value


def reject(rejection: Rejection) -> bytes:
    """An A-ASSOCIATE-RJ."""
    body = bytes((0, rejection.result, rejection.source, rejection.reason))
    return HEADER.pack(PDU.ASSOCIATE_RJ, 4) + body


def abort(reason: Reason) -> bytes:
    """An A-ABORT by the upper layer, because of what the peer did."""
    return HEADER.pack(PDU.ABORT, 4) + bytes((0, 0, 2, reason))


RELEASE_RQ = HEADER.pack(PDU.RELEASE_RQ, 4) + bytes(4)
RELEASE_RP = HEADER.pack(PDU.RELEASE_RP, 4) + bytes(4)


def data_header(context_id: int, control: int, length: int) -> bytes:
    """What comes before ``length`` bytes that fill a P-DATA-TF with one value; ``control`` is its
    message control header."""
    return _DATA.pack(PDU.P_DATA_TF, length + 6, length + 2, context_id, control)


def data(context_id: int, fragment: bytes) -> bytes:
    """A P-DATA-TF with one presentation data value: ``fragment``, its control header included."""
    length = len(fragment) + 1
    return HEADER.pack(PDU.P_DATA_TF, length + 4) + _VALUE.pack(length, context_id) + fragment
