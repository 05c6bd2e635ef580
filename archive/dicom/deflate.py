"""A deflated data set (PS3.5 A.5: a raw deflate stream), inflated only as far as is asked for.

A few bytes can inflate to gigabytes; nothing here is inflated without a bound.
"""

from __future__ import annotations

import zlib

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.elements import CutShort
from plainpacs.archive.errors import UnreadableDataSet

_CHUNK = 64 << 10
_PART = 256 << 10


class Inflated:
    """What is inflated of ``data`` so far, in ``bytes``. What follows the stream is padding."""

    def __init__(self, data: Buffer) -> None:
        self.bytes = bytearray()
        self._data = memoryview(data)
        self._pos = 0
        self._left = b""
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def finished(self) -> bool:
        return self._stream.eof

    def grow(self, bound: int) -> None:
        """Makes ``bytes`` so long, or shorter when there is no more."""
        while len(self.bytes) < bound and (part := self._next(bound - len(self.bytes))):
            self.bytes += part

    def to_end(self, bound: int) -> None:
        """Goes on to the end without keeping anything; refuses more than so many bytes in all."""
        total = len(self.bytes)
        while part := self._next(_PART):
            total += len(part)
            if total > bound:
                raise UnreadableDataSet(f"the data set inflates to more than {bound} bytes")
        if not self.finished:
            raise CutShort("the deflated data set is cut short")

    def _next(self, most: int) -> bytes:
        """At most so many bytes more; none at the end of the stream or of what there is of it."""
        try:
            while not self._stream.eof:
                chunk = self._left or self._data[self._pos : self._pos + _CHUNK]
                if not self._left:
                    self._pos += len(chunk)
                # Asked for all at once, it would be held three times over.
                part = self._stream.decompress(chunk, min(most, _PART))
                self._left = self._stream.unconsumed_tail
                if part or not len(chunk):
                    return part
        except zlib.error:
            raise UnreadableDataSet("the data set is not deflated as its syntax says") from None
        return b""
