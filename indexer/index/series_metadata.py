"""The headers of a series as one compressed document, which a browser is sent as it lies on disk.

``.plainpacs/web/<yyyyMM>/<StudyInstanceUID>/<SeriesInstanceUID>.json.gz``: an array of the DICOM
JSON Model (PS3.18 Annex F), an object for each instance, in their order, without the pixel data.
BulkDataURIs are relative to the series. Derived and disposable. The comment in its gzip header
says which files it was made from, by name, size and time: when others lie there it counts as
absent, so a stale one is never used. Made by whoever needs it first, in one pass over the headers
and in the memory of one instance.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator

import orjson

from plainpacs.archive.dicom.charset import default_for, defaults_in_force
from plainpacs.archive.dicom.dicom_json import of_elements
from plainpacs.archive.dicom.elements import PIXEL_DATA
from plainpacs.archive.dicom.pixel_data import TABLES, Header, read_header
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.tree import durable, layout
from plainpacs.indexer.index import study_record

Note = Callable[[str], None]
Files = dict[str, tuple[int, int]]
"""Size and mtime (nanoseconds) of each instance's file of a series, by name."""

_VERSION = b"1"
"""Of what is written: one made by another version counts as absent."""
_LEVEL = 6
_HEAD = b"\x1f\x8b\x08\x10\0\0\0\0\2\xff"  # with a comment, and without a time (RFC 1952)


class SeriesMetadata:
    """Those of the archive at ``path``, open as ``root``. Thread-safe; writes only in ``keep``."""

    def __init__(self, path: str, root: int) -> None:
        self._path = path
        self._root = root

    def files(self, month: str, study: str, series: str) -> Files:
        """What lies in the series' folder now; nothing where it is not there. Raises OSError."""
        found: Files = {}
        try:
            entries = os.scandir(os.path.join(self._path, month, study, series))
        except (FileNotFoundError, NotADirectoryError):
            return found
        with entries:
            for entry in entries:
                if layout.instance_of(entry.name) is None:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        found[entry.name] = facts.st_size, facts.st_mtime_ns
        return found

    def kept(self, month: str, study: str, series: str, files: Files) -> bytes | None:
        """The document on disk, if it is of these ``files``."""
        try:
            place = _place(month, study, series)
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
            with open(fd, "rb") as file:
                data = file.read()
        except OSError:
            return None
        return data if data.startswith(_head(state_of(files))) else None

    def made(self, month: str, study: str, series: str, files: Files, note: Note) -> bytes:
        """The document, from the headers. ``note`` is told of an instance that cannot be read,
        which is left out. Raises OSError when the study's folder cannot be read."""
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = [_head(state_of(files))]
        checksum = size = 0
        for piece in self._pieces(month, study, series, files, note):
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
            packed.append(packer.compress(piece))
        packed.append(packer.flush() + struct.pack("<LL", checksum, size & 0xFFFFFFFF))
        return b"".join(packed)

    def _pieces(
        self, month: str, study: str, series: str, files: Files, note: Note
    ) -> Iterator[bytes]:
        listed = (
            str(line["file"]) for line in study_record.instances(self._path, month, study, [series])
        )
        between = b"["
        for name in dict.fromkeys([*(one for one in listed if one in files), *sorted(files)]):
            path = f"{layout.study_folder(month, study)}/{series}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
                try:
                    header = read_header(fd, files[name][0])
                finally:
                    os.close(fd)
            except (OSError, UnreadableDataSet, ValueError) as error:
                note(f"{path} is not in the metadata: {error}")
                continue
            instance = layout.instance_of(name) or ""
            yield between + metadata_of(header, f"instances/{instance}/bulkdata/")
            between = b","
        yield b"[]" if between == b"[" else b"]"

    def keep(self, month: str, study: str, series: str, data: bytes) -> None:
        """Puts the document on disk. One of files that are not there any more is not left behind:
        what is erased from the archive is not to stay in it. Raises OSError."""
        for folder in (layout.WEB, f"{layout.WEB}/{month}", f"{layout.WEB}/{month}/{study}"):
            with contextlib.suppress(FileExistsError):
                durable.make_folder(folder, folder=self._root)
        durable.replace_file(self._root, _place(month, study, series), data)
        if not data.startswith(_head(state_of(self.files(month, study, series)))):
            with contextlib.suppress(FileNotFoundError):
                durable.unlink(_place(month, study, series), folder=self._root)


def metadata_of(header: Header, bulk_data: str) -> bytes:
    """An instance's object, as JSON. ``bulk_data``: what its BulkDataURIs start with."""
    found = of_elements(header.elements, default_for(header.part10.calling_ae), bulk_data)
    found.setdefault("00080005", {"vr": "CS", "Value": ["ISO_IR 192"]})
    syntax = {"vr": "UI", "Value": [header.part10.transfer_syntax]}
    found["00083002"] = syntax  # AvailableTransferSyntaxUID (PS3.18 Table 10.4.3-1)
    if header.pixels is not None:
        tag = f"{PIXEL_DATA if header.pixels.tag in TABLES else header.pixels.tag:08X}"
        vr = header.pixels.vr if len(header.pixels.vr) == 2 else "OW"
        found[tag] = {"vr": vr, "BulkDataURI": bulk_data + tag}
    return orjson.dumps(found, option=orjson.OPT_SORT_KEYS)


def inflated(data: bytes, piece: int = 1 << 18) -> Iterator[bytes]:
    """The JSON in a document, piece by piece."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while data and not unpacker.eof:
        yield unpacker.decompress(data, piece)
        data = unpacker.unconsumed_tail


def state_of(files: Files) -> bytes:
    """Names the files a document is made from, and how text is read; another name when any of them
    is another."""
    digest = hashlib.blake2b(_VERSION + defaults_in_force().encode(), digest_size=16)
    for name, (size, mtime) in sorted(files.items()):
        digest.update(f"{name} {size} {mtime}\n".encode())
    return digest.hexdigest().encode()


def _head(state: bytes) -> bytes:
    return _HEAD + state + b"\0"


def _place(month: str, study: str, series: str) -> str:
    return f"{layout.WEB}/{month}/{study}/{series}.json.gz"
