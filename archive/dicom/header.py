"""From the bytes of a data set to the attributes kept of it.

A walker over the element headers (PS3.5 7.1) looks at no value that is not kept, hops over content
of a defined length, and stops at the first element after (0040,0275). Little endian, nearly all
there is, has a quick way of its own to there; what is long, nested or doubtful in it, and big
endian, goes the way of ``walk``.

Only elements of the top level count, except where ``elements`` says so. What comes out of order
after an element beyond (0040,0275) is not seen.
"""

from __future__ import annotations

import struct
from itertools import repeat
from struct import Struct

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.deflate import Inflated
from plainpacs.archive.dicom.elements import HEADERS, SHORT_VRS, UNDEFINED, CutShort
from plainpacs.archive.dicom.values import LONGEST_VALUE, Attributes, Slot, vr_code
from plainpacs.archive.dicom.walk import (
    HOLDS_ITEMS,
    LAST_ELEMENT,
    LAST_GROUP,
    WANTED_ELEMENTS,
    WANTED_SEQUENCES,
    Walk,
    slot_of,
    too_many,
)

__all__ = ["Attributes", "read_header"]

EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
DEFLATED = frozenset(
    (
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    )
)

MOST_INFLATED = 32 << 20
"""Bytes; the kept attributes of a deflated data set must be found within as many."""
MOST_INFLATED_WHOLE = 4 << 30
"""Bytes; no deflated data set that is followed to its end may be larger ..."""
MOST_INFLATED_OF_FEW = 128 << 20
MOST_INFLATED_RATIO = 200
"""... nor, beyond MOST_INFLATED_OF_FEW, than so many times its deflated bytes: of real ones only a
nearly empty mask comes to more, and a bomb of a megabyte would take seconds."""
_FIRST_INFLATED = 256 << 10

_SHORT = {vr_code(vr): vr for vr in SHORT_VRS}

# By group, then by element and VR as one number: a wanted element in a VR of short length.
_EXPLICIT_SLOTS: dict[int, dict[int, Slot]] = {}
_IMPLICIT_SLOTS: dict[int, dict[int, Slot]] = {}
for _tag in WANTED_ELEMENTS:
    _IMPLICIT_SLOTS.setdefault(_tag >> 16, {})[_tag & 0xFFFF] = slot_of(_tag, "", True)
    for _code, _vr in _SHORT.items():
        _key = _code << 16 | _tag & 0xFFFF
        _EXPLICIT_SLOTS.setdefault(_tag >> 16, {})[_key] = slot_of(_tag, _vr, True)
_NO_SLOTS: dict[int, Slot] = {}

_EXPLICIT = Struct("<HIH").unpack_from  # group, element and VR, length
_IMPLICIT = Struct("<HHI").unpack_from


def read_header(
    data: Buffer,
    transfer_syntax: str,
    above: CharacterSet = DEFAULT,
    *,
    whole: bool = False,
    complete: bool = True,
) -> Attributes:
    """The kept attributes of a data set, by keyword; empty ones left out.

    ``data`` is the encoded data set alone, without preamble and File Meta Information; it is not
    copied. Values are str, int, float, or lists of these; RequestAttributesSequence is a list of
    dicts of str. UIDs may be lacking: that is for the caller to judge. ``above``: how text is
    decoded where no character set is named (``charset.default_for``).

    With ``whole`` the data set is followed to its end besides, so that one cut short is refused;
    without, nothing after the last kept attribute is looked at. ``complete`` false says that
    ``data`` is only the first part of a data set, which must hold all kept attributes.
    A cut just between two elements before (0040,0275) cannot be told from a complete data set;
    NULs at the end are taken for padding.

    Raises UnreadableDataSet when the data set is cut short or cannot be followed, however it is
    made up: nothing else, and in bounded time. Safe to call from many threads.
    """
    if whole and not complete:
        raise ValueError("a part of a data set cannot be read to the end")
    if isinstance(data, memoryview) and (data.format != "B" or data.ndim != 1):
        data = data.cast("B")
    syntax = transfer_syntax.rstrip("\0 ")
    if syntax in DEFLATED:
        return _read_deflated(data, above, whole, complete)
    return _read(data, syntax, above, whole, complete)


def _read(
    data: Buffer, syntax: str, above: CharacterSet, whole: bool, complete: bool
) -> Attributes:
    walk = Walk(data, little_endian=syntax != EXPLICIT_BIG_ENDIAN)
    implicit = is_implicit(data, syntax)
    after: int | None = 0
    if walk.little_endian:
        after = (_walk_implicit if implicit else _walk_explicit)(walk, complete)
    if after is not None and (whole or not walk.little_endian):
        walk.top_level(after, implicit, whole=whole, complete=complete)
    return walk.attributes(above)


def is_implicit(data: Buffer, syntax: str) -> bool:
    headers = HEADERS[syntax != EXPLICIT_BIG_ENDIAN]
    return headers.is_implicit(data, 0, len(data), said=syntax == IMPLICIT_LITTLE_ENDIAN)


def _walk_explicit(walk: Walk, complete: bool) -> int | None:
    """Collects; the position of the first element after the kept ones, None when there is none."""
    data, found, short = walk.data, walk.collected.found, _SHORT
    unpack = _EXPLICIT
    slots = _NO_SLOTS
    current = -1
    pos = group = key = length = 0
    try:
        for _ in repeat(None, walk.most_elements):
            group, key, length = unpack(data, pos)
            if group != current:
                if group >= LAST_GROUP:
                    if group > LAST_GROUP or key & 0xFFFF > LAST_ELEMENT:
                        return pos
                    current = -1  # to come here at each element of the last group
                else:
                    current = group
                slots = _EXPLICIT_SLOTS.get(group, _NO_SLOTS)
            if key in slots:
                value = pos + 8
                pos = value + length
                found[slots[key]] = data[value:pos]
            elif key >> 16 in short:
                pos += 8 + length
            else:
                pos = _long(walk, pos)
        raise too_many()
    except struct.error:
        # No header fits at ``pos`` any more. Only the last element can have led past the end.
        pass
    if pos > walk.end:
        tag = group << 16 | key & 0xFFFF
        raise CutShort.within(tag, length, walk.end - pos + length)
    walk.ended(pos, complete)
    return None


def _long(walk: Walk, pos: int) -> int:
    """Where the element at ``pos``, in explicit VR but in none of the short ones, ends."""
    if walk.is_padding(pos):
        return walk.end
    tag, vr, length, value = walk.element(pos, False)
    if tag in WANTED_SEQUENCES and vr in HOLDS_ITEMS:
        return walk.sequence(tag, value, length, False)
    if length == UNDEFINED:
        return walk.through(tag, value, UNDEFINED, False, None)
    after = value + length
    if after > walk.end:
        raise CutShort.within(tag, length, walk.end - value)
    if tag in WANTED_ELEMENTS:
        raw = walk.data[value:after] if length <= LONGEST_VALUE else b""
        walk.collected.found[slot_of(tag, vr, True)] = raw
    return after


def _walk_implicit(walk: Walk, complete: bool) -> int | None:
    """As ``_walk_explicit``."""
    data, found = walk.data, walk.collected.found
    unpack = _IMPLICIT
    slots = _NO_SLOTS
    current = -1
    pos = group = element = length = 0
    try:
        for _ in repeat(None, walk.most_elements):
            group, element, length = unpack(data, pos)
            if group != current:
                if group >= LAST_GROUP:
                    if group > LAST_GROUP or element > LAST_ELEMENT:
                        return pos
                    current = -1
                else:
                    current = group
                if not group and walk.is_padding(pos):
                    pos = walk.end
                    continue
                slots = _IMPLICIT_SLOTS.get(group, _NO_SLOTS)
            if element in slots and length != UNDEFINED:
                value = pos + 8
                pos = value + length
                found[slots[element]] = data[value:pos] if length <= LONGEST_VALUE else b""
            elif (tag := group << 16 | element) in WANTED_SEQUENCES:
                pos = walk.sequence(tag, pos + 8, length, True)
            elif length == UNDEFINED:
                pos = walk.through(tag, pos + 8, UNDEFINED, True, None)
            else:
                pos += 8 + length
        raise too_many()
    except struct.error:
        pass
    if pos > walk.end:
        raise CutShort.within(group << 16 | element, length, walk.end - pos + length)
    walk.ended(pos, complete)
    return None


def _read_deflated(data: Buffer, above: CharacterSet, whole: bool, complete: bool) -> Attributes:
    inflated = Inflated(data)
    bound = _FIRST_INFLATED
    while True:
        inflated.grow(bound)
        finished = inflated.finished
        try:
            attributes = _read(inflated.bytes, "", above, whole and finished, finished)
            break
        except CutShort:
            if finished or len(inflated.bytes) < bound or bound >= MOST_INFLATED:
                raise
            bound = min(bound * 8, MOST_INFLATED)
    if whole and not finished:
        if bound < MOST_INFLATED:
            inflated.grow(MOST_INFLATED)
        if inflated.finished:
            return _read(inflated.bytes, "", above, True, True)
        # Too large to be walked in memory; a deflate stream says itself whether it is whole.
        few = max(MOST_INFLATED_OF_FEW, MOST_INFLATED_RATIO * len(data))
        inflated.to_end(min(few, MOST_INFLATED_WHOLE))
    return attributes
