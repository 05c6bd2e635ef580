"""What a DICOMDIR's records say of an instance: one for its patient, study, series and itself.

Their values are those of the data set, byte for byte, under the same Specific Character Set.
Source: PS3.3 annex F.5; the record for a SOP Class: table F.4-1.

Many instances lack what a record must have. A study without StudyID, or an instance without a
number, is described nevertheless, with a stand-in in the DICOMDIR alone. Where a stand-in would be
a claim (a report's completion, the label of a plan) the instance is not described.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydicom.datadict import keyword_for_tag as keyword_of

from plainpacs.archive.dicom.charset import DEFAULT, character_set
from plainpacs.archive.dicom.element_tree import Element, Elements, encode
from plainpacs.archive.dicom.elements import CHARACTER_SET, encode_element

_LONGEST_TEXT = 1024  # bytes of a text in a record; no VR that is used allows more


class NotDescribed(Exception):
    """The instance cannot be in a DICOMDIR; the words say why."""


_VRS = {
    **dict.fromkeys((0x00080023, 0x00080020, 0x00080021, 0x00700082, 0x30060008, 0x300A0006), "DA"),
    **dict.fromkeys((0x30080250, 0x00080012), "DA"),
    **dict.fromkeys((0x00080033, 0x00080030, 0x00700083, 0x30060009, 0x300A0007), "TM"),
    **dict.fromkeys((0x30080251, 0x00080013), "TM"),
    **dict.fromkeys((0x00080060, 0x00700080, 0x0040A491, 0x0040A493, 0x3004000A, 0x00080008), "CS"),
    **dict.fromkeys((0x00080050, 0x00200010, 0x30060002, 0x300A0002), "SH"),
    **dict.fromkeys((0x00081030, 0x0008103E, 0x00100020, 0x00700081, 0x00420012, 0x3010000A), "LO"),
    **dict.fromkeys((0x00100010, 0x00700084), "PN"),
    **dict.fromkeys((0x0020000D, 0x0020000E), "UI"),
    **dict.fromkeys((0x00200011, 0x00200013, 0x00280008), "IS"),
    **dict.fromkeys((0x00280010, 0x00280011), "US"),
    **dict.fromkeys((0x00289001, 0x00289002), "UL"),
    **dict.fromkeys((0x0040A043, 0x0040A730, 0x00081115, 0x00700402, 0x00089092), "SQ"),
    0x0040A030: "DT",
    0x00420010: "ST",
}
"""Every attribute that a record may have, with its VR."""

PATIENT_NAME, PATIENT_ID, ISSUER = 0x00100010, 0x00100020, 0x00100021
_STUDY_DESCRIPTION, _ACCESSION, _SERIES_DESCRIPTION = 0x00081030, 0x00080050, 0x0008103E
_STUDY_DATE, _STUDY_TIME, _STUDY_ID, STUDY = 0x00080020, 0x00080030, 0x00200010, 0x0020000D
_MODALITY, SERIES, _SERIES_NUMBER = 0x00080060, 0x0020000E, 0x00200011
NUMBER = 0x00200013
SOP_CLASS = 0x00080016
_CONTENT_DATE, _CONTENT_TIME = 0x00080023, 0x00080033
_SERIES_DATE, _CREATION_DATE = 0x00080021, 0x00080012
_CONCEPT, _CONTENT = 0x0040A043, 0x0040A730
_DOCUMENT = 0x00420011
_RELATIONSHIP = 0x0040A010


@dataclass(frozen=True, slots=True)
class Kind:
    """A directory record type: the two letters of its files' names, what it must have a value of
    (type 1), and what it has besides: ``empty`` too when there is none (type 2), or else not."""

    record: str
    letters: str
    needed: tuple[int, ...] = (NUMBER,)
    empty: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()


_LABELLED = (NUMBER, _CONTENT_DATE, _CONTENT_TIME, 0x00700080)
_LABELS = (0x00700081, 0x00700084)
_DATED = (NUMBER, _CONTENT_DATE, _CONTENT_TIME)
_KINDS = {
    kind.record: kind
    for kind in (
        Kind("IMAGE", "IM"),
        Kind("RT DOSE", "RD", (NUMBER, 0x3004000A)),
        Kind("RT STRUCTURE SET", "RS", (NUMBER, 0x30060002), (0x30060008, 0x30060009)),
        Kind("RT PLAN", "RP", (NUMBER, 0x300A0002), (0x300A0006, 0x300A0007)),
        Kind("RT TREAT RECORD", "RX", (NUMBER,), (0x30080250, 0x30080251)),
        Kind(
            "PRESENTATION",
            "PR",
            (NUMBER, 0x00700080, 0x00700082, 0x00700083),
            _LABELS,
            (0x00081115, 0x00700402),
        ),
        Kind("WAVEFORM", "WV", _DATED),
        Kind(
            "SR DOCUMENT",
            "SR",
            (*_DATED, 0x0040A491, 0x0040A493, _CONCEPT),
            (),
            (0x0040A030, _CONTENT),
        ),
        Kind("KEY OBJECT DOC", "KY", (*_DATED, _CONCEPT), (), (_CONTENT,)),
        Kind(
            "SPECTROSCOPY",
            "SP",
            (*_DATED, 0x00080008, 0x00280008, 0x00280010, 0x00280011, 0x00289001, 0x00289002),
            (),
            (0x00089092,),
        ),
        Kind("RAW DATA", "RW", _DATED),
        Kind("REGISTRATION", "RG", _LABELLED, _LABELS),
        Kind("FIDUCIAL", "FD", _LABELLED, _LABELS),
        Kind(
            "ENCAP DOC",
            "ED",
            (NUMBER, 0x00420012),
            (_CONTENT_DATE, _CONTENT_TIME, 0x00420010),
            (_CONCEPT,),
        ),
        Kind("VALUE MAP", "VM", _LABELLED, _LABELS),
        Kind("STEREOMETRIC", "SX", ()),
        Kind("PLAN", "PL", ()),
        Kind("MEASUREMENT", "MX", _LABELLED, _LABELS),
        Kind("SURFACE", "SF", _LABELLED, _LABELS),
        Kind("SURFACE SCAN", "SS", (_CONTENT_DATE, _CONTENT_TIME)),
        Kind("TRACT", "TR", _LABELLED, _LABELS),
        Kind("ASSESSMENT", "AS", (NUMBER, 0x00080012), (0x00080013,)),
        Kind("RADIOTHERAPY", "RT", (NUMBER,), (0x00700081, 0x00700084), (0x3010000A,)),
    )
}
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# PS3.3 table F.4-1 by SOP Class, the longest beginning counts. Everything else is an IMAGE.
_CLASSES = {
    **dict.fromkeys(("481.2",), "RT DOSE"),
    **dict.fromkeys(("481.3",), "RT STRUCTURE SET"),
    **dict.fromkeys(("481.5", "481.8"), "RT PLAN"),
    **dict.fromkeys(("481.4", "481.6", "481.7", "481.9"), "RT TREAT RECORD"),
    **dict.fromkeys(tuple(f"481.{n}" for n in (*range(10, 22), 23, 24, 25)), "RADIOTHERAPY"),
    **dict.fromkeys(("11", "131"), "PRESENTATION"),
    **dict.fromkeys(("9",), "WAVEFORM"),
    **dict.fromkeys(("88", "79.1", "78.6"), "SR DOCUMENT"),
    **dict.fromkeys(("88.59",), "KEY OBJECT DOC"),
    **dict.fromkeys(("4.2",), "SPECTROSCOPY"),
    **dict.fromkeys(("66",), "RAW DATA"),
    **dict.fromkeys(("66.1", "66.3"), "REGISTRATION"),
    **dict.fromkeys(("66.2",), "FIDUCIAL"),
    **dict.fromkeys(("66.4", "66.7"), "IMAGE"),
    **dict.fromkeys(("66.5",), "SURFACE"),
    **dict.fromkeys(("66.6",), "TRACT"),
    **dict.fromkeys(("67",), "VALUE MAP"),
    **dict.fromkeys(("68",), "SURFACE SCAN"),
    **dict.fromkeys(("77.1.5.3",), "STEREOMETRIC"),
    **dict.fromkeys(("78", "80"), "MEASUREMENT"),
    **dict.fromkeys(("90",), "ASSESSMENT"),
    **dict.fromkeys(("104",), "ENCAP DOC"),
    **dict.fromkeys(("34.7", "34.10"), "PLAN"),
}

WANTED = frozenset({*_VRS, CHARACTER_SET, SOP_CLASS, ISSUER, _DOCUMENT})
"""The tags that ``Directory.add`` looks at."""


def kind_of(sop_class: str, elements: Elements) -> Kind:
    if _DOCUMENT in elements:
        return _KINDS["ENCAP DOC"]
    parts = sop_class.removeprefix(_STORAGE).split(".") if sop_class.startswith(_STORAGE) else []
    for length in range(len(parts), 0, -1):
        if record := _CLASSES.get(".".join(parts[:length])):
            return _KINDS[record]
    return _KINDS["IMAGE"]


class Values:
    """The values of an instance for its records."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        declared = self.raw(CHARACTER_SET).decode("latin-1")
        self._texts = character_set(declared.split("\\")) if declared else DEFAULT

    def raw(self, tag: int) -> bytes:
        """A text as encoded, without padding; empty when there is none."""
        element = self._elements.get(tag)
        value = element.value if element else None
        if not isinstance(value, bytes) or len(value) > _LONGEST_TEXT:
            return b""
        return value.rstrip(b" \0")

    def text(self, tag: int) -> str:
        return self._texts.decode(self.raw(tag)).strip()

    def encoded(self, tag: int) -> bytes:
        """The element for a record; empty when the instance has no value of it.

        Raises ValueError when it has one that cannot be in a record.
        """
        element = self._elements.get(tag)
        if _VRS[tag] not in ("SQ", "US", "UL"):
            raw = self.raw(tag)
            return encode_element(tag, _VRS[tag], raw) if raw.strip() else b""
        if element is None or not element.value:
            return b""
        if _VRS[tag] == "SQ" and not isinstance(element.value, list):
            return b""
        if tag == _CONTENT and isinstance(element.value, list):
            # Of a report's content only what modifies its title (PS3.3 F.5.25).
            items = [item for item in element.value if _modifies(item)]
            return encode(tag, Element("SQ", items)) if items else b""
        return encode(tag, element)


def _modifies(item: Elements) -> bool:
    relationship = item.get(_RELATIONSHIP)
    return relationship is not None and (
        isinstance(relationship.value, bytes)
        and relationship.value.strip(b" \0") == b"HAS CONCEPT MOD"
    )


# --- the records --------------------------------------------------------------------------------

Encoded = dict[int, bytes]
Make = Callable[[Values, int], tuple[str, Encoded, list[str]]]


def encoded_record(kind: str, values: Values, elements: Encoded) -> bytes:
    whole = {0x00041430: encode_element(0x00041430, "CS", kind.encode()), **elements}
    if declared := values.raw(CHARACTER_SET):
        whole[CHARACTER_SET] = encode_element(CHARACTER_SET, "CS", declared)
    return b"".join(element for _, element in sorted(whole.items()))


def own_elements(kind: Kind, values: Values) -> Encoded:
    """Of the instance's own record; InstanceNumber may be lacking. Raises NotDescribed."""
    own = {tag: encode_element(tag, _VRS[tag], b"") for tag in kind.empty}
    for tag in (*kind.needed, *kind.empty, *kind.optional):
        try:
            found = values.encoded(tag)
        except ValueError as error:
            raise NotDescribed(f"{keyword_of(tag)} cannot be in a record: {error}") from None
        if found:
            own[tag] = found
        elif tag in kind.needed and tag != NUMBER:
            raise NotDescribed(f"it has no {keyword_of(tag)}, which a record for it must have")
    return own


def patient(values: Values, _: int) -> tuple[str, Encoded, list[str]]:
    return _with_stand_ins("PATIENT", values, (PATIENT_NAME,), (), {PATIENT_ID: values.raw(STUDY)})


def study(values: Values, position: int) -> tuple[str, Encoded, list[str]]:
    dates = (values.raw(tag) for tag in (_SERIES_DATE, _CONTENT_DATE, _CREATION_DATE))
    return _with_stand_ins(
        "STUDY",
        values,
        (_STUDY_DESCRIPTION, _ACCESSION),
        (STUDY,),
        {
            _STUDY_DATE: next(filter(None, dates), b"19000101"),
            _STUDY_TIME: b"000000",
            _STUDY_ID: b"%d" % position,
        },
    )


def series(values: Values, position: int) -> tuple[str, Encoded, list[str]]:
    return _with_stand_ins(
        "SERIES",
        values,
        (),
        (SERIES, _SERIES_DESCRIPTION),
        {_MODALITY: b"OT", _SERIES_NUMBER: b"%d" % position},
    )


def _with_stand_ins(
    kind: str,
    values: Values,
    empty: tuple[int, ...],
    as_is: tuple[int, ...],
    stand_ins: dict[int, bytes],
) -> tuple[str, Encoded, list[str]]:
    elements = {tag: encode_element(tag, _VRS[tag], b"") for tag in empty}
    used = []
    for tag in (*empty, *as_is, *stand_ins):
        if found := values.encoded(tag):
            elements[tag] = found
        elif tag in stand_ins:
            elements[tag] = encode_element(tag, _VRS[tag], stand_ins[tag])
            used.append(keyword_of(tag))
    return kind, elements, used
