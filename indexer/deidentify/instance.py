"""One instance, de-identified: from the bytes of its file to those of another."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.dictionary import keyword_of, tag_of
from plainpacs.archive.dicom.element_tree import Element, Elements, encode, read_elements
from plainpacs.archive.dicom.flatten import DataSet, Leaf
from plainpacs.archive.dicom.header import DEFLATED
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.indexer.deidentify import pixels
from plainpacs.indexer.deidentify.clean import Cleaner
from plainpacs.indexer.deidentify.identifiers import Identifiers, texts_of
from plainpacs.indexer.deidentify.profile import STRUCTURED_CONTENT, Code, Profile
from plainpacs.indexer.deidentify.pseudonyms import Pseudonyms

_SOP_CLASS, _SOP_INSTANCE = tag_of("SOPClassUID"), tag_of("SOPInstanceUID")
_STUDY, _SERIES = tag_of("StudyInstanceUID"), tag_of("SeriesInstanceUID")
_NAME, _ID, _ISSUER = tag_of("PatientName"), tag_of("PatientID"), tag_of("IssuerOfPatientID")
_BIRTH_DATE = tag_of("PatientBirthDate")
_CONTENT = tag_of("ContentSequence")
_PROVIDER = tag_of("PixelDataProviderURL")
_PIXEL_DATA = 0x7FE00010
_STANDARD = "1.2.840.10008.1.2"
_UNCOMPRESSED = frozenset(
    (
        *(part10.IMPLICIT_LITTLE_ENDIAN, part10.EXPLICIT_LITTLE_ENDIAN),
        *(part10.EXPLICIT_BIG_ENDIAN, *DEFLATED),
    )
)


class LeftOut(UnreadableDataSet):
    """The instance cannot be de-identified. The words say why, and carry no values of it."""


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A de-identified instance: a Part 10 file in ``pieces``, whose ``elements`` are those up to
    the pixel data. ``uncleaned``: what was let through, and why it was not certain to be clean."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    elements: Elements
    pieces: list[Buffer]
    uncleaned: str = ""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.pieces))


def transfer_syntax_of(transfer_syntax: str) -> str:
    """That of a de-identified instance: its own if it is compressed, else Explicit VR Little
    Endian."""
    return part10.EXPLICIT_LITTLE_ENDIAN if transfer_syntax in _UNCOMPRESSED else transfer_syntax


class Deidentifier:
    """De-identifies instances by a profile. ``uncleaned``: the kinds of ``pixels.UNCLEANED`` that
    are let through."""

    def __init__(
        self, profile: Profile, pseudonyms: Pseudonyms, uncleaned: frozenset[str] = frozenset()
    ) -> None:
        self.profile = profile
        self._pseudonyms = pseudonyms
        self._uncleaned = uncleaned

    def uid(self, uid: str) -> str:
        """What becomes of the UID of an instance."""
        return uid if "uids" in self.profile.options else self._pseudonyms.uid(uid)

    def deidentified(self, file: Buffer) -> Deidentified:
        """From the whole of a Part 10 file, or a bare data set. Raises LeftOut."""
        view = memoryview(file)
        try:
            found = part10.read_part10(view[: part10.LONGEST_META])
            data_set = DataSet(view[found.dataset_offset :], found.transfer_syntax)
            leaves: list[Leaf] = []
            elements = read_elements(data_set, longest=inf, pixels=leaves)
        except UnreadableDataSet as error:
            raise LeftOut(f"it cannot be read to its end: {error}") from None
        syntax = data_set.transfer_syntax
        self._check(elements, leaves, syntax)
        sop_class = _text(elements, _SOP_CLASS) or found.sop_class
        kind, why = pixels.uncleaned(elements, sop_class, syntax, has_pixels=bool(leaves))
        if kind and kind not in self._uncleaned:
            raise LeftOut(f"{why}; --uncleaned {kind} lets it through")
        cleaned = self._cleaned(elements)
        sop_instance = _text(cleaned, _SOP_INSTANCE)
        syntax = transfer_syntax_of(syntax)
        pieces: list[Buffer] = [
            part10.file_meta(sop_class, sop_instance, syntax),
            *_encoded(cleaned),
            *pixels.encoded(data_set.data, leaves),
        ]
        return Deidentified(sop_class, sop_instance, syntax, cleaned, pieces, why)

    def _check(self, elements: Elements, leaves: list[Leaf], syntax: str) -> None:
        for tag in (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES):
            if not _text(elements, tag) or elements[tag].vr != "UI":
                raise LeftOut(f"it has no {keyword_of(tag)}, or not as a UID")
        if syntax not in _UNCOMPRESSED and not syntax.startswith(_STANDARD):
            raise LeftOut("its transfer syntax is private, so nothing in it is certain")
        if _PROVIDER in elements:
            raise LeftOut("its pixels are elsewhere")
        if syntax in _UNCOMPRESSED and any(leaf.encapsulated for leaf in leaves):
            raise LeftOut("it has fragments in an uncompressed transfer syntax")

    def _cleaned(self, elements: Elements) -> Elements:
        patient = _patient(elements)
        identifiers = Identifiers(elements, self.profile.options)
        days = self._pseudonyms.days(patient)
        cleaned = Cleaner(self.profile, self._pseudonyms, identifiers, days).clean(elements)
        pseudonym = self._pseudonyms.patient(patient).encode()
        codes = self.profile.codes
        if _CONTENT in elements:
            codes.append(STRUCTURED_CONTENT)
        return cleaned | {
            _NAME: Element("PN", pseudonym),
            _ID: Element("LO", pseudonym),
            tag_of("PatientIdentityRemoved"): Element("CS", b"YES"),
            tag_of("DeidentificationMethod"): Element("LO", _method(codes)),
            tag_of("DeidentificationMethodCodeSequence"): Element("SQ", list(map(_item, codes))),
            tag_of("LongitudinalTemporalInformationModified"): Element(
                "CS", b"MODIFIED" if self.profile.dates else b"REMOVED"
            ),
        }


def _patient(elements: Elements) -> str:
    """What tells this patient from others: the ID and who issued it; without one, the name and the
    date of birth; without these, the study."""
    texts = texts_of(elements)
    for tags in ((_ID, _ISSUER), (_NAME, _BIRTH_DATE), (_STUDY,)):
        values = [texts.decode(_raw(elements, tag), name=tag == _NAME).strip("\0 ") for tag in tags]
        if values[0].strip("^= "):
            return "\0".join((f"{tags[0]:08X}", *values))
    return ""


def _raw(elements: Elements, tag: int) -> bytes:
    element = elements.get(tag)
    return element.value if element and isinstance(element.value, bytes) else b""


def _text(elements: Elements, tag: int) -> str:
    return _raw(elements, tag).decode("ascii", "replace").strip("\0 ")


def _method(codes: list[Code]) -> bytes:
    """One value of at most 64 characters for each of them."""
    words = ["plainpacs, PS3.15 E.1-1 of 2026c", *(code.meaning[:64] for code in codes)]
    return "\\".join(words).encode()


def _item(code: Code) -> Elements:
    return {
        tag_of("CodeValue"): Element("SH", code.value.encode()),
        tag_of("CodingSchemeDesignator"): Element("SH", b"DCM"),
        tag_of("CodeMeaning"): Element("LO", code.meaning.encode()),
    }


def _encoded(elements: Elements) -> Iterator[bytes]:
    for tag in sorted(elements):
        try:
            yield encode(tag, elements[tag])
        except (ValueError, struct.error):
            raise LeftOut(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is too long") from None
