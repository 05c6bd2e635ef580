"""The Query/Retrieve Information Models: what queries and retrieves share (PS3.4 C.3, C.6).

Patient Root has the levels PATIENT, STUDY, SERIES and IMAGE; Study Root has no PATIENT level.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.identifier import LEVEL, DataSet

LEVELS = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
"""From the top down."""
UNIQUE_KEYS: Mapping[Level, str] = MappingProxyType(
    {
        Level.PATIENT: "PatientID",
        Level.STUDY: "StudyInstanceUID",
        Level.SERIES: "SeriesInstanceUID",
        Level.INSTANCE: "SOPInstanceUID",
    }
)


class NotOfThisModel(Exception):
    """The identifier does not match the SOP Class. ``tag``: of the element that is wrong. The words
    have nothing of what was sent."""

    def __init__(self, words: str, tag: int) -> None:
        super().__init__(words)
        self.tag = tag


def level_of(identifier: DataSet, *, patient_root: bool, strict: bool = True) -> Level:
    """Query/Retrieve Level (0008,0052); unless ``strict``, in any case, and INSTANCE for IMAGE.

    Raises NotOfThisModel.
    """
    text = identifier.text_at(LEVEL)
    if not strict:
        text = text.upper()
        text = Level.INSTANCE.value if text == "INSTANCE" else text
    for level in levels_down_to(Level.INSTANCE, patient_root=patient_root):
        if text == level.value:
            return level
    words = "Query/Retrieve Level is " + ("none of this SOP Class" if text else "missing")
    raise NotOfThisModel(words, LEVEL)


def levels_down_to(level: Level, *, patient_root: bool) -> tuple[Level, ...]:
    """Those of the model, from the top down to ``level``."""
    return LEVELS[0 if patient_root else 1 : LEVELS.index(level) + 1]
