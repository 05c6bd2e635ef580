"""DICOM's data elements (PS3.6) by tag and by keyword, as pydicom lists them, without loading it.

Loaded when the first identifier is read or written; a process that only receives does without.
See ``registry``.

>>> f"{tag_of('PatientName'):08X}", vr_of(0x00100010), keyword_of(0x00100010)
('00100010', 'PN', 'PatientName')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import cast

from plainpacs.scp.registry import table_of_pydicom

Entry = tuple[str, str, str, str, str]
"""Value Representation, multiplicity, name, ``Retired`` or nothing, keyword."""

_TABLES = table_of_pydicom("_dicom_dict")
_ELEMENTS = cast(Mapping[int, Entry], _TABLES.DicomDictionary)
_REPEATING = [
    (re.compile(tag.replace("x", "[0-9A-F]")), entry)
    for tag, entry in cast(Mapping[str, Entry], _TABLES.RepeatersDictionary).items()
]
"""Of the groups that come in several (PS3.5 7.6): overlays, curves."""
_TAGS = {entry[4]: tag for tag, entry in _ELEMENTS.items() if entry[4]}
# Where the dictionary leaves the choice it depends on other elements, which no identifier has.
_CHOSEN = {
    "US or SS": "US",
    "US or OW": "US",
    "US or SS or OW": "US",
    "OB or OW": "OB",
    "NONE": "UN",
}


def tag_of(keyword: str) -> int:
    """Raises KeyError when no element has this keyword."""
    return _TAGS[keyword]


def keyword_of(tag: int) -> str:
    """Empty for private elements, and those unknown."""
    entry = _ELEMENTS.get(tag)
    return entry[4] if entry else ""


@cache
def vr_of(tag: int) -> str:
    """UN for private elements and those unknown, UL for the length of a group."""
    entry = _ELEMENTS.get(tag)
    if entry is not None:
        return _CHOSEN.get(entry[0], entry[0])
    if tag & 0xFFFF == 0:
        return "UL"
    return "LO" if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF else "UN"


@cache
def vrs_of(tag: int) -> tuple[str, ...]:
    """Every VR that the dictionary has for the tag: several, where it depends on other elements."""
    entry = _ELEMENTS.get(tag)
    if entry is None and not tag >> 16 & 1:
        spelled = f"{tag:08X}"
        entry = next((entry for tags, entry in _REPEATING if tags.fullmatch(spelled)), None)
    if entry is None or entry[0] == "NONE":
        return (vr_of(tag),)
    return tuple(entry[0].split(" or "))
