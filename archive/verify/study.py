"""What a study's folder and its manifests say of each other, without opening an instance.

Most instances are sound by this: one line that is theirs, of the file's length, and by its own
attributes in its place. What is not is looked at closely, one by one (``verify_instance``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from plainpacs.archive.errors import RefusedInstance
from plainpacs.archive.store import manifest
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import ORIGIN_RECOVERED, Line, best_line, digest_of, lines_in
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import InstanceFile, StudyFiles, study_files

Lines = dict[str, list[Line]]
"""The lines of a series, from the manifests of all nodes, by file."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An instance to be looked at: its place, its file if it has one, its lines."""

    key: InstanceKey
    file: InstanceFile | None
    lines: list[Line]
    damaged: Sequence[Line] = ()


@dataclass(slots=True)
class StudyLook:
    """The part of a study that lies in one month, as it was when it was looked at.

    ``best``: by series and file, the line that counts of each instance that has a valid one.
    ``damaged``: by series and file, lines that name it and are not what was written.
    """

    month: str
    study: str
    files: StudyFiles
    lines: dict[str, Lines] = field(default_factory=dict)
    best: dict[str, dict[str, Line]] = field(default_factory=dict)
    damaged: dict[str, Lines] = field(default_factory=dict)

    def key(self, series: str, name: str) -> InstanceKey:
        """Of the instance whose file is ``name``."""
        instance = name.removesuffix(layout.INSTANCE_ENDING)
        return InstanceKey(self.month, self.study, series, instance)

    def file(self, key: InstanceKey) -> InstanceFile | None:
        name = layout.instance_name(key.instance)
        return self.files.instances.get(key.series, {}).get(name)

    def subject(self, key: InstanceKey, file: InstanceFile | None = None) -> Subject:
        """``file``: where it is known better than by this look."""
        name = layout.instance_name(key.instance)
        lines, damaged = (of.get(key.series, {}).get(name, []) for of in (self.lines, self.damaged))
        return Subject(key, file or self.file(key), lines, damaged)


def look(root: str, month: str, study: str) -> StudyLook:
    """Looks at a study. Raises OSError when a folder or manifest cannot be read."""
    # The files first: who stores appends the line before its temporary link goes.
    found = StudyLook(month, study, study_files(root, month, study))
    for series, names in found.files.manifests.items():
        lines = found.lines[series] = {}
        damaged: list[Line] = []
        for name in sorted(names):
            try:
                with open(
                    os.path.join(root, month, study, name), "rb", buffering=0
                ) as manifest_file:
                    data = manifest_file.read()
            except FileNotFoundError:  # a purge is at work
                continue
            for line, _ in lines_in(data, damaged):
                lines.setdefault(line["file"], []).append(line)
        of_series_damaged = found.damaged[series] = {}
        for line in damaged:
            of_series_damaged.setdefault(line["file"], []).append(line)
    for series, present in found.files.instances.items():
        of_series = found.lines.get(series, {})
        best = found.best[series] = {}
        for name, file in present.items():
            if counts := best_line(of_series.get(name, ()), file.size, file.mtime):
                best[name] = counts
    return found


def promised(lines: Iterable[Line]) -> list[Line]:
    """The lines that say what was stored, since the last removal: what was only read from the file
    afterwards is left out."""
    several = list(lines)
    removed = max((_text(line, "removed") for line in several), default="")
    return [
        line
        for line in several
        if "bytes" in line
        and line.get("origin") != ORIGIN_RECOVERED
        and max(_text(line, "stored"), _text(line, "restored")) >= removed
    ]


def stored_line(file: InstanceFile, lines: list[Line]) -> Line | None:
    """The line that says what was stored in the file; None when there is none of its length.

    One that was made from the file afterwards counts only when nothing else tells.
    """
    several = lines if len(lines) == 1 else promised(lines) or lines
    return best_line(several, file.size, file.mtime)


def _text(line: Line, key: str) -> str:
    value = line.get(key)
    return value if isinstance(value, str) else ""


def is_expected(lines: list[Line]) -> bool:
    """Whether by its ``lines`` there should be a file."""
    return any("bytes" in line for line in lines) and not manifest.removal_in_force(lines)


def belongs(line: Line) -> InstanceKey | None:
    """Where the instance of ``line`` belongs by its own attributes; None when they do not say."""
    try:
        return InstanceKey.of_attributes(line)
    except RefusedInstance:
        return None


def is_sound(line: Line, key: InstanceKey) -> bool:
    """Whether it has a digest, and by its own attributes is of the instance at ``key``."""
    return digest_of(line)[0] != "" and belongs(line) == key


class Sound(NamedTuple):
    """An instance with which nothing is wrong by its folder and lines; ``line`` says what was
    stored."""

    key: InstanceKey
    file: InstanceFile
    line: Line


def sorted_out(seen: StudyLook, forbidden: Forbidden) -> tuple[list[Sound], list[InstanceKey]]:
    """The instances that are sound by folder and manifests, and those, present or missing, that
    are to be looked at closely."""
    sound: list[Sound] = []
    suspect: list[InstanceKey] = []
    for series, present in seen.files.instances.items():
        lines = seen.lines.get(series, {})
        for name, file in present.items():
            several = lines.get(name, [])
            line = stored_line(file, several)
            where = seen.key(series, name)
            if (
                line is None
                or not is_sound(line, where)
                or _may_not_be_here(where, several, forbidden)
            ):
                suspect.append(where)
            else:
                sound.append(Sound(where, file, line))
    for series, lines in seen.lines.items():
        present = seen.files.instances.get(series, {})
        suspect += [
            seen.key(series, name)
            for name, several in lines.items()
            if name not in present and layout.instance_of(name) and is_expected(several)
        ]
        suspect += [
            seen.key(series, name)
            for name in seen.damaged.get(series, {})
            if name not in present and layout.instance_of(name) and name not in lines
        ]
    return sound, suspect


def _may_not_be_here(key: InstanceKey, lines: list[Line], forbidden: Forbidden) -> bool:
    if len(lines) > 1 and manifest.removal_in_force(lines):
        return True
    return bool(forbidden.since) and forbidden.covers(key.study, key.series, key.instance)
