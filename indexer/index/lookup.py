"""From a UID to what lies in the tree, for readers: nothing here writes.

A study is found without any index: its folder has its name, in one month or, rarely, several.
A series or instance is asked of the shards; what they say counts only when it is there. When they
know nothing (missing, unreadable, or behind), the study folders are walked.

``note`` takes one line for the user, each time something is not as it should be and the answer
comes from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.indexer.index import catalogue
from plainpacs.indexer.index.merge import Record, merge

Note = Callable[[str], None]


class Named(NamedTuple):
    """A study, series or instance that is meant. ``places``: where it lies, paths relative to the
    root; none for what is known elsewhere only. ``line``: of a study its line in the catalogue,
    where that had to be read."""

    uid: str
    places: tuple[str, ...] = ()
    line: bytes = b""


def named(root: str, text: str, note: Note, level: str | None = None) -> Named | None:
    """What the whole UID ``text`` means, see ``at_one_level``. None when it is no UID, or not in
    the tree as far as folders and indexes tell."""
    uid = text.strip()
    found = places(root, uid, note, walk=False) if is_name(uid) else []
    found = at_one_level(found, level)
    return Named(uid, tuple(found)) if found else None


LEVELS = ("study", "series", "instance")


def at_one_level(found: Iterable[str], level: str | None = None) -> list[str]:
    """Of the places of one UID those at ``level``; without, the study's where there is one, else
    the series', else the instance's.

    >>> at_one_level(["202401/1.2/1.3", "202402/1.3"])
    ['202402/1.3']
    """
    places = sorted(found, key=lambda place: (place.count("/"), place))
    depth = LEVELS.index(level) + 1 if level else places[0].count("/") if places else 0
    return [place for place in places if place.count("/") == depth]


def months_of(root: str, study: str) -> list[str]:
    """The months in which the study has a folder, earliest first."""
    months = catalogue.months(root)
    return sorted(month for month in months if os.path.isdir(os.path.join(root, month, study)))


def stored_record(root: str, month: str, study: str) -> Record | None:
    """What ``study.json`` says; None when it is missing, unreadable, or not of this study."""
    try:
        with open(os.path.join(root, month, study, layout.STUDY_INDEX), "rb") as file:
            record: Any = orjson.loads(file.read())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("StudyInstanceUID") != study:
        return None
    series = record.get("series")
    if not isinstance(series, list) or not all(isinstance(one, dict) for one in series):
        return None
    return record


def rebuilt_record(root: str, month: str, study: str, note: Note) -> Record | None:
    """The record made of manifests and folders, in memory; None when no instance is there, or
    what is there cannot be read."""
    # Imported here as it is seldom needed, for a fast start of every other run.
    from plainpacs.indexer.index import study_record as records  # noqa: PLC0415

    try:
        found = records.study_record(root, month, study)
    except OSError as error:
        note(f"{layout.study_folder(month, study)} cannot be read: {error.strerror}")
        return None
    if found is None:
        return None
    record: Record = orjson.loads(found.study_json())  # as a reader of the file would have it
    return record


def part_of_study(root: str, month: str, study: str, note: Note) -> Record | None:
    """The study's record in one month, from ``study.json``, else rebuilt; None when no instance
    is there."""
    record = stored_record(root, month, study)
    if record is None:
        record = rebuilt_record(root, month, study, note)
        if record is not None:
            note(
                f"{layout.study_folder(month, study)}/{layout.STUDY_INDEX} is missing or damaged: "
                "read from the manifests instead"
            )
    return record


def study_parts(root: str, study: str, note: Note) -> list[tuple[str, Record]]:
    """(month, record) of every part of the study, earliest first. Raises NoMatch."""
    parts = [
        (month, record)
        for month in months_of(root, study)
        if (record := part_of_study(root, month, study, note)) is not None
    ]
    if not parts:
        raise NoMatch(f"no study {study} here (`plainpacs path` also finds series and instances)")
    return parts


def study(root: str, uid: str, note: Note) -> Record:
    """The whole study, merged over its months. Raises NoMatch."""
    return merge(study_parts(root, uid, note))


def with_instances(
    root: str,
    parts: list[tuple[str, Record]],
    note: Note,
    only: Collection[str] | None = None,
) -> list[tuple[str, Record]]:
    """The parts, each series with its ``instances``: the manifest lines of those present.

    A series of which instances lie there that the record does not know yet is added. ``only``: the
    UIDs of the series to read; the others are left out.
    """
    # see rebuilt_record
    from plainpacs.indexer.index import study_record as records  # noqa: PLC0415

    whole = []
    for month, part in parts:
        lines: dict[str, list[Record]] = {}
        study = str(part["StudyInstanceUID"])
        try:
            present = records.instances(root, month, study, only)
        except OSError as error:
            note(f"{layout.study_folder(month, study)} cannot be read: {error.strerror}")
            present = []
        for line in present:
            lines.setdefault(str(line.get("SeriesInstanceUID", "")), []).append(line)
        known = {str(series.get("SeriesInstanceUID", "")): series for series in part["series"]}
        series = [
            {**known.get(uid, {"SeriesInstanceUID": uid}), "instances": lines.get(uid, [])}
            for uid in sorted(known.keys() | lines.keys())
            if only is None or uid in only
        ]
        whole.append((month, {**part, "series": series}))
    return whole


def places(root: str, uid: str, note: Note, *, walk: bool = True) -> list[str]:
    """Where the study, series or instance lies: sorted paths relative to ``root``, none when it
    does not. ``walk=False``: as far as folders' names and indexes tell."""
    # see rebuilt_record
    from plainpacs.indexer.index import instance_shards as instances  # noqa: PLC0415

    found = {layout.study_folder(month, uid) for month in months_of(root, uid)}
    hits = instances.find(root, uid)
    found.update(
        hit for hit in hits if _is_of(hit, uid) and os.path.exists(os.path.join(root, hit))
    )
    if not found and walk:
        note(f"{uid} is in no index that can be read here: looking through the study folders")
        found.update(_walk(root, uid))
    return sorted(found)


def studies_holding(root: str, uids: Iterable[str]) -> set[str] | None:
    """The studies in which the shards know these series or instances; None when there are no
    shards to be read, as on a copy without ``.plainpacs``."""
    # see rebuilt_record
    from plainpacs.indexer.index import instance_shards as instances  # noqa: PLC0415

    if not instances.are_there(root):
        return None
    hits = [(hit, uid) for uid in uids for hit in instances.find(root, uid)]
    return {hit.split("/")[1] for hit, uid in hits if _is_of(hit, uid)}


def _is_of(hit: str, uid: str) -> bool:
    """Whether a path out of an index is one of ours, for this UID, and leads nowhere else."""
    key = layout.key_of(hit)
    if key is not None:
        return key.instance == uid
    return layout.key_of(f"{hit}/{layout.instance_name('1')}") is not None and hit.endswith(
        "/" + uid
    )


def _walk(root: str, uid: str) -> Iterator[str]:
    """Every series folder and instance of that UID."""
    name = layout.instance_name(uid)
    for month in catalogue.months(root):
        for study in _folders(os.path.join(root, month)):
            folder = layout.study_folder(month, study)
            for series in _folders(os.path.join(root, folder)):
                if series == uid:
                    yield f"{folder}/{series}"
                if os.path.lexists(os.path.join(root, folder, series, name)):
                    yield f"{folder}/{series}/{name}"


def _folders(path: str) -> list[str]:
    """The folders in a folder that have a UID for a name; none of one that cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [e.name for e in entries if is_name(e.name) and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
