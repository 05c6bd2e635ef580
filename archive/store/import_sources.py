"""What an import finds at a path: a file, a folder, another archive with its provenance, a zip
file, or what a DICOMDIR names."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from plainpacs.archive.dicom import part10
from plainpacs.archive.errors import StorageUnavailable, UnreadableDataSet
from plainpacs.archive.store import manifest
from plainpacs.archive.store.manifest import ORIGIN_IMPORT, Line, Provenance
from plainpacs.archive.tree import layout

_FILE_ID = 0x00041500
# What pydicom's parsing raises on bytes it cannot follow.
_PARSING = (struct.error, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)
# What opening and reading a member of a zip file raises; RuntimeError when it is encrypted.
_UNPACKING = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A file to take in.

    ``given``: the path below which it was found. ``variant``: only after all before it, as it was
    kept aside before. ``unpack``: gives the bytes of a member of a zip file, and raises
    UnreadableDataSet. ``missing``: why there is no such file.
    """

    path: str
    provenance: Provenance = field(default=Provenance(origin=ORIGIN_IMPORT))
    given: str = ""
    variant: bool = False
    unpack: Callable[[], Iterator[bytes]] | None = None
    missing: str = ""


def sources(paths: Iterable[str]) -> Iterator[Source]:
    """The files at and below ``paths``, in order of their names.

    A folder with a marker is an archive: its instances come with their provenance, what its
    conflicts keep aside comes after them, and what its manifests name and it does not have is
    ``missing``. Of a zip file come its members, of a DICOMDIR the files that it names. Links to
    folders are not followed. Raises StorageUnavailable for a path that is not there or cannot be
    listed.
    """
    for path in paths:
        for source in _at(path):
            yield replace(source, given=path)


def _at(path: str) -> Iterator[Source]:
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            raise StorageUnavailable(f"{path} does not exist")
        return _in_file(path)
    if os.path.lexists(os.path.join(path, layout.MARKER)):
        return _archived(path)
    return (
        Source(os.path.join(folder, name)) for folder, _, names in _walk(path) for name in names
    )


def _walk(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    def refuse(error: OSError) -> None:
        raise StorageUnavailable(f"cannot list {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(path, onerror=refuse):
        folders.sort()
        yield folder, folders, sorted(names)


# --- files that hold or name others ---------------------------------------------------------------


def _in_file(path: str) -> Iterator[Source]:
    head = _head(path)
    if head[:2] == b"PK" and zipfile.is_zipfile(path):
        return _zipped(path)
    try:
        directory = part10.read_part10(head).sop_class == part10.MEDIA_STORAGE_DIRECTORY
    except UnreadableDataSet:
        directory = False
    return _listed(path) if directory else iter([Source(path)])


def _head(path: str) -> bytes:
    try:
        # Opening must not wait for a writer, should it be a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read(part10.LONGEST_META) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return b""  # whoever takes it in says so


def _zipped(path: str) -> Iterator[Source]:
    try:
        archive = zipfile.ZipFile(path)  # closed when the last of its members was taken in
    except (*_UNPACKING, ValueError) as error:
        yield Source(path, missing=f"the zip file cannot be read: {error}")
        return
    for member in sorted(archive.infolist(), key=lambda one: one.filename):
        if not (member.is_dir() or stat.S_ISLNK(member.external_attr >> 16)):
            name = os.path.join(path, member.filename)
            yield Source(name, unpack=partial(_unpack, archive, member))


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except _UNPACKING as error:
        raise UnreadableDataSet(f"it cannot be unpacked: {error}") from None


def _listed(path: str) -> Iterator[Source]:
    """The files that the DICOMDIR at ``path`` names (PS3.3 F.3.2.2), each once."""
    from pydicom import dcmread  # noqa: PLC0415 - slow to load, and seldom needed

    names: dict[tuple[str, ...], None] = {}
    try:
        for record in dcmread(path).DirectoryRecordSequence:
            value = record[_FILE_ID].value if _FILE_ID in record else None
            if value:
                names[(value,) if isinstance(value, str) else tuple(map(str, value))] = None
    except _PARSING as error:
        yield Source(path, missing=f"the DICOMDIR cannot be read: {error}")
    for components in sorted(names):
        file_id = "\\".join(components)
        found = _found(os.path.dirname(path), components)
        if found is None:
            yield Source(path, missing=f"it names {file_id}, which is not there")
        else:
            yield Source(found)


def _found(folder: str, components: tuple[str, ...]) -> str | None:
    """The file below ``folder``; however its name is spelled where a disc's names have lower
    case."""
    for component in components:
        if component in ("", ".", "..") or "/" in component:
            return None
        path = os.path.join(folder, component)
        if not os.path.lexists(path):
            try:
                names = [name for name in os.listdir(folder) if name.upper() == component.upper()]
            except OSError:
                return None
            if not names:
                return None
            path = os.path.join(folder, min(names))
        folder = path
    return folder


# --- another archive ------------------------------------------------------------------------------


def _archived(path: str) -> Iterator[Source]:
    for top in (path, os.path.join(path, layout.CONFLICTS)):
        aside = top != path
        study, lines = "", dict[str, list[Line]]()
        for folder, folders, names in _walk(top) if os.path.isdir(top) else ():
            if folder == path and layout.INTERNAL in folders:
                folders.remove(layout.INTERNAL)
            depth = 0 if folder == top else os.path.relpath(folder, top).count(os.sep) + 1
            if depth <= 2:
                yield from () if aside else _not_there(study, lines)
                study, lines = (folder, _lines_of_study(folder, names)) if depth == 2 else ("", {})
            elif depth == 3:
                for name in names:
                    known = name if aside else _instance_name(name)
                    if known:
                        own = lines.pop(f"{os.path.basename(folder)}/{known}", [])
                        yield Source(os.path.join(folder, name), _provenance(own), variant=aside)
        yield from () if aside else _not_there(study, lines)


def _instance_name(name: str) -> str:
    """The name that an instance's file has in an archive, of one that was copied by way of a file
    system that changed its ending to capitals; empty when it is not an instance's."""
    stem, ending = os.path.splitext(name)
    known = stem + ending.lower()
    return known if layout.instance_of(known) else ""


def _not_there(study: str, lines: dict[str, list[Line]]) -> Iterator[Source]:
    """Of what is left of a study's lines, an instance whose file is missing each."""
    for name, some in sorted(lines.items()):
        if any("bytes" in line for line in some) and manifest.removal_in_force(some) is None:
            words = "its manifest names it, and it is not there"
            yield Source(os.path.join(study, name), missing=words)


def _lines_of_study(folder: str, names: list[str]) -> dict[str, list[Line]]:
    """The lines of each file, by ``<series>/<file>``."""
    lines: dict[str, list[Line]] = {}
    for name in names:
        series = layout.series_of_manifest(name)
        if series is not None:
            with open(os.path.join(folder, name), "rb") as file:
                for line, _ in manifest.lines_in(file.read()):
                    lines.setdefault(f"{series}/{line['file']}", []).append(line)
    return lines


def _provenance(lines: list[Line]) -> Provenance:
    line = next((line for line in reversed(lines) if "bytes" in line), {})
    try:
        moment = datetime.fromisoformat(str(line["stored"]))
        stored = round(moment.timestamp() * 1000) * 1_000_000
    except (KeyError, ValueError):
        stored = None
    return replace(manifest.provenance_of(line, ORIGIN_IMPORT), stored=stored)
