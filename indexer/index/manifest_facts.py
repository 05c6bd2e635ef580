"""What a study's index is made from: the files in its folder, and the lines of its manifests."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from plainpacs.archive.dicom.attributes import PATIENT_AND_STUDY, SERIES
from plainpacs.archive.store.manifest import ORIGIN_RECOVERED, Line, best_of, lines_in
from plainpacs.archive.tree.listing import InstanceFile, StudyFiles, study_files

__all__ = [
    "InstanceFacts",
    "InstanceFile",
    "ManifestFacts",
    "StudyFiles",
    "best_facts",
    "instance_facts",
    "present",
    "read_manifest",
    "study_files",
]

STUDY_KEYWORDS = tuple(sorted(PATIENT_AND_STUDY - {"StudyInstanceUID"}))
SERIES_KEYWORDS = tuple(sorted(SERIES - {"SeriesInstanceUID"}))

Frozen = str | int | float | bytes | None
"""A value to be counted; lists and objects as their JSON."""


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


def instance_facts(line: Line, raw: bytes) -> InstanceFacts | None:
    """What ``line``, of the bytes ``raw``, says; None when it is not of a stored instance."""
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
        found = instance_facts(line, raw)
        if found:
            known.lines.setdefault(line["file"], []).append(found)
    if whole == len(data):
        return known
    lines = {name: list(found) for name, found in known.lines.items()}
    for line, raw in lines_in(data[whole:]):
        found = instance_facts(line, raw)
        if found:
            lines.setdefault(line["file"], []).append(found)
    return ManifestFacts(known.inode, known.offset, lines)


def present(
    root: str, month: str, study: str, only: Collection[str] | None = None
) -> Iterator[tuple[str, str, InstanceFacts]]:
    """(SeriesInstanceUID, file name, the line that counts) of each instance that lies in a study's
    folder and has a valid line; ``only``: of these series. Raises OSError."""
    files = study_files(root, month, study, only)
    for series, instances in files.instances.items():
        manifests = [
            read_manifest(os.path.join(root, month, study, name))
            for name in files.manifests.get(series, ())
        ]
        for name, file in instances.items():
            lines = [line for manifest in manifests for line in manifest.lines.get(name, ())]
            if best := best_facts(file, lines):
                yield series, name, best


def best_facts(file: InstanceFile, lines: Iterable[InstanceFacts]) -> InstanceFacts | None:
    """What the line says that counts for ``file``; None when none is valid."""
    return best_of(lines, file.size, file.mtime, _TOLD, _RAW)


_TOLD, _RAW = attrgetter("size", "stored", "recovered"), attrgetter("raw")
