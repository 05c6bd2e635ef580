"""An uncompressed data set in another uncompressed transfer syntax, from file to wire.

From explicit VR (either byte order) and implicit VR to explicit and implicit VR little endian
(PS3.5 7.1, A.1 to A.3). Only element headers are held: all of them are walked before anything is
sent, so that what cannot be followed is refused beforehand, and values are read when they are sent.
Values stay as they are, but for the order of their bytes. Sequences get undefined lengths, because
their headers change in length; lengths of groups are left out (PS3.5 7.2).

pydicom could do it with less code, but not as a stream: it held 670 MB for an instance of 210 MB
(this: 69 MB for any) and took 11 times as long, 13 ms for a CT slice of 526 KB instead of 1.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from plainpacs.archive.dicom.dictionary import vrs_of
from plainpacs.archive.dicom.elements import (
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    PIXEL_REPRESENTATION,
    SEQUENCE_DELIMITER,
    SHORT_VRS,
    UNDEFINED,
    WIDTHS,
    head,
    spell,
    swapped,
)
from plainpacs.archive.dicom.flatten import MOST_ELEMENTS
from plainpacs.archive.dicom.walk import DEEPEST

_LENGTH_TO_END = 0x00080001
_WINDOW = 1 << 16
_COPIED = 1 << 12
"""Bytes: longer values are read when they are sent."""
_ITEM_END = head(ITEM_DELIMITER, "", 0, explicit=False)
_SEQUENCE_END = head(SEQUENCE_DELIMITER, "", 0, explicit=False)


class CannotConvert(Exception):
    """The instance has no form in the transfer syntax asked for. The words carry no values."""


class Source(Protocol):
    """Where a data set is read from: positions are those of the whole file."""

    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    def read(self, at: int, length: int) -> bytes: ...
    def between(self, at: int, end: int) -> Iterator[bytes]: ...


class Memory:
    """A data set that is held as a whole."""

    offset = 0

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.size = len(data)

    def read(self, at: int, length: int) -> bytes:
        return bytes(self._data[at : at + length])

    def between(self, at: int, end: int) -> Iterator[bytes]:
        yield self.read(at, end - at)


@dataclass(frozen=True, slots=True)
class _Form:
    """How what is read is encoded, and whether it is written in explicit VR."""

    implicit: bool
    little_endian: bool
    to_explicit: bool
    signed: bool = False
    """By Pixel Representation, which decides between US and SS (PS3.6)."""

    @property
    def order(self) -> str:
        return "<" if self.little_endian else ">"


class _Frame:
    """What is open: the data set, a sequence (``items``) or an item. ``limit``: where it ends, None
    when a delimiter ends it; ``end`` is written then."""

    __slots__ = ("end", "form", "items", "limit")

    def __init__(self, form: _Form, limit: int | None, end: bytes, *, items: bool) -> None:
        self.form = form
        self.limit = limit
        self.end = end
        self.items = items


class _Range(NamedTuple):
    """A value to be read; ``unit``: bytes of a number to be turned round, 1 for none."""

    start: int
    end: int
    unit: int


def reencoded(source: Source, *, little_endian: bool, explicit: bool) -> Iterator[bytes]:
    """The data set of ``source`` in little endian, in explicit or implicit VR; piece by piece.

    ``little_endian``: what it is read as. Raises CannotConvert and OSError before the first piece,
    later only OSError.
    """
    return _pieces(source, _Walk(source, little_endian=little_endian, explicit=explicit).plan())


def _pieces(source: Source, plan: list[bytes | _Range]) -> Iterator[bytes]:
    for part in plan:
        if isinstance(part, bytes):
            yield part
        elif part.unit == 1:
            yield from source.between(part.start, part.end)
        else:
            yield from _turned(source.between(part.start, part.end), part.unit)


def _turned(pieces: Iterator[bytes], unit: int) -> Iterator[bytes]:
    left = b""
    for piece in pieces:
        data = left + piece
        whole = len(data) - len(data) % unit
        left = data[whole:]
        yield swapped(data[:whole], unit)
    yield left


class _Walk:
    def __init__(self, source: Source, *, little_endian: bool, explicit: bool) -> None:
        self._source = source
        self._end = source.size
        self._window = b""
        self._window_at = 0
        self._plan: list[bytes | _Range] = []
        self._written = bytearray()
        self._left = MOST_ELEMENTS
        self._top = _Form(self._looks_implicit(source.offset), little_endian, explicit)
        self._stack = [_Frame(self._top, source.size, b"", items=False)]

    def plan(self) -> list[bytes | _Range]:
        try:
            self._walk()
        except struct.error:
            raise CannotConvert("the data set ends within an element's header") from None
        self._close_bytes()
        return self._plan

    def _walk(self) -> None:
        pos = self._source.offset
        while self._stack:
            frame = self._stack[-1]
            if frame.limit is not None and pos >= frame.limit:
                if pos > frame.limit:
                    raise CannotConvert("an element is longer than what it lies in")
                self._written += frame.end
                self._stack.pop()
                continue
            self._left -= 1
            if self._left < 0:
                raise CannotConvert("it has too many elements")
            if frame.items:
                pos = self._item(frame, pos)
            elif len(self._stack) == 1 and not any(self._bytes(pos, 8)):
                return  # padding
            else:
                pos = self._element(frame, pos)

    def _item(self, frame: _Frame, pos: int) -> int:
        tag, length = self._tag_and_length(pos, frame.form)
        value = pos + 8
        if tag == SEQUENCE_DELIMITER and frame.limit is None:
            self._written += frame.end
            self._stack.pop()
            return value
        if tag != ITEM:
            raise CannotConvert(f"{spell(tag)} stands where an item belongs")
        form = frame.form
        if not form.implicit and self._looks_implicit(value):
            form = replace(form, implicit=True)
        self._open(ITEM, "", value, length, replace_form=form, end=_ITEM_END, items=False)
        return value

    def _element(self, frame: _Frame, pos: int) -> int:
        tag, vr, length, value = self._header(pos, frame.form)
        if tag == ITEM_DELIMITER and frame.limit is None:
            self._written += frame.end
            self._stack.pop()
            return value
        if tag >> 16 == 0xFFFE:
            raise CannotConvert(f"{spell(tag)} stands where an element belongs")
        form = frame.form
        if vr == "SQ" or (vr == "UN" and length == UNDEFINED):
            if vr == "UN":  # its items are in implicit VR little endian always (PS3.5 6.2.2)
                form = _Form(True, True, False, form.signed)
            self._open(tag, vr, value, length, replace_form=form, end=_SEQUENCE_END, items=True)
            return value
        if length == UNDEFINED:
            raise CannotConvert(f"{spell(tag)} is in fragments, which the transfer syntax has not")
        after = value + length
        if after > self._end:
            raise CannotConvert(f"the data set ends within {spell(tag)}")
        if tag & 0xFFFF and tag != _LENGTH_TO_END:
            self._value(tag, vr, value, after, form)
            if tag == PIXEL_REPRESENTATION:
                signed = any(self._bytes(value, min(length, 2)))
                frame.form = replace(form, signed=signed)
        return after

    def _open(
        self, tag: int, vr: str, at: int, length: int, *, replace_form: _Form, end: bytes,
        items: bool,
    ) -> None:  # fmt: skip
        """Writes the header of a sequence or item, whose content is at ``at``, and goes into it."""
        if len(self._stack) == DEEPEST:
            raise CannotConvert("it is nested too deeply")
        outer = self._stack[-1].form
        explicit = items and outer.to_explicit  # an item has no VR
        if not length:
            self._written += head(tag, vr, 0, explicit=explicit)
            return
        self._written += head(tag, vr, UNDEFINED, explicit=explicit)
        limit = None if length == UNDEFINED else at + length
        if limit is not None and limit > self._end:
            raise CannotConvert(f"the data set ends within {spell(tag)}")
        self._stack.append(_Frame(replace_form, limit, end, items=items))

    def _value(self, tag: int, vr: str, start: int, end: int, form: _Form) -> None:
        length = end - start
        written = vr
        if form.to_explicit and vr not in LONG_VRS and (vr not in SHORT_VRS or length > 0xFFFF):
            written = "UN"  # PS3.5 6.2.2, of a value that is too long for its VR
        self._written += head(tag, written, length, explicit=form.to_explicit)
        unit = 1 if form.little_endian else WIDTHS.get(vr, 1)
        if length <= _COPIED:
            self._written += swapped(self._bytes(start, length), unit)
            return
        self._close_bytes()
        self._plan.append(_Range(start, end, unit))

    def _close_bytes(self) -> None:
        if self._written:
            self._plan.append(bytes(self._written))
            self._written.clear()

    # --- reading ------------------------------------------------------------------------------

    def _bytes(self, pos: int, length: int) -> bytes:
        """Fewer at the end of the data set."""
        at = pos - self._window_at
        if at < 0 or at + length > len(self._window):
            self._window = self._source.read(pos, max(_WINDOW, length))
            self._window_at, at = pos, 0
        return self._window[at : at + length]

    def _tag_and_length(self, pos: int, form: _Form) -> tuple[int, int]:
        group, element, length = struct.unpack(f"{form.order}HHI", self._bytes(pos, 8))
        return group << 16 | element, length

    def _header(self, pos: int, form: _Form) -> tuple[int, str, int, int]:
        """Tag, VR, length, and where the value starts."""
        tag, length = self._tag_and_length(pos, form)
        if tag >> 16 == 0xFFFE:
            return tag, "", length, pos + 8
        vr = self._bytes(pos + 4, 2)
        if form.implicit or not (vr.isalpha() and vr.isupper()):  # so do some writers
            return tag, self._known_vr(tag, form), length, pos + 8
        text = vr.decode("ascii", "replace")
        if text in SHORT_VRS:
            (length,) = struct.unpack(f"{form.order}H", self._bytes(pos + 6, 2))
            return tag, text, length, pos + 8
        (length,) = struct.unpack(f"{form.order}I", self._bytes(pos + 8, 4))
        return tag, text, length, pos + 12

    def _known_vr(self, tag: int, form: _Form) -> str:
        among = vrs_of(tag)
        if len(among) == 1:
            return among[0]
        if "OW" in among:  # PS3.5 A.1, A.2: as it is in implicit VR, and may be in explicit
            return "OW"
        return "SS" if form.signed else "US"

    def _looks_implicit(self, pos: int) -> bool:
        vr = self._bytes(pos + 4, 2)
        return len(vr) == 2 and not (vr.isalpha() and vr.isupper())
