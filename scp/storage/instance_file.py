"""Instances on disk that are to be sent: what is known of one beforehand, and its bytes.

The bytes are read in pieces, and never mapped: a file that is cut or whose disk fails would end the
process. What an open file says of its own encoding counts, not what an index says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import DEFLATED, Attributes, read_header
from plainpacs.archive.errors import NotDICOM, UnreadableDataSet

_FIRST = 1 << 18
_HEAD = 1 << 16
_PIECE = 1 << 18
_MOST_OF_HEADER = 16 << 20


class Outgoing(NamedTuple):
    """An instance to send; a tuple, because a study may have 100,000. ``path`` is its file.

    ``study``, ``series``: their UIDs, for who keeps books. ``number``: its Instance Number.
    ``fault``: why it cannot be sent, when it lies there and cannot be read; it counts as failed.
    """

    path: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    study: str = ""
    series: str = ""
    number: int = 0
    fault: str = ""


def of_file(path: str) -> Outgoing:
    """What the Part 10 file, or the bare data set, at ``path`` holds. The SOP Class is that of the
    File Meta where the data set has none.

    Raises OSError; UnreadableDataSet, also for what is no instance (NotDICOM).
    """
    with File(path, first=_HEAD) as file:
        attributes = file.header()
    known = {key: value for key, value in attributes.items() if isinstance(value, str)}
    sop_class = known.get("SOPClassUID") or file.sop_class
    sop_instance = known.get("SOPInstanceUID")
    if not sop_class or sop_class == part10.MEDIA_STORAGE_DIRECTORY:
        raise NotDICOM("it has no SOP Class of an instance: it is no instance")
    if not sop_instance:
        words = "it has no SOP Instance UID"
        raise (
            UnreadableDataSet(words) if file.sop_class else NotDICOM(f"{words}: it is no instance")
        )
    study, series = known.get("StudyInstanceUID", ""), known.get("SeriesInstanceUID", "")
    number = attributes.get("InstanceNumber")
    number = number if isinstance(number, int) else 0
    return Outgoing(path, sop_class, sop_instance, file.transfer_syntax, study, series, number)


class File:
    """An instance's file, open: a context manager. ``offset``: where its data set starts.

    Opening raises OSError, and UnreadableDataSet when it is not DICOM.
    """

    def __init__(self, path: str, buffer: memoryview | None = None, *, first: int = _FIRST) -> None:
        """``buffer``: where a file that is no longer is read to, at once; it is lent for as long as
        the data set is used. Of any other so many bytes are read ``first``."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            if buffer is not None and self.size <= len(buffer):
                self._head = buffer[: os.preadv(self._fd, [buffer[: self.size]], 0)]
            else:
                self._head = memoryview(os.pread(self._fd, first, 0))
            found = self._part10()
        except BaseException:
            os.close(self._fd)
            raise
        self.offset = found.dataset_offset
        self.transfer_syntax = found.transfer_syntax
        self.sop_class = found.sop_class

    def _part10(self) -> part10.Part10:
        try:
            return part10.read_part10(self._head)
        except NotDICOM:
            raise
        except UnreadableDataSet:  # it goes on behind what was read?
            return part10.read_part10(os.pread(self._fd, part10.LONGEST_META, 0))

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def header(self) -> Attributes:
        """The kept attributes. Raises OSError, UnreadableDataSet."""
        left = self.size - self.offset
        try:
            head = self._head[self.offset :]
            return read_header(head, self.transfer_syntax, complete=left <= len(head))
        except UnreadableDataSet:
            if left <= len(head):
                raise
        more = self.read(self.offset, _MOST_OF_HEADER)
        return read_header(more, self.transfer_syntax, complete=left <= len(more))

    def read(self, at: int, length: int) -> bytes:
        """``length`` bytes of the file, or fewer at its end. Raises OSError."""
        found = os.pread(self._fd, length, at)
        if len(found) in (0, length):
            return found
        pieces = [found]
        while found and length > len(found):  # a network file system may give less than asked for
            at, length = at + len(found), length - len(found)
            found = os.pread(self._fd, length, at)
            pieces.append(found)
        return b"".join(pieces)

    def data_set(self) -> Iterator[memoryview | bytes]:
        """The data set, piece by piece. Raises OSError, also when the file ends before its end."""
        yield self._head[self.offset :]
        yield from self.between(max(len(self._head), self.offset), self.size)
        if self.transfer_syntax in DEFLATED and (self.size - self.offset) % 2:
            yield b"\0"  # fragments have even lengths (PS3.5 A.5, PS3.8 E.2)

    def between(self, at: int, end: int) -> Iterator[bytes]:
        """The bytes from ``at`` to ``end``, piece by piece. Raises OSError as ``data_set``."""
        while at < end:
            piece = os.pread(self._fd, min(_PIECE, end - at), at)
            if not piece:
                raise OSError("the file became shorter")
            at += len(piece)
            yield piece
