"""The Value Representations of all elements, as pydicom lists them (PS3.6), without loading it.

3 MB and 50 ms, for who converts from implicit VR; ``dictionary`` has what identifiers need.

>>> vrs_of(0x00100010), vrs_of(0x60003000), vrs_of(0x00280106), vrs_of(0x00091001)
(('PN',), ('OB', 'OW'), ('US', 'SS'), ('UN',))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

from plainpacs.archive.dicom.uid_registry import table_of_pydicom

Entry = tuple[str, str, str, str, str]
"""Value Representation, multiplicity, name, ``Retired`` or nothing, keyword."""

_TABLES = table_of_pydicom("_dicom_dict")
_ELEMENTS = cast(Mapping[int, Entry], _TABLES.DicomDictionary)
_REPEATING = [
    (re.compile(tag.replace("x", "[0-9A-F]")), entry)
    for tag, entry in cast(Mapping[str, Entry], _TABLES.RepeatersDictionary).items()
]
"""Of the groups that come in several (PS3.5 7.6): overlays, curves."""


@lru_cache(maxsize=1 << 12)
def vrs_of(tag: int) -> tuple[str, ...]:
    """That of the tag; several, where it depends on other elements. UN for private elements, but
    for what reserves their blocks (PS3.5 7.8.1), and for those unknown; UL for a group's length."""
    group, number = tag >> 16, tag & 0xFFFF
    if group & 1:
        return ("LO",) if 0x10 <= number <= 0xFF else ("UN",)
    entry = _ELEMENTS.get(tag)
    if entry is None:
        spelled = f"{tag:08X}"
        entry = next((entry for tags, entry in _REPEATING if tags.fullmatch(spelled)), None)
    if entry is None:
        return ("UN",) if number else ("UL",)
    return tuple(entry[0].split(" or ")) if entry[0] != "NONE" else ("UN",)
