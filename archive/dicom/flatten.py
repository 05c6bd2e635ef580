"""Every element of a data set, nested ones too, in the order in which they stand: to compare two.

A walk over the element headers (PS3.5 7.1 and 7.5) in explicit and implicit VR and both byte
orders, with a stack of its own and in bounded time, so that nothing a peer made up can harm it.
Values are not copied. ``header`` is the quick way to the few attributes that are kept; this is the
whole way, for when somebody asks how two variants differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.deflate import Inflated
from plainpacs.archive.dicom.elements import (
    FIRST_OF_PIXELS,
    HEADERS,
    ITEM,
    ITEM_DELIMITER,
    NOT_PADDING,
    PADDING,
    PIXEL_DATA,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    CutShort,
    spell,
)
from plainpacs.archive.dicom.header import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    MOST_INFLATED,
)
from plainpacs.archive.dicom.walk import DEEPEST, too_many
from plainpacs.archive.errors import UnreadableDataSet

MOST_ELEMENTS = 1_000_000

_NO_VALUE = "item"
# About the encoding, not about the patient: Length to End and Data Set Trailing Padding.
_ENCODING = (0x00080001, 0xFFFCFFFC)


class Leaf(NamedTuple):
    """One element, or the start of an item.

    ``path``: tag, then item number and tag again for each level, so that document order is the
    order of the paths. ``vr`` is empty where the encoding does not tell, and ``item`` for an item.
    The value is ``data[start:end]``; of an ``encapsulated`` one, its fragments with their item
    headers. An element that holds items has no value; they follow it. ``little_endian``: the order
    of the bytes in the value. The element's header is at ``at`` (0 for an item).
    """

    path: tuple[int, ...]
    vr: str
    start: int
    end: int
    encapsulated: bool = False
    little_endian: bool = True
    at: int = 0


class _Form(NamedTuple):
    """How elements are encoded: byte order, and whether the VR is left out."""

    little_endian: bool
    implicit: bool


_IN_UNKNOWN = _Form(little_endian=True, implicit=True)
"""Items in VR UN are in implicit VR little endian, whatever is around them (PS3.5 6.2.2)."""


class DataSet:
    """A data set to be read from ``data``: the bytes as encoded, inflated when they are deflated.

    ``header_only``: the last element is the first of pixel data (group 7FE0), whose value need not
    be there; ``end`` is what its length says, and ``start`` when it has none. ``every``: elements
    that are about the encoding alone (group lengths), too. ``end``: where the elements ended, known
    after them. Raises UnreadableDataSet when it inflates to more than ``MOST_INFLATED``.
    """

    def __init__(
        self,
        data: Buffer,
        transfer_syntax: str,
        *,
        header_only: bool = False,
        every: bool = False,
    ) -> None:
        self._header_only = header_only
        self._every = every
        self.end = 0
        self.transfer_syntax = transfer_syntax.rstrip("\0 ")
        if self.transfer_syntax in DEFLATED:
            inflated = Inflated(data)
            inflated.grow(MOST_INFLATED)
            if not inflated.finished:
                raise UnreadableDataSet("the deflated data set is cut short, or too large")
            data = inflated.bytes
        self.data = memoryview(data)
        self.little_endian = self.transfer_syntax != EXPLICIT_BIG_ENDIAN

    @property
    def implicit(self) -> bool:
        """Whether it is in implicit VR."""
        said = self.transfer_syntax == IMPLICIT_LITTLE_ENDIAN
        headers = HEADERS[self.little_endian]
        return headers.is_implicit(self.data, 0, len(self.data), said=said)

    def __iter__(self) -> Iterator[Leaf]:
        """The elements, but for those that are about the encoding alone, unless ``every``.

        Raises UnreadableDataSet, at the latest at the end, when it cannot be followed.
        """
        try:
            form = _Form(self.little_endian, self.implicit)
            walk = _Walk(self.data, form, self._header_only, self._every)
            yield from walk.leaves()
            self.end = walk.stopped
        except struct.error:
            raise CutShort("the data set is cut short in an element's header") from None


class _Frame:
    """What is open: the data set, a sequence (``items``) or an item."""

    __slots__ = ("count", "defined", "form", "items", "limit", "path")

    def __init__(
        self, items: bool, limit: int, defined: bool, form: _Form, path: tuple[int, ...]
    ) -> None:
        self.items = items
        self.limit = limit
        self.defined = defined
        self.form = form
        self.path = path
        self.count = 0


class _Walk:
    def __init__(self, data: memoryview, form: _Form, header_only: bool, every: bool) -> None:
        self._data = data
        self._form = form
        self._header_only = header_only
        self._every = every
        self._end = self.stopped = len(data)
        self._left = MOST_ELEMENTS

    def leaves(self) -> Iterator[Leaf]:
        stack = [_Frame(False, self._end, True, self._form, ())]
        pos = 0
        while stack:
            frame = stack[-1]
            form = frame.form
            if frame.defined and pos == frame.limit:
                stack.pop()
                continue
            if len(stack) == 1 and not bytes(self._data[pos : pos + 8]).strip(PADDING):
                if NOT_PADDING.search(self._data, pos):
                    raise UnreadableDataSet("there is padding where an element belongs")
                self.stopped = pos
                return
            if frame.limit - pos < 8:
                raise CutShort("the data set is cut short in an element's header")
            self._count()
            if frame.items:
                depth = len(stack)
                pos = self._item(stack, frame, pos)
                if len(stack) > depth:
                    yield Leaf(stack[-1].path, _NO_VALUE, pos, pos)
                continue
            at = pos
            headers = HEADERS[form.little_endian]
            tag, vr, length, value = headers.read(
                self._data, pos, frame.limit, implicit=form.implicit
            )
            if tag in (ITEM_DELIMITER, SEQUENCE_DELIMITER) and not length:
                # In an item of a defined length it is one too many, which some writers leave.
                if tag == ITEM_DELIMITER and not frame.defined:
                    stack.pop()
                pos = value
                continue
            if tag >> 16 == 0xFFFE:
                raise UnreadableDataSet(f"{spell(tag)} stands where an element belongs")
            if (
                self._header_only
                and tag >= FIRST_OF_PIXELS
                and tag & 0xFFFF  # some have the length of the group before it
                and len(stack) == 1
            ):
                open_end = length == UNDEFINED
                end = value + (0 if open_end else length)
                yield Leaf((tag,), vr, value, end, open_end, form.little_endian)
                return
            after = frame.limit if length == UNDEFINED else value + length
            if after > frame.limit:
                raise CutShort.within(tag, length, frame.limit - value)
            path = (*frame.path, tag)
            inner = _IN_UNKNOWN if vr == "UN" else form
            if length == UNDEFINED and (vr in ("OB", "OW") or (not vr and tag == PIXEL_DATA)):
                end, pos = self._fragments(tag, value, frame.limit, form)
                yield Leaf(path, vr, value, end, True, at=at)
            elif self._holds_items(vr, value, length, after, inner):
                yield Leaf(path, "SQ", value, value, at=at)
                self._push(stack, _Frame(True, after, length != UNDEFINED, inner, path), tag)
                pos = value
            elif length == UNDEFINED:
                raise UnreadableDataSet(f"{spell(tag)} has no length")
            else:
                pos = after
                if self._every or (tag & 0xFFFF and tag not in _ENCODING):
                    yield Leaf(path, vr, value, after, False, form.little_endian, at)

    def _item(self, stack: list[_Frame], frame: _Frame, pos: int) -> int:
        """Opens the item at ``pos``, or closes the sequence; where to go on."""
        form = frame.form
        headers = HEADERS[form.little_endian]
        group, element, length = headers.implicit(self._data, pos)
        tag = group << 16 | element
        value = pos + 8
        if tag == SEQUENCE_DELIMITER and not frame.defined:
            stack.pop()
            return value
        if tag != ITEM:
            raise UnreadableDataSet(f"{spell(tag)} stands where an item belongs")
        after = frame.limit if length == UNDEFINED else value + length
        if after > frame.limit:
            raise CutShort.within(tag, length, frame.limit - value)
        if not form.implicit and headers.is_implicit(self._data, value, after, said=False):
            form = form._replace(implicit=True)
        path = (*frame.path, frame.count)
        frame.count += 1
        self._push(stack, _Frame(False, after, length != UNDEFINED, form, path), tag)
        return value

    def _push(self, stack: list[_Frame], frame: _Frame, tag: int) -> None:
        if len(stack) == DEEPEST:
            raise UnreadableDataSet(f"the data set is nested too deeply in {spell(tag)}")
        stack.append(frame)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise too_many()

    def _holds_items(self, vr: str, value: int, length: int, after: int, form: _Form) -> bool:
        """SQ does; what has no VR of its own, when its value is made of items to its end."""
        if vr == "SQ":
            return True
        if vr not in ("UN", ""):
            return False
        if length == UNDEFINED:
            return True
        pos = value
        while after - pos >= 8:
            group, element, length = HEADERS[form.little_endian].implicit(self._data, pos)
            if group << 16 | element != ITEM:
                return False
            if length == UNDEFINED:
                return True
            self._count()
            pos += 8 + length
        return value < pos == after

    def _fragments(self, tag: int, pos: int, limit: int, form: _Form) -> tuple[int, int]:
        """(where the last fragment ends, what comes after the delimiter)."""
        while limit - pos >= 8:
            group, element, length = HEADERS[form.little_endian].implicit(self._data, pos)
            found = group << 16 | element
            if found == SEQUENCE_DELIMITER:
                return pos, pos + 8
            if found != ITEM or length == UNDEFINED or pos + 8 + length > limit:
                break
            self._count()
            pos += 8 + length
        raise CutShort(f"the fragments of {spell(tag)} are cut short")


def fragments(data: memoryview, leaf: Leaf) -> Iterator[memoryview]:
    """The fragments of an encapsulated value, without the Basic Offset Table (PS3.5 A.4)."""
    pos = leaf.start
    first = True
    while pos < leaf.end:
        length = int.from_bytes(data[pos + 4 : pos + 8], "little")
        if not first:
            yield data[pos + 8 : pos + 8 + length]
        first = False
        pos += 8 + length
