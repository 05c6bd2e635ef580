"""What a retrieve means: from its identifier to the instances that are to be sent (PS3.4 C.4.2).

The unique key of the level has to be there, with UIDs, or with one Patient ID, which is compared to
the letter: nothing here has wildcards. Those of the levels above narrow it down where they are
given; they need not be, because a UID says which one it is. Unless the setting ``strict_queries``
is on, studies are meant by Accession Numbers and Patient IDs too, and several of each. Found is
what lies in the tree, with what the manifests say of it, so that nothing waits for an index.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.dictionary import tag_of
from plainpacs.archive.dicom.identifier import DataSet
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import Line, best_line, lines_in
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.listing import StudyFiles, study_files
from plainpacs.indexer.index import lookup
from plainpacs.indexer.query import search
from plainpacs.indexer.query.matching import to_the_letter
from plainpacs.indexer.query.query import MOST_VALUES, Condition, Query, values_of
from plainpacs.scp.query_retrieve.model import NotOfThisModel, level_of
from plainpacs.scp.storage import instance_file
from plainpacs.scp.storage.instance_file import Outgoing

Note = Callable[[str], None]

_FEW = 16
"""Instances whose own files are as quick to read as the manifest of their series."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The unique keys, as far as they were given. Of the level's own there is at least one."""

    level: Level
    patients: frozenset[str] = frozenset()
    studies: frozenset[str] = frozenset()
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    accessions: frozenset[str] = frozenset()

    def by_others(self) -> dict[str, frozenset[str]]:
        """What a study has to have besides its UID, by keyword."""
        keys = {"PatientID": self.patients, "AccessionNumber": self.accessions}
        return {keyword: values for keyword, values in keys.items() if values}


def read_wanted(identifier: DataSet, *, patient_root: bool, strict: bool = True) -> Wanted:
    """Raises NotOfThisModel."""
    level = level_of(identifier, patient_root=patient_root, strict=strict)
    patients = accessions = frozenset[str]()
    if not strict:
        patients, accessions = (
            frozenset(_values(identifier, keyword)) for keyword in ("PatientID", "AccessionNumber")
        )
    elif patient_root and (patient := identifier.text("PatientID")):
        patients = frozenset((patient,))
    if level is Level.PATIENT:
        if not patients:
            raise NotOfThisModel("PatientID has to be given at this level", tag_of("PatientID"))
        return Wanted(level, patients, accessions=accessions)
    below = [Level.STUDY, Level.SERIES, Level.INSTANCE]
    depth = below.index(level) + 1
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    uids = [_uids(identifier, keyword) for keyword in keywords[:depth]]
    if not uids[-1] and not (level is Level.STUDY and (patients or accessions)):
        keyword = keywords[depth - 1]
        raise NotOfThisModel(f"{keyword} has to be given at this level", tag_of(keyword))
    wanted = dict(zip(("studies", "series", "instances"), uids, strict=False))
    return Wanted(level, patients, accessions=accessions, **wanted)


def _values(identifier: DataSet, keyword: str) -> list[str]:
    values = identifier.texts(keyword)
    if len(values) > MOST_VALUES:
        raise NotOfThisModel(f"{keyword} has more than {MOST_VALUES} values", tag_of(keyword))
    return values


def _uids(identifier: DataSet, keyword: str) -> frozenset[str]:
    uids = _values(identifier, keyword)
    if not all(map(is_name, uids)):
        raise NotOfThisModel(f"{keyword} has a value that is no UID", tag_of(keyword))
    return frozenset(uids)


def instances(root: str, wanted: Wanted, note: Note) -> Iterator[Outgoing]:
    """The instances below the archive at the path ``root`` that are wanted: every file of one.

    Those of a series one after the other, in order of their numbers. One SOP Instance UID may lie
    in two series, or in two months. What is forbidden is left out; a file that cannot be read as an
    instance is there with its ``fault``, of which ``note`` is told.
    Raises OSError, NotAnArchive and StorageUnavailable.
    """
    forbidden = _forbidden(root)
    for month, study, series in _places(root, wanted, note):
        files = study_files(root, month, study, series)
        folder = os.path.join(root, month, study)
        for uid in sorted(files.instances):
            for one in _of_series(folder, uid, files, only=wanted.instances, note=note):
                if not forbidden.covers(study, uid, one.sop_instance):
                    yield one._replace(study=study, series=uid)


def _forbidden(root: str) -> Forbidden:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Forbidden.load(folder)
    finally:
        os.close(folder)


def _places(
    root: str, wanted: Wanted, note: Note
) -> Iterator[tuple[str, str, Collection[str] | None]]:
    """Month and study where some may lie, and the series; None for all of its series."""
    others = wanted.by_others()
    if not (wanted.studies or wanted.series or wanted.instances):
        conditions = (
            Condition((keyword,), tuple(map(to_the_letter, sorted(values))))
            for keyword, values in others.items()
        )
        query = Query(tuple(conditions))
        for found in search.studies(root, query, note):
            for month in found.months:
                yield month, found.study, None
        return
    for month, study, series in _named(root, wanted, note):
        if not others or _has(root, month, study, others, note):
            yield month, study, series


def _named(
    root: str, wanted: Wanted, note: Note
) -> Iterator[tuple[str, str, Collection[str] | None]]:
    if wanted.studies:
        for study in sorted(wanted.studies):
            for month in lookup.months_of(root, study):
                yield month, study, wanted.series or None
        return
    uids = wanted.series if wanted.level is Level.SERIES else wanted.instances
    places: dict[tuple[str, str], set[str]] = {}
    for uid in sorted(uids):
        for path in lookup.places(root, uid, note, walk=False):
            parts = path.split("/")
            if len(parts) > 2 and (not wanted.series or parts[2] in wanted.series):
                places.setdefault((parts[0], parts[1]), set()).add(parts[2])
    for (month, study), series in places.items():
        yield month, study, series


def _has(
    root: str, month: str, study: str, others: Mapping[str, frozenset[str]], note: Note
) -> bool:
    record = lookup.part_of_study(root, month, study, note)
    return record is not None and all(
        not values.isdisjoint(values_of(record, keyword)) for keyword, values in others.items()
    )


def _of_series(
    folder: str, series: str, files: StudyFiles, *, only: Collection[str], note: Note
) -> list[Outgoing]:
    """``only``: these instances; all when there are none."""
    present = files.instances[series]
    if only:
        present = {
            name: present[name] for name in map(layout.instance_name, only) if name in present
        }
    lines: dict[str, list[Line]] = {}
    if not only or len(present) > _FEW:
        for name in files.manifests.get(series, ()):
            with open(os.path.join(folder, name), "rb") as manifest:
                for line, _ in lines_in(manifest.read()):
                    lines.setdefault(line["file"], []).append(line)
    found: list[Outgoing] = []
    for name, file in present.items():
        path = os.path.join(folder, series, name)
        one = _told(path, best_line(lines.get(name, ()), file.size, file.mtime))
        one = one or _read(path, note)
        if one is not None:
            found.append(one)
    found.sort(key=lambda one: (one.number, one.sop_instance))
    return found


def _told(path: str, line: Line | None) -> Outgoing | None:
    """By its line in a manifest; None when there is none that says enough."""
    if line is None:
        return None
    syntax, sop_class = line.get("transfer_syntax"), line.get("SOPClassUID")
    if not isinstance(syntax, str) or not isinstance(sop_class, str):
        return None
    number = line.get("InstanceNumber")
    uid = layout.instance_of(os.path.basename(path)) or ""
    return Outgoing(path, sop_class, uid, syntax, number=number if isinstance(number, int) else 0)


def _read(path: str, note: Note) -> Outgoing | None:
    """By its file; None when that was removed since. One that has no line yet is an instance all
    the same."""
    try:
        return instance_file.of_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = error.strerror or str(error)
    except UnreadableDataSet as error:
        why = str(error)
    note(f"{os.path.basename(path)} cannot be read: {why}")
    uid = layout.instance_of(os.path.basename(path)) or ""
    return Outgoing(path, "", uid, "", fault=f"its file cannot be read: {why}")
