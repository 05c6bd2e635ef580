"""The elements of a data set as a tree in memory, for what describes an instance elsewhere.

Read by ``archive.flatten`` (bounded, whatever a peer has sent), up to the pixel data, which is
not touched. What an export needs: the values as they are encoded, for a DICOMDIR, and as JSON has
them, for a viewer.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from math import isfinite
from typing import Any, NamedTuple

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.elements import (
    CHARACTER_SET,
    FIRST_OF_PIXELS,
    NUMBERS,
    PIXEL_REPRESENTATION,
    UNSPLIT,
    WIDTHS,
    encode_element,
    encode_item,
    swapped,
)
from plainpacs.archive.dicom.flatten import DataSet, Leaf

LONGEST_VALUE = 64 << 10
"""Bytes; of a longer value it is only known that it is there."""

_PADDING = " \0"
_TEXTS = frozenset(("LO", "LT", "SH", "ST", "UC", "UT"))
_CODES = frozenset(("AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"))


class Element(NamedTuple):
    """One element. ``vr`` is a VR of PS3.5 6.2 (UN when nobody knows it). ``value``: the bytes as
    encoded, the items of a sequence, or None when it is too long to be kept."""

    vr: str
    value: bytes | list[Elements] | None
    little_endian: bool = True


Elements = dict[int, Element]
"""By tag: ``0x00100010``."""


def read_elements(
    data_set: DataSet,
    wanted: Container[int] | None = None,
    *,
    longest: float = LONGEST_VALUE,
    pixels: list[Leaf] | None = None,
) -> Elements:
    """The elements up to the pixel data; with ``wanted``, of the top level only those.

    ``longest``: bytes of a value that is kept. ``pixels``: a list that gets what comes from the
    pixel data on; without one that is not looked at. Raises UnreadableDataSet when they cannot be
    followed.
    """
    top: Elements = {}
    # Items and data set that are open, by their paths: those of ``flatten`` come in order.
    holders: dict[tuple[int, ...], Elements] = {(): top}
    signed = False
    for leaf in data_set:
        path = leaf.path
        if path[0] >= FIRST_OF_PIXELS:
            if pixels is None:
                break
            pixels.append(leaf)
            continue
        if wanted is not None and path[0] not in wanted:
            continue
        if len(path) % 2 == 0:  # an item
            sequence = holders[path[:-2]][path[-2]].value
            assert isinstance(sequence, list)
            item: Elements = {}
            holders[path] = item
            sequence.append(item)
            continue
        tag = path[-1]
        holder = holders[path[:-1]]
        if leaf.vr == "SQ":
            holder[tag] = Element("SQ", [])
            continue
        vr = leaf.vr if leaf.vr not in ("", "UN") else _vr_of(tag, signed)
        whole = leaf.end - leaf.start <= longest
        raw = bytes(data_set.data[leaf.start : leaf.end]) if whole else None
        holder[tag] = Element(vr, raw, leaf.little_endian)
        if tag == PIXEL_REPRESENTATION and raw:
            signed = any(raw)
    return top


def _vr_of(tag: int, signed: bool) -> str:
    try:
        vr = str(dictionary_VR(tag))
    except KeyError:
        return "UN"
    if vr == "US or SS":
        return "SS" if signed else "US"
    return vr[:2] if vr != "NONE" else "UN"


# --- as JSON ------------------------------------------------------------------------------------


def read_tags(*keywords: str) -> frozenset[int]:
    """The tags to ask ``read_elements`` for."""
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)


def as_json(elements: Elements, above: CharacterSet = DEFAULT) -> dict[str, Any]:
    """By keyword, as viewers in JavaScript have it: one value alone, several as an array, a
    sequence as an array of objects; numbers as numbers, person names with all component groups.

    Left out: what is empty, binary, too long to be kept, or has no keyword (private elements).
    """
    texts = above
    declared = elements.get(CHARACTER_SET)
    if declared is not None and isinstance(declared.value, bytes):
        texts = above.declared(_split(declared.value.decode("latin-1")))
    found: dict[str, Any] = {}
    for tag, element in elements.items():
        keyword = keyword_for_tag(tag)
        if not keyword:
            continue
        value = _json_value(element, texts)
        if value not in (None, "", []):
            found[keyword] = value
    return found


def _json_value(element: Element, texts: CharacterSet) -> Any:
    vr, value = element.vr, element.value
    if value is None:
        return None
    if isinstance(value, list):
        return [as_json(item, texts) for item in value]
    values: list[Any]
    if vr == "PN":
        values = _split(texts.decode(value, name=True))
    elif vr in UNSPLIT:
        return texts.decode(value).strip(_PADDING)
    elif vr in _TEXTS:
        values = _split(texts.decode(value))
    elif vr in _CODES:
        values = _split(DEFAULT.decode(value))
    elif vr in ("DS", "IS"):
        values = [_number(part, whole=vr == "IS") for part in _split(DEFAULT.decode(value))]
    elif vr in NUMBERS:
        values = _binary(NUMBERS[vr], value, element.little_endian)
    elif vr == "AT":
        pairs = _binary("H", value, element.little_endian)
        values = [
            f"{group:04X}{number:04X}" for group, number in zip(*[iter(pairs)] * 2, strict=False)
        ]
    else:
        return None
    if None in values:
        return None
    return values[0] if len(values) == 1 else values


def _split(text: str) -> list[str]:
    parts = [part.strip(_PADDING) for part in text.split("\\")]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _number(text: str, *, whole: bool) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not isfinite(number):
        return None
    return int(number) if whole or (number.is_integer() and abs(number) < 1 << 53) else number


def _binary(code: str, value: bytes, little_endian: bool) -> list[Any]:
    numbers = struct.Struct(("<" if little_endian else ">") + code)
    whole = len(value) - len(value) % numbers.size
    found = [number for (number,) in numbers.iter_unpack(value[:whole])]
    return [None if isinstance(n, float) and not isfinite(n) else n for n in found]


# --- as they are encoded ------------------------------------------------------------------------


def encode(tag: int, element: Element) -> bytes:
    """``element`` in Explicit VR Little Endian, its items too. Raises ValueError when its value
    was not kept, or is too long for its VR."""
    value = element.value
    if value is None:
        raise ValueError("the value is not at hand")
    if isinstance(value, list):
        items = (b"".join(encode(*one) for one in sorted(item.items())) for item in value)
        value = b"".join(map(encode_item, items))
    elif not element.little_endian:
        value = swapped(value, WIDTHS.get(element.vr, 1))
    return encode_element(tag, element.vr, value)
