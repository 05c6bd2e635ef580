"""Which studies a query means, over all months, for ``ls``: read-only and quick.

A month's lines are judged as they are read. When bytes can be searched for (an exact identifier),
only lines near a hit are parsed; when the query names dates or months, only those are read.

A study may lie in several months. Then the parts are merged and the whole is judged, also when
the other parts lie in months that were not read: their folders tell.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import NamedTuple

from plainpacs.archive.identity import UNDATED, month_of
from plainpacs.indexer import catalogue, lookup
from plainpacs.indexer.catalogue import Line
from plainpacs.indexer.lookup import Note
from plainpacs.indexer.matching import plain_date
from plainpacs.indexer.merging import Record, merge
from plainpacs.indexer.query import Query

# From so many studies on, listing a month is cheaper than asking it for each.
_MANY_STUDIES = 30


class Found(NamedTuple):
    """A study that matches. ``line`` is its line in the catalogue, or one like it, no newline."""

    when: str
    study: str
    months: tuple[str, ...]
    line: bytes


# Found(…) itself runs Python code, which shows when 100,000 are made.
_make_found = partial(tuple.__new__, Found)


def studies(root: str, query: Query, note: Note) -> Iterator[Found]:
    """What ``search`` finds, one by one."""
    yield from search(root, query, note)


def search(root: str, query: Query, note: Note) -> list[Found]:
    """The studies that match, newest first by StudyDate and StudyTime, then by UID.

    Raises NotAnArchive when the root itself cannot be listed.
    """
    months = catalogue.months(root)
    chosen = query.months(months)
    needles = query.needles()
    judge = None if query.is_empty() else query.matches
    found: list[Found] = []
    read: dict[str, list[str]] = {}
    for month in chosen:
        studies = read[month] = []
        matching: list[Found] = []
        where = (month,)
        if judge is None and month != UNDATED and (seen := _glance(root, month)) is not None:
            for study, when, line in seen:
                studies.append(study)
                matching.append(_make_found((when, study, where, line)))
            found += _in_order(matching)
            continue
        for study, record, line in _lines(root, month, needles, note):
            studies.append(study)
            if judge is None or judge(record):
                matching.append(_make_found((_when(record, month), study, where, line)))
        # Month by month, which are in order themselves: cheaper than all of them at the end.
        found += _in_order(matching)
    everywhere = needles is None and len(chosen) == len(months)
    several = _in_several_months(root, read, [] if everywhere else months)
    if several:
        found = [one for one in found if one.study not in several]
        for study, its_months in several.items():
            found += _whole(root, study, its_months, query, note)
        found = _in_order(found)
    return found


def everything(root: str) -> list[bytes] | None:
    """Every study's line, as they stand in the catalogues: month by month, newest first, in a month
    by UID. Much quicker than a search.

    None when the catalogues cannot be taken as they are: one is missing or not compacted, or a
    study lies in several months. Raises NotAnArchive.
    """
    found: list[bytes] = []
    studies: set[bytes] = set()
    total = 0
    for month in catalogue.months(root):
        try:
            data = catalogue.read(root, month)
        except OSError:
            return None
        listed = catalogue.compacted(data) if data is not None else None
        if data is None or listed is None:
            return None
        found.append(data)
        studies.update(listed)
        total += len(listed)
    return found if len(studies) == total else None


def _in_order(found: list[Found]) -> list[Found]:
    found.sort(key=itemgetter(1))
    found.sort(key=itemgetter(0), reverse=True)
    return found


def _in_several_months(
    root: str, read: dict[str, list[str]], unread: list[str]
) -> dict[str, tuple[str, ...]]:
    """Which of the studies read, by month, lie in several months, and in which: in those read,
    and by their folders in the ``unread`` ones."""
    everyone = set[str]().union(*read.values())
    if not unread and len(everyone) == sum(map(len, read.values())):
        return {}
    months_of: dict[str, set[str]] = {study: set() for study in everyone}
    for month, studies in read.items():
        for study in studies:
            months_of[study].add(month)
    few = len(everyone) < _MANY_STUDIES
    for month in unread:
        folder = os.path.join(root, month)
        there: set[str] = set()
        if few:
            there = {study for study in everyone if os.path.isdir(os.path.join(folder, study))}
        else:
            with contextlib.suppress(OSError):
                there = everyone.intersection(os.listdir(folder))
        for study in there:
            months_of[study].add(month)
    return {study: tuple(sorted(where)) for study, where in months_of.items() if len(where) > 1}


def _glance(root: str, month: str) -> list[tuple[str, str, bytes]] | None:
    try:
        data = catalogue.read(root, month)
    except OSError:
        return None
    return catalogue.glance(data) if data is not None else None


def _lines(root: str, month: str, needles: tuple[bytes, ...] | None, note: Note) -> Iterable[Line]:
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


def _whole(root: str, study: str, months: tuple[str, ...], query: Query, note: Note) -> list[Found]:
    """The study of several months, if it matches."""
    parts = _parts(root, study, months, note)
    if not parts or not query.matches(record := merge(parts)):
        return []
    where = tuple(month for month, _ in parts)
    when = _when(record, month_of(str(record.get("StudyDate", ""))))
    return [Found(when, study, where, catalogue.line_of(record))]


def _parts(root: str, study: str, months: tuple[str, ...], note: Note) -> list[tuple[str, Record]]:
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


def _when(record: Record, month: str) -> str:
    """Sorts studies by time: ``YYYYMMDDHHMMSS.F``; a study without a date comes last."""
    try:
        date, time = record["StudyDate"], record["StudyTime"]
        if len(date) == 8 and ":" not in time and month != UNDATED:
            when: str = date + time
            return when
    except (KeyError, TypeError):
        pass
    date, time = (str(record.get(key, "")) for key in ("StudyDate", "StudyTime"))
    return (plain_date(date) if month != UNDATED else "") + time.replace(":", "")
