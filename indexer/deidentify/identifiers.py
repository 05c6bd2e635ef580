"""Who an instance is about, in its own words: to find them where they do not belong.

The profile keeps texts that it takes for harmless: a window's explanation, the meaning of a code.
Some of them name the patient, or the physician, all the same. What the instance itself gives as a
name, an ID or a UID is therefore looked for in every value that is kept.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache

from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet, character_set
from plainpacs.archive.dicom.dictionary import tag_of
from plainpacs.archive.dicom.element_tree import Elements
from plainpacs.archive.dicom.elements import CHARACTER_SET

_IDENTIFIERS = frozenset(
    map(
        tag_of,
        (
            *("PatientID", "OtherPatientIDs", "MedicalRecordLocator", "PatientBirthDate"),
            *("PatientAddress", "PatientTelephoneNumbers", "AccessionNumber", "AdmissionID"),
            *("FillerOrderNumberImagingServiceRequest", "PlacerOrderNumberImagingServiceRequest"),
            *("InstitutionName", "InstitutionAddress", "ReferringPhysicianAddress"),
            *("PersonAddress", "PersonTelephoneNumbers", "ClinicalTrialSubjectID"),
        ),
    )
)
_DEVICE = frozenset(map(tag_of, ("StationName", "DeviceSerialNumber", "PerformedStationName")))
_UIDS = frozenset(
    map(tag_of, ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"))
)
_SHORTEST = 3
_SHORTEST_OTHER = 2
"""Characters of a name in a script in which names are shorter."""
_SHORTEST_NUMBER = 5
_SHORTEST_IN_BYTES = 6
"""Bytes: a shorter identifier is met in any picture or table by chance."""
_MOST = 1000
_PARTS = re.compile(r"[\^=,;\s]+")
_LONGEST = 256


def texts_of(elements: Elements, above: CharacterSet = DEFAULT) -> CharacterSet:
    """The character set of a data set or item: its own, else that of what it is in."""
    declared = elements.get(CHARACTER_SET)
    if declared is None or not isinstance(declared.value, bytes):
        return above
    return character_set([name.strip() for name in declared.value.decode("latin-1").split("\\")])


@dataclass(frozen=True, slots=True)
class _Words:
    """Names and IDs, ready to be looked for."""

    in_text: re.Pattern[str] | None
    in_bytes: tuple[bytes, ...]

    def are_in(self, text: str) -> bool:
        return self.in_text is not None and self.in_text.search(text) is not None


class Identifiers:
    """Those of one instance: all names, the IDs of the patient and the study, and, unless they are
    among what is ``retained``, those of the device and the UIDs."""

    def __init__(self, elements: Elements, retained: Container[str]) -> None:
        values: set[str] = set()
        parts: set[str] = set()
        wanted = _IDENTIFIERS if "device" in retained else _IDENTIFIERS | _DEVICE
        uids = "uids" not in retained
        for value, is_part in _values(elements, wanted):
            if len(values) + len(parts) < _MOST and _shortest(value) <= len(value) <= _LONGEST:
                (parts if is_part else values).add(value)
        self._values = frozenset(values)
        self._whole = _words(self._values)
        self._words = _words(self._values | parts)
        raw = [elements[tag].value for tag in _UIDS if tag in elements and uids]
        texts = [one.decode("latin-1").strip(" \0") for one in raw if isinstance(one, bytes)]
        self._uids = [uid for uid in texts if len(uid) >= _SHORTEST_IN_BYTES]

    def is_number(self, text: str) -> bool:
        """Whether ``text`` is one of them, and long enough not to be so by chance."""
        return len(text) >= _SHORTEST_NUMBER and text in self._values

    def in_text(self, text: str) -> bool:
        """Whether one of them stands in ``text``, as a word, in upper or lower case."""
        return self._words.are_in(text) or any(uid in text for uid in self._uids)

    def in_code(self, text: str) -> bool:
        """As ``in_text``, of a Code String: parts of names do not count there. A patient may be
        called Perfusion, and the ImageType PERFUSION says nothing of that."""
        return self._whole.are_in(text)

    def in_bytes(self, data: bytes) -> bool:
        """Whether one of them stands in ``data``, in one of the encodings of text."""
        return len(data) >= _SHORTEST_IN_BYTES and (
            any(one in data for one in self._words.in_bytes)
            or any(uid.encode("latin-1") in data for uid in self._uids)
        )


@lru_cache(maxsize=256)
def _words(found: frozenset[str]) -> _Words:
    longest_first = sorted(found, key=len, reverse=True)
    pattern = re.compile("|".join(map(_word, longest_first)), re.IGNORECASE) if found else None
    encoded = {
        form.encode(codec, "ignore")
        for one in found
        for form in (one, one.upper(), one.lower(), one.title())
        for codec in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
        # A table that counts up has "1234" in it, in 16 bits each.
        if not (one.isdecimal() and codec.startswith("utf-16"))
    }
    return _Words(pattern, tuple(raw for raw in encoded if len(raw) >= _SHORTEST_IN_BYTES))


def _word(text: str) -> str:
    # Scripts that do not put blanks between words have no ends of words either.
    return rf"(?<![^\W_]){re.escape(text)}(?![^\W_])" if text.isascii() else re.escape(text)


def _shortest(value: str) -> int:
    return _SHORTEST if value.isascii() else _SHORTEST_OTHER


def _values(
    elements: Elements, wanted: Container[int], above: CharacterSet = DEFAULT
) -> Iterator[tuple[str, bool]]:
    """Each with whether it is only a part of a name."""
    texts = texts_of(elements, above)
    for tag, element in elements.items():
        if isinstance(element.value, list):
            for item in element.value:
                yield from _values(item, wanted, texts)
        elif element.value is None:
            continue
        elif element.vr == "PN":
            for name in texts.decode(element.value, name=True).split("\\"):
                whole = name.strip(" ^=\0")
                yield whole, False
                yield from ((part, True) for part in _PARTS.split(whole))
        elif tag in wanted:
            for value in texts.decode(element.value).split("\\"):
                yield value.strip(" \0"), False
