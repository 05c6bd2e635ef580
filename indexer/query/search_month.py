"""Which studies of one month a query means: its catalogue's lines, as few of them parsed as can be.

When bytes can be searched for (an exact identifier), only lines with a hit are parsed; else those
whose value of one key passes, which is told from the bytes (``columns``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial
from operator import itemgetter
from typing import NamedTuple

from plainpacs.archive.tree.identity import UNDATED
from plainpacs.archive.tree.listing import studies_in
from plainpacs.indexer.index import catalogue, lookup
from plainpacs.indexer.index.catalogue import Line
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query.matching import plain_date
from plainpacs.indexer.query.query import Query

_NO_DATE = " "  # sorts before every date


class Found(NamedTuple):
    """A study that matches. ``line`` is its line in the catalogue, or one like it, no newline."""

    when: str
    study: str
    months: tuple[str, ...]
    line: bytes


# Found(…) itself runs Python code, which shows when 100,000 are made.
make_found = partial(tuple.__new__, Found)


class Finder:
    """A query made ready for many months, of whose values it remembers which pass."""

    def __init__(self, query: Query) -> None:
        self.everything = query.is_empty()
        self.bytes = 0
        """Of the catalogues that it was given."""
        self.matches = query.matches
        self._needles = query.needles()
        self._columns = [] if self._needles else query.columns()

    def lines(self, data: bytes) -> Iterable[Line]:
        """At least the lines of a catalogue's bytes that match, of those that count."""
        self.bytes += len(data)
        if self._needles is not None:
            found = list(catalogue.hits(data, self._needles))
            return catalogue.live_at(data, found) if found else ()
        if self._columns:
            return catalogue.live_at(data, (at for one in self._columns for at in one.hits(data)))
        return catalogue.live(data)


def in_month(
    root: str, month: str, finder: Finder, several: Container[str], note: Note
) -> list[Found]:
    """The studies of the month that match, in order, but for those in ``several`` months."""
    where = (month,)
    if (
        finder.everything
        and month != UNDATED
        and (seen := _glance(root, month, finder)) is not None
    ):
        return in_order(
            [
                make_found((when, study, where, line))
                for study, when, line in seen
                if study not in several
            ]
        )
    return in_order(
        [
            make_found((when_of(record, month), study, where, line))
            for study, record, line in _lines(root, month, finder, note)
            if (finder.everything or finder.matches(record)) and study not in several
        ]
    )


def in_order(found: list[Found]) -> list[Found]:
    """Newest first, then by UID; sorted in place."""
    if len(found) > 1:
        found.sort(key=itemgetter(1))
        found.sort(key=itemgetter(0), reverse=True)
    return found


def _glance(root: str, month: str, finder: Finder) -> list[tuple[str, str, bytes]] | None:
    try:
        data = catalogue.read(root, month)
    except OSError:
        return None
    if data is None:
        return None
    finder.bytes += len(data)
    return catalogue.glance(data)


def _lines(root: str, month: str, finder: Finder, note: Note) -> Iterable[Line]:
    try:
        data = catalogue.read(root, month)
        why = "is missing"
    except OSError as error:
        data, why = None, f"cannot be read ({error.strerror})"
    if data is not None:
        return finder.lines(data)
    try:
        studies = studies_in(root, month)
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


def when_of(record: Record, month: str) -> str:
    """Sorts studies by time: ``YYYYMMDDHHMMSS.F``; a study without a date comes last."""
    try:
        date, time = record["StudyDate"], record["StudyTime"]
        if len(date) == 8 and ":" not in time and month != UNDATED:
            when: str = date + time
            return when
    except (KeyError, TypeError):
        pass
    date, time = (str(record.get(key, "")) for key in ("StudyDate", "StudyTime"))
    return ((plain_date(date) if month != UNDATED else "") or _NO_DATE) + time.replace(":", "")
