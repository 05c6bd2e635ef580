"""DIMSE messages: from the fragments that P-DATA carries to a command and a data set, and back.

Only what a storage SCP needs of PS3.7: the command set is read as a handful of elements, the data
set is left as the bytes that came. What a peer gets wrong beyond answering raises ProtocolError;
a wrong value in a command that can be answered does not, so that the peer learns what was wrong.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from plainpacs.archive.tree.identity import is_name, strip_padding

_ELEMENT = struct.Struct("<HHL")
_LENGTH = struct.Struct("<HHLL")
_BETWEEN_UIDS = struct.Struct("<" + 4 * "HHLH")
_NO_DATA_SET = 0x0101
_DATA_SET = 0x0001
LONGEST_COMMAND = 1 << 16

_GROUP_LENGTH = 0x0000


class Element(enum.IntEnum):
    """The elements of command sets, all of group 0000 (PS3.7 E.1)."""

    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
    MOVE_DESTINATION = 0x0600
    PRIORITY = 0x0700
    COMMAND_DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    OFFENDING_ELEMENT = 0x0901
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ACTION_TYPE_ID = 0x1008
    REMAINING_SUB_OPERATIONS = 0x1020
    COMPLETED_SUB_OPERATIONS = 0x1021
    FAILED_SUB_OPERATIONS = 0x1022
    WARNING_SUB_OPERATIONS = 0x1023
    MOVE_ORIGINATOR_AE = 0x1030
    MOVE_ORIGINATOR_MESSAGE_ID = 0x1031


_PADDED_WITH_BLANKS = frozenset(
    (Element.ERROR_COMMENT, Element.MOVE_DESTINATION, Element.MOVE_ORIGINATOR_AE)
)

Value = int | str | bytes
"""Of an element that we write; see ``command_set``."""

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
    """(0000,0100) of requests (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_GET_RQ = 0x0010
    C_FIND_RQ = 0x0020
    C_MOVE_RQ = 0x0021
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_ACTION_RQ = 0x0130
    C_CANCEL_RQ = 0x0FFF


RESPONSE = 0x8000
"""Set in the Command Field of every response."""


class Command(NamedTuple):
    """A command set. The UIDs are as sent, less their padding, and may be anything."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class: str
    """The affected one, else the requested one; so too the instance's."""
    sop_instance: str
    elements: Mapping[int, bytes]
    """All of it, by element number."""
    encoded: bytes = b""

    @property
    def status(self) -> int:
        """Of a response. Raises ProtocolError when it has none."""
        return _number(self.elements, Element.STATUS)

    def number(self, element: Element) -> int | None:
        """The value of a US; None when it is not there."""
        value = self.elements.get(element, b"")
        return int.from_bytes(value[:2], "little") if len(value) >= 2 else None

    def text(self, element: Element) -> str:
        """The value of an AE, LO or UI; empty when it is not there."""
        return strip_padding(self.elements.get(element, b"").decode("ascii", "replace")).strip(" ")


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


class Message(NamedTuple):
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
    field = _number(values, Element.COMMAND_FIELD)
    answered = field & RESPONSE or field == CommandField.C_CANCEL_RQ
    id_element = Element.MESSAGE_ID_BEING_RESPONDED_TO if answered else Element.MESSAGE_ID
    return Command(
        field,
        _number(values, id_element),
        _number(values, Element.COMMAND_DATA_SET_TYPE) != _NO_DATA_SET,
        _uid(values, Element.AFFECTED_SOP_CLASS_UID, Element.REQUESTED_SOP_CLASS_UID),
        _uid(values, Element.AFFECTED_SOP_INSTANCE_UID, Element.REQUESTED_SOP_INSTANCE_UID),
        values,
        encoded,
    )


def _number(values: Mapping[int, bytes], element: int) -> int:
    value = values.get(element, b"")
    if len(value) < 2:
        raise ProtocolError(f"a command set lacks (0000,{element:04X})")
    return int.from_bytes(value[:2], "little")


def _uid(values: Mapping[int, bytes], element: int, other: int) -> str:
    value = values.get(element) or values.get(other, b"")
    return strip_padding(value.decode("ascii", "replace"))


def response(
    command: Command,
    status: int,
    comment: str = "",
    *,
    has_data_set: bool = False,
    more: Mapping[Element, Value] | None = None,
) -> bytes:
    """The encoded command set that answers ``command`` (PS3.7 9.3 and 10.3).

    UIDs are repeated only when they are harmless ones; ``comment`` is ASCII. ``more``: elements
    that this response has besides.
    """
    if not (comment or has_data_set or more):
        return _shortest_response(command, status)
    elements: dict[Element, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: command.sop_class if is_name(command.sop_class) else "",
        Element.COMMAND_FIELD: command.field | RESPONSE,
        Element.MESSAGE_ID_BEING_RESPONDED_TO: command.message_id,
        Element.STATUS: status,
        Element.ERROR_COMMENT: comment,
        Element.AFFECTED_SOP_INSTANCE_UID: (
            command.sop_instance if is_name(command.sop_instance) else ""
        ),
    }
    return command_set({**elements, **(more or {})}, has_data_set=has_data_set)


def _shortest_response(command: Command, status: int) -> bytes:
    """That of nearly all instances, at a fifth of the price."""
    sop_class, sop_instance = command.sop_class, command.sop_instance
    before = _encoded(Element.AFFECTED_SOP_CLASS_UID, sop_class) if is_name(sop_class) else b""
    instance = Element.AFFECTED_SOP_INSTANCE_UID
    after = _encoded(instance, sop_instance) if is_name(sop_instance) else b""
    between = _BETWEEN_UIDS.pack(
        *(0, Element.COMMAND_FIELD, 2, command.field | RESPONSE),
        *(0, Element.MESSAGE_ID_BEING_RESPONDED_TO, 2, command.message_id),
        *(0, Element.COMMAND_DATA_SET_TYPE, 2, _NO_DATA_SET),
        *(0, Element.STATUS, 2, status),
    )
    length = len(before) + len(between) + len(after)
    return b"".join((_LENGTH.pack(0, _GROUP_LENGTH, 4, length), before, between, after))


def request(
    field: CommandField,
    message_id: int,
    elements: Mapping[Element, Value],
    *,
    has_data_set: bool,
) -> bytes:
    """The encoded command set of a request (PS3.7 9.3 and 10.3)."""
    own: dict[Element, Value] = {Element.COMMAND_FIELD: field, Element.MESSAGE_ID: message_id}
    return command_set(own | dict(elements), has_data_set=has_data_set)


def cancel(message_id: int) -> bytes:
    """The encoded C-CANCEL-RQ for the request ``message_id`` (PS3.7 9.3.2.3)."""
    elements = {
        Element.COMMAND_FIELD: CommandField.C_CANCEL_RQ,
        Element.MESSAGE_ID_BEING_RESPONDED_TO: message_id,
    }
    return command_set(elements, has_data_set=False)


def command_set(elements: Mapping[Element, Value], *, has_data_set: bool) -> bytes:
    """Encoded in Implicit VR Little Endian, group length included (PS3.7 6.3.1).

    A number becomes a US, an empty text no element; bytes stay what they are.
    """
    told = _DATA_SET if has_data_set else _NO_DATA_SET
    all_elements = {**elements, Element.COMMAND_DATA_SET_TYPE: told}
    encoded = b"".join(_encoded(element, all_elements[element]) for element in sorted(all_elements))
    return _LENGTH.pack(0, _GROUP_LENGTH, 4, len(encoded)) + encoded


def _encoded(element: Element, value: Value) -> bytes:
    if isinstance(value, bytes):
        return _ELEMENT.pack(0, element, len(value)) + value
    if isinstance(value, int):
        return _ELEMENT.pack(0, element, 2) + value.to_bytes(2, "little")
    if not value:
        return b""
    padding = b" " if element in _PADDED_WITH_BLANKS else b"\0"
    text = value.encode("ascii", "replace")
    text += padding * (len(text) % 2)
    return _ELEMENT.pack(0, element, len(text)) + text


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
