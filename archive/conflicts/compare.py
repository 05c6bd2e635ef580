"""How two variants of an instance differ: in encoding, in the header, or in the pixels.

Both data sets are walked side by side (``flatten``) and compared element by element, as values:
transfer syntax, VR spelled out or not, byte order, lengths of sequences, group lengths, padding,
fragments and character set do not count when what they encode is the same. Pixel data in different
compressions are decoded by a process of its own (``decoding``), where a hostile stream can do no
harm. Time and memory are bounded by the size of the files, whatever is in them.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import blake3
from pydicom.datadict import dictionary_VR, keyword_for_tag

from plainpacs.archive.conflicts import pixels
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.charset import CharacterSet, default_for
from plainpacs.archive.dicom.elements import (
    CHARACTER_SET,
    IN_CHARACTER_SET,
    NUMBERS,
    PIXEL_DATA,
    TEXTS,
    UNSPLIT,
    WIDTHS,
    spell,
    swapped,
)
from plainpacs.archive.dicom.flatten import DataSet, Leaf, fragments
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.temporary import mapped
from plainpacs.archive.tree import durable

MOST_NAMED = 20
"""Attributes named of those that differ."""
_LONGEST_SHOWN = 64
_LONGEST_TEXT = 1 << 20
_MOST_COUNTED = 10_000
_CHUNK = 1 << 20

_PLANAR = 0x00280006
_PHOTOMETRIC = 0x00280004
_PIXELS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)
_OFFSETS = (0x7FE00001, 0x7FE00002)
"""The Extended Offset Table and its lengths: where fragments lie."""

# PS3.5 6.2: in these, blanks at both ends of each value mean nothing; in those, at the end.
_VALUES = TEXTS - UNSPLIT


class ConflictClass(enum.Enum):
    """How two variants differ."""

    SAME = "same"
    """Equal transfer syntax and data set: there is nothing to decide."""
    ENCODING = "encoding"
    """Equal after decoding."""
    HEADER = "header"
    PIXELS = "pixels"
    """The pixel data, and perhaps the header too."""
    UNREADABLE = "unreadable"
    """One of them cannot be read to its end."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An attribute that differs: its keyword, or ``(gggg,eeee)``, after those of the sequences it
    is in; its values as text, cut short, None where it is absent. Patient data."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """``differing``: at most ``MOST_NAMED`` of the ``count`` that differ, in order of their tags.

    ``why`` is what could not be compared, and empty otherwise.
    """

    kind: ConflictClass
    differing: tuple[Difference, ...] = ()
    count: int = 0
    why: str = ""


def compare(root: str, first: str, second: str) -> Comparison:
    """How the files at ``first`` and ``second``, relative to ``root``, differ. Raises OSError."""
    try:
        one, other = _Side(root, first), _Side(root, second)
        if one.encoded_as(other):
            return Comparison(ConflictClass.SAME)
        found = _Differences(one, other)
        found.walk()
    except UnreadableDataSet as error:
        return Comparison(ConflictClass.UNREADABLE, why=str(error))
    same, why = _same_pixels(one, other)
    if same and why:  # decoded
        found.forget((_PLANAR, _PHOTOMETRIC))
    if not same:
        kind = ConflictClass.PIXELS
    elif found.count:
        kind = ConflictClass.HEADER
    else:
        kind = ConflictClass.ENCODING
    return Comparison(kind, tuple(found.named.values()), found.count, why if same is None else "")


class _Side:
    """One of the two files, its elements one by one; what is compared as a whole is put by."""

    def __init__(self, root: str, path: str) -> None:
        self.root, self.path = root, path
        folder = durable.open_folder(root)
        try:
            view = mapped(folder, path)
        finally:
            os.close(folder)
        found = part10.read_part10(view[: part10.LONGEST_META])
        self.encoded = view[found.dataset_offset :]
        self.data_set = DataSet(self.encoded, found.transfer_syntax)
        self.data = self.data_set.data
        self.pixels: Leaf | None = None
        self.planar = b""
        self._sets: dict[tuple[int, ...], CharacterSet] = {(): default_for(found.calling_ae)}
        self._leaves = iter(self.data_set)

    def encoded_as(self, other: _Side) -> bool:
        """Whether it is the same instance: equal transfer syntax and data set bytes."""
        if self.data_set.transfer_syntax != other.data_set.transfer_syntax:
            return False
        return _equal_bytes(self.encoded, other.encoded)

    def next(self) -> Leaf | None:
        """The next element to be compared; None at the end. Raises UnreadableDataSet."""
        for leaf in self._leaves:
            tag = leaf.path[-1]
            if tag == CHARACTER_SET:
                names = bytes(self.data[leaf.start : leaf.end][:1000]).decode("latin-1").split("\\")
                self._sets[leaf.path[:-1]] = self._sets[()].declared([n.strip() for n in names])
            elif len(leaf.path) == 1 and tag in _PIXELS:
                self.pixels = leaf
            elif len(leaf.path) > 1 or tag not in _OFFSETS:
                if leaf.path == (_PLANAR,):
                    self.planar = self.bytes_of(leaf)
                return leaf
        return None

    def bytes_of(self, leaf: Leaf) -> bytes:
        return bytes(self.data[leaf.start : leaf.end])

    def little_endian(self, leaf: Leaf, vr: str) -> Iterator[bytes]:
        """The value in little endian, piece by piece."""
        width = WIDTHS.get(vr, 1)
        for start in range(leaf.start, leaf.end, _CHUNK):
            piece = bytes(self.data[start : min(start + _CHUNK, leaf.end)])
            yield piece if leaf.little_endian else swapped(piece, width)

    def without_pad(self, leaf: Leaf, counterpart: Leaf) -> Leaf:
        """``leaf`` without the byte that made its value even, when its counterpart's is odd."""
        size = counterpart.end - counterpart.start
        padded = leaf.end - leaf.start == size + 1 and size % 2
        if padded and self.data[leaf.end - 1] in b"\0 ":
            return leaf._replace(end=leaf.end - 1)
        return leaf

    def set_of(self, leaf: Leaf) -> CharacterSet:
        """The character set in force where the element is."""
        if len(self._sets) > 1:
            for length in range(len(leaf.path) - 1, 0, -2):
                if found := self._sets.get(leaf.path[:length]):
                    return found
        return self._sets[()]

    def text(self, leaf: Leaf, vr: str) -> str:
        """The value of a text VR, without what pads it."""
        raw = self.bytes_of(leaf)
        if vr in IN_CHARACTER_SET:
            text = self.set_of(leaf).decode(raw, name=vr == "PN")
        else:
            text = raw.decode("latin-1")
        if vr in _VALUES:
            return "\\".join(value.strip(" \0") for value in text.split("\\"))
        return text.rstrip(" \0")

    def shown(self, leaf: Leaf, vr: str) -> str:
        """The value for people, cut short."""
        size = leaf.end - leaf.start
        if leaf.vr in ("SQ", "item"):
            return "(sequence)"
        if vr in TEXTS and size <= _LONGEST_TEXT and not leaf.encapsulated:
            text = self.text(leaf, vr)
            return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
        if vr in NUMBERS and size <= 8 * WIDTHS[vr]:
            raw = b"".join(self.little_endian(leaf, vr))
            count = size // WIDTHS[vr]
            values = struct.unpack_from(f"<{count}{NUMBERS[vr]}", raw)
            return "\\".join(str(value) for value in values)
        return f"({size} bytes)"


@dataclass(slots=True)
class _Differences:
    """What differs between two data sets, found by walking both at once."""

    one: _Side
    other: _Side
    named: dict[str, Difference] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _alone: tuple[int, ...] = (-1,)

    @property
    def count(self) -> int:
        return len(self._names)

    def walk(self) -> None:
        """Raises UnreadableDataSet."""
        left, right = self.one.next(), self.other.next()
        while left or right:
            if right is None or (left is not None and left.path < right.path):
                assert left is not None, "one of them is there"
                self._differs(left, None)
                left = self.one.next()
            elif left is None or right.path < left.path:
                self._differs(None, right)
                right = self.other.next()
            else:
                if not self._equal(left, right):
                    self._differs(left, right)
                left, right = self.one.next(), self.other.next()

    def forget(self, tags: tuple[int, ...]) -> None:
        """Those elements of the top level are as the encoding wants them, after all."""
        for tag in tags:
            name = _name_of((tag,))
            self._names.discard(name)
            self.named.pop(name, None)

    def _equal(self, left: Leaf, right: Leaf) -> bool:
        one, other = self.one, self.other
        if left.encapsulated or right.encapsulated:
            both = left.encapsulated and right.encapsulated
            return both and _same_streams(one, other, left, right)
        vr = _vr_of(left, right)
        left, right = one.without_pad(left, right), other.without_pad(right, left)
        alike = left.end - left.start == right.end - right.start and all(
            piece == counterpart
            for piece, counterpart in zip(
                one.little_endian(left, vr), other.little_endian(right, vr), strict=True
            )
        )
        if alike and one.set_of(left) is other.set_of(right):
            return True
        if vr not in TEXTS:
            return alike
        if max(left.end - left.start, right.end - right.start) > _LONGEST_TEXT:
            return alike
        return one.text(left, vr) == other.text(right, vr)

    def _differs(self, left: Leaf | None, right: Leaf | None) -> None:
        leaf = left or right
        assert leaf is not None, "one of them is there"
        if leaf.path[: len(self._alone)] == self._alone:
            return  # in a sequence or item that is on one side only
        if left is None or right is None:
            self._alone = leaf.path
        name = _name_of(leaf.path)
        if len(self._names) < _MOST_COUNTED:
            self._names.add(name)
        if name in self.named or len(self.named) == MOST_NAMED:
            return
        vr = _vr_of(left or leaf, right or leaf)
        self.named[name] = Difference(
            name,
            left and self.one.shown(left, vr),
            right and self.other.shown(right, vr),
        )


def _vr_of(left: Leaf, right: Leaf) -> str:
    """The VR to compare by: what one side says, else the dictionary; empty when nobody does."""
    for vr in (left.vr, right.vr):
        if vr not in ("", "UN"):
            return vr
    try:
        return dictionary_VR(left.path[-1])
    except KeyError:  # private, or not known
        return ""


def _name_of(path: tuple[int, ...]) -> str:
    """``ReferencedStudySequence.ReferencedSOPInstanceUID``"""
    # Odd places are the numbers of items.
    return ".".join(keyword_for_tag(tag) or spell(tag) for tag in path[::2])


def _equal_bytes(left: memoryview, right: memoryview) -> bool:
    if len(left) != len(right):
        return False
    return all(
        bytes(left[at : at + _CHUNK]) == bytes(right[at : at + _CHUNK])
        for at in range(0, len(left), _CHUNK)
    )


def _same_streams(one: _Side, other: _Side, left: Leaf, right: Leaf) -> bool:
    """Whether the fragments hold the same bytes, wherever they are cut."""
    return _stream_digest(one.data, left) == _stream_digest(other.data, right)


def _stream_digest(data: memoryview, leaf: Leaf) -> bytes:
    digest = blake3.blake3()
    for fragment in fragments(data, leaf):
        digest.update(fragment)
    return digest.digest()


def _same_pixels(one: _Side, other: _Side) -> tuple[bool | None, str]:
    """As ``decoding.same_pixels``; without words when nothing had to be decoded."""
    left, right = one.pixels, other.pixels
    if left is None or right is None:
        return left is right, ""
    if left.path != right.path:
        return False, ""
    if not left.encapsulated and not right.encapsulated and one.planar == other.planar:
        return _same_native(one, other, left, right), ""
    if (
        left.encapsulated
        and right.encapsulated
        and one.data_set.transfer_syntax == other.data_set.transfer_syntax
        and _same_streams(one, other, left, right)
    ):
        return True, ""
    return pixels.same_pixels(one.root, one.path, other.path)


def _same_native(one: _Side, other: _Side, left: Leaf, right: Leaf) -> bool:
    vr = _vr_of(left, right)
    left, right = one.without_pad(left, right), other.without_pad(right, left)
    if left.end - left.start != right.end - right.start:
        return False
    pieces = zip(one.little_endian(left, vr), other.little_endian(right, vr), strict=True)
    return all(piece == counterpart for piece, counterpart in pieces)
