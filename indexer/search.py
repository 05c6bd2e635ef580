"""Which studies a query means, over all months, for ``ls``: read-only and quick.

A month's lines are judged as they are read. When bytes can be searched for (an exact identifier),
only lines near a hit are parsed; when the query names dates or months, only those are read.

A study may lie in several months. Then the parts are merged and the whole is judged, also when
the other parts lie in months that were not read: their folders tell.
"""

from __future__ import annotations

import os
from operator import itemgetter
from typing import NamedTuple

from plainpacs.indexer import catalogue, lookup
from plainpacs.indexer.catalogue import Line
from plainpacs.indexer.lookup import Note
from plainpacs.indexer.matching import plain_date
from plainpacs.indexer.merging import Record, merge
from plainpacs.indexer.query import Query

# From so many studies on, listing a month is cheaper than asking it for each.
_MANY_STUDIES = 30


class Found(NamedTuple):
    """A study that matches. ``line`` is its catalogue line, or one like it, without newline."""

    when: str
    study: str
    months: tuple[str, ...]
    line: bytes


def search(root: str, query: Query, note: Note) -> list[Found]:
    """The studies that match, newest first by StudyDate and StudyTime, then by UID.

    Raises NotAnArchive when the root itself cannot be listed.
    """
    months = catalogue.months(root)
    chosen = query.months(months)
    needles = query.needles()
    found: list[Found] = []
    first_month: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    matches = query.matches
    for month in chosen:
        for study, record, line in _lines(root, month, needles, note):
            if study in first_month:
                several.setdefault(study, [first_month[study]]).append(month)
                continue
            first_month[study] = month
            if matches(record):
                found.append(Found(_when(record), study, (month,), line))
    if needles is not None or len(chosen) < len(months):
        _find_other_parts(root, months, first_month, several)
    if several:
        found = [one for one in found if one.study not in several]
        for study, where in several.items():
            parts = _parts(root, study, sorted(where), note)
            record = merge(parts) if parts else {}
            if record and matches(record):
                in_months = tuple(month for month, _ in parts)
                line = catalogue.line_of(record)
                found.append(Found(_when(record), study, in_months, line))
    found.sort(key=itemgetter(1))
    found.sort(key=itemgetter(0), reverse=True)
    return found


def _lines(root: str, month: str, needles: tuple[bytes, ...] | None, note: Note) -> list[Line]:
    try:
        data = catalogue.read(root, month)
        why = "is missing"
    except OSError as error:
        data, why = None, f"cannot be read ({error.strerror})"
    if data is not None:
        return catalogue.live(data) if needles is None else catalogue.live_with(data, needles)
    try:
        studies = catalogue.studies_in(root, month)
    except OSError as error:
        note(f"{month} cannot be read: {error.strerror}")
        return []
    if studies:
        note(f"{month}/studies.jsonl {why}: read from the {len(studies)} study folders instead")
    lines = []
    for study in studies:
        record = lookup.stored_record(root, month, study)
        if record is None:
            record = lookup.rebuilt_record(root, month, study, note)
        if record is not None:
            lines.append((study, record, catalogue.line_of(record)))
    return lines


def _find_other_parts(
    root: str, months: list[str], first_month: dict[str, str], several: dict[str, list[str]]
) -> None:
    """Adds to ``several`` the studies of ``first_month`` that have a folder in another month."""
    few = len(first_month) < _MANY_STUDIES
    for month in months:
        if few:
            there = [s for s in first_month if os.path.isdir(os.path.join(root, month, s))]
        else:
            try:
                there = [
                    name for name in os.listdir(os.path.join(root, month)) if name in first_month
                ]
            except OSError:
                continue
        for study in there:
            if first_month[study] != month:
                several.setdefault(study, [first_month[study]]).append(month)


def _parts(root: str, study: str, months: list[str], note: Note) -> list[tuple[str, Record]]:
    # The catalogue's lines lack the series, of which one may lie in both months.
    records = (
        (month, lookup.stored_record(root, month, study) or _from_line(root, month, study, note))
        for month in months
    )
    return [(month, record) for month, record in records if record is not None]


def _from_line(root: str, month: str, study: str, note: Note) -> Record | None:
    try:
        data = catalogue.read(root, month)
    except OSError:
        data = None
    line = catalogue.last_line(data, study) if data is not None else None
    return line[1] if line else lookup.rebuilt_record(root, month, study, note)


def _when(record: Record) -> str:
    """Sorts studies by time: ``YYYYMMDDHHMMSS.F``; a study without a date comes last."""
    date, time = record.get("StudyDate"), record.get("StudyTime")
    if type(date) is not str or len(date) != 8 or not date.isdigit():
        date = plain_date(date)
    return date + time.replace(":", "") if type(time) is str else date
