"""The elements of an instance, cleaned as a profile says.

Nothing is taken over that is not understood: an element whose value is not what its VR can have, or
that holds items where none belong, is removed.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from functools import lru_cache

from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.dictionary import vrs_of
from plainpacs.archive.dicom.element_tree import Element, Elements
from plainpacs.archive.dicom.elements import IN_CHARACTER_SET, LONG_VRS, LONGEST_SHORT
from plainpacs.archive.dicom.elements import TEXTS as CHARACTERS
from plainpacs.indexer.deidentify.identifiers import Identifiers, texts_of
from plainpacs.indexer.deidentify.profile import Action, Profile
from plainpacs.indexer.deidentify.pseudonyms import Pseudonyms

REMOVED = b"REMOVED"
_DUMMIES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), REMOVED),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN", "UV", "SV", "FD"), bytes(8)),
    **dict.fromkeys(("AT", "FL", "SL", "UL"), bytes(4)),
    **dict.fromkeys(("SS", "US"), bytes(2)),
    "AS": b"000D",
    "DA": b"19000101",
    "DS": b"0",
    "DT": b"19000101000000",
    "IS": b"0",
    "TM": b"000000",
    "UI": b"",
    "UR": b"urn:removed",
}
_NUMBER = r" *[-+]?[\d.]+(?:[eE][-+]?\d+)? *"
# What values of the other VRs in characters look like (PS3.5 6.2), those of ACR-NEMA too.
_FORMS = {
    vr: re.compile(rf"(?:{one})?(?:\\(?:{one})?)*".encode())
    for vr, one in {
        "AS": r" *\d{1,3}[DWMYdwmy] *",
        "DA": r" *\d{4}\.?\d\d\.?\d\d *",
        "DS": _NUMBER,
        "DT": r" *\d{4,14}(?:\.\d{1,6})?(?:[-+]\d{4})? *",
        "IS": _NUMBER,
        "TM": r" *\d\d(?::?\d\d(?::?\d\d(?:\.\d{1,6})?)?)? *",
        "UI": r"[ \d.\0]*",
    }.items()
}
_TEXTS = IN_CHARACTER_SET | {"AE", "CS", "UR"}
_PADDING = b" \0"
_WAVEFORM_BITS = 0x54001004
_OLDEST = 89
_IN_YEARS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


class Cleaner:
    """Cleans the data set of one instance: of the patient whose dates are brought back ``days``."""

    def __init__(
        self, profile: Profile, pseudonyms: Pseudonyms, identifiers: Identifiers, days: int
    ) -> None:
        self._action = profile.action
        self._uid = pseudonyms.uid
        self._identifiers = identifiers
        self._days = days

    def clean(
        self, elements: Elements, texts: CharacterSet = DEFAULT, *, dummy: bool = False
    ) -> Elements:
        """Other elements; those given stay as they are. ``texts``: the character set around them.
        ``dummy``: no value may say anything."""
        texts = texts_of(elements, texts)
        found: Elements = {}
        for tag, element in elements.items():
            action = self._action(tag)
            if action is Action.REMOVE:
                continue
            if isinstance(element.value, list):
                if "SQ" in vrs_of(tag):
                    found[tag] = self._sequence(element.value, action, texts, dummy)
                continue
            if dummy and action is Action.KEEP:
                action = Action.DUMMY
            cleaned = self._one(tag, _resolved(tag, element, elements), action, texts)
            if cleaned is not None:
                found[tag] = cleaned
        return found

    def _sequence(
        self, items: list[Elements], action: Action, texts: CharacterSet, dummy: bool
    ) -> Element:
        if action is Action.EMPTY:
            return Element("SQ", [])
        dummy = dummy or action is Action.DUMMY
        return Element("SQ", [self.clean(item, texts, dummy=dummy) for item in items])

    def _one(
        self, tag: int, element: Element, action: Action, texts: CharacterSet
    ) -> Element | None:
        vr, value = element.vr, element.value
        if not isinstance(value, bytes) or not _can_be(vr, vrs_of(tag), len(value)):
            return None
        if action is Action.EMPTY or (vr in CHARACTERS and not value.strip(_PADDING)):
            return Element(vr, b"")
        if action is Action.DUMMY:
            return Element(vr, _DUMMIES[vr])
        if vr in _FORMS and not _FORMS[vr].fullmatch(value.rstrip(_PADDING)):
            return _dummy(tag) if action is Action.SHIFT else None
        if vr not in vrs_of(tag) and action is not Action.KEEP:
            return _dummy(tag) if action is Action.SHIFT else None
        if action is Action.UID:
            uids = value.decode("ascii").split("\\")
            return Element(vr, "\\".join(self._uid(uid.strip("\0 ")) for uid in uids).encode())
        if action is Action.SHIFT and vr != "TM":
            return Element(vr, _shifted(vr, value, self._days) or _DUMMIES[vr])
        if action is Action.AGE:
            return Element(vr, _at_most_90(value))
        if vr == "CS":
            if self._identifiers.in_code(value.decode("latin-1")):
                return Element(vr, b"")
        elif vr in _TEXTS:
            if self._identifiers.in_text(texts.decode(value, name=vr == "PN")):
                return Element(vr, REMOVED)
        elif vr == "IS" and self._identifiers.is_number(value.decode("ascii").strip(" \0")):
            return Element(vr, b"")
        elif vr not in _FORMS and self._identifiers.in_bytes(value):
            return None
        return element


def _dummy(tag: int) -> Element:
    vr = vrs_of(tag)[0]
    return Element(vr, _DUMMIES[vr])


def _resolved(tag: int, element: Element, among: Elements) -> Element:
    """``element`` in a VR that it can have, where implicit VR left a choice, or it is long."""
    known = vrs_of(tag)
    if len(known) == 1 or "OW" not in known or element.vr not in known:
        return element
    bits = among.get(_WAVEFORM_BITS)
    words = bits is not None and isinstance(bits.value, bytes) and 16 in bits.value[:2]
    long = isinstance(element.value, bytes) and len(element.value) > LONGEST_SHORT
    if (element.vr == "OB" and words) or (element.vr != "OB" and long):
        return element._replace(vr="OW")
    return element


def _can_be(vr: str, known: tuple[str, ...], length: int) -> bool:
    """Whether an element of the VRs ``known`` may be in the VR ``vr``, as far as is understood."""
    if vr not in _DUMMIES or "SQ" in known:
        return False
    if (vr in CHARACTERS) != (known[0] in CHARACTERS):
        return False
    return length <= LONGEST_SHORT or vr in LONG_VRS


@lru_cache(maxsize=1 << 12)
def _shifted(vr: str, value: bytes, days: int) -> bytes:
    """Dates brought back; empty when one is no date. Of a DT the offset from UTC is left out."""
    found = []
    for one in value.decode("ascii").split("\\"):
        text = one.strip(" \0")
        text = text.replace(".", "") if vr == "DA" else re.sub(r"[-+]\d{4}$", "", text)
        if not text:
            found.append("")
            continue
        try:
            there = date(int(text[:4]), int(text[4:6] or 1), int(text[6:8] or 1))
            back = there - timedelta(days)
        except (ValueError, OverflowError):
            return b""
        digits = f"{back.year:04}{back.month:02}{back.day:02}"
        found.append(digits[: len(text)] + text[8:])
    return "\\".join(found).encode()


def _at_most_90(value: bytes) -> bytes:
    age = value.decode("ascii").split("\\")[0].strip(" \0")
    old = int(age[:-1]) / _IN_YEARS[age[-1].upper()] >= _OLDEST + 1
    return b"090Y" if old else value
