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

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

from plainpacs.archive.dicom.attributes import KeptAttribute
from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.elements import NUMBERS, TEXTS

Attributes = dict[str, Any]
"""By keyword; str, int, float, or a list of these (RequestAttributesSequence: of dicts of str)."""

LONGEST_VALUE = 0xFFFF
"""Bytes: what a length of two bytes can say. PS3.5 Table 6.2-1 allows far less for all of these."""
MOST_REFERENCES = 16
MOST_REQUESTS = 16

# What pads a value: blank, and control characters, which no kept value starts or ends with. But an
# escape starts an escape sequence.
ESCAPE = 0x1B
_PADDING = " \x7f" + "".join(map(chr, {*range(32)} - {ESCAPE}))
_PADDING_BYTES = _PADDING.encode()
_LARGEST = 2**53 - 1
# float reads more than DICOM writes ("1_0", "nan"): no other characters may be there.
_IN_NUMBERS = b"0123456789+-.eE \\"


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """What becomes of an element's bytes: whose value they are, and how it is read."""

    keyword: str
    convert: Callable[[bytes, Texts], Any]
    """The value of these bytes; None or an empty one when there is none."""


Found = dict[Slot, bytes]
"""In the order of the data set; an element that comes again takes the place of the first."""


class Texts:
    """Decodes the texts of one data set; looks for its character set when one is not ASCII."""

    __slots__ = ("_above", "_found", "_set")

    def __init__(self, found: Found, above: CharacterSet | Texts) -> None:
        """``above``: what an item without a character set inherits (PS3.5 7.5.3)."""
        self._found = found
        self._above = above
        self._set: CharacterSet | None = None

    def text(self, raw: bytes, *, name: bool = False) -> str:
        return self.character_set().decode(raw, name=name).strip(_PADDING)

    def character_set(self) -> CharacterSet:
        if self._set is None:
            above = self._above
            self._set = above if isinstance(above, CharacterSet) else above.character_set()
            for slot, raw in self._found.items():
                if slot.keyword == "SpecificCharacterSet":
                    self._set = self._set.declared(_codes(raw, self))
                    break
        return self._set


def _text(raw: bytes, texts: Texts) -> str:
    # In every character set, ASCII without an escape stands for itself.
    if raw.isascii() and ESCAPE not in raw:
        return raw.decode().strip(_PADDING)
    return texts.text(raw)


def _name(raw: bytes, texts: Texts) -> str:
    if raw.isascii() and ESCAPE not in raw:
        return raw.decode().strip(_PADDING)
    return texts.text(raw, name=True)


def _code(raw: bytes, _: Texts) -> str:
    # The character set is not for these VRs (PS3.5 6.1.2.2); what should not be there is taken
    # as text without a character set is.
    try:
        return raw.decode().strip(_PADDING)
    except UnicodeDecodeError:
        return DEFAULT.decode(raw).strip(_PADDING)


def _codes(raw: bytes, texts: Texts) -> list[str]:
    return _split(_code(raw, texts))


def _split(text: str) -> list[str]:
    parts = [part.strip(_PADDING) for part in text.split("\\")]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _integer(raw: bytes, _: Texts) -> int | None:
    text = raw.strip(_PADDING_BYTES)
    if text.isdigit() and len(text) < 16:
        return int(text)
    number = _float(text)
    return _within(int(number)) if number is not None and number.is_integer() else None


def _within(number: int) -> int | None:
    return number if -_LARGEST <= number <= _LARGEST else None


def _decimal(raw: bytes, _: Texts) -> float | None:
    return _float(raw.strip(_PADDING_BYTES))


def _float(text: bytes) -> float | None:
    if text.translate(None, _IN_NUMBERS):
        return None
    try:
        number = float(text) + 0.0  # which makes -0.0 0.0
    except ValueError:
        return None
    return number if isfinite(number) else None


def _decimals(raw: bytes, _: Texts) -> list[float] | None:
    text = raw.strip(_PADDING_BYTES)
    if text.translate(None, _IN_NUMBERS):
        return None
    try:
        numbers = [float(part) + 0.0 for part in text.rstrip(b" \\").split(b"\\")]
    except ValueError:
        return None
    return numbers if all(map(isfinite, numbers)) else None


def _no_value(_: bytes, __: Texts) -> None:
    return None


def _from_binary(attribute: KeptAttribute, code: str, order: str) -> Callable[[bytes, Texts], Any]:
    number = struct.Struct(order + code)

    def one_integer(raw: bytes, _: Texts) -> int | None:
        return _within(number.unpack(raw)[0]) if len(raw) == number.size else None

    def floats(raw: bytes, _: Texts) -> list[float] | None:
        if len(raw) % number.size:
            return None
        numbers = [float(each) + 0.0 for (each,) in number.iter_unpack(raw)]
        return numbers if all(map(isfinite, numbers)) else None

    def one_float(raw: bytes, texts: Texts) -> float | None:
        numbers = floats(raw, texts)
        return numbers[0] if numbers and len(numbers) == 1 else None

    if attribute.vr in ("IS", "US") and code in "fd":
        return _no_value
    if attribute.vr in ("IS", "US"):
        return one_integer
    if attribute.vr == "DS":
        return floats if attribute.multiple else one_float
    return _no_value


_BYTES_VRS = frozenset(("UN", "OB", "OW", ""))


def slot(attribute: KeptAttribute, vr: str, *, little_endian: bool = True) -> Slot:
    """Where the bytes of ``attribute`` go and how, when its VR is ``vr`` ('' in implicit VR)."""
    return Slot(attribute.keyword, _converter(attribute, vr, little_endian))


def _converter(
    attribute: KeptAttribute, vr: str, little_endian: bool
) -> Callable[[bytes, Texts], Any]:
    if vr in _BYTES_VRS:
        vr = attribute.vr
    if vr in NUMBERS:
        return _from_binary(attribute, NUMBERS[vr], "<" if little_endian else ">")
    if vr not in TEXTS:
        return _no_value
    match attribute.vr:
        case "IS" | "US":
            return _integer
        case "DS":
            return _decimals if attribute.multiple else _decimal
        case "PN":
            return _name
        case "LO" | "SH":
            return _text
        case _:
            return _codes if attribute.multiple else _code


def vr_code(vr: str) -> int:
    """``vr`` as the number its two bytes are in little endian; 0 for none."""
    return int.from_bytes(vr.encode("ascii"), "little")


def typed(
    found: Found,
    references: Sequence[bytes],
    requests: Sequence[Found],
    above: CharacterSet = DEFAULT,
) -> Attributes:
    """The attributes in what a reader found, in the order of the data set; empty ones left out.

    ``above``: the character set where the data set names none.
    ``references``: the UIDs of the instances referred to; ``requests``: one for each item of
    RequestAttributesSequence.
    """
    texts = Texts(found, above)
    attributes = _values(found, texts)
    if references:
        uids = dict.fromkeys(_code(raw, texts) for raw in references)
        if kept := [uid for uid in uids if uid][:MOST_REFERENCES]:
            attributes["ReferencedSOPInstanceUID"] = kept
    if items := list(islice(_requested(requests, texts), MOST_REQUESTS)):
        attributes["RequestAttributesSequence"] = items
    return attributes


def _requested(requests: Sequence[Found], texts: Texts) -> Iterator[Attributes]:
    for found in requests:
        item = _values(found, Texts(found, texts))
        item.pop("SpecificCharacterSet", None)
        if item:
            yield item


def _values(found: Found, texts: Texts) -> Attributes:
    values: Attributes = {}
    for slot, raw in found.items():
        value = slot.convert(raw, texts)
        if value or value == 0:
            values[slot.keyword] = value
        elif slot.keyword in values:
            del values[slot.keyword]
    return values
