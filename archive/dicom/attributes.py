"""Which attributes of an instance are kept in its manifest line: one declared table.

The data dictionary's facts (PS3.6) that reading them needs: tag, Value Representation, whether the
keyword may have several values (VM > 1), and the level of the study that the attribute describes.

Two entries are not single elements of the data set. ``RequestAttributesSequence`` keeps two IDs of
each of its items, ``ReferencedSOPInstanceUID`` is gathered out of the sequences that name other
instances. Both are read by ``header``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Level(Enum):
    """What an attribute describes (PS3.3 A.1.2, the information model)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    INSTANCE = "IMAGE"


@dataclass(frozen=True, slots=True)
class KeptAttribute:
    """One attribute: ``multiple`` ones are always arrays, also when they have one value."""

    keyword: str
    tag: int
    vr: str
    level: Level
    multiple: bool = False


_P, _ST, _SE, _I = Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE

KEPT: tuple[KeptAttribute, ...] = (
    KeptAttribute("SpecificCharacterSet", 0x00080005, "CS", _I, multiple=True),
    KeptAttribute("TimezoneOffsetFromUTC", 0x00080201, "SH", _I),
    KeptAttribute("PatientName", 0x00100010, "PN", _P),
    KeptAttribute("PatientID", 0x00100020, "LO", _P),
    KeptAttribute("IssuerOfPatientID", 0x00100021, "LO", _P),
    KeptAttribute("PatientBirthDate", 0x00100030, "DA", _P),
    KeptAttribute("PatientSex", 0x00100040, "CS", _P),
    KeptAttribute("PatientAge", 0x00101010, "AS", _P),
    KeptAttribute("PatientIdentityRemoved", 0x00120062, "CS", _P),
    KeptAttribute("StudyInstanceUID", 0x0020000D, "UI", _ST),
    KeptAttribute("StudyDate", 0x00080020, "DA", _ST),
    KeptAttribute("StudyTime", 0x00080030, "TM", _ST),
    KeptAttribute("AccessionNumber", 0x00080050, "SH", _ST),
    KeptAttribute("StudyID", 0x00200010, "SH", _ST),
    KeptAttribute("StudyDescription", 0x00081030, "LO", _ST),
    KeptAttribute("ReferringPhysicianName", 0x00080090, "PN", _ST),
    KeptAttribute("InstitutionName", 0x00080080, "LO", _ST),
    KeptAttribute("SeriesInstanceUID", 0x0020000E, "UI", _SE),
    KeptAttribute("Modality", 0x00080060, "CS", _SE),
    KeptAttribute("SeriesNumber", 0x00200011, "IS", _SE),
    KeptAttribute("SeriesDescription", 0x0008103E, "LO", _SE),
    KeptAttribute("SeriesDate", 0x00080021, "DA", _SE),
    KeptAttribute("SeriesTime", 0x00080031, "TM", _SE),
    KeptAttribute("BodyPartExamined", 0x00180015, "CS", _SE),
    KeptAttribute("Laterality", 0x00200060, "CS", _SE),
    KeptAttribute("ProtocolName", 0x00181030, "LO", _SE),
    KeptAttribute("StationName", 0x00081010, "SH", _SE),
    KeptAttribute("Manufacturer", 0x00080070, "LO", _SE),
    KeptAttribute("ManufacturerModelName", 0x00081090, "LO", _SE),
    KeptAttribute("PerformedProcedureStepStartDate", 0x00400244, "DA", _SE),
    KeptAttribute("PerformedProcedureStepStartTime", 0x00400245, "TM", _SE),
    KeptAttribute("RequestAttributesSequence", 0x00400275, "SQ", _SE, multiple=True),
    KeptAttribute("SOPClassUID", 0x00080016, "UI", _I),
    KeptAttribute("SOPInstanceUID", 0x00080018, "UI", _I),
    KeptAttribute("InstanceNumber", 0x00200013, "IS", _I),
    KeptAttribute("ImageType", 0x00080008, "CS", _I, multiple=True),
    KeptAttribute("AcquisitionNumber", 0x00200012, "IS", _I),
    KeptAttribute("AcquisitionDate", 0x00080022, "DA", _I),
    KeptAttribute("AcquisitionTime", 0x00080032, "TM", _I),
    KeptAttribute("ContentDate", 0x00080023, "DA", _I),
    KeptAttribute("ContentTime", 0x00080033, "TM", _I),
    KeptAttribute("FrameOfReferenceUID", 0x00200052, "UI", _I),
    KeptAttribute("ImagePositionPatient", 0x00200032, "DS", _I, multiple=True),
    KeptAttribute("ImageOrientationPatient", 0x00200037, "DS", _I, multiple=True),
    KeptAttribute("SliceThickness", 0x00180050, "DS", _I),
    KeptAttribute("NumberOfFrames", 0x00280008, "IS", _I),
    KeptAttribute("Rows", 0x00280010, "US", _I),
    KeptAttribute("Columns", 0x00280011, "US", _I),
    KeptAttribute("BitsAllocated", 0x00280100, "US", _I),
    KeptAttribute("PixelSpacing", 0x00280030, "DS", _I, multiple=True),
    KeptAttribute("PhotometricInterpretation", 0x00280004, "CS", _I),
    KeptAttribute("LossyImageCompression", 0x00282110, "CS", _I),
    KeptAttribute("BurnedInAnnotation", 0x00280301, "CS", _I),
    KeptAttribute("ReferencedSOPInstanceUID", 0x00081155, "UI", _I, multiple=True),
)

REQUESTED: tuple[KeptAttribute, ...] = (
    KeptAttribute("ScheduledProcedureStepID", 0x00400009, "SH", _SE),
    KeptAttribute("RequestedProcedureID", 0x00401001, "SH", _SE),
)
"""What is kept of each item of RequestAttributesSequence."""

BY_KEYWORD: Mapping[str, KeptAttribute] = MappingProxyType({kept.keyword: kept for kept in KEPT})


def _keywords(*levels: Level) -> frozenset[str]:
    return frozenset(kept.keyword for kept in KEPT if kept.level in levels)


PATIENT = _keywords(Level.PATIENT)
STUDY = _keywords(Level.STUDY)
PATIENT_AND_STUDY = PATIENT | STUDY
SERIES = _keywords(Level.SERIES)
INSTANCE = _keywords(Level.INSTANCE)
MULTIPLE = frozenset(kept.keyword for kept in KEPT if kept.multiple)
