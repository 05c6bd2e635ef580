"""A zip file (PKWARE APPNOTE 6.3, zip64 where it must be), written from front to back.

So it can go into a pipe, and takes the same memory whatever its size. Everything is deflated,
lightly: who reads a zip from a pipe finds the end of a deflated entry, but not of a stored one.
"""

from __future__ import annotations

import stat
import time
import zipfile
from collections.abc import Iterable
from typing import IO, cast

from plainpacs.archive.buffer import Buffer
from plainpacs.indexer.export.destination import OutputFile, StandardOutput
from plainpacs.indexer.export.source import Source

_LEVEL = 1
_FIRST_YEAR, _LAST_YEAR = 1980, 2107


class Zip:
    """Entries go into ``to``. A context manager; without ``finish`` the zip has no end."""

    def __init__(self, to: OutputFile | StandardOutput) -> None:
        # It asks where it is in the file, is told nothing, and goes on as for a pipe.
        self._zip = zipfile.ZipFile(cast(IO[bytes], to), "w")

    def add(self, path: tuple[str, ...], source: Source) -> None:
        """An entry with all bytes of ``source``."""
        self._add(path, source.chunks(), source.size, source.mtime)

    def add_pieces(self, path: tuple[str, ...], pieces: Iterable[Buffer]) -> None:
        whole = b"".join(pieces)
        self._add(path, [whole], len(whole), time.time_ns())

    def _add(self, path: tuple[str, ...], pieces: Iterable[bytes], size: int, mtime: int) -> None:
        when = time.gmtime(mtime // 1_000_000_000)
        year = min(max(when.tm_year, _FIRST_YEAR), _LAST_YEAR)
        entry = zipfile.ZipInfo("/".join(path), (year, *when[1:6]))
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry._compresslevel = _LEVEL  # type: ignore[attr-defined]  # no public way before 3.13
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        entry.file_size = size  # by which it chooses between zip and zip64
        with self._zip.open(entry, "w") as to:
            for piece in pieces:
                to.write(piece)

    def finish(self) -> None:
        self._zip.close()

    def __enter__(self) -> Zip:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing it would write the end of a whole zip.
        self._zip.fp = None
