"""What must hold of whatever is read, for the fuzzer: nothing raised but PlainpacsError, and more.

Each check takes what was mutated and says in a word what became of it. Raises Finding, or what
should never have been raised.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import orjson

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store import manifest
from plainpacs.archive.store.manifest import Provenance
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.store.store import Archive, Stored
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import create_archive

_IMPORTS_PER_ARCHIVE = 500
_PATH = re.compile(r"(\d{6}|undated)/[0-9a-z._-]{1,64}/[0-9a-z._-]{1,64}/[0-9a-z._-]{1,64}\.dcm")


class Finding(Exception):
    """Something that may not be. The words say what."""


def check_data_set(data: bytes, syntax: str, whole: bool, complete: bool) -> str:
    try:
        found = read_header(data, syntax, whole=whole, complete=complete or whole)
    except PlainpacsError as error:
        return type(error).__name__
    if orjson.loads(orjson.dumps(found)) != found:
        raise Finding("JSON does not give back what was read")
    if len(data) < 20_000:
        if read_header(memoryview(bytearray(data)), syntax) != read_header(data, syntax):
            raise Finding("a view is read otherwise than bytes")
        if complete and read_header(data, syntax) != found:
            raise Finding("read to its end, it says something else")
    try:
        key = InstanceKey.of_attributes(found)
    except PlainpacsError as error:
        return f"read, {type(error).__name__}"
    path = layout.instance_path(key)
    if not _PATH.fullmatch(path) or len(path) > layout.LONGEST_PATH or layout.key_of(path) != key:
        raise Finding(f"it would be filed as {path!r}")
    return "read"


def check_file(content: bytes) -> str:
    try:
        found = part10.read_part10(content[: part10.LONGEST_META])
    except PlainpacsError as error:
        return type(error).__name__
    if not 0 <= found.dataset_offset <= len(content):
        raise Finding("the data set starts outside the file")
    data = memoryview(content)[found.dataset_offset :]
    return check_data_set(bytes(data), found.transfer_syntax, True, True)


class Importer:
    """Archives in memory, one after the other, each looked through before it is thrown away."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0
        self._archive: Archive | None = None
        self._source = os.open(os.path.join(folder, "source"), os.O_RDWR | os.O_CREAT, 0o600)

    def check(self, content: bytes) -> str:
        archive = self._archive or self._new()
        os.ftruncate(self._source, 0)
        os.pwrite(self._source, content, 0)
        self._count += 1
        try:
            stored = archive.import_file(self._source, Provenance(origin="import"))
        except PlainpacsError as error:
            return type(error).__name__
        finally:
            if self._count % _IMPORTS_PER_ARCHIVE == 0:
                self.close()
        if self._archive is not None:
            self._compare(archive, stored, content)
        return stored.outcome.value

    def close(self) -> None:
        """Raises Finding when what is in the archive is not as it should be."""
        if self._archive is not None:
            archive, self._archive = self._archive, None
            archive.close()
            try:
                look_through(archive.root)
            finally:
                shutil.rmtree(archive.root)

    def _new(self) -> Archive:
        root = os.path.join(self._folder, f"archive{self._count}")
        create_archive(root)
        self._archive = Archive.open(root, sync=False)
        return self._archive

    @staticmethod
    def _compare(archive: Archive, stored: Stored, content: bytes) -> None:
        kept = Path(archive.root, stored.path).read_bytes()
        offset = part10.read_part10(kept[: part10.LONGEST_META]).dataset_offset
        if not content.endswith(kept[offset:]) or len(kept) <= offset:
            raise Finding("other bytes are kept than were there")
        if stored.outcome is StoreOutcome.STORED and not _PATH.fullmatch(stored.path):
            raise Finding(f"it was filed as {stored.path!r}")


def look_through(root: str) -> None:
    """Raises Finding when there is anything but instances in their places, each with its line."""
    if left := os.listdir(os.path.join(root, layout.INCOMING)):
        raise Finding(f"unfinished files are left: {left[:3]}")
    lines: dict[str, int] = {}
    files: dict[str, int] = {}
    for folder, folders, names in os.walk(root):
        if folder == root:
            folders.remove(layout.INTERNAL)
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if series := layout.series_of_manifest(name):
                where = f"{os.path.dirname(relative)}/{series}"
                raw = Path(path).read_bytes()
                found = list(manifest.lines_in(raw))
                if len(found) != raw.count(b"\n"):
                    raise Finding(f"a line of {relative} is not one")
                lines |= {f"{where}/{line['file']}": line["bytes"] for line, _ in found}
            elif layout.key_of(relative) is not None:
                files[relative] = os.path.getsize(path)
            elif relative != layout.MARKER:
                raise Finding(f"{relative!r} does not belong there")
    if lines != files:
        raise Finding(f"{len(files)} instances, {len(lines)} lines for them")
