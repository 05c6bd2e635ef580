"""The index of a study: a function of the ``.dcm`` names present and the valid manifest lines.

Nothing else goes in (no clock, no history, no order of arrival), so that a rebuild from the files
gives the same bytes. A line is valid when its ``bytes`` is the file's size. Of several valid lines
for one file the best counts: ``stored`` equal to the file's mtime first, then not ``recovered``,
then the latest, then the greatest bytes.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from plainpacs.archive import layout
from plainpacs.archive.attributes import PATIENT_AND_STUDY, SERIES
from plainpacs.archive.identity import is_name
from plainpacs.archive.manifest import ORIGIN_RECOVERED, Line, lines_in
from plainpacs.archive.root import stamp
from plainpacs.indexer.merging import MOST_CONFLICTING

_STUDY_KEYWORDS = tuple(sorted(PATIENT_AND_STUDY - {"StudyInstanceUID"}))
_SERIES_KEYWORDS = tuple(sorted(SERIES - {"SeriesInstanceUID"}))
_STYLE = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE

Frozen = str | int | float | bytes | None


class InstanceFile(NamedTuple):
    """What the folder says of a ``.dcm`` file. Times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    links: int


class InstanceFacts(NamedTuple):
    """What a manifest line says, as far as the study's index needs it.

    Attribute values are frozen (``_freeze``) and equal tuples are one object, so that thousands of
    instances alike are counted in a few steps.
    """

    size: int
    stored: str
    recovered: bool
    study: tuple[Frozen, ...]
    series: tuple[Frozen, ...]
    sop_class: str
    raw: bytes


@dataclass(slots=True)
class ManifestFacts:
    """The lines of one manifest read so far, by file name; reads on where it stopped."""

    inode: int = 0
    offset: int = 0
    lines: dict[str, list[InstanceFacts]] = field(default_factory=dict)


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


# --- reading the folder -------------------------------------------------------------------------


@dataclass(slots=True)
class StudyFiles:
    """What lies in a study's folder: instance files by series, manifests by series."""

    instances: dict[str, dict[str, InstanceFile]] = field(default_factory=dict)
    manifests: dict[str, list[str]] = field(default_factory=dict)


def study_files(root: str, month: str, study: str) -> StudyFiles:
    """Lists a study's folder; empty when it is not there. Foreign files are passed over.

    Raises OSError when a folder cannot be read.
    """
    files = StudyFiles()
    try:
        entries = list(os.scandir(os.path.join(root, month, study)))
    except (FileNotFoundError, NotADirectoryError):
        return files
    for entry in entries:
        series = layout.series_of_manifest(entry.name)
        if series is not None:
            files.manifests.setdefault(series, []).append(entry.name)
        elif is_name(entry.name) and entry.is_dir(follow_symlinks=False):
            instances = dict(_instances_in(entry.path))
            if instances:
                files.instances[entry.name] = instances
    return files


def _instances_in(folder: str) -> Iterator[tuple[str, InstanceFile]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if layout.instance_of(entry.name) is None:
                continue
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(facts.st_mode):
                yield (
                    entry.name,
                    InstanceFile(
                        facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_nlink
                    ),
                )


# --- reading the manifests ----------------------------------------------------------------------


def _freeze(value: Any) -> Frozen:
    """A value to be counted: hashable, absent when empty; lists and objects as JSON bytes."""
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, (str, int, float)):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _thaw(value: Frozen) -> Any:
    return orjson.loads(value) if isinstance(value, bytes) else value


_alike: dict[tuple[Frozen, ...], tuple[Frozen, ...]] = {}


def _shared(values: tuple[Frozen, ...]) -> tuple[Frozen, ...]:
    if len(_alike) > 10_000:
        _alike.clear()
    return _alike.setdefault(values, values)


def _facts_of(line: Line, raw: bytes) -> InstanceFacts | None:
    size, stored = line.get("bytes"), line.get("stored")
    if not isinstance(size, int) or not isinstance(stored, str):
        return None
    get = line.get
    sop_class = get("SOPClassUID")
    return InstanceFacts(
        size,
        stored,
        get("origin") == ORIGIN_RECOVERED,
        _shared(tuple([_freeze(get(keyword)) for keyword in _STUDY_KEYWORDS])),
        _shared(tuple([_freeze(get(keyword)) for keyword in _SERIES_KEYWORDS])),
        sop_class if isinstance(sop_class, str) else "",
        raw,
    )


def read_manifest(path: str, known: ManifestFacts | None = None) -> ManifestFacts:
    """The lines of the manifest at ``path``; from ``known`` on when it has only grown since.

    Raises OSError.
    """
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        if known is None or known.inode != facts.st_ino or known.offset > facts.st_size:
            known = ManifestFacts(facts.st_ino)
        file.seek(known.offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    known.offset += whole
    # A last line without its newline counts when it parses, but may still be growing.
    for line, raw in lines_in(data[:whole]):
        found = _facts_of(line, raw)
        if found:
            known.lines.setdefault(line["file"], []).append(found)
    if whole == len(data):
        return known
    lines = {name: list(found) for name, found in known.lines.items()}
    for line, raw in lines_in(data[whole:]):
        found = _facts_of(line, raw)
        if found:
            lines.setdefault(line["file"], []).append(found)
    return ManifestFacts(known.inode, known.offset, lines)


def best_line(file: InstanceFile, lines: Iterable[InstanceFacts]) -> InstanceFacts | None:
    """The line that counts for ``file``; None when none is valid."""
    valid = [line for line in lines if line.size == file.size]
    if len(valid) < 2:  # as nearly always
        return valid[0] if valid else None
    mtime = stamp(file.mtime)
    return max(valid, key=lambda line: (line.stored == mtime, not line.recovered, line.stored,
                                        line.raw))  # fmt: skip


# --- the record ---------------------------------------------------------------------------------


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
    modality = _SERIES_KEYWORDS.index("Modality")
    for uid in sorted(series):
        lines = list(series[uid].values())
        if not lines:
            continue
        shared.update(line.study for line in lines)
        tuples = Counter(line.series for line in lines)
        attributes = {}
        for column, keyword in enumerate(_SERIES_KEYWORDS):
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
    for column, keyword in enumerate(_STUDY_KEYWORDS):
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
    files = study_files(root, month, study)
    series: dict[str, dict[str, InstanceFacts]] = {}
    for uid, instances in files.instances.items():
        series[uid] = {}
        manifests = [
            read_manifest(os.path.join(root, month, study, name))
            for name in files.manifests.get(uid, ())
        ]
        for name, file in instances.items():
            lines = [line for manifest in manifests for line in manifest.lines.get(name, ())]
            if line := best_line(file, lines):
                series[uid][name] = line
    return record_of(study, series)


def instances(root: str, month: str, study: str) -> list[Line]:
    """The manifest lines that count for the instances present in a study's folder.

    In the order of series, InstanceNumber and name. Raises OSError.
    """
    files = study_files(root, month, study)
    found: list[tuple[Any, Line]] = []
    for uid, present in files.instances.items():
        manifests = [
            read_manifest(os.path.join(root, month, study, name))
            for name in files.manifests.get(uid, ())
        ]
        for name, file in present.items():
            best = best_line(
                file, [line for manifest in manifests for line in manifest.lines.get(name, ())]
            )
            if best:
                line = orjson.loads(best.raw)
                number = line.get("InstanceNumber")
                found.append(((uid, number if isinstance(number, int) else 0, name), line))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]
