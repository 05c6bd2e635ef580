"""``--sort``: records in an order that was asked for.

>>> keys = sort_keys("-studydate,PatientName", Level.STUDY)
>>> keys
('-StudyDate', 'PatientName')
>>> [one["n"] for one in in_order([{"n": 1}, {"n": 2, "StudyDate": "20240101"}], keys)]
[2, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from plainpacs.archive.dicom.attributes import BY_KEYWORD, Level
from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query.keys import field_named
from plainpacs.indexer.query.matching import fold, plain_date

NATURAL = ("-StudyDate", "-StudyTime")
"""The order in which studies are found."""

_NOTHING = (9,)  # sorts behind every value


def sort_keys(text: str, level: Level) -> tuple[str, ...]:
    """The keys that ``text`` names, separated by commas, ``-`` before those that descend; spelled
    as they are in a record at ``level``. Raises BadQuery."""
    found = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        down = "-" if name.startswith("-") else ""
        found.append(down + field_named(name.removeprefix("-"), level))
    if not found:
        raise BadQuery("--sort names no key; write it as --sort -StudyDate,PatientName")
    return tuple(found)


def is_natural(sort: Sequence[str]) -> bool:
    """Whether it is the order in which studies are found anyway."""
    return tuple(sort) == NATURAL[: len(sort)]


def sort_value(record: Record, keyword: str) -> tuple[Any, ...]:
    """What compares as the record's value should: numbers by size, before text without regard to
    case and accents, dates by the calendar, and nothing last."""
    value = record.get(keyword)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, (int, float)):
        return 0, value
    text = str(value)
    kept = BY_KEYWORD.get(keyword)
    if kept and kept.vr == "DA":
        return (1, plain_date(text)) if plain_date(text) else (2, text)
    return (1, fold(text), text)


def in_order(
    records: Iterable[Record], sort: Sequence[str], limit: int | None = None
) -> Iterator[Record]:
    """``records`` by those keys; equal ones stay as they come. What lacks a value comes last,
    descending or not. No more than about twice the ``limit`` are held, if there is one."""
    kept: list[Record] = []
    most = 2 * limit + 1000 if limit is not None else None
    for record in records:
        kept.append(record)
        if most is not None and len(kept) > most:
            _sort(kept, sort)
            del kept[limit:]
    _sort(kept, sort)
    yield from kept[:limit]


def _sort(records: list[Record], sort: Sequence[str]) -> None:
    # From the last key to the first, as sorting keeps what is equal in place.
    for key in reversed(sort):
        keyword = key.removeprefix("-")
        down = key.startswith("-")
        records.sort(key=lambda record: sort_value(record, keyword), reverse=down)
        if down:
            records.sort(key=lambda record: sort_value(record, keyword) == _NOTHING)
