"""DIMSE messages: from the fragments that P-DATA carries to a command and a data set, and back.

Only what a storage SCP needs of PS3.7: the command set is read as a handful of elements, the data
set is left as the bytes that came. What a peer gets wrong beyond answering raises ProtocolError;
a wrong value in a command that can be answered does not, so that the peer learns what was wrong.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from plainpacs.archive.identity import is_name, strip_padding

_ELEMENT = struct.Struct("<HHL")
_NO_DATA_SET = 0x0101
LONGEST_COMMAND = 1 << 16

_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000

COMMAND_BIT = 1
LAST_BIT = 2
"""Of the message control header of a presentation data value (PS3.8 E.2)."""


class Reason(enum.IntEnum):
    """Why the upper layer aborts (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(Exception):
    """The peer broke the protocol so that the association cannot go on."""

    def __init__(self, words: str, reason: Reason = Reason.INVALID_PARAMETER) -> None:
        super().__init__(words)
        self.reason = reason


class CommandField(enum.IntEnum):
    """(0000,0100) of the requests that are served (PS3.7 E.1); the rest are refused as such."""

    C_STORE_RQ = 0x0001
    C_ECHO_RQ = 0x0030
    C_CANCEL_RQ = 0x0FFF


RESPONSE = 0x8000
"""Set in the Command Field of every response."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command set. The UIDs are as sent, less their padding, and may be anything."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class: str
    sop_instance: str


class Spill(Protocol):
    """Where a data set goes that comes in pieces. Its methods raise nothing."""

    def write(self, piece: memoryview) -> None:
        """The next bytes of the data set; they are only lent."""

    def discard(self) -> None:
        """Leaves nothing unfinished; called always, last."""


class Drain:
    """A ``Spill`` for a data set that nothing is done with."""

    def write(self, piece: memoryview) -> None:
        pass

    def discard(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message. ``data`` is the encoded data set; the ``Spill`` that took it when it came in
    pieces; None when the command announced none.
    """

    context_id: int
    command: Command
    data: memoryview | Spill | None


def read_command(encoded: bytes) -> Command:
    """The command set in ``encoded``, Implicit VR Little Endian (PS3.7 6.3.1).

    Raises ProtocolError when it cannot be read or lacks what an answer needs.
    """
    values: dict[int, bytes] = {}
    at, end = 0, len(encoded)
    while at < end:
        if at + 8 > end:
            raise ProtocolError("a command set ends within an element")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        begin = at + 8
        at = begin + length
        if group or at > end:
            raise ProtocolError("a command set cannot be read")
        values[element] = encoded[begin:at]
    field = _number(values, _COMMAND_FIELD)
    answered = field & RESPONSE or field == CommandField.C_CANCEL_RQ
    id_element = _MESSAGE_ID_BEING_RESPONDED_TO if answered else _MESSAGE_ID
    return Command(
        field,
        _number(values, id_element),
        _number(values, _COMMAND_DATA_SET_TYPE) != _NO_DATA_SET,
        _uid(values, _AFFECTED_SOP_CLASS_UID),
        _uid(values, _AFFECTED_SOP_INSTANCE_UID),
    )


def _number(values: dict[int, bytes], element: int) -> int:
    value = values.get(element, b"")
    if len(value) < 2:
        raise ProtocolError(f"a command set lacks (0000,{element:04X})")
    return int.from_bytes(value[:2], "little")


def _uid(values: dict[int, bytes], element: int) -> str:
    return strip_padding(values.get(element, b"").decode("ascii", "replace"))


def response(command: Command, status: int, comment: str = "") -> bytes:
    """The encoded command set that answers ``command`` (PS3.7 9.3.1.2, 9.3.5.2), without data set.

    UIDs are repeated only when they are harmless ones; ``comment`` is ASCII.
    """
    sop_class = command.sop_class if is_name(command.sop_class) else ""
    sop_instance = command.sop_instance if is_name(command.sop_instance) else ""
    elements = b"".join(
        (
            _text(_AFFECTED_SOP_CLASS_UID, sop_class, b"\0"),
            _us(_COMMAND_FIELD, command.field | RESPONSE),
            _us(_MESSAGE_ID_BEING_RESPONDED_TO, command.message_id),
            _us(_COMMAND_DATA_SET_TYPE, _NO_DATA_SET),
            _us(_STATUS, status),
            _text(_ERROR_COMMENT, comment, b" "),
            _text(_AFFECTED_SOP_INSTANCE_UID, sop_instance, b"\0"),
        )
    )
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<L", len(elements)) + elements


def _us(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, 2) + value.to_bytes(2, "little")


def _text(element: int, text: str, padding: bytes) -> bytes:
    if not text:
        return b""
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value


def command_fragments(command_set: bytes, longest_pdu: int) -> Iterator[bytes]:
    """``command_set`` as presentation data values with their control header (PS3.8 Annex E).

    ``longest_pdu`` is what the peer announced (PS3.8 D.1), 0 for no limit.
    """
    # 6: the length, context id and control header of a PDV item. A peer that announces less than
    # any message can fit in is served in small pieces all the same.
    step = max(longest_pdu - 6, 16) if longest_pdu else len(command_set)
    for at in range(0, len(command_set), step):
        last = at + step >= len(command_set)
        yield bytes((COMMAND_BIT | (LAST_BIT if last else 0),)) + command_set[at : at + step]
