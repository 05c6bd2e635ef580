"""Records of a remote archive that match, like those of ``indexer.levels``, by C-FIND.

Series and instances are asked for within each study that may have them, as the hierarchical model
wants it (PS3.4 C.4.1.3.1), which every peer understands. Records have the attributes of the levels
above their own too; values are of the types that ``study.json`` has. What a peer does not tell is
left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plainpacs.archive.dicom.attributes import BY_KEYWORD, REQUESTED, Level
from plainpacs.archive.dicom.identifier import DataSet
from plainpacs.archive.dicom.identifier_writing import Value
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query.keys import SEQUENCE
from plainpacs.scp.remote.find_scu import Finder
from plainpacs.scp.remote.terms import COUNTS, Question, Terms

_TOLD = ("RetrieveAETitle", "InstanceAvailability")
_PATIENT = (*("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),)
_STUDY = (
    *(*_PATIENT, "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
    *("StudyDescription", "ReferringPhysicianName", "InstitutionName", "ModalitiesInStudy"),
    *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
)
_SERIES = (
    *("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "SeriesDate"),
    *("SeriesTime", "BodyPartExamined", "Laterality", "ProtocolName", "StationName"),
    *("Manufacturer", "ManufacturerModelName", "PerformedProcedureStepStartDate"),
    *("PerformedProcedureStepStartTime", "NumberOfSeriesRelatedInstances"),
)
_INSTANCE = (
    *("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
)
FIELDS: Mapping[Level, tuple[str, ...]] = {
    Level.PATIENT: _PATIENT,
    Level.STUDY: _STUDY,
    Level.SERIES: _SERIES,
    Level.INSTANCE: _INSTANCE,
}
"""What is asked to be told, by level."""
UNIQUE = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}
_ABOVE = (UNIQUE[Level.STUDY], UNIQUE[Level.SERIES])
_SEVERAL = frozenset(("ModalitiesInStudy", "SOPClassesInStudy"))
_REQUESTED = frozenset(kept.keyword for kept in REQUESTED)
_KEPT = tuple(keyword for keyword in BY_KEYWORD if keyword != "SpecificCharacterSet")
_BELOW = {Level.STUDY: Level.SERIES, Level.SERIES: Level.INSTANCE}


def search(
    finder: Finder, terms: Terms, fields: Collection[str] = ()
) -> Generator[Record, None, None]:
    """The records at the terms' level that match, each once, as they come; with these ``fields``
    too, if the peer has them.

    A search that is left early is cancelled at the peer. Raises what ``Finder.find`` does.
    """
    top = Level.PATIENT if terms.level is Level.PATIENT else Level.STUDY
    wanted = {level: (*keys, *_of_level(level, fields), *_TOLD) for level, keys in FIELDS.items()}
    asking = _Asking(finder, terms, wanted)
    found = asking.matching(top, {})
    if terms.level is top:
        yield from found
        return
    # One query has to end before the next one.
    for study in list(found):
        yield from asking.below(Level.STUDY, study)


def _of_level(level: Level, fields: Collection[str]) -> list[str]:
    """Those of the ``fields`` that are asked for at ``level``."""
    levels = (Level.PATIENT, Level.STUDY) if level is Level.STUDY else (level,)
    kept = [one for one in fields if one in BY_KEYWORD and BY_KEYWORD[one].level in levels]
    return kept + [one for one in fields if one in _SEVERAL and level is Level.STUDY]


@dataclass(frozen=True, slots=True)
class _Asking:
    """One search. ``wanted``: what is to be told of records, by level."""

    finder: Finder
    terms: Terms
    wanted: Mapping[Level, Collection[str]]

    def below(self, level: Level, above: Record) -> Iterator[Record]:
        """What matches within the record ``above``, which is of ``level``."""
        below = _BELOW[level]
        found = self.matching(below, above)
        if below is self.terms.level:
            yield from found
            return
        for record in list(found):
            yield from self.below(below, record)

    def matching(self, level: Level, above: Record) -> Iterator[Record]:
        """What matches at ``level``, within ``above`` if that is not empty."""
        seen: set[tuple[object, ...]] = set()
        unique = {key: str(above[key]) for key in _ABOVE if key in above}
        for question in self.terms.questions(level):
            keys = {**dict.fromkeys(self.wanted[level], ""), **_encodable(question), **unique}
            with contextlib.closing(self.finder.find(level, keys)) as answers:
                for answer in answers:
                    record = {**above, **record_of(answer.data)}
                    identity = _identity(level, record)
                    if identity in seen:
                        continue
                    if self.terms.means(level, record, complete=answer.complete):
                        seen.add(identity)
                        yield record


def _identity(level: Level, record: Record) -> tuple[object, ...]:
    keys = ("PatientID", "IssuerOfPatientID", "PatientName") if level is Level.PATIENT else ()
    return tuple(str(record.get(key)) for key in keys or (UNIQUE[level],))


def _encodable(question: Question) -> dict[str, Value]:
    keys: dict[str, Value] = {
        key: value for key, value in question.items() if key not in _REQUESTED
    }
    if item := {key: value for key, value in question.items() if key in _REQUESTED}:
        keys[SEQUENCE] = [item]
    return keys


def record_of(data: DataSet) -> Record:
    """The values of an answer, as ``study.json`` would have them; empty ones are left out."""
    found: Record = {}
    for keyword in (*_KEPT, *_SEVERAL, *COUNTS, *_TOLD):
        value = _value(data, keyword)
        if value not in (None, "", []):
            found[keyword] = value
    return found


def _value(data: DataSet, keyword: str) -> Any:
    if keyword == SEQUENCE:
        return [
            {kept: text for kept in sorted(_REQUESTED) if (text := item.text(kept))}
            for item in data.items(keyword)
        ]
    kept = BY_KEYWORD.get(keyword)
    if keyword in _SEVERAL or (kept and kept.multiple):
        values = data.texts(keyword)
        return [_number(kept.vr, one) for one in values] if kept else values
    text = data.text(keyword)
    return _number(kept.vr if kept else "IS" if keyword in COUNTS else "", text)


def _number(vr: str, text: str) -> str | int | float | None:
    """A number where the VR has them; None for what is none."""
    if vr not in ("IS", "US", "DS"):
        return text
    try:
        return float(text) if vr == "DS" else int(text)
    except ValueError:
        return None
