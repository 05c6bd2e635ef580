"""What waits to be decided: other bytes that came under a stored UID, beside what is published.

Nothing here writes. How the two differ, ``compare`` says; ``deciding`` decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from plainpacs.archive.store import set_aside
from plainpacs.archive.store.manifest import best_line
from plainpacs.archive.store.set_aside import Lines, SetAside
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import stamp
from plainpacs.archive.tree.targets import Target


@dataclass(frozen=True, slots=True)
class Version:
    """One of several files with the same UID. ``path`` is relative to ROOT, ``size`` in bytes.

    ``stored`` is a stamp; ``calling_ae`` is empty when it is not known, ``origin`` too.
    """

    path: str
    size: int
    stored: str
    calling_ae: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A variant kept aside (``second``), of what is published (``first``; None: nothing is).

    ``digest`` tells variants of one instance apart.
    """

    key: InstanceKey
    digest: str
    first: Version | None
    second: Version


def conflicts(root: int, targets: Iterable[Target] | None = None) -> Iterator[Conflict]:
    """The variants kept aside of the ``targets`` (None: of all), by month, study, series, instance
    and time. Raises OSError: PermissionError where they may not be read."""
    of_series = lru_cache(maxsize=2)(
        lambda folder, series: set_aside.lines_of(root, folder, series)
    )
    for target in set_aside.studies(root, layout.CONFLICTS) if targets is None else targets:
        found: dict[InstanceKey, list[Conflict]] = {}
        for one in set_aside.kept(root, layout.CONFLICTS, [target]):
            study = layout.study_folder(one.key.month, one.key.study)
            beside = of_series(f"{layout.CONFLICTS}/{study}", one.key.series)
            second = _version(root, one.path, one.name, beside)
            if second is None:
                continue  # decided in this moment
            path = layout.instance_path(one.key)
            name = layout.instance_name(one.key.instance)
            first = _version(root, path, name, of_series(study, one.key.series))
            found.setdefault(one.key, []).append(Conflict(one.key, one.mark, first, second))
        for some in found.values():
            yield from sorted(some, key=lambda conflict: conflict.second.stored)


def version_of(root: int, key: InstanceKey) -> Version | None:
    """The published file of an instance; None when there is none. Raises OSError."""
    lines = set_aside.lines_of(root, layout.study_folder(key.month, key.study), key.series)
    return _version(root, layout.instance_path(key), layout.instance_name(key.instance), lines)


def _version(root: int, path: str, name: str, lines: Lines) -> Version | None:
    try:
        facts = os.stat(path, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return None
    line = best_line(lines.get(name, ()), facts.st_size, facts.st_mtime_ns) or {}
    calling_ae, origin = (str(line.get(key) or "") for key in ("calling_ae", "origin"))
    return Version(path, facts.st_size, stamp(facts.st_mtime_ns), calling_ae, origin)


def variants(root: int, targets: Iterable[Target]) -> dict[InstanceKey, list[SetAside]]:
    """What is kept aside of the ``targets``, by instance. Raises OSError."""
    found: dict[InstanceKey, list[SetAside]] = {}
    for one in set_aside.kept(root, layout.CONFLICTS, targets):
        found.setdefault(one.key, []).append(one)
    return found
