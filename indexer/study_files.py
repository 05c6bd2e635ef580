"""What a study's index is made from: the files in its folder, and the lines of its manifests.

A line is valid when its ``bytes`` is the file's size. Of several valid lines for one file the best
counts: ``stored`` equal to the file's mtime first, then not ``recovered``, then the latest, then
the greatest bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from plainpacs.archive import layout
from plainpacs.archive.attributes import PATIENT_AND_STUDY, SERIES
from plainpacs.archive.identity import is_name
from plainpacs.archive.manifest import ORIGIN_RECOVERED, Line, lines_in
from plainpacs.archive.root import stamp

STUDY_KEYWORDS = tuple(sorted(PATIENT_AND_STUDY - {"StudyInstanceUID"}))
SERIES_KEYWORDS = tuple(sorted(SERIES - {"SeriesInstanceUID"}))

Frozen = str | int | float | bytes | None
"""A value to be counted; lists and objects as their JSON."""


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
        _shared(tuple([_freeze(get(keyword)) for keyword in STUDY_KEYWORDS])),
        _shared(tuple([_freeze(get(keyword)) for keyword in SERIES_KEYWORDS])),
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
