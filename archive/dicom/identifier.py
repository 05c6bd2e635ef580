"""Identifiers: the small data sets that requests and responses carry, as they are read.

Queries, retrieves and storage commitment have them (PS3.4 C.4, J.3), in Explicit or Implicit VR
Little Endian. They are read whole, as elements with the bytes that came; what a peer can get wrong
raises BadIdentifier. ``identifier_writing`` is the other way.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.dictionary import tag_of, vr_of
from plainpacs.archive.dicom.elements import (
    CHARACTER_SET,
    IN_CHARACTER_SET,
    ITEM,
    LONG_VRS,
    NUMBERS,
    SEQUENCE_DELIMITER,
    SHORT_VRS,
    UNDEFINED,
)
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN as EXPLICIT
from plainpacs.archive.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN as IMPLICIT

LEVEL = 0x00080052
_ITEM_END_BYTES = b"\xfe\xff\x0d\xe0"
LONGEST = 1 << 18
"""Bytes of what asks for something: room for thousands of UIDs."""
MOST_PARTS = 1000
_MOST_CHARACTER_SETS = 64
_DEEPEST = 16
"""Sequences within one another; of those that queries have, none is in another."""

_TAG_AND_LENGTH = struct.Struct("<HHL")
_SHORT = struct.Struct("<H")
_LONG = struct.Struct("<L")

PADDING = " \0"


class BadIdentifier(Exception):
    """It cannot be read. ``tag``: of the element that it is about, 0 when of none. The words are
    ours alone and fit into an Error Comment."""

    def __init__(self, words: str, tag: int = 0) -> None:
        super().__init__(words)
        self.tag = tag


@dataclass(frozen=True, slots=True)
class Element:
    """``value``: its bytes as they came; ``items``: of a sequence."""

    vr: str
    value: bytes
    items: tuple[DataSet, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """An identifier, or an item of it. ``elements`` by tag, in the order that they came."""

    elements: Mapping[int, Element]
    character_set: CharacterSet = field(default=DEFAULT)

    def text(self, keyword: str) -> str:
        """The value, decoded, without padding at its ends; empty when there is none."""
        return self.text_at(tag_of(keyword))

    def text_at(self, tag: int) -> str:
        found = self.elements.get(tag)
        if found is None or found.items:
            return ""
        if found.vr in NUMBERS:
            return "\\".join(map(str, _numbers(found)))
        if found.vr in IN_CHARACTER_SET:
            decoded = self.character_set.decode(found.value, name=found.vr == "PN")
        else:
            decoded = found.value.decode("ascii", "replace")
        return decoded.strip(PADDING)

    def texts(self, keyword: str) -> list[str]:
        """The values, without padding, empty ones left out."""
        values = (value.strip(PADDING) for value in self.text(keyword).split("\\"))
        return [value for value in values if value]

    def items(self, keyword: str) -> tuple[DataSet, ...]:
        """The items of a sequence."""
        found = self.elements.get(tag_of(keyword))
        return found.items if found else ()


def _numbers(element: Element) -> list[int | float]:
    shape = struct.Struct("<" + NUMBERS[element.vr])
    whole = len(element.value) - len(element.value) % shape.size
    return [number for (number,) in shape.iter_unpack(element.value[:whole])]


# --- reading --------------------------------------------------------------------------------------


def read(
    data: Buffer, transfer_syntax: str, outer: CharacterSet = DEFAULT, *,
    longest: int = LONGEST, most_parts: int = MOST_PARTS,
) -> DataSet:  # fmt: skip
    """The identifier in ``data``, of which nothing is kept; ``outer``: the character set unless it
    names one. Raises BadIdentifier, also when it is longer than ``longest`` bytes, or has more than
    ``most_parts`` elements and items."""
    if len(data) > longest:
        raise BadIdentifier(f"the identifier is longer than {longest} bytes")
    found, _ = _Reader(bytes(data), most_parts).data_set(
        0, len(data), outer, depth=0, explicit=transfer_syntax == EXPLICIT
    )
    return found


def of_pydicom(found: Dataset, outer: CharacterSet = DEFAULT, depth: int = 0) -> DataSet:
    """What pydicom read in little endian, with the bytes that came. Raises BadIdentifier."""
    elements: dict[int, Element] = {}
    for tag in found.keys():  # noqa: SIM118 - a Dataset's iterator decodes the values
        raw = found.get_item(tag)
        number = int(tag)
        vr = raw.VR if raw.VR and raw.VR != "UN" else vr_of(number)
        if vr == "SQ" or (raw.VR == "SQ"):
            if depth >= _DEEPEST:
                raise BadIdentifier("too many sequences within one another", number)
            try:
                items = found[tag].value
            except Exception as error:  # whatever pydicom raises
                raise BadIdentifier("a sequence cannot be read", number) from error
            within = _character_set(elements, outer)
            elements[number] = Element(
                "SQ", b"", tuple(of_pydicom(item, within, depth + 1) for item in items)
            )
        elif number & 0xFFFF and number >> 16 > 0x0002:
            value = raw.value if isinstance(raw, RawDataElement) else b""
            elements[number] = Element(vr, value or b"")
    return _finished(elements, outer)


def read_until(
    data: Buffer, transfer_syntax: str, last: int, outer: CharacterSet = DEFAULT
) -> tuple[DataSet, bool]:
    """The elements of a data set up to the tag ``last``, as far as they can be read; and whether
    that is all of them. ``data`` may be only the beginning of it."""
    reader = _Reader(bytes(data), len(data))
    elements: dict[int, Element] = {}
    at, end = 0, len(data)
    explicit = transfer_syntax != IMPLICIT
    try:
        while at < end and next(reversed(elements), 0) <= last:
            at = reader.element(at, end, elements, outer, depth=0, explicit=explicit)
    except BadIdentifier:
        return _finished(elements, outer), False
    return _finished(elements, outer), True


class _Reader:
    """The nested parts of one identifier. Positions are those in ``data``."""

    def __init__(self, data: bytes, most_parts: int = MOST_PARTS) -> None:
        self._data = data
        self._most = self._left = most_parts

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BadIdentifier(f"more than {self._most} elements and items")

    def data_set(
        self, at: int, end: int, outer: CharacterSet, *, depth: int, explicit: bool,
        delimited: bool = False,
    ) -> tuple[DataSet, int]:  # fmt: skip
        """The elements from ``at`` to ``end``, or, ``delimited``, to the end of the item; and where
        what follows starts. ``outer``: the character set unless they name one (PS3.5 7.5.3)."""
        elements: dict[int, Element] = {}
        while at < end:
            if delimited and self._data[at : at + 4] == _ITEM_END_BYTES:
                return _finished(elements, outer), at + 8
            at = self.element(at, end, elements, outer, depth=depth, explicit=explicit)
        if delimited:
            raise BadIdentifier("an item has no end")
        return _finished(elements, outer), at

    def element(
        self, at: int, end: int, elements: dict[int, Element], outer: CharacterSet, *,
        depth: int, explicit: bool,
    ) -> int:  # fmt: skip
        """Puts the element at ``at`` into ``elements``; gives where the next one starts."""
        self._count()
        if end - at < 8:
            raise BadIdentifier("the identifier ends within an element")
        group, number, length = _TAG_AND_LENGTH.unpack_from(self._data, at)
        tag = group << 16 | number
        if group == 0xFFFE:
            raise BadIdentifier("a delimiter that delimits nothing", tag)
        vr, length, value = self._header(at, end, tag, length, explicit)
        if vr == "SQ" or length == UNDEFINED:
            if depth >= _DEEPEST:
                raise BadIdentifier("too many sequences within one another", tag)
            # In UN they are always in implicit VR (PS3.5 6.2.2, Note 4).
            within = explicit and vr != "UN"
            charset = _character_set(elements, outer)
            items, at = self._items(value, end, length, tag, charset, depth=depth, explicit=within)
            elements[tag] = Element("SQ", b"", items)
            return at
        at = value + length
        if at > end:
            raise BadIdentifier("an element is longer than what it lies in", tag)
        # Nobody needs the length of a group; and Orthanc sends elements of File Meta Information.
        if number and group > 0x0002:
            if tag == CHARACTER_SET and self._data.count(b"\\", value, at) >= _MOST_CHARACTER_SETS:
                raise BadIdentifier(f"more than {_MOST_CHARACTER_SETS} character sets", tag)
            elements[tag] = Element(vr, self._data[value:at])
        return at

    def _header(
        self, at: int, end: int, tag: int, length: int, explicit: bool
    ) -> tuple[str, int, int]:
        """VR, length and where the value starts."""
        if not explicit:
            return vr_of(tag), length, at + 8
        vr = self._data[at + 4 : at + 6].decode("ascii", "replace")
        if vr in SHORT_VRS:
            return vr, _SHORT.unpack_from(self._data, at + 6)[0], at + 8
        if vr not in LONG_VRS:
            raise BadIdentifier("an element has no valid VR", tag)
        if end - at < 12:
            raise BadIdentifier("the identifier ends within an element", tag)
        return vr, _LONG.unpack_from(self._data, at + 8)[0], at + 12

    def _items(
        self, at: int, end: int, length: int, tag: int, outer: CharacterSet, *, depth: int,
        explicit: bool,
    ) -> tuple[tuple[DataSet, ...], int]:  # fmt: skip
        open_end = length == UNDEFINED
        if not open_end:
            if at + length > end:
                raise BadIdentifier("a sequence is longer than what it lies in", tag)
            end = at + length
        items: list[DataSet] = []
        while at < end:
            if end - at < 8:
                raise BadIdentifier("the identifier ends within a sequence", tag)
            group, number, length = _TAG_AND_LENGTH.unpack_from(self._data, at)
            found, at = group << 16 | number, at + 8
            if found == SEQUENCE_DELIMITER and open_end:
                return tuple(items), at
            if found != ITEM:
                raise BadIdentifier("a sequence has something other than items", tag)
            delimited = length == UNDEFINED
            stop = end if delimited else at + length
            if stop > end:
                raise BadIdentifier("an item is longer than its sequence", tag)
            self._count()
            item, at = self.data_set(
                at, stop, outer, depth=depth + 1, explicit=explicit, delimited=delimited
            )
            items.append(item)
        if open_end:
            raise BadIdentifier("a sequence has no end", tag)
        return tuple(items), at


def _finished(elements: Mapping[int, Element], outer: CharacterSet) -> DataSet:
    return DataSet(elements, _character_set(elements, outer))


def _character_set(elements: Mapping[int, Element], outer: CharacterSet) -> CharacterSet:
    named = elements.get(CHARACTER_SET)
    return outer.declared(terms_of(named.value)) if named else outer


def terms_of(value: bytes) -> list[str]:
    """The values of (0008,0005), of which the first may be empty; none when there is none."""
    terms = [term.strip(PADDING) for term in value.decode("ascii", "replace").split("\\")]
    return terms if any(terms) else []
