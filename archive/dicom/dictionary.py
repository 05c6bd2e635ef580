"""DICOM's data elements (PS3.6), by tag and by keyword.

Those that the indexes have, and that queries, retrieves and reports are made of, are here. All
others are looked up in pydicom's table, loaded when the first is asked for: that takes 50 ms and
3 MB, which most receivers never need. See ``registry``.

>>> f"{tag_of('PatientName'):08X}", vr_of(0x00100010), keyword_of(0x00100010)
('00100010', 'PN', 'PatientName')
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import cast

from plainpacs.archive.dicom.attributes import KEPT, REQUESTED
from plainpacs.archive.dicom.uid_registry import table_of_pydicom

_OURS: tuple[tuple[str, int, str], ...] = (
    *((kept.keyword, kept.tag, kept.vr) for kept in KEPT + REQUESTED),
    ("QueryRetrieveLevel", 0x00080052, "CS"),
    ("RetrieveAETitle", 0x00080054, "AE"),
    ("InstanceAvailability", 0x00080056, "CS"),
    ("FailedSOPInstanceUIDList", 0x00080058, "UI"),
    ("ModalitiesInStudy", 0x00080061, "CS"),
    ("SOPClassesInStudy", 0x00080062, "UI"),
    ("ReferencedSOPClassUID", 0x00081150, "UI"),
    ("TransactionUID", 0x00081195, "UI"),
    ("FailureReason", 0x00081197, "US"),
    ("FailedSOPSequence", 0x00081198, "SQ"),
    ("ReferencedSOPSequence", 0x00081199, "SQ"),
    ("AvailableTransferSyntaxUID", 0x00083002, "UI"),
    ("OtherPatientIDs", 0x00101000, "LO"),
    ("NumberOfPatientRelatedStudies", 0x00201200, "IS"),
    ("NumberOfPatientRelatedSeries", 0x00201202, "IS"),
    ("NumberOfPatientRelatedInstances", 0x00201204, "IS"),
    ("NumberOfStudyRelatedSeries", 0x00201206, "IS"),
    ("NumberOfStudyRelatedInstances", 0x00201208, "IS"),
    ("NumberOfSeriesRelatedInstances", 0x00201209, "IS"),
)
_TAGS = {keyword: tag for keyword, tag, _ in _OURS}
_KEYWORDS = {tag: keyword for keyword, tag, _ in _OURS}
_VRS = {tag: vr for _, tag, vr in _OURS}

# Where the dictionary leaves the choice it depends on other elements, which no identifier has.
_CHOSEN = {
    "US or SS": "US",
    "US or OW": "US",
    "US or SS or OW": "US",
    "OB or OW": "OB",
    "NONE": "UN",
}

_Entry = tuple[str, str, str, str, str]
"""Value Representation, multiplicity, name, ``Retired`` or nothing, keyword."""


@cache
def _every() -> Mapping[int, _Entry]:
    return cast(Mapping[int, _Entry], table_of_pydicom("_dicom_dict").DicomDictionary)


@cache
def _every_tag() -> Mapping[str, int]:
    return {entry[4]: tag for tag, entry in _every().items() if entry[4]}


def tag_of(keyword: str) -> int:
    """Raises KeyError when no element has this keyword."""
    tag = _TAGS.get(keyword)
    return _every_tag()[keyword] if tag is None else tag


def keyword_of(tag: int) -> str:
    """Empty for private elements, and those unknown."""
    keyword = _KEYWORDS.get(tag)
    if keyword is None:
        entry = None if _is_private(tag) else _every().get(tag)
        keyword = entry[4] if entry else ""
    return keyword


def vr_of(tag: int) -> str:
    """UN for elements that are unknown; of private ones only who reserves them is known."""
    vr = _VRS.get(tag)
    if vr is not None:
        return vr
    if tag & 0xFFFF == 0:
        return "UL"
    if _is_private(tag):
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    entry = _every().get(tag)
    return _CHOSEN.get(entry[0], entry[0]) if entry else "UN"


def _is_private(tag: int) -> bool:
    return bool(tag >> 16 & 1)
