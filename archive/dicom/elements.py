"""Data elements as bytes (PS3.5 6.2 and 7.1): what is known of Value Representations, and how an
element is written.

>>> encode_element(0x00100020, "LO", b"P1 ")
b'\\x10\\x00 \\x00LO\\x04\\x00P1  '
"""

from __future__ import annotations

import struct
from array import array

ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
"""A length that is not said: a delimiter ends the value (PS3.5 7.5)."""
CHARACTER_SET = 0x00080005
PIXEL_REPRESENTATION = 0x00280103
FIRST_OF_PIXELS, PIXEL_DATA = 0x7FE00000, 0x7FE00010

# PS3.5 7.1.2: two bytes of length after these; after those, two reserved ones and four.
SHORT_VRS = frozenset(
    (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO"),
        *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
    )
)
LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
LONGEST_SHORT = 0xFFFE
"""Bytes of a value in one of ``SHORT_VRS``."""

IN_CHARACTER_SET = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
"""The VRs whose text the Specific Character Set is for (PS3.5 6.1.2.2)."""
TEXTS = IN_CHARACTER_SET | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}
UNSPLIT = frozenset(("LT", "ST", "UT", "UR"))
"""The VRs of text that has one value always: a backslash is part of it."""
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
"""The VRs of numbers that are no text, as ``struct`` spells them."""
WIDTHS = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
"""Bytes of one number, in the VRs whose byte order counts (PS3.5 7.3)."""
_ARRAYS = {2: "H", 4: "I", 8: "Q"}


def spell(tag: int) -> str:
    """``(0010,0020)``"""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def swapped(value: bytes, width: int) -> bytes:
    """``value`` with the bytes of each number of ``width`` bytes the other way round; what is left
    over at its end stays."""
    if width == 1:
        return value
    whole = len(value) - len(value) % width
    numbers = array(_ARRAYS[width], value[:whole])
    numbers.byteswap()
    return numbers.tobytes() + value[whole:]


def encode_element(
    tag: int, vr: str, value: bytes, *, explicit: bool = True, order: str = "<"
) -> bytes:
    """An element, its value padded to even length; its header in little endian (``<``) or big.

    Raises ValueError when the value is too long for its VR.
    """
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB", "UN") else b" "
    if len(value) > LONGEST_SHORT and vr not in LONG_VRS:
        raise ValueError("the value is too long for its VR")
    return head(tag, vr, len(value), explicit=explicit, order=order) + value


def head(tag: int, vr: str, length: int, *, explicit: bool, order: str = "<") -> bytes:
    """What comes before a value of so many bytes. An item, and a delimiter, have no VR."""
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit or group == 0xFFFE:
        return struct.pack(f"{order}HHL", group, number, length)
    if vr in LONG_VRS:
        return struct.pack(f"{order}HH2sHL", group, number, vr.encode(), 0, length)
    return struct.pack(f"{order}HH2sH", group, number, vr.encode(), length)


def encode_item(content: bytes, *, order: str = "<") -> bytes:
    """``content``, encoded elements, as an item of a sequence."""
    return head(ITEM, "", len(content), explicit=False, order=order) + content
