"""DICOM's data elements (PS3.6), by tag and by keyword.

Those that the indexes have, and that queries, retrieves and reports are made of, are here. All
others are looked up in pydicom's dictionary, loaded when the first is asked for.

>>> f"{tag_of('PatientName'):08X}", vr_of(0x00100010), keyword_of(0x00100010)
('00100010', 'PN', 'PatientName')
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from plainpacs.archive.dicom.attributes import KEPT, REQUESTED

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


def _datadict() -> ModuleType:
    from pydicom import datadict  # noqa: PLC0415 - 0.3 s, and most never need it

    return datadict


def tag_of(keyword: str) -> int:
    """Raises KeyError when no element has this keyword."""
    tag = _TAGS.get(keyword)
    if tag is None:
        tag = _datadict().tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


def keyword_of(tag: int) -> str:
    """Empty for private elements, and those unknown."""
    keyword = _KEYWORDS.get(tag)
    if keyword is None:
        keyword = "" if _is_private(tag) else str(_datadict().keyword_for_tag(tag))
    return keyword


def vr_of(tag: int) -> str:
    """UN for elements that are unknown; of private ones only who reserves them is known."""
    among = vrs_of(tag)
    if len(among) == 1:
        return among[0]
    # Where the dictionary leaves the choice it depends on other elements, which no identifier has.
    return "OB" if "OB" in among else "US"


@lru_cache(maxsize=1 << 12)
def vrs_of(tag: int) -> tuple[str, ...]:
    """That of the tag; several, where it depends on other elements. UN for private elements, but
    for what reserves their blocks (PS3.5 7.8.1), and for those unknown; UL for a group's length.

    >>> vrs_of(0x60003000), vrs_of(0x00280106), vrs_of(0x00091001)
    (('OB', 'OW'), ('US', 'SS'), ('UN',))
    """
    vr = _VRS.get(tag)
    if vr is not None:
        return (vr,)
    if not tag & 0xFFFF:
        return ("UL",)
    if _is_private(tag):
        return ("LO",) if 0x10 <= tag & 0xFFFF <= 0xFF else ("UN",)
    try:
        known = str(_datadict().dictionary_VR(tag))
    except KeyError:
        return ("UN",)
    return tuple(known.split(" or ")) if known != "NONE" else ("UN",)


def _is_private(tag: int) -> bool:
    return bool(tag >> 16 & 1)
