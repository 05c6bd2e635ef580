"""The DICOM JSON Model (PS3.18 Annex F): elements, or a record of the indexes, as its objects.

Text is UTF-8, whatever the data set was in, and SpecificCharacterSet says so. Binary values of more
than ``LONGEST_INLINE`` bytes, and values that were not kept in memory, are named by a BulkDataURI,
relative to the instance: ``bulkdata/00420011``, or ``bulkdata/00081111/0/00080060`` inside items.

>>> of_record({"PatientName": "Doe^Jane=山田", "SeriesNumber": 3})["00100010"]
{'vr': 'PN', 'Value': [{'Alphabetic': 'Doe^Jane', 'Ideographic': '山田'}]}
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping
from functools import cache
from math import isfinite
from typing import Any

from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.dictionary import tag_of, vr_of
from plainpacs.archive.dicom.element_tree import Element, Elements
from plainpacs.archive.dicom.elements import CHARACTER_SET, NUMBERS, UNSPLIT, WIDTHS, swapped

LONGEST_INLINE = 1024
"""Bytes of a binary value that stand in the JSON itself."""

Json = dict[str, Any]

_UTF_8: Json = {"vr": "CS", "Value": ["ISO_IR 192"]}
_PADDING = " \0"
_LARGEST = 1 << 53
"""JSON readers do not agree on integers from here on: they are sent as text (PS3.18 F.2.3)."""
_TEXTS = frozenset(("LO", "SH", "UC"))
_BYTES_VRS = frozenset(("OB", "UN", "OW", "OF", "OL", "OD", "OV"))


def of_elements(elements: Elements, above: CharacterSet = DEFAULT, path: str = "bulkdata/") -> Json:
    """``elements`` as an object of the model: by tag, as eight hexadecimal digits, in order.

    ``above``: the character set of the data set around an item. ``path``: of a BulkDataURI, up to
    the tag.
    """
    texts = _texts(elements, above)
    found: Json = {}
    for tag, element in sorted(elements.items()):
        key = _key(tag)
        found[key] = _UTF_8 if tag == CHARACTER_SET else _one(element, texts, path + key)
    return found


def of_record(record: Mapping[str, Any]) -> Json:
    """A record of ``indexer.query.find`` as an object of the model.

    What is no attribute, and what has no value, is left out. In the order of the record.
    """
    found: Json = {}
    for keyword, value in record.items():
        known = _attribute(keyword)
        if known is None or value in (None, "", []):
            continue
        key, vr = known
        values = value if isinstance(value, list) else [value]
        if vr == "SQ":
            values = [of_record(item) for item in values]
        elif vr == "PN":
            values = [name for one in values if (name := _name(str(one))) is not None]
            if not values:
                continue
        found[key] = {"vr": vr, "Value": values}
    return found


@cache
def _key(tag: int) -> str:
    return f"{tag:08X}"


@cache
def _attribute(keyword: str) -> tuple[str, str] | None:
    if not keyword[:1].isupper():  # a fact of the archive's own
        return None
    try:
        tag = tag_of(keyword)
    except KeyError:
        return None
    return _key(tag), vr_of(tag)


def _texts(elements: Elements, above: CharacterSet) -> CharacterSet:
    declared = elements.get(CHARACTER_SET)
    if declared is None or not isinstance(declared.value, bytes):
        return above
    return above.declared(
        part.strip(_PADDING) for part in declared.value.decode("latin-1").split("\\")
    )


def _one(element: Element, texts: CharacterSet, uri: str) -> Json:
    vr, value = element.vr, element.value
    if value is None:
        return {"vr": vr, "BulkDataURI": uri}
    if isinstance(value, list):
        items = [of_elements(item, texts, f"{uri}/{at}/") for at, item in enumerate(value)]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    if vr in _BYTES_VRS:
        if len(value) > LONGEST_INLINE:
            return {"vr": vr, "BulkDataURI": uri}
        raw = value if element.little_endian else swapped(value, WIDTHS.get(vr, 1))
        return {"vr": vr, "InlineBinary": b64encode(raw).decode()} if raw else {"vr": vr}
    values = _values(element, value, texts)
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _values(element: Element, value: bytes, texts: CharacterSet) -> list[Any]:
    vr = element.vr
    if vr == "PN":
        return _parts(texts.decode(value, name=True), _name)
    if vr in _TEXTS:
        return _parts(texts.decode(value), str)
    if vr in UNSPLIT:
        whole = texts.decode(value).strip(_PADDING)
        return [whole] if whole else []
    if vr in ("DS", "IS"):
        return _parts(DEFAULT.decode(value), _decimal if vr == "DS" else _integer)
    if vr in NUMBERS:
        return [_finite(number) for number in _binary(NUMBERS[vr], element, value)]
    if vr == "AT":
        pairs = iter(_binary("H", element, value))
        return [f"{group:04X}{number:04X}" for group, number in zip(pairs, pairs, strict=False)]
    return _parts(DEFAULT.decode(value), str)


def _parts(whole: str, make: Any) -> list[Any]:
    """The values between backslashes; null for an empty one (PS3.18 F.2.5)."""
    parts = [part.strip(_PADDING) for part in whole.split("\\")]
    while parts and not parts[-1]:
        parts.pop()
    values = [make(part) if part else None for part in parts]
    return values if any(one is not None for one in values) else []


def _name(name: str) -> Json | None:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False)
    return {group: text.strip() for group, text in groups if text.strip(" ^")} or None


def _decimal(text: str) -> float | int | str:
    try:
        number = float(text)
    except ValueError:
        return text
    if not isfinite(number) or "_" in text:
        return text
    return int(number) if number.is_integer() and abs(number) < _LARGEST else number


def _integer(text: str) -> float | int | str:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 16 else _decimal(text)


def _binary(code: str, element: Element, value: bytes) -> Iterable[Any]:
    number = struct.Struct(("<" if element.little_endian else ">") + code)
    whole = len(value) - len(value) % number.size
    return (one for (one,) in number.iter_unpack(value[:whole]))


def _finite(number: float) -> float | str | None:
    if isinstance(number, float):
        return number if isfinite(number) else None
    return number if abs(number) < _LARGEST else str(number)
