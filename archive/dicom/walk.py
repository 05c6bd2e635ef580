"""Data elements as bytes (PS3.5 7.1): what the readers of data sets share.

Which elements are wanted, how a cut or unfollowable data set is told, and the way through nested
content. Nesting is followed with a stack of our own, so that no depth of it can end in a
RecursionError, and bounded: in depth, and in the number of elements looked at.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from struct import Struct
from typing import cast

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.attributes import BY_KEYWORD, KEPT, REQUESTED, KeptAttribute
from plainpacs.archive.dicom.charset import CharacterSet
from plainpacs.archive.dicom.elements import (
    ITEM,
    ITEM_DELIMITER,
    SEQUENCE_DELIMITER,
    UNDEFINED,
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
DEEPEST = 256
"""Levels of nested content of undefined length."""

_ITEM_LITTLE, _ITEM_BIG = Struct("<HHI").unpack_from, Struct(">HHI").unpack_from
NOT_ZERO = re.compile(rb"[^\0]")


class NotUnderstood(Exception):
    """The walker met something it cannot be sure of; pydicom is to judge."""


class CutShort(UnreadableDataSet):
    """The data set ends before the element that was being read does."""

    @classmethod
    def within(cls, tag: int, declared: int, there: int) -> CutShort:
        return cls(
            f"the data set is cut short in {spell(tag)}: {declared} bytes declared, {there} there"
        )


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


class Walk(ABC):
    """The way through one data set. A reader says how an element's header is read."""

    last_judge = False
    """Whether nobody else can be asked when this reader does not understand."""
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
        self._not_zero = -1
        self._item_header = _ITEM_LITTLE if little_endian else _ITEM_BIG

    def attributes(self, above: CharacterSet) -> Attributes:
        """What was collected, decoded (where no character set is named, as ``above``) and typed."""
        found = self.collected.found
        if isinstance(self.data, bytes):
            raw = cast(Found, found)  # its slices are bytes already
        else:
            raw = {slot: bytes(value) for slot, value in found.items()}
        return typed(raw, list(self.collected.references), self.collected.requests, above)

    @abstractmethod
    def element(self, pos: int, implicit: bool) -> tuple[int, str, int, int]:
        """(tag, VR or '', length, position of the value) of the element at ``pos``.

        There are at least 8 bytes at ``pos``. Raises NotUnderstood or CutShort.
        """

    def after_opaque(self, pos: int) -> int:
        """Where content of undefined length that is not made of items ends."""
        raise NotUnderstood

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
        """Whether there is nothing but NULs from ``pos`` on, two at least, or nothing at all.

        One NUL may be what is left of a tag such as (6000,0010).
        """
        if self.end - pos == 1 or any(self.data[pos : pos + 8]):
            return False
        if self._not_zero < pos:  # else asked before: to look again each time would be quadratic
            found = NOT_ZERO.search(self.data, pos)
            self._not_zero = found.start() if found else self.end
        return self._not_zero == self.end

    def sequence(self, tag: int, pos: int, length: int, implicit: bool) -> int:
        """Collects out of the wanted sequence whose value is at ``pos``; where it ends."""
        wanted = WANTED_SEQUENCES[tag]
        if length == UNDEFINED:
            return self.through(tag, pos, length, implicit, wanted)
        after = pos + length
        if after > self.end:
            raise CutShort.within(tag, length, self.end - pos)
        try:
            self.through(tag, pos, length, implicit, wanted)
        except (NotUnderstood, CutShort):
            if not self.last_judge:
                raise NotUnderstood from None
            # Its length leads past what is malformed in it.
        return after

    def through(
        self, tag: int, pos: int, length: int, implicit: bool, wanted: Wanted | None
    ) -> int:
        """Where the sequence (or the fragments) whose value is at ``pos`` ends.

        Collects what is ``wanted`` of its items. Content of a defined length is hopped over
        unless something is wanted of it. Raises NotUnderstood, CutShort, UnreadableDataSet.
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
                tag, vr, length, value = self.element(pos, implicit)
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
                        raise NotUnderstood
                    pos = self.after_opaque(pos) - 8  # at the delimiter
                    continue
                kept, within = None, wanted
                opens = length == UNDEFINED or wanted is not None
                if opens and wanted is _REQUEST:
                    self.collected.open_request()
                if opens and not implicit:
                    implicit = self._looks_implicit(value)
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

    def _looks_implicit(self, pos: int) -> bool:
        # UN of undefined length holds implicit VR (PS3.5 6.2.2), and some writers put it elsewhere.
        if self.end - pos < 8:
            return False
        return not (0x41 <= self.data[pos + 4] <= 0x5A and 0x41 <= self.data[pos + 5] <= 0x5A)

    def _cut(self, limit: int, tag: int, declared: int, there: int) -> Exception:
        if limit < self.end:
            return NotUnderstood()  # not cut: it does not fit into what it is in
        return CutShort.within(tag, declared, max(there, 0))
