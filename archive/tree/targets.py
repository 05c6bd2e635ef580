"""What is to be removed or brought back: a study, series or instance, and the files it has now."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey, is_month, is_name

Identity = tuple[int, int]
"""(device, inode)"""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """The part of a study that lies in one month, or a series or an instance of it.

    Fields are names; an empty ``instance`` means all of the series, an empty ``series`` all of the
    study.
    """

    month: str
    study: str
    series: str = ""
    instance: str = ""

    @classmethod
    def at(cls, path: str) -> Target | None:
        """What lies at ``path``, relative to ROOT; None when that is no place of ours.

        >>> Target.at("202401/1.2/1.2.3")
        Target(month='202401', study='1.2', series='1.2.3', instance='')
        """
        month, *names = path.split("/")
        if len(names) == 3:
            names[2] = layout.instance_of(names[2]) or ""
        if not is_month(month) or not 1 <= len(names) <= 3 or not all(map(is_name, names)):
            return None
        return cls(month, *names)

    @property
    def path(self) -> str:
        """Relative to ROOT."""
        file = layout.instance_name(self.instance) if self.instance else ""
        return "/".join(part for part in (self.month, self.study, self.series, file) if part)

    def covers(self, key: InstanceKey) -> bool:
        return (
            (key.month, key.study) == (self.month, self.study)
            and self.series in ("", key.series)
            and self.instance in ("", key.instance)
        )


@dataclass(frozen=True, slots=True)
class Present:
    """An instance's file as it lay in the tree when it was listed. ``mtime`` in nanoseconds."""

    key: InstanceKey
    identity: Identity
    size: int
    mtime: int

    def is_file(self, facts: os.stat_result) -> bool:
        """Whether these are the facts of that very file. (An inode alone may be used again.)"""
        now = (identity(facts), facts.st_size, facts.st_mtime_ns)
        return now == (self.identity, self.size, self.mtime)


def identity(facts: os.stat_result) -> Identity:
    return facts.st_dev, facts.st_ino


def present(root: int, targets: Iterable[Target]) -> list[Present]:
    """The instances of the ``targets`` that lie in the tree, each once, sorted.

    Raises OSError when a folder cannot be read.
    """
    found = {one.key: one for target in targets for one in _present(root, target)}
    return [found[key] for key in sorted(found)]


def _present(root: int, target: Target) -> Iterator[Present]:
    folder = layout.study_folder(target.month, target.study)
    for series in [target.series] if target.series else names_in(root, folder):
        if not is_name(series):
            continue
        for name, facts in files_in(root, f"{folder}/{series}"):
            instance = layout.instance_of(name)
            if instance is not None and target.instance in ("", instance):
                key = InstanceKey(target.month, target.study, series, instance)
                yield Present(key, identity(facts), facts.st_size, facts.st_mtime_ns)


def names_in(root: int, path: str) -> list[str]:
    """What a folder lists, sorted; nothing when it is not there, or no folder."""
    try:
        folder = durable.open_folder(path, folder=root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(os.listdir(folder))
    finally:
        os.close(folder)


def files_in(root: int, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of a folder, by name; none when it is not there."""
    try:
        folder = durable.open_folder(path, folder=root)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for name in sorted(os.listdir(folder)):
            try:
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(facts.st_mode):
                yield name, facts
    finally:
        os.close(folder)
