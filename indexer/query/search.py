"""Which studies a query means, over all months: read-only, quick, and month by month.

A study may lie in several months. Then the parts are merged and the whole is judged, also when
the other parts lie in months that are not searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from plainpacs.archive.tree.identity import UNDATED, is_name, month_of
from plainpacs.indexer.index import catalogue, lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, merge
from plainpacs.indexer.index.split_studies import several_months
from plainpacs.indexer.query.parallel import scan
from plainpacs.indexer.query.query import Query
from plainpacs.indexer.query.search_month import Finder, Found, in_month, in_order, when_of

__all__ = ["Found", "everything", "search", "studies"]

# Up to so many studies are asked for by their folders; of more the catalogues tell sooner.
_FEW_STUDIES = 30


def studies(root: str, query: Query, note: Note) -> Iterator[Found]:
    """The studies that match, newest first by StudyDate and StudyTime, then by UID; a month is read
    when its first study is asked for.

    Raises NotAnArchive when the root itself cannot be listed.
    """
    months = catalogue.months(root)
    several = several_months(root, months)
    chosen = query.months(months)
    asked_for = several
    if (uids := query.exactly("StudyInstanceUID")) is not None:
        chosen = _holding(root, uids, chosen)
        asked_for = {uid: several[uid] for uid in uids if uid in several}
    there = set(chosen)
    wholes = [
        found
        for study, where in asked_for.items()
        if not there.isdisjoint(where)
        for found in _whole(root, study, where, query, note)
    ]
    results = scan(root, chosen, Finder(query), several, note)
    for month, found in zip(chosen, results, strict=True):
        # A study of several months comes with the month of its date.
        due = [whole for whole in wholes if month == UNDATED or whole.when >= month]
        wholes = [whole for whole in wholes if whole not in due]
        yield from in_order(found + due) if due else found
    yield from in_order(wholes)


def search(root: str, query: Query, note: Note) -> list[Found]:
    """All that ``studies`` yields."""
    return list(studies(root, query, note))


def everything(root: str, note: Note) -> Iterator[bytes]:
    """Every study's line, month by month, newest first, in a month by UID: as the catalogues have
    them, where they are tidy. Much quicker than a search, and a month at a time is in memory.

    Raises NotAnArchive.
    """
    months = catalogue.months(root)
    several = several_months(root, months)
    finder = Finder(Query())
    for month in months:
        try:
            data = catalogue.read(root, month)
        except OSError:
            data = None
        # A study of several months is listed once, whole, with the first of them.
        here = [study for study, where in several.items() if month in where]
        if data is not None and not here and catalogue.compacted(data) is not None:
            yield data
            continue
        found = in_month(root, month, finder, several, note)
        for study in here:
            if month == next(one for one in months if one in several[study]):
                found += _whole(root, study, several[study], Query(), note)
        yield b"".join(one.line + b"\n" for one in sorted(found, key=itemgetter(1)))


def _holding(root: str, uids: list[str], months: list[str]) -> list[str]:
    """Those of the ``months`` in which these studies have folders; all, when one of them has none
    anywhere (only its line in a catalogue was copied, say) or they are many."""
    if len(uids) > _FEW_STUDIES or not all(map(is_name, uids)):
        return months
    found = [lookup.months_of(root, uid) for uid in uids]
    return [m for m in months if any(m in where for where in found)] if all(found) else months


def _whole(root: str, study: str, months: tuple[str, ...], query: Query, note: Note) -> list[Found]:
    """The study of several months, if it matches."""
    parts = _parts(root, study, months, note)
    if not parts or not query.matches(record := merge(parts)):
        return []
    where = tuple(month for month, _ in parts)
    when = when_of(record, month_of(str(record.get("StudyDate", ""))))
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
