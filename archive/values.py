"""From the bytes of kept elements to values that JSON can hold.

One place for both readers of data sets: they find the bytes, this module says what they mean.

- Text: decoded by the Specific Character Set, then freed of blanks and control characters at both
  ends. Nothing else of it changes; a backslash in a keyword of one value is part of the value.
- IS and US: integers. IS takes a decimal notation too when it is a whole number. DS: always a
  float, never ``-0.0``. What is not a number, is not finite, or is an integer beyond 2**53 - 1
  either way (where JSON readers stop agreeing) is left out.
- A keyword of several values: split at backslashes, each value as above, empty values at the end
  dropped. One value among numbers that is not a number leaves the attribute out.
- An element in another VR than the dictionary's: binary numbers are taken for numbers, text and
  bytes (UN, OB, OW) are read as the dictionary says, all else is left out.
- A value longer than LONGEST_VALUE bytes is left out. Of an element that is there twice the last
  one counts.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from plainpacs.archive.attributes import KeptAttribute
from plainpacs.archive.charset import DEFAULT, CharacterSet, character_set

Buffer = bytes | bytearray | memoryview
Attributes = dict[str, Any]
"""By keyword; str, int, float, or a list of these (RequestAttributesSequence: of dicts of str)."""

LONGEST_VALUE = 16_384
"""Bytes. Longer values are no values of these attributes (PS3.5 Table 6.2-1 allows far less)."""
MOST_REFERENCES = 16
MOST_REQUESTS = 16

# What pads a value: blank, and control characters, which no kept value starts or ends with.
_PADDING = " \x7f" + "".join(map(chr, range(32)))
_LARGEST = 2**53 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,17}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Texts:
    """Decodes the texts of one data set; looks for its character set when one is not ASCII."""

    __slots__ = ("_found", "_parent", "_set")

    def __init__(self, found: Found, parent: Texts | None = None) -> None:
        self._found = found
        self._parent = parent
        self._set: CharacterSet | None = None

    def text(self, raw: Buffer, *, name: bool = False) -> str:
        return self._character_set().decode(bytes(raw), name=name).strip(_PADDING)

    def _character_set(self) -> CharacterSet:
        if self._set is None:
            terms = None
            for (keyword, convert), raw in self._found:
                if keyword == "SpecificCharacterSet" and len(raw) <= LONGEST_VALUE:
                    terms = convert(raw, self) or []
            if terms is not None:
                self._set = character_set(terms)
            elif self._parent:  # an item without one inherits it (PS3.5 7.5.3)
                self._set = self._parent._character_set()
            else:
                self._set = DEFAULT
        return self._set


Convert = Callable[[Buffer, Texts], Any]
"""The value of these bytes; None or an empty one when there is none."""
Slot = tuple[str, Convert]
Found = list[tuple[Slot, Buffer]]


def _text(raw: Buffer, texts: Texts) -> str:
    # In every character set, ASCII without an escape stands for itself.
    try:
        text = str(raw, "ascii")
    except UnicodeDecodeError:
        return texts.text(raw)
    return texts.text(raw) if "\x1b" in text else text.strip(_PADDING)


def _name(raw: Buffer, texts: Texts) -> str:
    try:
        text = str(raw, "ascii")
    except UnicodeDecodeError:
        return texts.text(raw, name=True)
    return texts.text(raw, name=True) if "\x1b" in text else text.strip(_PADDING)


def _texts(raw: Buffer, texts: Texts) -> list[str]:
    return _split(_text(raw, texts))


def _terms(raw: Buffer, _: Texts) -> list[str]:
    # The character set's own value is in none (PS3.5 6.1.2.2).
    return _split(DEFAULT.decode(bytes(raw)))


def _split(text: str) -> list[str]:
    parts = [part.strip(_PADDING) for part in text.split("\\")]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _integer(raw: Buffer, _: Texts) -> int | None:
    try:
        text = str(raw, "ascii").strip(_PADDING)
    except UnicodeDecodeError:
        return None
    if _INTEGER.fullmatch(text):
        return _within(int(text))
    number = _float(text)
    return _within(int(number)) if number is not None and number.is_integer() else None


def _within(number: int) -> int | None:
    return number if -_LARGEST <= number <= _LARGEST else None


def _float(text: str) -> float | None:
    if not _DECIMAL.fullmatch(text):
        return None
    number = float(text) + 0.0  # which makes -0.0 0.0
    return number if math.isfinite(number) else None


def _decimal(raw: Buffer, _: Texts) -> float | None:
    try:
        return _float(str(raw, "ascii").strip(_PADDING))
    except UnicodeDecodeError:
        return None


def _decimals(raw: Buffer, _: Texts) -> list[float] | None:
    try:
        parts = _split(str(raw, "ascii"))
    except UnicodeDecodeError:
        return None
    numbers = [number for number in map(_float, parts) if number is not None]
    return numbers if len(numbers) == len(parts) else None


def _no_value(_: Buffer, __: Texts) -> None:
    return None


def _binary_numbers(code: str, little_endian: bool) -> Callable[[Buffer], Sequence[int | float]]:
    size = struct.calcsize("<" + code)
    order = "<" if little_endian else ">"

    def unpack(raw: Buffer) -> Sequence[int | float]:
        count, rest = divmod(len(raw), size)
        return () if rest else struct.unpack_from(f"{order}{count}{code}", raw)

    return unpack


def _from_binary(attribute: KeptAttribute, unpack: Callable[[Buffer], Sequence[Any]]) -> Convert:
    def one_integer(raw: Buffer, _: Texts) -> int | None:
        numbers = unpack(raw)
        if len(numbers) != 1 or isinstance(numbers[0], float):
            return None
        return _within(numbers[0])

    def floats(raw: Buffer, _: Texts) -> list[float] | None:
        numbers = [float(number) + 0.0 for number in unpack(raw)]
        return numbers if all(map(math.isfinite, numbers)) else None

    def one_float(raw: Buffer, texts: Texts) -> float | None:
        numbers = floats(raw, texts)
        return numbers[0] if numbers and len(numbers) == 1 else None

    if attribute.vr in ("IS", "US"):
        return one_integer
    if attribute.vr == "DS":
        return floats if attribute.multiple else one_float
    return _no_value


_TEXT_VRS = frozenset(
    (
        "AE",
        "AS",
        "CS",
        "DA",
        "DS",
        "DT",
        "IS",
        "LO",
        "LT",
        "PN",
        "SH",
        "ST",
        "TM",
        "UC",
        "UI",
        "UR",
        "UT",
    )
)
_BYTES_VRS = frozenset(("UN", "OB", "OW", ""))
_BINARY_VRS = {  # as struct spells them
    "US": "H",
    "SS": "h",
    "UL": "I",
    "SL": "i",
    "UV": "Q",
    "SV": "q",
    "FL": "f",
    "FD": "d",
}


def slot(attribute: KeptAttribute, vr: str, *, little_endian: bool = True) -> Slot:
    """Where the bytes of ``attribute`` go and how, when its VR is ``vr`` ('' in implicit VR)."""
    return attribute.keyword, _converter(attribute, vr, little_endian)


def _converter(attribute: KeptAttribute, vr: str, little_endian: bool) -> Convert:
    if vr in _BYTES_VRS:
        vr = attribute.vr
    if vr in _BINARY_VRS:
        return _from_binary(attribute, _binary_numbers(_BINARY_VRS[vr], little_endian))
    if vr not in _TEXT_VRS:
        return _no_value
    match attribute.vr:
        case "IS" | "US":
            return _integer
        case "DS":
            return _decimals if attribute.multiple else _decimal
        case "PN":
            return _name
        case _ if attribute.keyword == "SpecificCharacterSet":
            return _terms
        case _:
            return _texts if attribute.multiple else _text


def vr_code(vr: str) -> int:
    """``vr`` as the number its two bytes are in little endian; 0 for none."""
    return int.from_bytes(vr.encode("ascii"), "little")


def typed(found: Found, references: Found, requests: Sequence[Found]) -> Attributes:
    """The attributes in what a reader found, in the order of the data set; empty ones left out.

    ``references``: the UIDs of the instances referred to; ``requests``: one for each item of
    RequestAttributesSequence.
    """
    texts = Texts(found)
    attributes = _values(found, texts)
    uids: dict[str, None] = {}
    for (_, convert), raw in references:
        if len(raw) <= LONGEST_VALUE:
            uids.update(dict.fromkeys(filter(None, convert(raw, texts))))
    if uids:
        attributes["ReferencedSOPInstanceUID"] = list(uids)[:MOST_REFERENCES]
    items = [_values(item, Texts(item, texts)) for item in requests]
    for item in items:
        item.pop("SpecificCharacterSet", None)
    if kept := [item for item in items if item]:
        attributes["RequestAttributesSequence"] = kept[:MOST_REQUESTS]
    return attributes


def _values(found: Found, texts: Texts) -> Attributes:
    values: Attributes = {}
    for (keyword, convert), raw in found:
        value = convert(raw, texts) if len(raw) <= LONGEST_VALUE else None
        if value or value == 0:
            values[keyword] = value
        elif keyword in values:
            del values[keyword]
    return values
