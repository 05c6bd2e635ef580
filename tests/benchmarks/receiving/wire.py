"""The few bytes of the DICOM upper layer (PS3.8 9.3) that the floor and the sender need.

It shares no code with plainpacs or pynetdicom, and runs in processes of its own.
"""

from __future__ import annotations

import struct

ASSOCIATE_RQ, ASSOCIATE_AC, P_DATA, RELEASE_RQ, RELEASE_RP = 1, 2, 4, 5, 6
APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
LONGEST = 131072
"""The longest PDU that DCMTK's storescu sends, whatever the receiver announces."""
IMPLEMENTATION = b"1.2.826.0.1.3680043.8.498.9"


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def items(body: bytes, at: int) -> list[tuple[int, bytes]]:
    """Type and value of each item from ``at`` on."""
    found = []
    while at < len(body):
        kind, _, length = struct.unpack_from(">BBH", body, at)
        found.append((kind, body[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def user_information(longest: int) -> bytes:
    return item(0x50, item(0x51, struct.pack(">L", longest)) + item(0x52, IMPLEMENTATION))


def associate(kind: int, contexts: bytes, *, longest: int, titles: bytes) -> bytes:
    """A-ASSOCIATE-RQ or -AC. ``titles``: called and calling AE title, 32 bytes."""
    head = struct.pack(">HH", 1, 0) + titles + bytes(32) + item(0x10, APPLICATION_CONTEXT)
    return pdu(kind, head + contexts + user_information(longest))


def command_element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def command_set(elements: bytes) -> bytes:
    return command_element(0, struct.pack("<L", len(elements))) + elements


def command_elements(command: bytes) -> dict[int, bytes]:
    """The values of a command set (PS3.7 6.3.1) by element number."""
    at, found = 0, {}
    while at < len(command):
        number, length = struct.unpack_from("<2xHL", command, at)
        found[number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def pdv(context: int, control: int, fragment: bytes | memoryview) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context, control) + fragment
