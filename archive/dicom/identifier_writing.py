r"""Identifiers as they are written: mappings of keywords become small data sets.

>>> encode({"QueryRetrieveLevel": "STUDY", "PatientID": ""}, EXPLICIT)
b'\x08\x00R\x00CS\x06\x00STUDY \x10\x00 \x00LO\x00\x00'
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from plainpacs.archive.dicom.dictionary import tag_of, vr_of
from plainpacs.archive.dicom.elements import (
    CHARACTER_SET,
    IN_CHARACTER_SET,
    NUMBERS,
    encode_element,
    encode_item,
)
from plainpacs.archive.dicom.identifier import DataSet, Element
from plainpacs.archive.dicom.text_encoding import UTF8, TextEncoding
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN as EXPLICIT

Scalar = str | int | float
Value = Scalar | Sequence[Scalar] | Sequence["Mapping[str, Value]"]
"""Of a keyword: one value, several, or the items of a sequence. Empty text: no value."""


def encode(
    values: Mapping[str, Value], transfer_syntax: str, encoding: TextEncoding | None = None
) -> bytes:
    """The data set with these values by keyword, in the order of the tags.

    SpecificCharacterSet is written as what the text is in: ``encoding``, if it can carry all of
    it, else UTF-8; not at all when nothing but ASCII is there and none is given. Raises KeyError
    for a keyword DICOM does not have.
    """
    explicit = transfer_syntax == EXPLICIT
    chosen = encoding or TextEncoding()
    encoded = _encoded(values, chosen, explicit=explicit)
    if encoded is None:
        chosen = UTF8
        encoded = _encoded(values, chosen, explicit=explicit) or {}
    if chosen.terms:
        named = "\\".join(chosen.terms).encode("ascii", "replace")
        encoded[CHARACTER_SET] = element(CHARACTER_SET, "CS", named, explicit=explicit)
    return b"".join(encoded[tag] for tag in sorted(encoded))


def to_pydicom(values: Mapping[str, Value]) -> Dataset:
    """As pydicom has it. SpecificCharacterSet is UTF-8 where more than ASCII is there."""
    found = Dataset()
    for keyword, value in values.items():
        tag = tag_of(keyword)
        vr = vr_of(tag)
        if vr == "SQ" and not isinstance(value, (str, int, float)):
            items = [to_pydicom(one) for one in value if isinstance(one, Mapping)]
            found.add_new(tag, vr, items)
            if any(CHARACTER_SET in item for item in items):
                found.SpecificCharacterSet = UTF8.terms[0]
        else:
            found[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)
            if isinstance(value, str) and not value.isascii():
                found.SpecificCharacterSet = UTF8.terms[0]
    return found


def _encoded(
    values: Mapping[str, Value], encoding: TextEncoding, *, explicit: bool
) -> dict[int, bytes] | None:
    """Each element by its tag; None when ``encoding`` cannot carry the text."""
    found = {}
    for keyword, value in values.items():
        tag = tag_of(keyword)
        if tag != CHARACTER_SET:
            vr = vr_of(tag)
            raw = value_bytes(vr, value, encoding, explicit=explicit)
            if raw is None:
                return None
            found[tag] = element(tag, vr, raw, explicit=explicit)
    return found


def value_bytes(vr: str, value: object, encoding: TextEncoding, *, explicit: bool) -> bytes | None:
    """The bytes of a value or several; None when ``encoding`` cannot carry the text."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if vr == "SQ":
        return _sequence(values, encoding, explicit=explicit)
    if vr in NUMBERS:
        return _binary(vr, values)
    text = "\\".join(map(_written, values))
    if vr in IN_CHARACTER_SET:
        return encoding.encode(text, name=vr == "PN")
    return text.encode("ascii", "replace")


def _sequence(values: Sequence[object], encoding: TextEncoding, *, explicit: bool) -> bytes | None:
    items = []
    for item in values:
        if isinstance(item, Mapping):
            encoded = _encoded(item, encoding, explicit=explicit)
            if encoded is None:
                return None
            body = b"".join(encoded[tag] for tag in sorted(encoded))
            items.append(encode_item(body))
    return b"".join(items)


def _binary(vr: str, values: Sequence[object]) -> bytes:
    """Nothing when one of them is not a number that fits."""
    shape = struct.Struct("<" + NUMBERS[vr])
    try:
        return b"".join(map(shape.pack, values))
    except struct.error:
        return b""


def _written(value: object) -> str:
    """As text; DS and IS have 16 characters at most (PS3.5 6.2)."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    text = repr(value)
    digits = 14
    while len(text) > 16:
        text, digits = f"{value:.{digits}g}", digits - 1
    return text


def written_anew(
    tag: int, found: Element, within: DataSet, encoding: TextEncoding, *, explicit: bool
) -> bytes | None:
    """An element that was read as part of ``within``, in another transfer syntax and character set;
    None when ``encoding`` cannot carry the text."""
    if found.vr == "SQ":
        items = []
        for item in found.items:
            encoded = [
                written_anew(inner, one, item, encoding, explicit=explicit)
                for inner, one in item.elements.items()
                if inner != CHARACTER_SET
            ]
            if None in encoded:
                return None
            body = b"".join(filter(None, encoded))
            items.append(encode_item(body))
        raw: bytes | None = b"".join(items)
    elif found.vr in IN_CHARACTER_SET:
        raw = encoding.encode(within.text_at(tag), name=found.vr == "PN")
    else:
        raw = found.value
    return None if raw is None else element(tag, found.vr, raw, explicit=explicit)


def element(tag: int, vr: str, value: bytes, *, explicit: bool) -> bytes:
    """One element, padded to an even length; without a value when that is too long for its VR."""
    try:
        return encode_element(tag, vr, value, explicit=explicit)
    except ValueError:
        return encode_element(tag, vr, b"", explicit=explicit)
