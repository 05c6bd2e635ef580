"""Records of a remote archive that match, like those of ``indexer.levels``, by C-FIND.

Series and instances are asked for within each study that may have them, as the hierarchical model
wants it (PS3.4 C.4.1.3.1), which every peer understands. Records have the attributes of the levels
above their own too; values are of the types that ``study.json`` has. What a peer does not tell is
left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from plainpacs.archive.attributes import BY_KEYWORD, REQUESTED, Level
from plainpacs.indexer.keys import SEQUENCE
from plainpacs.indexer.merging import Record
from plainpacs.scp.asking import Finder
from plainpacs.scp.identifiers import DataSet, Value
from plainpacs.scp.remote_terms import COUNTS, Question, Terms

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
_SEVERAL = frozenset(("ModalitiesInStudy", "SOPClassesInStudy"))
_REQUESTED = frozenset(kept.keyword for kept in REQUESTED)
_KEPT = tuple(keyword for keyword in BY_KEYWORD if keyword != "SpecificCharacterSet")
_BELOW = {Level.STUDY: Level.SERIES, Level.SERIES: Level.INSTANCE}


def search(finder: Finder, terms: Terms) -> Generator[Record, None, None]:
    """The records at the terms' level that match, each once, as they come.

    A search that is left early is cancelled at the peer. Raises what ``Finder.find`` does.
    """
    top = Level.PATIENT if terms.level is Level.PATIENT else Level.STUDY
    found = _matching(finder, terms, top, {})
    if terms.level is top:
        yield from found
        return
    # One query has to end before the next one.
    for study in list(found):
        yield from _below(finder, terms, Level.STUDY, study)


def _below(finder: Finder, terms: Terms, level: Level, above: Record) -> Iterator[Record]:
    """What matches within the record ``above``, which is of ``level``."""
    below = _BELOW[level]
    found = _matching(finder, terms, below, above)
    if below is terms.level:
        yield from found
        return
    for record in list(found):
        yield from _below(finder, terms, below, record)


def _matching(finder: Finder, terms: Terms, level: Level, above: Record) -> Iterator[Record]:
    seen: set[tuple[object, ...]] = set()
    unique = {key: str(above[key]) for key in UNIQUE.values() if above and _is_above(key, above)}
    for question in terms.questions(level):
        if any(question.get(key, uid) not in ("", uid) for key, uid in unique.items()):
            continue
        keys = {**dict.fromkeys((*FIELDS[level], *_TOLD), ""), **_encodable(question), **unique}
        with contextlib.closing(finder.find(level, keys)) as answers:
            for answer in answers:
                record = {**above, **record_of(answer.data)}
                identity = _identity(level, record)
                if identity in seen:
                    continue
                if terms.means(level, record, complete=answer.complete):
                    seen.add(identity)
                    yield record


def _is_above(key: str, above: Record) -> bool:
    return key in above and key != UNIQUE[Level.PATIENT]


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
