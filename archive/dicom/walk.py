"""Data elements as bytes (PS3.5 7.1): what the readers of data sets share.

Which elements are wanted, how a cut or unfollowable data set is told, and the way through nested
content. Nesting is followed with a stack of our own, so that no depth of it can end in a
RecursionError, and bounded: in depth, and in the number of elements looked at.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import cast

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.attributes import BY_KEYWORD, KEPT, REQUESTED, KeptAttribute
from plainpacs.archive.dicom.charset import CharacterSet
from plainpacs.archive.dicom.elements import (
    HEADERS,
    ITEM,
    ITEM_DELIMITER,
    NOT_PADDING,
    PADDING,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    CutShort,
    Header,
    spell,
)
from plainpacs.archive.dicom.values import (
    LONGEST_VALUE,
    Attributes,
    Found,
    Slot,
    slot,
    typed,
)
from plainpacs.archive.errors import UnreadableDataSet

LAST_GROUP, LAST_ELEMENT = 0x0040, 0x0275
LAST_TAG = LAST_GROUP << 16 | LAST_ELEMENT
"""No kept attribute comes after it; elements are in the order of their tags (PS3.5 7.1)."""

MOST_COLLECTED = 256
"""References, and requests, that are held until it is known which of them say something."""
_COST_OF_DOUBT = 4
"""In elements looked at."""
DEEPEST = 256
"""Levels of nested content of undefined length."""

_DELIMITERS = {
    True: re.compile(rb"\xfe\xff\xdd\xe0", re.DOTALL),
    False: re.compile(rb"\xff\xfe\xe0\xdd", re.DOTALL),
}


class Malformed(UnreadableDataSet):
    """A sequence is made up of something else than items that fit into it."""

    def __init__(self) -> None:
        super().__init__("the data set cannot be followed")


def too_many() -> UnreadableDataSet:
    return UnreadableDataSet("the data set has too many elements")


HOLDS_ITEMS = frozenset(("SQ", "UN", ""))

Wanted = dict[int, "KeptAttribute | Wanted"]
"""By tag: what is wanted of a data set or item; of a sequence, what is wanted of its items."""

_REFERENCE: Wanted = {0x00081155: BY_KEYWORD["ReferencedSOPInstanceUID"]}
_REFERENCES_IN_SERIES: Wanted = {
    0x00081140: _REFERENCE,  # ReferencedImageSequence (PS3.3 C.11.11)
    0x0008114A: _REFERENCE,  # ReferencedInstanceSequence (C.12.2)
    0x00081199: _REFERENCE,  # ReferencedSOPSequence (Table 10-4)
}
_REQUEST: Wanted = {
    0x00080005: BY_KEYWORD["SpecificCharacterSet"],
    **{kept.tag: kept for kept in REQUESTED},
}
WANTED_SEQUENCES: Mapping[int, Wanted] = {
    0x00081115: _REFERENCES_IN_SERIES,  # ReferencedSeriesSequence
    0x00081140: _REFERENCE,  # ReferencedImageSequence
    0x00400275: _REQUEST,  # RequestAttributesSequence
}
_BY_TAG = {kept.tag: kept for kept in KEPT + REQUESTED}
WANTED_ELEMENTS: Mapping[int, KeptAttribute] = {
    kept.tag: kept
    for kept in KEPT
    if kept.vr != "SQ" and kept.keyword != "ReferencedSOPInstanceUID"
}


@cache
def slot_of(tag: int, vr: str, little_endian: bool) -> Slot:
    """Where the bytes of the kept or requested attribute ``tag``, in this VR, go and how."""
    return slot(_BY_TAG[tag], vr, little_endian=little_endian)


@dataclass(slots=True)
class Collected:
    """What a reader found of the kept attributes, still as bytes."""

    found: dict[Slot, Buffer] = field(default_factory=dict)
    references: dict[bytes, None] = field(default_factory=dict)
    """Distinct ones, in the order of the data set."""
    requests: list[Found] = field(default_factory=list)
    request: Found = field(default_factory=dict)
    """The one that is being read."""

    def open_request(self) -> None:
        """What is collected of a request from now on is of the next one."""
        self.request = {}
        if len(self.requests) < MOST_COLLECTED:
            self.requests.append(self.request)


_Frame = tuple[bool, int, bool, bool, "Wanted | None"]
"""Where the walk is: (within an item, else between the items of a sequence; where that ends at the
latest; whether it ends just there; whether in implicit VR; what is wanted of the items)."""


class Walk:
    """The way through one data set."""

    most_elements = 250_000
    """So many elements are looked at for the kept attributes (one hopped over is one) ..."""
    most_elements_whole = 5_000_000
    """... and so many after them, to the end of the data set."""

    def __init__(self, data: Buffer, *, little_endian: bool = True) -> None:
        self.data = data
        self.end = len(data)
        self.little_endian = little_endian
        self.collected = Collected()
        self._left = self.most_elements
        self._no_padding = -1
        self._headers = HEADERS[little_endian]
        self._item_header = self._headers.implicit

    def attributes(self, above: CharacterSet) -> Attributes:
        """What was collected, decoded (where no character set is named, as ``above``) and typed."""
        found = self.collected.found
        if isinstance(self.data, bytes):
            raw = cast(Found, found)  # its slices are bytes already
        else:
            raw = {slot: bytes(value) for slot, value in found.items()}
        return typed(raw, list(self.collected.references), self.collected.requests, above)

    def element(self, pos: int, implicit: bool, end: int | None = None) -> Header:
        """That of the element at ``pos``, of which 8 bytes are there; ``end``: of what it is in."""
        found = self._headers.read(self.data, pos, end or self.end, implicit=implicit)
        if not implicit and found[1] in ("", "UN"):  # a doubt takes longer than a look
            self._left -= _COST_OF_DOUBT
            if self._left < 0:
                raise too_many()
        return found

    def after_opaque(self, pos: int) -> int:
        """Where content of undefined length that is not made of items ends. Raises CutShort."""
        found = _DELIMITERS[self.little_endian].search(self.data, pos)
        after = found.end() + 4 if found else self.end + 1
        # What was searched counts, or one could have it searched for ever.
        self._left -= (after - pos) // 1024
        if after > self.end:
            raise CutShort("the data set is cut short in a value of undefined length")
        return after

    def top_level(self, pos: int, implicit: bool, *, whole: bool, complete: bool) -> None:
        """Collects from ``pos`` on; with ``whole``, goes on to the end of the data set."""
        data, end, found = self.data, self.end, self.collected.found
        in_header = True
        while end - pos >= 8 and not self.is_padding(pos):
            tag, vr, length, value = self.element(pos, implicit)
            if in_header and tag > LAST_TAG:
                if not whole:
                    return
                in_header = False
                self._left = self.most_elements_whole
            self._left -= 1
            if self._left < 0:
                raise too_many()
            if tag in WANTED_SEQUENCES and in_header and vr in HOLDS_ITEMS:
                pos = self.sequence(tag, value, length, implicit)
            elif length == UNDEFINED:
                pos = self.through(tag, value, UNDEFINED, implicit, None)
            else:
                pos = value + length
                if pos > end:
                    raise CutShort.within(tag, length, end - value)
                if in_header and tag in WANTED_ELEMENTS:
                    raw = data[value:pos] if length <= LONGEST_VALUE else b""
                    found[slot_of(tag, vr, self.little_endian)] = raw
        self.ended(pos, complete or not in_header)

    def ended(self, pos: int, complete: bool) -> None:
        """The data set ends at ``pos``, where no element header fits any more."""
        if not complete:
            raise CutShort(f"the header does not end within the first {self.end} bytes")
        if not self.is_padding(pos):
            raise CutShort(f"the data set is cut short in an element's header, {self.end} bytes in")

    def is_padding(self, pos: int) -> bool:
        """Whether there is nothing but NULs, line ends and the like from ``pos`` on, or nothing.

        One NUL alone may be what is left of a tag such as (6000,0010).
        """
        head = bytes(self.data[pos : pos + 8])
        if head == b"\0" or head.strip(PADDING):
            return False
        if self._no_padding < pos:  # else asked before: to look again each time would be quadratic
            found = NOT_PADDING.search(self.data, pos)
            self._no_padding = found.start() if found else self.end
        return self._no_padding == self.end

    def sequence(self, tag: int, pos: int, length: int, implicit: bool) -> int:
        """Collects out of the wanted sequence whose value is at ``pos``; where it ends."""
        wanted = WANTED_SEQUENCES[tag]
        if length == UNDEFINED:
            return self.through(tag, pos, length, implicit, wanted)
        after = pos + length
        if after > self.end:
            raise CutShort.within(tag, length, self.end - pos)
        with contextlib.suppress(Malformed, CutShort):  # its length leads past what is wrong in it
            self.through(tag, pos, length, implicit, wanted)
        return after

    def through(
        self, tag: int, pos: int, length: int, implicit: bool, wanted: Wanted | None
    ) -> int:
        """Where the sequence (or the fragments) whose value is at ``pos`` ends.

        Collects what is ``wanted`` of its items. Content of a defined length is hopped over
        unless something is wanted of it. Raises Malformed, CutShort, UnreadableDataSet.
        """
        data, item_header = self.data, self._item_header
        defined = length != UNDEFINED
        limit = pos + length if defined else self.end
        if wanted is None:
            pos = self._past_items(pos)
        stack: list[_Frame] = [(False, limit, defined, implicit, wanted)]
        while stack:
            in_item, limit, defined, implicit, wanted = stack[-1]
            if defined and pos == limit:
                stack.pop()
                continue
            if limit - pos < 8:
                raise self._cut(limit, tag, 8, limit - pos)
            self._left -= 1
            if self._left < 0:
                raise too_many()
            if in_item:
                tag, vr, length, value = self.element(pos, implicit, limit)
                if tag == ITEM_DELIMITER and not defined:
                    stack.pop()
                    pos = value
                    continue
                kept = wanted[tag] if wanted and tag in wanted else None
                within = kept if isinstance(kept, dict) and vr in HOLDS_ITEMS else None
                opens = length == UNDEFINED or within is not None
            else:
                group, element, length = item_header(data, pos)
                tag, value = group << 16 | element, pos + 8
                if tag == SEQUENCE_DELIMITER and not defined:
                    stack.pop()
                    pos = value
                    continue
                if tag != ITEM:
                    if defined:
                        raise Malformed
                    pos = self.after_opaque(pos) - 8  # at the delimiter
                    continue
                kept, within = None, wanted
                opens = length == UNDEFINED or wanted is not None
                if opens and wanted is _REQUEST:
                    self.collected.open_request()
                if opens and not implicit:
                    # So it is in UN of undefined length (PS3.5 6.2.2), and some writers put it
                    # elsewhere.
                    implicit = self._headers.is_implicit(data, value, self.end, said=False)
            after = limit if length == UNDEFINED else value + length
            if after > limit:
                raise self._cut(limit, tag, length, limit - value)
            if not opens:
                if isinstance(kept, KeptAttribute):
                    raw = bytes(data[value:after]) if length <= LONGEST_VALUE else b""
                    self._collect(wanted, kept, vr, raw)
                pos = after
                continue
            if len(stack) == DEEPEST:
                raise UnreadableDataSet(f"the data set is nested too deeply in {spell(tag)}")
            stack.append((not in_item, after, length != UNDEFINED, implicit, within))
            pos = value
        return pos

    def _past_items(self, pos: int) -> int:
        """Where the items of a defined length from ``pos`` on end: the many, at little cost."""
        data, end, item_header = self.data, self.end, self._item_header
        while end - pos >= 8:
            group, element, length = item_header(data, pos)
            if element != 0xE000 or group != 0xFFFE or length == UNDEFINED:
                break
            pos += 8 + length
            self._left -= 1
            if self._left < 0:
                raise too_many()
        if pos > end:
            raise CutShort.within(ITEM, length, end - pos + length)
        return pos

    def _collect(self, of: Wanted | None, kept: KeptAttribute, vr: str, raw: bytes) -> None:
        if of is _REQUEST:
            self.collected.request[slot_of(kept.tag, vr, self.little_endian)] = raw
        elif vr in ("UI", "UN", "") and len(self.collected.references) < MOST_COLLECTED:
            self.collected.references[raw] = None

    def _cut(self, limit: int, tag: int, declared: int, there: int) -> Exception:
        if limit < self.end:
            return Malformed()  # not cut: it does not fit into what it is in
        return CutShort.within(tag, declared, max(there, 0))
