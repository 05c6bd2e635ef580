"""Data elements as bytes (PS3.5 6.2 and 7.1): what is known of Value Representations, and how an
element is read and written.

>>> encode_element(0x00100020, "LO", b"P1 ")
b'\\x10\\x00 \\x00LO\\x04\\x00P1  '
"""

from __future__ import annotations

import re
import struct
from array import array

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import UnreadableDataSet

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


class CutShort(UnreadableDataSet):
    """The data set ends before the element that was being read does."""

    @classmethod
    def within(cls, tag: int, declared: int, there: int) -> CutShort:
        return cls(
            f"the data set is cut short in {spell(tag)}: {declared} bytes declared, {there} there"
        )


# --- reading --------------------------------------------------------------------------------------

PADDING = b"\0\r\n\x1a"
"""What programs leave behind a data set."""
NOT_PADDING = re.compile(rb"[^\0\r\n\x1a]")

_SHORT = {vr.encode(): vr for vr in SHORT_VRS}
_LONG = {vr.encode(): vr for vr in LONG_VRS}

Header = tuple[int, str, int, int]
"""Of an element: tag, VR ('' when it is not said), length, position of the value."""


class Headers:
    """How headers of elements are read, in one byte order."""

    def __init__(self, *, little_endian: bool) -> None:
        order = "<" if little_endian else ">"
        self.implicit = struct.Struct(f"{order}HHI").unpack_from
        """(group, element, length) of an element in implicit VR, or of an item."""
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._length = struct.Struct(f"{order}I").unpack_from

    def read(self, data: Buffer, pos: int, end: int, *, implicit: bool) -> Header:
        """That of the element at ``pos``, of which 8 bytes are there, in what ends at ``end``.

        In explicit VR a VR that nobody knows is read as what goes on best behind it: in 32 bits of
        length after two NULs (PS3.5 7.1.2), in 16 bits, or, unless it is two capital letters,
        without a VR. Raises CutShort.
        """
        if implicit:
            group, number, length = self.implicit(data, pos)
            return group << 16 | number, "", length, pos + 8
        group, number, raw, length = self._explicit(data, pos)
        tag = group << 16 | number
        if vr := _SHORT.get(raw):
            return tag, vr, length, pos + 8
        if vr := _LONG.get(raw):
            if end - pos < 12:
                raise CutShort.within(tag, 12, end - pos)
            return tag, vr, self._length(data, pos + 8)[0], pos + 12
        if group == 0xFFFE:
            return tag, "", self._length(data, pos + 4)[0], pos + 8
        return self._doubtful(data, pos, end)

    def _doubtful(self, data: Buffer, pos: int, end: int) -> Header:
        group, number, raw, length = self._explicit(data, pos)
        tag = group << 16 | number
        readings: list[Header] = []
        if not raw.isupper() or not raw.isalpha():
            readings.append((tag, "", self._length(data, pos + 4)[0], pos + 8))
        if not length and end - pos >= 12:
            readings.append((tag, "UN", self._length(data, pos + 8)[0], pos + 12))
        readings.append((tag, "UN", length, pos + 8))
        # An element with the same VR, or with one of the standard's, is the better sign.
        for same in (raw, b""):
            for one in readings:
                if self._goes_on(data, one, end, same):
                    return one
        return readings[0]

    def _goes_on(self, data: Buffer, one: Header, end: int, same: bytes) -> bool:
        """Whether the end comes after ``one``, or an element in a VR that is known or the ``same``;
        where that is empty, any element."""
        tag, _, length, value = one
        after = value if length == UNDEFINED else value + length
        if after >= end:
            return after == end
        if end - after < 8:
            return not bytes(data[after:end]).strip(PADDING)
        group, number, raw, _ = self._explicit(data, after)
        if length == UNDEFINED:
            return group << 16 | number in (ITEM, SEQUENCE_DELIMITER)
        if group == 0xFFFE or not bytes(data[after : after + 8]).strip(PADDING):
            return True
        known = not same or raw == same or raw in _SHORT or raw in _LONG
        return known and group << 16 | number >= tag

    def is_implicit(self, data: Buffer, pos: int, end: int, *, said: bool) -> bool:
        """Whether what is from ``pos`` to ``end``, a data set or item, is in implicit VR, as it is
        ``said`` or not: its first element tells, as some writers lie about that."""
        if end - pos < 8:
            return said
        if not self.is_doubtful(data, pos):
            return False
        tag, _, length, value = self.read(data, pos, end, implicit=True)
        return said or self._goes_on(data, (tag, "", length, value), end, b"")

    def is_doubtful(self, data: Buffer, pos: int) -> bool:
        """Whether what stands at ``pos`` in explicit VR has a VR that nobody knows."""
        raw = bytes(data[pos + 4 : pos + 6])
        return raw not in _SHORT and raw not in _LONG


HEADERS = {little_endian: Headers(little_endian=little_endian) for little_endian in (False, True)}


# --- writing --------------------------------------------------------------------------------------


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
