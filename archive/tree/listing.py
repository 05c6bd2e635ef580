"""What lies in the tree by name: months, studies, and in a study instances and manifests."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from plainpacs.archive.errors import NotAnArchive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey, is_month, is_name


class InstanceFile(NamedTuple):
    """What the folder says of a ``.dcm`` file. Times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    links: int


@dataclass(slots=True)
class StudyFiles:
    """What lies in a study's folder: instance files by series, manifests by series."""

    instances: dict[str, dict[str, InstanceFile]] = field(default_factory=dict)
    manifests: dict[str, list[str]] = field(default_factory=dict)


def study_files(
    root: str, month: str, study: str, only: Collection[str] | None = None
) -> StudyFiles:
    """Lists a study's folder; empty when it is not there. Foreign files are passed over.

    ``only``: the UIDs of the series whose instances are looked for; all by default.
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
        elif only is not None and entry.name not in only:
            continue
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
                yield entry.name, instance_file(facts)


def instance_file(facts: os.stat_result) -> InstanceFile:
    return InstanceFile(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_nlink)


def months(root: str) -> list[str]:
    """The months of the archive at the path ``root``, sorted. Raises NotAnArchive."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if is_month(entry.name))
    except OSError as error:
        raise NotAnArchive(f"cannot list {root}: {error.strerror}") from None


def studies_in(root: str, month: str) -> list[str]:
    """The study folders of a month, sorted; none when it is gone, or no folder. Raises OSError."""
    try:
        with os.scandir(os.path.join(root, month)) as entries:
            found = [e.name for e in entries if is_name(e.name) and e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def instances_in_tree(root: str) -> Iterator[InstanceKey]:
    """Every instance there is, by its name alone; none of what cannot be read.

    Raises NotAnArchive.
    """
    for month in months(root):
        with contextlib.suppress(OSError):
            for study in studies_in(root, month):
                with contextlib.suppress(OSError):
                    files = study_files(root, month, study)
                    for series, present in files.instances.items():
                        for name in present:
                            instance = name.removesuffix(layout.INSTANCE_ENDING)
                            yield InstanceKey(month, study, series, instance)
