"""One record of a study whose parts lie in two months, as its instances differ in StudyDate.

Also what holds for any record read back from disk, where a hand may have written anything: the
functions here take values of any type and never fail on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import orjson

Record = dict[str, Any]

MOST_CONFLICTING = 20
"""Values named under ``conflicting`` for one keyword, at most."""

_UNITED = ("ModalitiesInStudy", "SOPClassesInStudy")
_COUNTS = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "bytes")


def count(record: Mapping[str, Any], key: str) -> int:
    value = record.get(key)
    return value if isinstance(value, int) else 0


def by_number(series: Record) -> tuple[float, str]:
    """The order of series: by SeriesNumber, those without last, then by UID."""
    number = series.get("SeriesNumber")
    return (
        number if isinstance(number, (int, float)) else float("inf"),
        str(series.get("SeriesInstanceUID")),
    )


def merge(parts: Sequence[tuple[str, Record]]) -> Record:
    """The study of which each (month, record) is a part; with ``series`` when all have them.

    Counts and bytes add up, sets unite, an attribute has the value of the part with the most
    instances (ties: the earlier month) that has one. Values on which parts disagree are added to
    ``conflicting``. Series that lie in several months become one.
    """
    if len(parts) == 1:
        return parts[0][1]
    by_month = sorted(parts, key=itemgetter(0))
    records = [
        record
        for _, record in sorted(
            by_month, key=lambda part: -count(part[1], "NumberOfStudyRelatedInstances")
        )
    ]
    merged: Record = {}
    for record in reversed(records):
        merged.update((key, value) for key, value in record.items() if value not in (None, ""))
    for key in _COUNTS:
        merged[key] = sum(count(record, key) for record in records)
    for key in _UNITED:
        merged[key] = _sorted(value for record in records for value in _list(record.get(key)))
    for key, choose in (("first_stored", min), ("last_stored", max)):
        if times := [value for r in records if isinstance(value := r.get(key), str)]:
            merged[key] = choose(times)
    merged["conflicting"] = _conflicting(records)
    if not all(isinstance(record.get("series"), list) for record in records):
        merged.pop("series", None)
    else:
        merged["series"] = _merge_series(records)
        merged["NumberOfStudyRelatedSeries"] = len(merged["series"])
    return merged


def _conflicting(records: list[Record]) -> Record:
    found: Record = {}
    # Attributes are spelled as keywords are; our own facts ("bytes") are lower case.
    keys = {key for record in records for key in record if key[:1].isupper()}
    for key in sorted(keys.difference(_COUNTS, _UNITED)):
        values = [record[key] for record in records if record.get(key) not in (None, "")]
        for record in records:
            others = record.get("conflicting")
            values += _list(others.get(key)) if isinstance(others, dict) else []
        if len(different := _sorted(values)) > 1:
            found[key] = different[:MOST_CONFLICTING]
    return found


def _merge_series(records: list[Record]) -> list[Record]:
    by_uid: dict[str, list[Record]] = {}
    for record in records:
        for series in record["series"]:
            if isinstance(series, dict):
                by_uid.setdefault(str(series.get("SeriesInstanceUID", "")), []).append(series)
    return [_merge_one_series(by_uid[uid]) for uid in sorted(by_uid)]


def _merge_one_series(parts: list[Record]) -> Record:
    parts = sorted(parts, key=lambda part: -count(part, "NumberOfSeriesRelatedInstances"))
    merged: Record = {}
    for part in reversed(parts):
        merged.update(part)
    for key in ("NumberOfSeriesRelatedInstances", "bytes"):
        merged[key] = sum(count(part, key) for part in parts)
    if any("instances" in part for part in parts):
        merged["instances"] = [i for part in parts for i in _list(part.get("instances"))]
    return merged


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _sorted(values: Iterable[Any]) -> list[Any]:
    """The different ones, sorted as text, so that any types may meet."""
    return sorted({orjson.dumps(value): value for value in values}.values(), key=str)
