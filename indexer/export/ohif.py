"""The document that OHIF's "DICOM JSON" data source reads: studies, their series, their instances.

Each instance has ``metadata``, its attributes by keyword, and a ``url`` from which the viewer
fetches the file (``dicomweb:`` before it names the viewer's loader). The viewer lays the attributes
of a study and of a series over those of their instances.

An image of several frames has an entry for each, with ``?frame=`` from 1 on after its URL, and
without NumberOfFrames: releases of OHIF disagree on what that means beside one URL, and all show
entries of one frame. What its functional groups say of the frame (position, spacing, window) stands
among the entry's attributes. Segmentations, videos, and whatever is no image, have one entry.

Written piece by piece: a study of any size takes the memory of one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

import orjson

from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.element_tree import as_json, read_tags
from plainpacs.archive.errors import BadSettings, UnreadableDataSet
from plainpacs.archive.tree.targets import Present
from plainpacs.indexer.export.source import Source

Json = dict[str, Any]

_OF_STUDY = (
    *("StudyInstanceUID", "StudyDescription", "StudyDate", "StudyTime", "AccessionNumber"),
    *("StudyID", "PatientName", "PatientID", "PatientBirthDate", "PatientAge", "PatientSex"),
    *("PatientWeight", "InstitutionName", "ReferringPhysicianName"),
)
_OF_SERIES = (
    *("SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "SeriesDate", "SeriesTime"),
    *("Modality", "BodyPartExamined", "ProtocolName"),
)
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109))
"""MPEG-2, MPEG-4 and HEVC, and their fragmentable forms, whose UIDs go on after a dot."""
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_MOST_FRAMES = 100_000
"""More than any image has; a number that a peer made up must not make a document without end."""


def base_url(text: str) -> str:
    """``text`` as what paths are put after. Raises BadSettings when it is no URL."""
    url = text.strip().removeprefix("dicomweb:").rstrip("/")
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest or not url.isprintable() or " " in url:
        raise BadSettings(
            f"--ohif {text!r} is no URL: give the one under which a web server has the archive's "
            "folder, as in https://files.example.org/dicom"
        )
    if "?" in url or "#" in url:
        raise BadSettings(f"--ohif {text!r} must end with a path, without ? and #")
    return url


def document(
    root: int,
    instances: Sequence[Present],
    base: str,
    tick: Callable[[], None],
    unread: Callable[[str, str], None],
) -> Iterator[bytes]:
    """The document for ``instances``, which are in order, in pieces.

    ``base``: as ``base_url`` gave it. ``unread`` is told the path of each instance whose header
    cannot be read, and why; those have no entry. Raises StorageUnavailable.
    """
    modalities = _modalities(root, instances)
    between = b'{"studies":['
    for study, of_study in groupby(instances, key=lambda one: one.key.study):
        entries = _Entries(root, list(of_study), base, tick, unread)
        pieces = entries.pieces(modalities.get(study, []))
        first = next(pieces, None)
        if first is not None:
            yield between + first
            yield from pieces
            between = b","
    yield (between if between.startswith(b"{") else b"") + b"]}\n"


def _modalities(root: int, instances: Sequence[Present]) -> dict[str, list[str]]:
    """By study, those of the first instance of each series: known before the study's series."""
    found: dict[str, list[str]] = {}
    for (study, _), series in groupby(instances, key=lambda one: (one.key.study, one.key.series)):
        with Source(root, next(series).key) as source:
            try:
                modality = as_json(source.header(read_tags("Modality"))[1]).get("Modality")
            except UnreadableDataSet:
                continue
        known = found.setdefault(study, [])
        if isinstance(modality, str) and modality not in known:
            known.append(modality)
    return found


class _Entries:
    """The series of one study."""

    def __init__(
        self,
        root: int,
        instances: list[Present],
        base: str,
        tick: Callable[[], None],
        unread: Callable[[str, str], None],
    ) -> None:
        self._root = root
        self._instances = instances
        self._base = base
        self._tick = tick
        self._unread = unread

    def pieces(self, modalities: list[str]) -> Iterator[bytes]:
        """The study's object; nothing when none of its instances can be read."""
        opened = ""
        for one in self._instances:
            metadata, entries = self._entries(one)
            self._tick()
            if not entries:
                continue
            series = one.key.series
            own = {"StudyInstanceUID": one.key.study, "SeriesInstanceUID": series}
            if not opened:
                study = _some(metadata, _OF_STUDY) | {"StudyInstanceUID": one.key.study}
                study.setdefault("PatientID", "unknown")  # by which the viewer finds the study
                study["NumInstances"] = len(self._instances)
                study["Modalities"] = "/".join(modalities)
                yield orjson.dumps(study)[:-1] + b',"series":['
            if series != opened:
                described = orjson.dumps(
                    _some(metadata, _OF_SERIES) | {"SeriesInstanceUID": series}
                )
                yield (b"]}," if opened else b"") + described[:-1] + b',"instances":['
            else:
                yield b","
            opened = series
            yield b",".join(
                orjson.dumps({"metadata": data | own, "url": url}) for data, url in entries
            )
        if opened:
            yield b"]}]}"

    def _entries(self, one: Present) -> tuple[Json, list[tuple[Json, str]]]:
        """The instance's attributes, and its entries: attributes and URL."""
        with Source(self._root, one.key) as source:
            url = f"dicomweb:{self._base}/{quote(source.path)}"
            try:
                meta, elements = source.header()
            except UnreadableDataSet as error:
                self._unread(source.path, str(error))
                return {}, []
        metadata = as_json(elements, default_for(meta.calling_ae))
        for keyword in [
            k for k, v in metadata.items() if k.endswith("Name") and isinstance(v, str)
        ]:
            metadata[keyword] = _one_group(metadata[keyword])
        metadata["SOPInstanceUID"] = one.key.instance
        frames = metadata.get("NumberOfFrames")
        if (
            not isinstance(frames, int)
            or not 1 < frames <= _MOST_FRAMES
            or "Rows" not in metadata
            or metadata.get("SOPClassUID") == _SEGMENTATION
            or meta.transfer_syntax.startswith(_VIDEO)
        ):
            return metadata, [(metadata, url)]
        return metadata, [
            (frame, f"{url}?frame={number}")
            for number, frame in enumerate(_frames(metadata, frames), 1)
        ]


def _some(metadata: Json, keywords: tuple[str, ...]) -> Json:
    return {keyword: metadata[keyword] for keyword in keywords if keyword in metadata}


def _one_group(name: str) -> str:
    """A person name without its other component groups, for which viewers have no place."""
    return next((group for group in name.split("=") if group.strip("^ ")), name)


def _frames(metadata: Json, frames: int) -> Iterator[Json]:
    """The attributes of each frame as if it were an image of its own."""
    left_out = (_SHARED, _PER_FRAME, "NumberOfFrames")
    common = {key: value for key, value in metadata.items() if key not in left_out}
    for group in metadata.get(_SHARED, [])[:1]:
        common |= _flat(group)
    groups = metadata.get(_PER_FRAME, [])
    for number in range(frames):
        yield common | (_flat(groups[number]) if number < len(groups) else {})


def _flat(group: Json) -> Json:
    """The attributes in the macros of a functional group (PS3.3 C.7.6.16): each a sequence of one
    item; further ones (of several references, say) do not speak of the image itself."""
    found: Json = {}
    for macro in group.values():
        if isinstance(macro, list) and len(macro) == 1 and isinstance(macro[0], dict):
            found |= macro[0]
    return found
