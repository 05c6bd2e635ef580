"""The walk through a data set with pydicom judging the headers of doubtful elements: to hold ours
against."""

from __future__ import annotations

import struct
from struct import Struct
from typing import BinaryIO, cast

from pydicom.filereader import data_element_generator
from pydicom.fileutil import read_undefined_length_value
from pydicom.tag import SequenceDelimiterTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.charset import DEFAULT, CharacterSet
from plainpacs.archive.dicom.elements import ITEM_DELIMITER, CutShort
from plainpacs.archive.dicom.values import Attributes
from plainpacs.archive.dicom.walk import Walk, too_many
from plainpacs.archive.errors import UnreadableDataSet

# What pydicom's parsing raises on bytes it cannot follow.
_PARSING = (struct.error, EOFError, OSError, ValueError, LookupError, NotImplementedError)

_VRS = {vr.encode(): str(vr) for vr in STANDARD_VR}
_LONG_VRS = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}
_COST_OF_ASKING = 10  # in elements looked at


class PydicomWalk(Walk):
    """The way through a data set by pydicom's reading of element headers."""

    def __init__(self, data: Buffer, *, little_endian: bool) -> None:
        super().__init__(data, little_endian=little_endian)
        order = "<" if little_endian else ">"
        self._explicit = Struct(f"{order}HH2sH").unpack_from
        self._implicit = Struct(f"{order}HHI").unpack_from
        self._length = Struct(f"{order}I").unpack_from
        self._view = _View(data)
        self._file = cast(BinaryIO, self._view)

    @classmethod
    def read(
        cls, data: Buffer, implicit: bool, little_endian: bool, above: CharacterSet = DEFAULT, *,
        whole: bool, complete: bool,
    ) -> Attributes:  # fmt: skip
        """As ``header.read_header``."""
        walk = cls(data, little_endian=little_endian)
        try:
            walk.top_level(0, implicit, whole=whole, complete=complete)
        except _PARSING:
            raise UnreadableDataSet("the data set cannot be followed") from None
        return walk.attributes(above)

    def element(
        self, pos: int, implicit: bool, end: int | None = None
    ) -> tuple[int, str, int, int]:
        group, element, vr, length = self._explicit(self.data, pos)
        if implicit or (group == 0xFFFE and vr not in _VRS):
            return group << 16 | element, "", self._implicit(self.data, pos)[2], pos + 8
        if vr not in _VRS:
            self._left -= _COST_OF_ASKING
            if self._left < 0:
                raise too_many()
            return self._asked(pos, implicit)
        tag = group << 16 | element
        if vr not in _LONG_VRS:
            return tag, _VRS[vr], length, pos + 8
        if self.end - pos < 12:
            raise CutShort.within(tag, 12, self.end - pos)
        return tag, _VRS[vr], self._length(self.data, pos + 8)[0], pos + 12

    def _asked(self, pos: int, implicit: bool) -> tuple[int, str, int, int]:
        """As ``element``, by pydicom."""
        seen: list[tuple[int, str | None, int]] = []

        def stop(tag: int, vr: str | None, length: int) -> bool:
            seen.append((tag, vr, length))
            return True

        self._view.seek(pos)
        elements = data_element_generator(self._file, implicit, self.little_endian, stop_when=stop)
        try:
            next(elements, None)
        except struct.error:
            raise CutShort(f"the data set is cut short in an element's header at {pos}") from None
        if not seen:  # it ends an item, and asks nothing
            return ITEM_DELIMITER, "", 0, pos + 8
        tag, vr, length = seen[0]
        return int(tag), vr or "", length, pos + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)

    def after_opaque(self, pos: int) -> int:
        self._view.seek(pos)
        after = self.end
        try:
            read_undefined_length_value(
                self._file, self.little_endian, SequenceDelimiterTag, defer_size=0
            )
            after = self._view.tell()
        except EOFError:
            raise CutShort("the data set is cut short in a value of undefined length") from None
        finally:
            # What was searched for a delimiter counts, or one could have it searched for ever.
            self._left -= (after - pos) // 1024
        # pydicom does not mind a delimiter of which the length is missing.
        if self._implicit(self.data, after - 8)[:2] != (0xFFFE, 0xE0DD):
            raise CutShort("the data set is cut short in a value of undefined length")
        return after


class _View:
    """A buffer as the file that pydicom reads, without a copy of it."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._pos = 0

    def read(self, size: int) -> bytes:
        piece = bytes(self._data[self._pos : self._pos + size])
        self._pos += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._pos = (0, self._pos, len(self._data))[whence] + offset
        return self._pos

    def tell(self) -> int:
        return self._pos
