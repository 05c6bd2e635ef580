"""Taking in what others left: files, folders, and other archives with their provenance."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

from plainpacs.archive.errors import NotDICOM, RefusedInstance, StorageUnavailable
from plainpacs.archive.store import manifest
from plainpacs.archive.store.manifest import ORIGIN_IMPORT, Line, Provenance
from plainpacs.archive.store.store import Archive, Stored
from plainpacs.archive.tree import layout

_THREADS = 4  # a store waits for the disk most of the time
_AHEAD = 32


@dataclass(frozen=True, slots=True)
class Source:
    """A file to take in. ``variant``: only after all before it, as it was kept aside before."""

    path: str
    provenance: Provenance
    variant: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one file: ``stored``, or ``error`` says why not.

    ``skipped``: it is no instance (not DICOM, a DICOMDIR), which nobody needs to act upon.
    """

    path: str
    stored: Stored | None = None
    error: str = ""
    skipped: bool = False


def sources(paths: Iterable[str]) -> Iterator[Source]:
    """The files at and below ``paths``, in order of their names.

    A folder with a marker is an archive: its instances come with their provenance, and what its
    conflicts keep aside comes after them. Links to folders are not followed.
    Raises StorageUnavailable for a path that is not there or cannot be listed.
    """
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise StorageUnavailable(f"{path} does not exist")
            yield Source(path, Provenance(origin=ORIGIN_IMPORT))
        elif os.path.lexists(os.path.join(path, layout.MARKER)):
            yield from _archived(path)
        else:
            for folder, _, names in _walk(path):
                for name in names:
                    yield Source(os.path.join(folder, name), Provenance(origin=ORIGIN_IMPORT))


def _walk(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    def refuse(error: OSError) -> None:
        raise StorageUnavailable(f"cannot list {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(path, onerror=refuse):
        folders.sort()
        yield folder, folders, sorted(names)


def _archived(path: str) -> Iterator[Source]:
    for top in (path, os.path.join(path, layout.CONFLICTS)):
        lines: dict[str, Line] = {}
        for folder, folders, names in _walk(top) if os.path.isdir(top) else ():
            if folder == path and layout.INTERNAL in folders:
                folders.remove(layout.INTERNAL)
            depth = 0 if folder == top else os.path.relpath(folder, top).count(os.sep) + 1
            if depth == 2:
                lines = _lines_of_study(folder, names)
            elif depth == 3:
                for name in names:
                    if layout.instance_of(name) or top != path:
                        found = lines.get(f"{os.path.basename(folder)}/{name}")
                        provenance = _provenance(found or {})
                        yield Source(os.path.join(folder, name), provenance, top != path)


def _lines_of_study(folder: str, names: list[str]) -> dict[str, Line]:
    """The last line of each file, by ``<series>/<file>``."""
    lines: dict[str, Line] = {}
    for name in names:
        series = layout.series_of_manifest(name)
        if series is not None:
            with open(os.path.join(folder, name), "rb") as file:
                for line, _ in manifest.lines_in(file.read()):
                    if "bytes" in line:
                        lines[f"{series}/{line['file']}"] = line
    return lines


def _provenance(line: Line) -> Provenance:
    try:
        moment = datetime.fromisoformat(str(line["stored"]))
        stored = round(moment.timestamp() * 1000) * 1_000_000
    except (KeyError, ValueError):
        stored = None
    return replace(manifest.provenance_of(line, ORIGIN_IMPORT), stored=stored)


def import_all(archive: Archive, files: Iterable[Source]) -> Generator[Imported, None, None]:
    """Stores each of ``files``; yields what became of it, in their order.

    Safe to interrupt and repeat: each file is in or not in, and the same instance again changes
    nothing. Closing the generator ends it after the files in hand. Raises StorageUnavailable when
    the archive itself can take no more.
    """
    waiting: deque[Future[Imported]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="import") as pool:
        try:
            for source in files:
                ahead = 0 if source.variant else _AHEAD - 1
                while len(waiting) > ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(_import_one, archive, source))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _import_one(archive: Archive, source: Source) -> Imported:
    path = source.path
    # Opening must not wait for a writer, should it be a pipe.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return Imported(path, error=error.strerror or str(error))
    try:
        if not os.path.isfile(path):
            return Imported(path, error="it is not a file", skipped=True)
        stored = archive.import_file(fd, source.provenance, may_replace=not source.variant)
        return Imported(path, stored=stored)
    except NotDICOM as error:
        return Imported(path, error=str(error), skipped=True)
    except RefusedInstance as error:
        return Imported(path, error=str(error))
    finally:
        os.close(fd)
