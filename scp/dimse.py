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

from plainpacs.archive.identity import is_name, strip_padding

_ELEMENT = struct.Struct("<HHL")
_PDV = struct.Struct(">LB")
_NO_DATA_SET = 0x0101
_LONGEST_COMMAND = 1 << 16

_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000

_COMMAND_BIT = 1
_LAST_BIT = 2


class ProtocolError(Exception):
    """The peer broke the protocol so that the association cannot go on."""


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


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message: ``data`` is the encoded data set, None when the command announced none."""

    context_id: int
    command: Command
    data: memoryview | None


def read_command(encoded: bytes | bytearray) -> Command:
    """The command set in ``encoded``, Implicit VR Little Endian (PS3.7 6.3.1).

    Raises ProtocolError when it cannot be read or lacks what an answer needs.
    """
    values: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise ProtocolError("a command set ends within an element")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += 8
        if group != 0 or length > len(encoded) - at:
            raise ProtocolError("a command set cannot be read")
        values[element] = bytes(encoded[at : at + length])
        at += length
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
        yield bytes((_COMMAND_BIT | (_LAST_BIT if last else 0),)) + command_set[at : at + step]


class MessageReader:
    """Puts messages together from the variable fields of P-DATA-TF PDUs (PS3.8 9.3.5)."""

    def __init__(self) -> None:
        self._encoded_command = bytearray()
        self._command: Command | None = None
        self._context_id = 0
        self._data: memoryview | bytearray | None = None

    def take(self, field: bytes | bytearray) -> Iterator[Message]:
        """The messages that ``field`` completes; it must not change afterwards.

        Raises ProtocolError.
        """
        view = memoryview(field)
        at = 0
        while at < len(view):
            if at + _PDV.size > len(view):
                raise ProtocolError("a PDU ends within a presentation data value")
            length, context_id = _PDV.unpack_from(view, at)
            end = at + 4 + length
            if length < 2 or end > len(view):
                raise ProtocolError("a presentation data value has an impossible length")
            header, fragment = view[at + 5], view[at + 6 : end]
            at = end
            if header & _COMMAND_BIT:
                message = self._take_command(context_id, header, fragment)
            else:
                message = self._take_data(context_id, header, fragment)
            if message is not None:
                yield message

    def _take_command(self, context_id: int, header: int, fragment: memoryview) -> Message | None:
        if self._command is not None:
            raise ProtocolError("a command came before the data set was complete")
        if self._encoded_command and context_id != self._context_id:
            raise ProtocolError("fragments of one command came on different contexts")
        self._context_id = context_id
        self._encoded_command += fragment
        if len(self._encoded_command) > _LONGEST_COMMAND:
            raise ProtocolError("a command set is longer than any can be")
        if not header & _LAST_BIT:
            return None
        command = read_command(self._encoded_command)
        self._encoded_command = bytearray()
        if not command.has_data_set:
            return Message(context_id, command, None)
        self._command = command
        return None

    def _take_data(self, context_id: int, header: int, fragment: memoryview) -> Message | None:
        if self._command is None:
            raise ProtocolError("a data set came without a command")
        if context_id != self._context_id:
            raise ProtocolError("a data set came on another context than its command")
        # The usual data set that fits in one PDU is passed on without being copied.
        if self._data is None:
            self._data = fragment
        elif isinstance(self._data, bytearray):
            self._data += fragment
        else:
            self._data = bytearray(self._data) + fragment
        if not header & _LAST_BIT:
            return None
        message = Message(context_id, self._command, memoryview(self._data).toreadonly())
        self._command = self._data = None
        return message
