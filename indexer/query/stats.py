"""How much there is: studies, series, instances and bytes, by month, modality or sender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, count
from plainpacs.indexer.query.query import Query
from plainpacs.indexer.query.search import Found, studies


class By(Enum):
    """What is counted apart. Month: under which it is filed, that of its StudyDate. Sender: the
    calling AE title, or the ``origin`` of what was not sent."""

    MONTH = "month"
    MODALITY = "modality"
    SENDER = "sender"


@dataclass(slots=True)
class Totals:
    """``bytes`` of the whole files. A study or series of several groups counts in each."""

    studies: int = 0
    series: int = 0
    instances: int = 0
    bytes: int = 0

    def add(self, other: Totals) -> None:
        self.studies += other.studies
        self.series += other.series
        self.instances += other.instances
        self.bytes += other.bytes


Group = tuple[str, ...]
"""A value for each ``By`` that was asked for."""


def totals(root: str, query: Query, by: Sequence[By], note: Note) -> dict[Group, Totals]:
    """What the studies that match hold, by group, in order. Raises NotAnArchive.

    By month alone the catalogues tell; the modality is asked of each study's index, the sender of
    each manifest: that takes longer.
    """
    groups: dict[Group, Totals] = {}
    for found in studies(root, query, note):
        of_study: dict[Group, Totals] = {}
        for group, held in _parts(root, found, by, note):
            of_study.setdefault(group, Totals(studies=1)).add(held)
        for group, held in of_study.items():
            groups.setdefault(group, Totals()).add(held)
    return dict(sorted(groups.items()))


def _parts(root: str, found: Found, by: Sequence[By], note: Note) -> Iterator[tuple[Group, Totals]]:
    if By.MODALITY not in by and By.SENDER not in by and len(found.months) == 1:
        record: Record = orjson.loads(found.line)
        yield _group(by, found.months[0], {}), _of_study(record)
        return
    parts = [
        (month, part)
        for month in found.months
        if (part := lookup.part_of_study(root, month, found.study, note)) is not None
    ]
    if By.SENDER in by:
        parts = lookup.with_instances(root, parts, note)
    for month, part in parts:
        if By.MODALITY not in by and By.SENDER not in by:
            yield _group(by, month, {}), _of_study(part)
            continue
        for series in part["series"]:
            if By.SENDER in by:
                yield from _of_lines(by, month, series["instances"])
            else:
                instances = count(series, "NumberOfSeriesRelatedInstances")
                held = Totals(series=1, instances=instances, bytes=count(series, "bytes"))
                yield _group(by, month, series), held


def _of_study(record: Record) -> Totals:
    return Totals(
        series=count(record, "NumberOfStudyRelatedSeries"),
        instances=count(record, "NumberOfStudyRelatedInstances"),
        bytes=count(record, "bytes"),
    )


def _of_lines(
    by: Sequence[By], month: str, lines: Iterable[Record]
) -> Iterator[tuple[Group, Totals]]:
    groups: dict[Group, Totals] = {}
    for line in lines:
        held = groups.setdefault(_group(by, month, line), Totals(series=1))
        held.instances += 1
        held.bytes += count(line, "bytes")
    yield from groups.items()


def _group(by: Sequence[By], month: str, record: Mapping[str, Any]) -> Group:
    values = {
        By.MONTH: month,
        By.MODALITY: record.get("Modality"),
        By.SENDER: record.get("calling_ae") or record.get("origin"),
    }
    return tuple(str(values[one] or "") for one in by)
