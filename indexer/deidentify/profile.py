"""Which action a profile has for each attribute: PS3.15 Table E.1-1, and what it leaves open.

Where the table leaves the choice to the type of the attribute in its IOD (X/Z, X/D, Z/D, X/Z/D), an
attribute with a value is given what is valid for every type: an empty or a dummy value. Sequences
of which a dummy would say nothing are removed.

Attributes that are not in the table are kept, with these exceptions. Removed: private ones, those
that the dictionary does not know, groups 50xx, 60xx and 7Fxx but for pixel data, and ``_ALSO``,
which name a person, an organization or an address as those in the table do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property, lru_cache

from plainpacs.archive.dicom.dictionary import keyword_of, tag_of, vrs_of
from plainpacs.archive.errors import BadSettings
from plainpacs.indexer.deidentify import action_table


class Action(enum.Enum):
    """What becomes of an attribute."""

    KEEP = enum.auto()
    """As it is; of a sequence, its items are cleaned."""
    REMOVE = enum.auto()
    EMPTY = enum.auto()
    DUMMY = enum.auto()
    """A value of its VR that says nothing; of a sequence, all values in its items."""
    UID = enum.auto()
    """UIDs become others, the same ones everywhere."""
    SHIFT = enum.auto()
    """Dates are shifted by the days of the patient, times stay."""
    AGE = enum.auto()
    """Kept up to 89 years; older patients are 90 (45 CFR 164.514(b)(2))."""


@dataclass(frozen=True, slots=True)
class Code:
    """A code of CID 7050, De-identification Method; the scheme is DCM."""

    value: str
    meaning: str


BASIC = Code("113100", "Basic Application Confidentiality Profile")
STRUCTURED_CONTENT = Code("113104", "Clean Structured Content Option")
OPTIONS = {
    "dates": Code("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "uids": Code("113110", "Retain UIDs Option"),
    "device": Code("113109", "Retain Device Identity Option"),
    "patient": Code("113108", "Retain Patient Characteristics Option"),
    "descriptors": Code("113105", "Clean Descriptors Option"),
}
"""The options that can be added to ``basic``, by the word for each."""

_WORDS = ("basic", *OPTIONS)

# Sequences whose items are only references: valid for every type, and their UIDs are replaced.
_REFERENCES = frozenset(map(tag_of, ("ReferencedImageSequence", "SourceImageSequence"))) | {
    tag_of("ReferencedPerformedProcedureStepSequence")
}
# What a dummy in every value would leave nothing of: drawings. And what may not be empty, as it is
# optional everywhere and then has items.
_REMOVED = frozenset(map(tag_of, ("GraphicAnnotationSequence", "ReferencedStudySequence")))
_AGE = tag_of("PatientAge")

# Not in the table, but of the same kind as what is.
_ALSO = {
    **dict.fromkeys(
        (
            *("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar"),
            *("IssuerOfAccessionNumberSequence", "IssuerOfPatientIDQualifiersSequence"),
            *("OrderPlacerIdentifierSequence", "OrderFillerIdentifierSequence"),
            *("AssigningFacilitySequence", "AssigningJurisdictionCodeSequence"),
            *("AssigningAgencyOrDepartmentCodeSequence", "LocalNamespaceEntityID"),
            *("UniversalEntityID", "NTPSourceAddress", "StorageMediaFileSetID", "OwnerID"),
            *("SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence"),
            *("PrivateDataElementCharacteristicsSequence", "EncryptedAttributesSequence"),
            *("MACParametersSequence", "DeidentificationMethod"),
            *("DeidentificationMethodCodeSequence", "DeidentificationActionSequence"),
        ),
        Action.REMOVE,
    ),
    "TextValue": Action.DUMMY,
    "HL7InstanceIdentifier": Action.DUMMY,
    "DocumentTitle": Action.EMPTY,
    # Each content item by itself: concepts, codes, numbers and references stay.
    "ContentSequence": Action.KEEP,
}
_KEPT_URLS = frozenset(map(tag_of, ("CodingSchemeURL", "URNCodeValue")))
_TEXTS = frozenset(("LO", "LT", "SH", "ST", "UC", "UT"))
# What "descriptors" leaves of the texts that are not in the table: codes, and what made the image.
_NO_DESCRIPTION = frozenset(
    map(
        tag_of,
        (
            *("CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodingSchemeVersion"),
            *("CodeMeaning", "Manufacturer", "ManufacturerModelName", "SoftwareVersions"),
            *("ConvolutionKernel", "SequenceName", "PulseSequenceName", "ImagedNucleus"),
            *("Radiopharmaceutical", "SpatialLocationsPreserved", "MIMETypeOfEncapsulatedDocument"),
            *("RescaleType", "ModalityLUTType", "LUTExplanation", "StackID"),
            *("OpticalPathIdentifier", "ReferencedOpticalPathIdentifier", "FrameLabelVector"),
        ),
    )
)
_CLASSES = ("ClassUID", "ClassUIDInFile", "SyntaxUID", "SyntaxUIDInFile")
_NO_INSTANCES = frozenset(
    (
        *("SOPClassesInStudy", "SOPClassesSupported", "PertinentSOPClassesInStudy"),
        *("PertinentSOPClassesInSeries", "CodingSchemeUID", "ContextUID", "MappingResourceUID"),
        *("ContextGroupExtensionCreatorUID", "CreatorVersionUID"),
    )
)
_DATES = frozenset(("DA", "DT", "TM"))


def _tags(text: str) -> frozenset[int]:
    return frozenset(int(tag, 16) for tag in text.split())


@lru_cache(1)
def _listed() -> dict[int, Action]:
    """What the Basic Profile has for the attributes of the table, and those beside it."""
    found = {
        tag: _resolved(tag, alternatives)
        for alternatives, text in action_table.BASIC.items()
        for tag in _tags(text)
    }
    return found | {tag_of(keyword): action for keyword, action in _ALSO.items()}


def _resolved(tag: int, alternatives: str) -> Action:
    vr = vrs_of(tag)[0]
    if vr == "UI" and "X" not in alternatives:
        return Action.UID
    if tag in _REFERENCES:
        return Action.KEEP
    if tag in _REMOVED or (vr == "SQ" and alternatives in ("X/D", "X/Z/D")):
        return Action.REMOVE
    by_last = {"X": Action.REMOVE, "Z": Action.EMPTY, "D": Action.DUMMY}
    return by_last[alternatives.rpartition("/")[2]]


@dataclass(frozen=True)
class Profile:
    """The Basic Profile with some of ``OPTIONS``."""

    options: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Profile:
        """From words with commas between: ``basic``, ``basic,dates,device``, ``dates``.

        Raises BadSettings.
        """
        words = [word.strip().lower() for word in text.split(",")]
        if wrong := [word for word in words if word not in _WORDS]:
            raise BadSettings(
                f"--deidentify has no profile {wrong[0]!r}; write --deidentify={','.join(_WORDS)}, "
                "or some of these words"
            )
        return cls(frozenset(words) - {"basic"})

    def __str__(self) -> str:
        return ",".join(word for word in _WORDS if word == "basic" or word in self.options)

    @property
    def codes(self) -> list[Code]:
        """What it is, in codes."""
        return [BASIC, *(OPTIONS[word] for word in OPTIONS if word in self.options)]

    @property
    def dates(self) -> bool:
        """Whether dates are shifted; else they are removed."""
        return "dates" in self.options

    def action(self, tag: int) -> Action:
        """What is done to the attribute ``tag``, wherever it stands."""
        found = self._known.get(tag)
        if found is None:
            found = self._known[tag] = self._unlisted(tag)
        return found

    @cached_property
    def _known(self) -> dict[int, Action]:
        found = dict(_listed())
        if self.dates:
            dates = _tags(action_table.DATES)
            found |= {tag: Action.SHIFT for tag in dates if vrs_of(tag)[0] in _DATES}
        for option, text in (
            ("uids", action_table.UIDS),
            ("patient", action_table.PATIENT),
            ("device", action_table.DEVICE),
        ):
            if option in self.options:
                found |= {tag: self._retained(tag, found) for tag in _tags(text)}
        return found

    def _retained(self, tag: int, others: dict[int, Action]) -> Action:
        vr = vrs_of(tag)[0]
        if tag == _AGE:
            return Action.AGE
        # Options add up to what both allow: a device's dates are dates, its UIDs are UIDs.
        if vr in _DATES:
            return Action.SHIFT if self.dates else others[tag]
        if vr == "UI" and "uids" not in self.options:
            return others[tag]
        return Action.KEEP

    def _unlisted(self, tag: int) -> Action:
        group, keyword, vr = tag >> 16, keyword_of(tag), vrs_of(tag)[0]
        if group & 1 or not keyword or group < 8 or group & 0xFF00 in (0x5000, 0x6000, 0x7F00):
            return Action.REMOVE
        if vr in _DATES:
            return Action.SHIFT if self.dates else Action.REMOVE
        if vr == "PN":
            return Action.DUMMY
        if vr == "UR":
            return Action.KEEP if tag in _KEPT_URLS else Action.REMOVE
        if vr == "UI":
            kept = keyword.endswith(_CLASSES) or keyword in _NO_INSTANCES
            return Action.KEEP if kept or "uids" in self.options else Action.UID
        if "descriptors" in self.options and vr in _TEXTS and tag not in _NO_DESCRIPTION:
            return Action.DUMMY
        return Action.KEEP
