"""Command sets of requests, for clients that are made by hand (PS3.7 6.3.1, E.1)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

_ELEMENT = struct.Struct("<HHL")


class Element(enum.IntEnum):
    """Of group 0000."""

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


def request(
    field: int, message_id: int, elements: Mapping[Element, int | str], *, has_data_set: bool
) -> bytes:
    own: dict[Element, int | str] = {Element.COMMAND_FIELD: field, Element.MESSAGE_ID: message_id}
    return command_set(own | dict(elements), has_data_set=has_data_set)


def command_set(elements: Mapping[Element, int | str], *, has_data_set: bool) -> bytes:
    """A number becomes a US, an empty text no element."""
    told = {**elements, Element.COMMAND_DATA_SET_TYPE: 1 if has_data_set else 0x0101}
    encoded = b"".join(_encoded(element, told[element]) for element in sorted(told))
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def _encoded(element: Element, value: int | str) -> bytes:
    if isinstance(value, int):
        return _ELEMENT.pack(0, element, 2) + value.to_bytes(2, "little")
    if not value:
        return b""
    padded = element in (Element.MOVE_DESTINATION, Element.MOVE_ORIGINATOR_AE)
    text = value.encode("ascii", "replace")
    text += (b" " if padded else b"\0") * (len(text) % 2)
    return _ELEMENT.pack(0, element, len(text)) + text
