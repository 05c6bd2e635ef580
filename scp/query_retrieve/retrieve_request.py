"""What a retrieve means: from its identifier to the instances that are to be sent (PS3.4 C.4.2).

The unique key of the level has to be there, with UIDs, or with one Patient ID, which is compared to
the letter: nothing here has wildcards. Those of the levels above narrow it down where they are
given; they need not be, because a UID says which one it is. Found is what lies in the tree, with
what the manifests say of it, so that nothing waits for an index.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import orjson

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
from plainpacs.indexer.query.matching import Test
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
    patient: str = ""
    studies: frozenset[str] = frozenset()
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()


def read_wanted(identifier: DataSet, *, patient_root: bool) -> Wanted:
    """Raises NotOfThisModel."""
    level = level_of(identifier, patient_root=patient_root)
    patient = identifier.text("PatientID") if patient_root else ""
    if level is Level.PATIENT:
        if not patient:
            raise NotOfThisModel("PatientID has to be given at this level", tag_of("PatientID"))
        return Wanted(level, patient)
    below = [Level.STUDY, Level.SERIES, Level.INSTANCE]
    depth = below.index(level) + 1
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    uids = [_uids(identifier, keyword) for keyword in keywords[:depth]]
    if not uids[-1]:
        keyword = keywords[depth - 1]
        raise NotOfThisModel(f"{keyword} has to be given at this level", tag_of(keyword))
    return Wanted(level, patient, *uids)


def _uids(identifier: DataSet, keyword: str) -> frozenset[str]:
    uids = identifier.texts(keyword)
    if len(uids) > MOST_VALUES:
        raise NotOfThisModel(f"{keyword} has more than {MOST_VALUES} values", tag_of(keyword))
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
    if wanted.level is Level.PATIENT:
        test = Test(
            lambda value: value == wanted.patient,
            needle=orjson.dumps(wanted.patient),
            exact=wanted.patient,
        )
        query = Query((Condition(("PatientID",), (test,)),))
        for found in search.studies(root, query, note):
            for month in found.months:
                yield month, found.study, None
        return
    for month, study, series in _named(root, wanted, note):
        if not wanted.patient or _is_of_patient(root, month, study, wanted.patient, note):
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


def _is_of_patient(root: str, month: str, study: str, patient: str, note: Note) -> bool:
    record = lookup.part_of_study(root, month, study, note)
    return record is not None and patient in values_of(record, "PatientID")


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
