"""What is kept aside, in the trash and under ``conflicts``: both are laid out alike.

    <top>/<month>/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>~<what tells it apart>
    <top>/<month>/<StudyInstanceUID>/<SeriesInstanceUID>.<node>.jsonl    their manifests

``file`` in those manifests is the name with the ``~``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plainpacs.archive.store.manifest import Line, lines_in
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey, is_month, is_name
from plainpacs.archive.tree.targets import Identity, Target, files_in, identity, names_in

Lines = dict[str, list[Line]]
"""The lines of a series, from the manifests of all nodes, by file."""


@dataclass(frozen=True, slots=True, order=True)
class SetAside:
    """A file kept aside beneath ``top``. ``mark`` is what comes after the ``~``."""

    top: str
    key: InstanceKey
    mark: str
    identity: Identity = (0, 0)
    size: int = 0
    links: int = 1

    @property
    def name(self) -> str:
        return f"{self.key.instance}~{self.mark}"

    @property
    def folder(self) -> str:
        return f"{self.top}/{layout.series_folder(self.key)}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


def kept(root: int, top: str, targets: Iterable[Target]) -> list[SetAside]:
    """What is kept aside of the ``targets``, each file once, sorted. Raises OSError."""
    return sorted({one for target in targets for one in _kept(root, top, target)})


def _kept(root: int, top: str, target: Target) -> Iterator[SetAside]:
    study = f"{top}/{layout.study_folder(target.month, target.study)}"
    for series in [target.series] if target.series else names_in(root, study):
        if not is_name(series):
            continue
        for name, facts in files_in(root, f"{study}/{series}"):
            instance, tilde, mark = name.partition("~")
            if tilde and is_name(instance) and target.instance in ("", instance):
                key = InstanceKey(target.month, target.study, series, instance)
                yield SetAside(top, key, mark, identity(facts), facts.st_size, facts.st_nlink)


def studies(root: int, top: str) -> Iterator[Target]:
    """Every study of which something is kept aside."""
    for month in names_in(root, top):
        if is_month(month):
            for study in names_in(root, f"{top}/{month}"):
                if is_name(study):
                    yield Target(month, study)


def find(root: int, top: str, uid: str) -> list[Target]:
    """The studies, series and instances with that UID of which something is kept aside."""
    found: set[Target] = set()
    for study in studies(root, top):
        if study.study == uid:
            found.add(study)
        for one in _kept(root, top, study):
            if one.key.series == uid:
                found.add(Target(study.month, study.study, uid))
            if one.key.instance == uid:
                found.add(Target(study.month, study.study, one.key.series, uid))
    return sorted(found)


def uids(root: int, top: str) -> tuple[set[str], set[str]]:
    """The UIDs of the studies of which something is kept aside, and those of its series and
    instances."""
    kept_studies = list(studies(root, top))
    keys = [one.key for study in kept_studies for one in _kept(root, top, study)]
    lower = {uid for key in keys for uid in (key.series, key.instance)}
    return {study.study for study in kept_studies}, lower


def manifests(root: int, folder: str, series: str) -> list[str]:
    """The names of the manifests of ``series`` in a study's ``folder``, of whatever node; of every
    series when it is empty."""
    return [
        name
        for name in names_in(root, folder)
        if (found := layout.series_of_manifest(name)) is not None and series in ("", found)
    ]


def lines_of(root: int, folder: str, series: str) -> Lines:
    """The lines of a series, whose manifests lie in ``folder``. Raises OSError."""
    lines: Lines = {}
    for name in manifests(root, folder, series):
        for line, _ in lines_in(read_file(root, f"{folder}/{name}")):
            lines.setdefault(line["file"], []).append(line)
    return lines


def lines_of_file(root: int, folder: str, series: str, file: str) -> list[Line]:
    """The lines of one file of a series, without the time it takes to read those of all others.

    Raises OSError.
    """
    needle = f'"{file}"'.encode()
    found: list[Line] = []
    for name in manifests(root, folder, series):
        data = read_file(root, f"{folder}/{name}")
        at = data.find(needle)
        while at >= 0:
            start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            end = end if end >= 0 else len(data)
            found += [line for line, _ in lines_in(data[start:end]) if line["file"] == file]
            at = data.find(needle, end)
    return found


def read_file(root: int, path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root), "rb") as file:
        return file.read()


def drop(root: int, files: Iterable[SetAside]) -> None:
    """Takes the ``files`` away, for good; folders that are empty then go too. Raises OSError."""
    by_folder: dict[str, list[SetAside]] = {}
    for one in files:
        by_folder.setdefault(one.folder, []).append(one)
    for path, some in by_folder.items():
        folder = durable.open_folder(path, folder=root)
        try:
            for one in some:
                with contextlib.suppress(FileNotFoundError):
                    durable.unlink(one.name, folder=folder)
            durable.sync_folder(folder)
        finally:
            os.close(folder)
        tidy(root, path)


def tidy(root: int, path: str) -> None:
    """Removes the series folder at ``path`` beneath a top when it is empty, its manifests with it,
    and the study's and month's folders when nothing else is in them. Raises OSError."""
    study, _, series = path.rpartition("/")
    if names_in(root, path):
        return
    for name in manifests(root, study, series):
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(f"{study}/{name}", folder=root)
    for empty in (path, study, study.rpartition("/")[0]):
        _remove_if_empty(root, empty)


def tidy_all(root: int, top: str) -> None:
    """The same for everything beneath ``top``. Raises OSError."""
    for month in names_in(root, top):
        for study in names_in(root, f"{top}/{month}"):
            path = f"{top}/{month}/{study}"
            names = names_in(root, path)
            for series in {layout.series_of_manifest(name) or name for name in names}:
                tidy(root, f"{path}/{series}")
            if not names:
                _remove_if_empty(root, path)
        _remove_if_empty(root, f"{top}/{month}")


def _remove_if_empty(root: int, path: str) -> None:
    if names_in(root, path):
        return
    above, _, name = path.rpartition("/")
    try:
        folder = durable.open_folder(above, folder=root)
    except FileNotFoundError:
        return
    try:
        # It is gone already, or something was put into it just now.
        with contextlib.suppress(OSError):
            durable.remove_folder(name, folder=folder)
        durable.sync_folder(folder)
    finally:
        os.close(folder)
