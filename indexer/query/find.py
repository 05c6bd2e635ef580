"""Records of patients, studies, series or instances that match: one call for commands and network.

``find`` yields them one by one. A record is a dict by keyword, values as in ``study.json`` and the
manifests; it has the attributes of the levels above its own, too. Beside them:

- ``paths``: of a study or series its folders, relative to the root, one for each month it lies in;
  ``path``: of an instance, its file.
- ``by_another_value``: the keywords by which it matches only through ``conflicting``; absent when
  there are none. The value shown is then not the one asked for.

**Patients** are told apart by PatientID and IssuerOfPatientID, those without an ID by name and date
of birth. **Series and instances** are read from the ``study.json`` and manifests of the matching
studies. An instance is judged by what it says itself; where it says nothing, by its series and
study.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.tree import layout
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, by_number, merge
from plainpacs.indexer.query import matching, patients
from plainpacs.indexer.query.query import Condition, Query
from plainpacs.indexer.query.search import Found, studies
from plainpacs.indexer.query.sorting import in_order, is_natural

__all__ = ["Level", "Record", "find", "find_in_study"]

# What is told of a study, and would be wrong of its series and instances.
_OF_THE_WHOLE = ("series", "bytes")


def find(
    root: str,
    query: Query,
    note: Note,
    *,
    sort: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[Record]:
    """The records at the query's level that match, each as soon as it is known.

    Without ``sort`` the newest study comes first (StudyDate and StudyTime), within a study series
    and instances by number; patients by name. ``sort`` names keys, ``-`` before one for descending
    (``sorting.sort_keys`` checks them): then all that match are held in memory before the first is
    yielded, of which with a ``limit`` only so many are kept.

    ``note``: see ``lookup``. Raises NotAnArchive; everything else is a note.
    """
    records = _unsorted(root, query, note)
    if sort and not (is_natural(sort) and query.level is Level.STUDY):
        records = in_order(records, sort, limit)
    for position, record in enumerate(records):
        if limit is not None and position >= limit:
            return
        if marks := query.by_another_value(record):
            record["by_another_value"] = marks
        yield record


def _unsorted(root: str, query: Query, note: Note) -> Iterator[Record]:
    match query.level:
        case Level.PATIENT:
            yield from patients.find(root, query, note)
        case Level.STUDY:
            for found in studies(root, query, note):
                yield record_of(found)
        case _:
            for found in _with_lower(root, query, note):
                yield from find_in_study(root, found.study, found.months, query, note)


def find_in_study(
    root: str, study: str, months: Iterable[str], query: Query, note: Note
) -> Iterator[Record]:
    """The series or instances, as the query's level is, of one study that match, by number.

    ``months``: those in which the study lies. ``note``: see ``lookup``.
    """
    found = ((month, lookup.part_of_study(root, month, study, note)) for month in months)
    parts = [(month, part) for month, part in found if part is not None]
    if parts and query.level is Level.SERIES:
        yield from _series(study, parts, query)
    elif parts:
        yield from _instances(root, study, parts, query, note)


def record_of(found: Found) -> Record:
    """The study's record, with ``paths``."""
    record: Record = orjson.loads(found.line)
    record["paths"] = [layout.study_folder(month, found.study) for month in found.months]
    return record


def _with_lower(root: str, query: Query, note: Note) -> Iterator[Found]:
    """The studies in which series or instances may match."""
    wanted = query.of_studies()
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uids = query.exactly(keyword)
        if uids is None or query.exactly("StudyInstanceUID") is not None:
            continue
        holding = lookup.studies_holding(root, uids)
        if holding is not None:
            tests = tuple(matching.identifier("StudyInstanceUID", uid) for uid in holding)
            one = Condition(("StudyInstanceUID",), tests)
            wanted = replace(wanted, conditions=(*wanted.conditions, one))
            break
    return iter(studies(root, wanted, note))


_Parts = list[tuple[str, Record]]


def _series(study: str, parts: _Parts, query: Query) -> Iterator[Record]:
    whole = merge(parts)
    shared = {key: value for key, value in whole.items() if key not in _OF_THE_WHOLE}
    for series in sorted(whole["series"], key=by_number):
        record = {**shared, **series, "StudyInstanceUID": study}
        if query.matches(record):
            uid = str(series.get("SeriesInstanceUID", ""))
            record["paths"] = [
                f"{layout.study_folder(month, study)}/{uid}"
                for month, part in parts
                if any(one.get("SeriesInstanceUID") == uid for one in part["series"])
            ]
            yield record


def _instances(root: str, study: str, parts: _Parts, query: Query, note: Note) -> Iterator[Record]:
    whole = merge(parts)
    left_out = (*_OF_THE_WHOLE, "conflicting", "first_stored", "last_stored")
    of_study = {key: value for key, value in whole.items() if key not in left_out}
    known = {str(series.get("SeriesInstanceUID", "")): series for series in whole["series"]}
    only = query.exactly("SeriesInstanceUID")
    for month, part in lookup.with_instances(root, parts, note, only):
        for series in sorted(part["series"], key=by_number):
            uid = str(series.get("SeriesInstanceUID", ""))
            shared = {**of_study, **known.get(uid, {})}
            lines = series["instances"]
            folder = f"{layout.study_folder(month, study)}/{uid}"
            for line in lines:
                # The folder says which instance of which series of which study it is.
                own: dict[str, Any] = {
                    "StudyInstanceUID": study,
                    "SeriesInstanceUID": uid,
                    "SOPInstanceUID": layout.instance_of(line["file"]),
                }
                record = {**shared, **line, **own}
                if query.matches(record):
                    record["path"] = f"{folder}/{line['file']}"
                    yield record
