"""Where the frames of an image lie in its file, and their bytes (PS3.5 A.4, 8.2; PS3.3 C.7.6.3).

Nothing here decodes. Of a file only its header is read, and the frames asked for, in pieces: a file
that becomes shorter meanwhile is an error, not the end of the process. What a header says is never
taken for more than the file holds.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Container, Iterator
from typing import NamedTuple, Protocol

from pydicom.encaps import get_frame

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.element_tree import Elements, read_elements
from plainpacs.archive.dicom.elements import FIRST_OF_PIXELS, PIXEL_DATA, CutShort, swapped
from plainpacs.archive.dicom.flatten import DataSet, Leaf
from plainpacs.archive.dicom.header import DEFLATED
from plainpacs.archive.errors import UnreadableDataSet

_FIRST = 64 << 10
_SECOND = 4 << 20
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
TABLES = (_EXTENDED_OFFSETS, _EXTENDED_LENGTHS)
"""Of frames: they come before the pixel data itself (PS3.3 C.7.6.3.1.8)."""
_FLOAT, _DOUBLE = 0x7FE00008, 0x7FE00009
_PIXELS = {PIXEL_DATA: 0, _FLOAT: 32, _DOUBLE: 64}
"""The elements that hold pixels, and the bits of one where only the element tells."""
_LONGEST_TABLE = 64 << 20
_ITEM = b"\xfe\xff\x00\xe0"
_MOST_FRAGMENTS = 1 << 20
_WIDTHS = {8: 1, 16: 2, 32: 4, 64: 8}


class File(Protocol):
    """An open file of an instance, by its descriptor."""

    @property
    def fd(self) -> int: ...
    @property
    def size(self) -> int: ...


class Pixels(NamedTuple):
    """Where pixel data lies: ``start`` and ``end`` are positions in the file (of a deflated data
    set: in what it inflates to), ``end`` that of the file where the value is ``encapsulated``."""

    tag: int
    vr: str
    start: int
    end: int
    encapsulated: bool
    little_endian: bool
    extended_offsets: tuple[bytes, bytes] | None = None


class Header(NamedTuple):
    """What a file says before its pixels. ``data``: of a deflated data set, what it inflates to."""

    part10: part10.Part10
    elements: Elements
    pixels: Pixels | None
    data: memoryview | None = None


def read_header(fd: int, size: int, wanted: Container[int] | None = None) -> Header:
    """The header of the Part 10 file, or bare data set, open as ``fd``; with ``wanted``, of its
    elements only those.

    Raises OSError, UnreadableDataSet.
    """
    head = os.pread(fd, _FIRST, 0)
    try:
        found = part10.read_part10(head)
    except UnreadableDataSet:
        head = os.pread(fd, part10.LONGEST_META, 0)
        found = part10.read_part10(head)
    if found.transfer_syntax in DEFLATED:
        data_set = DataSet(_mapped(fd)[found.dataset_offset :], found.transfer_syntax)
        moved, end = -found.dataset_offset, len(data_set.data)
        return _header(found, _Remembering(data_set, wanted), data_set.data, moved, end)
    for more in (0, _SECOND):
        head = os.pread(fd, more, 0) if more else head
        data_set = DataSet(
            memoryview(head)[found.dataset_offset :], found.transfer_syntax, header_only=True
        )
        try:
            return _header(found, _Remembering(data_set, wanted), None, 0, size)
        except CutShort:
            if len(head) >= size:
                raise
    view = _mapped(fd)[found.dataset_offset :]
    data_set = DataSet(view, found.transfer_syntax, header_only=True)
    return _header(found, _Remembering(data_set, wanted), None, 0, size)


def _mapped(fd: int) -> memoryview:
    """For the few whose header is long, or that are deflated."""
    return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))


class _Remembering(DataSet):
    """A data set that remembers what came first of its pixel data."""

    last: Leaf | None = None

    def __init__(self, other: DataSet, wanted: Container[int] | None) -> None:
        self.__dict__.update(other.__dict__)
        self.wanted = wanted

    def __iter__(self) -> Iterator[Leaf]:
        for leaf in super().__iter__():
            if leaf.path[0] >= FIRST_OF_PIXELS:
                self.last = leaf
            yield leaf


def _header(
    found: part10.Part10, reading: _Remembering, data: memoryview | None, moved: int, size: int
) -> Header:
    elements = read_elements(reading, reading.wanted)
    leaf = reading.last
    if leaf is None:
        return Header(found, elements, None, data)
    at = found.dataset_offset + moved
    end = size if leaf.encapsulated else min(size, leaf.end + at)
    pixels = Pixels(
        leaf.path[0], leaf.vr or "OW", leaf.start + at, end, leaf.encapsulated, leaf.little_endian
    )
    return Header(found, elements, pixels, data)


FRAMES_NEED = frozenset((0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100))
"""The elements of a header that ``Frames`` reads."""


class Frames:
    """The frames of one open file, from 0 on. Not thread-safe. ``header``: see ``read_header``.

    Raises UnreadableDataSet when it holds no pixels, or not as many as it says.
    """

    def __init__(self, fd: int, size: int, header: Header) -> None:
        self._fd = fd
        self._data = header.data
        self._size = size if header.data is None else len(header.data)
        self._elements = header.elements
        self.transfer_syntax = header.part10.transfer_syntax
        if header.pixels is None:
            raise UnreadableDataSet("the instance has no pixel data")
        self.pixels = self._past_tables(header.pixels)
        if self.pixels.tag not in _PIXELS:
            raise UnreadableDataSet("the instance has no pixel data")
        self.count = self._number(0x00280008, 1) or 1
        if not self.pixels.encapsulated:
            self._bits = self._number(0x00280100, 0) or _PIXELS[self.pixels.tag]
            self._frame_bits = self._bits_of_a_frame()

    def _number(self, tag: int, otherwise: int) -> int:
        element = self._elements.get(tag)
        if element is None or not isinstance(element.value, bytes) or not element.value:
            return otherwise
        if element.vr == "US":
            return int.from_bytes(element.value[:2], "little" if element.little_endian else "big")
        try:
            return max(0, int(element.value.decode("latin-1").strip(" \0")))
        except ValueError:
            return otherwise

    def _past_tables(self, pixels: Pixels) -> Pixels:
        """Past the extended offset tables, which are kept (PS3.5 A.4: in explicit VR)."""
        tables: dict[int, bytes] = {}
        while pixels.tag in TABLES:
            if pixels.end - pixels.start > _LONGEST_TABLE:
                raise UnreadableDataSet("a table of frames is too long")
            tables[pixels.tag] = self._read(pixels.start, pixels.end - pixels.start)
            head = self._read(pixels.end, 12)
            tag = int.from_bytes(head[:2], "little") << 16 | int.from_bytes(head[2:4], "little")
            length = int.from_bytes(head[8:12], "little")
            start = pixels.end + 12
            encapsulated = length == 0xFFFFFFFF
            end = self._size if encapsulated else min(self._size, start + length)
            vr = head[4:6].decode("latin-1")
            pixels = pixels._replace(
                tag=tag, vr=vr, start=start, end=end, encapsulated=encapsulated
            )
        if len(tables) == 2:
            both = tables[_EXTENDED_OFFSETS], tables[_EXTENDED_LENGTHS]
            return pixels._replace(extended_offsets=both)
        return pixels

    def _bits_of_a_frame(self) -> int:
        rows, columns = self._number(0x00280010, 0), self._number(0x00280011, 0)
        samples = self._number(0x00280002, 1) or 1
        photometric = self._elements.get(0x00280004)
        named = photometric.value if photometric and isinstance(photometric.value, bytes) else b""
        if named.strip(b" \0") == b"YBR_FULL_422":
            samples = 2  # two pixels share their colours (PS3.3 C.7.6.3.1.2)
        bits = rows * columns * samples * self._bits
        there = (self.pixels.end - self.pixels.start) * 8
        if not 0 < bits * self.count <= there:
            raise UnreadableDataSet("the pixel data is not as long as the header says")
        return bits

    def fragments(self) -> list[tuple[int, int]]:
        """Where the fragments of encapsulated pixel data start and end in the file, without the
        Basic Offset Table: of a video, which has frames of its own kind, all there is to know.

        Raises OSError, UnreadableDataSet.
        """
        found: list[tuple[int, int]] = []
        at = self.pixels.start
        while (head := self._read(at, 8))[:4] == _ITEM:
            end = at + 8 + int.from_bytes(head[4:], "little")
            if end > self._size or len(found) > _MOST_FRAGMENTS:
                raise UnreadableDataSet("the fragments of the pixel data are cut short")
            found.append((at + 8, end))
            at = end
        return found[1:]

    def read(self, frame: int) -> bytes:
        """A frame as it is encoded; one that is not compressed in little endian.

        Raises IndexError when there is no such frame, OSError, UnreadableDataSet.
        """
        if not 0 <= frame < self.count:
            raise IndexError(frame)
        if self.pixels.encapsulated:
            return self._fragments(frame)
        first = frame * self._frame_bits
        start, odd = divmod(first, 8)
        length = -(-(odd + self._frame_bits) // 8)
        if self.pixels.little_endian or self._bits < 8:
            data = self._read(self.pixels.start + start, length)
        else:
            data = self._turned(start, length)
        return _bits_from(data, odd, self._frame_bits) if odd or self._frame_bits % 8 else data

    def _turned(self, start: int, length: int) -> bytes:
        """Of big endian: words have their bytes the other way round, also those of two pixels."""
        width = _WIDTHS.get(self._bits, 1) if self.pixels.vr != "OW" else max(2, self._bits // 8)
        before = start % width
        whole = -(-(before + length) // width) * width
        data = self._read(self.pixels.start + start - before, whole, short=True)
        return swapped(data + bytes(-len(data) % width), width)[before : before + length]

    def _fragments(self, frame: int) -> bytes:
        window = io.BufferedReader(_Window(self))
        try:
            return get_frame(
                window,
                frame,
                number_of_frames=self.count,
                extended_offsets=self.pixels.extended_offsets,
            )
        except (ValueError, EOFError) as error:
            raise UnreadableDataSet("the frames of the pixel data cannot be found") from error

    def _read(self, at: int, length: int, *, short: bool = False) -> bytes:
        if self._data is not None:
            data = bytes(self._data[at : at + length])
        else:
            data = os.pread(self._fd, length, at)
            while (
                data
                and len(data) < length
                and (more := os.pread(self._fd, length - len(data), at + len(data)))
            ):
                data += more
        if len(data) < length and not short:
            raise UnreadableDataSet("the file ends within its pixel data")
        return data


class _Window(io.RawIOBase):
    """The encapsulated value as a file of its own, from its first item on."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        pixels = self._frames.pixels
        length = pixels.end - pixels.start
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer will do
        pixels = self._frames.pixels
        wanted = min(len(buffer), max(0, pixels.end - pixels.start - self._at))
        data = self._frames._read(pixels.start + self._at, wanted, short=True)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _bits_from(data: bytes, odd: int, count: int) -> bytes:
    """``count`` bits from the bit ``odd`` on, from the first bit of a byte on (PS3.5 D.1.1)."""
    number = int.from_bytes(data, "little") >> odd & (1 << count) - 1
    return number.to_bytes(-(-count // 8), "little")
