"""The index of a study: a function of the ``.dcm`` names present and the valid manifest lines.

Nothing else goes in (no clock, no history, no order of arrival), so that a rebuild from the files
gives the same bytes. Which lines are valid, and which of them counts, ``study_files`` says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from plainpacs.archive.store.manifest import Line
from plainpacs.indexer.index.manifest_facts import (
    SERIES_KEYWORDS,
    STUDY_KEYWORDS,
    Frozen,
    InstanceFacts,
    present,
)
from plainpacs.indexer.index.merge import MOST_CONFLICTING, count

_STYLE = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One series of a study. ``attributes`` by keyword, without SeriesInstanceUID."""

    uid: str
    attributes: Mapping[str, Any]
    instances: int
    size: int

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.attributes,
            "SeriesInstanceUID": self.uid,
            "NumberOfSeriesRelatedInstances": self.instances,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """The index of a study (of its part in one month). ``attributes`` without StudyInstanceUID."""

    uid: str
    attributes: Mapping[str, Any]
    conflicting: Mapping[str, list[Any]]
    modalities: tuple[str, ...]
    sop_classes: tuple[str, ...]
    instances: int
    size: int
    first_stored: str
    last_stored: str
    series: tuple[SeriesRecord, ...]

    def _summary(self) -> dict[str, Any]:
        return {
            **self.attributes,
            "ModalitiesInStudy": self.modalities,
            "SOPClassesInStudy": self.sop_classes,
            "NumberOfStudyRelatedSeries": len(self.series),
            "NumberOfStudyRelatedInstances": self.instances,
            "bytes": self.size,
            "conflicting": self.conflicting,
            "first_stored": self.first_stored,
            "last_stored": self.last_stored,
        }

    def as_dict(self) -> dict[str, Any]:
        """The object in ``study.json``."""
        series = [one.as_dict() for one in self.series]
        return {"StudyInstanceUID": self.uid, **self._summary(), "series": series}

    def study_json(self) -> bytes:
        """The bytes of ``study.json``."""
        return orjson.dumps(self.as_dict(), option=_STYLE)

    def catalogue_line(self) -> bytes:
        """The study's line in ``studies.jsonl``: StudyInstanceUID first, no series."""
        summary = dict(sorted(self._summary().items()))
        return orjson.dumps(
            {"StudyInstanceUID": self.uid, **summary}, option=orjson.OPT_APPEND_NEWLINE
        )


# --- the record ---------------------------------------------------------------------------------


def _thaw(value: Frozen) -> Any:
    return orjson.loads(value) if isinstance(value, bytes) else value


def _order(value: Frozen) -> tuple[int, Any]:
    """Numbers by value, before text by code point, before JSON by its bytes."""
    if isinstance(value, (int, float)):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, value)


def _count(tuples: Counter[tuple[Frozen, ...]], column: int) -> Counter[Frozen]:
    votes: Counter[Frozen] = Counter()
    for values, number in tuples.items():
        if values[column] is not None:
            votes[values[column]] += number
    return votes


def _elected(votes: Counter[Frozen]) -> Any:
    most = max(votes.values())
    return _thaw(min((value for value, number in votes.items() if number == most), key=_order))


def record_of(study: str, series: Mapping[str, Mapping[str, InstanceFacts]]) -> StudyRecord | None:
    """The index of a study, of whose series the present instances' lines are given by file name.

    None when there is no instance.
    """
    shared: Counter[tuple[Frozen, ...]] = Counter()
    records: list[SeriesRecord] = []
    modalities: set[str] = set()
    sop_classes: set[str] = set()
    stored: list[str] = []
    modality = SERIES_KEYWORDS.index("Modality")
    for uid in sorted(series):
        lines = list(series[uid].values())
        if not lines:
            continue
        shared.update(line.study for line in lines)
        tuples = Counter(line.series for line in lines)
        attributes = {}
        for column, keyword in enumerate(SERIES_KEYWORDS):
            if votes := _count(tuples, column):
                attributes[keyword] = _elected(votes)
        modalities.update(v for v in (t[modality] for t in tuples) if isinstance(v, str))
        sop_classes.update(line.sop_class for line in lines if line.sop_class)
        stored += [min(line.stored for line in lines), max(line.stored for line in lines)]
        size = sum(line.size for line in lines)
        records.append(SeriesRecord(uid, attributes, len(lines), size))
    if not records:
        return None
    attributes = {}
    conflicting = {}
    for column, keyword in enumerate(STUDY_KEYWORDS):
        votes = _count(shared, column)
        if votes:
            attributes[keyword] = _elected(votes)
        if len(votes) > 1:
            values = sorted(votes, key=_order)[:MOST_CONFLICTING]
            conflicting[keyword] = [_thaw(value) for value in values]
    return StudyRecord(
        study,
        attributes,
        conflicting,
        tuple(sorted(modalities)),
        tuple(sorted(sop_classes)),
        sum(record.instances for record in records),
        sum(record.size for record in records),
        min(stored),
        max(stored),
        tuple(records),
    )


def study_record(root: str, month: str, study: str) -> StudyRecord | None:
    """The index of a study from its manifests and folder, in memory; writes nothing.

    None when it has no instance with a valid line. Raises OSError.
    """
    series: dict[str, dict[str, InstanceFacts]] = defaultdict(dict)
    for uid, name, line in present(root, month, study):
        series[uid][name] = line
    return record_of(study, series)


def instances(root: str, month: str, study: str, only: Collection[str] | None = None) -> list[Line]:
    """The manifest lines that count for the instances present in a study's folder.

    ``only``: of these series. In the order of series, InstanceNumber and name. Raises OSError.
    """
    found: list[tuple[Any, Line]] = []
    for uid, name, facts in present(root, month, study, only):
        line = orjson.loads(facts.raw)
        found.append(((uid, count(line, "InstanceNumber"), name), line))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]
