"""Exporting studies, series and instances: for a viewer, a CD, another hospital. Only reads here.

What is exported is what the folders list. The bytes stay as they are, unless they are to be
de-identified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.element_tree import Elements
from plainpacs.archive.errors import NoMatch, StorageUnavailable, UnreadableDataSet
from plainpacs.archive.store.manifest import Line
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.targets import Present, Target, present
from plainpacs.indexer.deidentify.instance import Deidentifier
from plainpacs.indexer.export import dicomdir
from plainpacs.indexer.export.dicomdir import Directory, Referenced
from plainpacs.indexer.export.dicomdir_records import SOP_CLASS, WANTED, NotDescribed
from plainpacs.indexer.export.source import Source
from plainpacs.indexer.index import study_record
from plainpacs.indexer.index.lookup import Note

Tick = Callable[[], None]


class To(Protocol):
    """What takes files: a folder, or a zip."""

    def add(self, path: tuple[str, ...], source: Source) -> None: ...

    def add_pieces(self, path: tuple[str, ...], pieces: Iterable[Buffer]) -> None: ...


@dataclass(slots=True)
class Exported:
    """What became of it. ``undescribed``: (path in the archive, path in the export, why) of those
    that are not in the DICOMDIR. ``left_out``: (path in the archive, why) of those that could not
    be de-identified. ``stand_ins``: by keyword, how many records have one."""

    undescribed: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    stand_ins: Counter[str] = field(default_factory=Counter)


def chosen(root: int, path: str, targets: Sequence[Target], note: Note) -> list[Present]:
    """The instances of these studies, series and instances, in the order in which a person would
    look at them: by study, SeriesNumber, series, InstanceNumber.

    ``root`` is open, and lies at ``path``. Raises NoMatch when none is left, StorageUnavailable.
    """
    try:
        instances = present(root, targets)
    except OSError as error:
        raise StorageUnavailable(f"cannot list what to export: {error.strerror}") from None
    if not instances:
        raise NoMatch("no instance is left of it; nothing was exported")
    return _in_order(path, instances, note)


def _in_order(path: str, instances: list[Present], note: Note) -> list[Present]:
    numbers: dict[InstanceKey, tuple[float, float]] = {}
    for month, study in {(one.key.month, one.key.study): None for one in instances}:
        wanted = {one.key.series for one in instances if one.key.study == study}
        try:
            lines = study_record.instances(path, month, study, wanted)
        except OSError as error:
            note(f"{layout.study_folder(month, study)} cannot be read: {error.strerror}")
            continue
        for line in lines:
            instance = layout.instance_of(str(line.get("file")))
            series = line.get("SeriesInstanceUID")
            if instance and isinstance(series, str):
                key = InstanceKey(month, study, series, instance)
                numbers[key] = _number(line, "SeriesNumber"), _number(line, "InstanceNumber")

    def order(one: Present) -> tuple[str, float, str, float, InstanceKey]:
        series, number = numbers.get(one.key, (inf, inf))
        return one.key.study, series, one.key.series, number, one.key

    return sorted(instances, key=order)


def _number(line: Line, keyword: str) -> float:
    value = line.get(keyword)
    return value if isinstance(value, (int, float)) else inf


def as_file_set(
    root: int,
    instances: Sequence[Present],
    to: To,
    tick: Tick,
    *,
    short: bool,
    deidentifier: Deidentifier | None = None,
) -> Exported:
    """Writes the ``instances`` as a File-set: the files, and the DICOMDIR last.

    ``tick`` is called after each. Raises StorageUnavailable when one cannot be read, OSError when
    it cannot be written; NoMatch when none of them could be de-identified.
    """
    directory = Directory(short=short)
    result = Exported(stand_ins=directory.stand_ins)
    for one in instances:
        with Source(root, one.key) as source:
            if deidentifier is None:
                to.add(_file_id(directory, source, one.key, result), source)
            else:
                _add_deidentified(directory, source, deidentifier, to, result)
        tick()
    if instances and len(result.left_out) == len(instances):
        raise NoMatch(
            "nothing was exported, as no instance can be de-identified: "
            + "; ".join(sorted({why for _, why in result.left_out}))
        )
    to.add_pieces((dicomdir.NAME,), directory.encoded())
    return result


def _file_id(
    directory: Directory, source: Source, key: InstanceKey, result: Exported
) -> tuple[str, ...]:
    try:
        meta, elements = source.header(WANTED)
        sop_class = _uid(elements, SOP_CLASS) or meta.sop_class
        return directory.add(elements, Referenced(sop_class, key.instance, meta.transfer_syntax))
    except (NotDescribed, UnreadableDataSet) as error:
        return _other(directory, source, result, error)


def _add_deidentified(
    directory: Directory, source: Source, deidentifier: Deidentifier, to: To, result: Exported
) -> None:
    try:
        found = deidentifier.deidentified(source.mapped())
    except UnreadableDataSet as error:
        result.left_out.append((source.path, str(error)))
        return
    referenced = Referenced(found.sop_class, found.sop_instance, found.transfer_syntax)
    try:
        file_id = directory.add(found.elements, referenced)
    except NotDescribed as error:
        file_id = _other(directory, source, result, error)
    to.add_pieces(file_id, found.pieces)


def _other(
    directory: Directory, source: Source, result: Exported, error: Exception
) -> tuple[str, ...]:
    file_id = directory.other()
    result.undescribed.append((source.path, "/".join(file_id), str(error)))
    return file_id


def _uid(elements: Elements, tag: int) -> str:
    element = elements.get(tag)
    value = element.value if element else None
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else ""


def by_study(instances: Sequence[Present]) -> Counter[str]:
    """How many instances of which study."""
    return Counter(one.key.study for one in instances)
