"""What the fuzzer starts from: seeds, known as elements, and the real files made small.

Shares no code with what it tests. A seed that is DICOM is known as its elements, so that it can be
changed element by element; one that is not, as bytes only.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from tests.support.archives import folders_of_real_files

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
UNDEFINED = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")
LONG_VRS += (b"UV",)
_LONGEST_VALUE = 1024
LONGEST_SEED = 48 << 10


@dataclass(frozen=True, slots=True)
class Element:
    """An element of the top level, as bytes; its value starts at ``head``, '' is no VR."""

    tag: int
    vr: bytes
    head: int
    raw: bytes

    @property
    def value(self) -> bytes:
        return self.raw[self.head :]


@dataclass(frozen=True, slots=True)
class Seed:
    """``data`` is the data set; when ``syntax`` is deflated, before it is deflated.

    ``meta`` is what comes before it in a file. ``elements`` is empty when it is bytes only.
    """

    name: str
    syntax: str
    data: bytes
    meta: bytes = b""
    elements: tuple[Element, ...] = field(default=())


class NoElements(Exception):
    """It is not made of elements that we can tell apart."""


def make_element(tag: int, vr: bytes, value: bytes, syntax: str, length: int = -1) -> bytes:
    """An element as ``syntax`` writes it; ``length`` is what it says, when that is a lie."""
    order = ">" if syntax == BIG else "<"
    length = len(value) if length < 0 else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT or not vr:
        return head + struct.pack(f"{order}I", length) + value
    if vr in LONG_VRS:
        return head + vr + struct.pack(f"{order}HI", 0, length) + value
    return head + vr + struct.pack(f"{order}H", length & 0xFFFF) + value


def file_meta(
    syntax: str, sop_class: str = "1.2.840.10008.5.1.4.1.1.2", sop: str = "1.2.3"
) -> bytes:
    """A preamble and File Meta Information without its group length."""
    uids = ((0x00020002, sop_class), (0x00020003, sop), (0x00020010, syntax))
    parts = [make_element(tag, b"UI", _even(uid.encode()), EXPLICIT) for tag, uid in uids]
    return bytes(128) + b"DICM" + b"".join(parts)


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)


# --- elements -------------------------------------------------------------------------------------


def split(data: bytes, syntax: str) -> tuple[Element, ...]:
    """The elements of the top level of a data set. Raises NoElements."""
    elements, pos = [], 0
    while len(data) - pos >= 8:
        tag, vr, length, value = _header(data, pos, syntax)
        after = _end_of_items(data, value, syntax, 0) if length == UNDEFINED else value + length
        if after > len(data):
            raise NoElements
        elements.append(Element(tag, vr, value - pos, data[pos:after]))
        pos = after
    if pos != len(data):
        raise NoElements
    return tuple(elements)


def _header(data: bytes, pos: int, syntax: str) -> tuple[int, bytes, int, int]:
    """(tag, VR, length, position of the value)"""
    order = ">" if syntax == BIG else "<"
    try:
        group, number, length = struct.unpack_from(f"{order}HHI", data, pos)
        if syntax == IMPLICIT or group == 0xFFFE:
            return group << 16 | number, b"", length, pos + 8
        vr = data[pos + 4 : pos + 6]
        if not vr.isalpha() or not vr.isupper():
            raise NoElements
        if vr in LONG_VRS:
            [length] = struct.unpack_from(f"{order}I", data, pos + 8)
            return group << 16 | number, vr, length, pos + 12
        [length] = struct.unpack_from(f"{order}H", data, pos + 6)
    except struct.error:
        raise NoElements from None
    return group << 16 | number, vr, length, pos + 8


def _end_of_items(data: bytes, pos: int, syntax: str, depth: int) -> int:
    """Where a value of undefined length ends."""
    if depth > 20:
        raise NoElements
    while True:
        tag, _, length, pos = _header(data, pos, syntax)
        if tag == 0xFFFEE0DD:
            return pos
        if tag != 0xFFFEE000:
            raise NoElements
        if length != UNDEFINED:
            pos += length
            continue
        while True:
            tag, _, length, pos = _header(data, pos, syntax)
            if tag == 0xFFFEE00D:
                break
            inner = length == UNDEFINED
            pos = _end_of_items(data, pos, syntax, depth + 1) if inner else pos + length


# --- real files -----------------------------------------------------------------------------------


def real_seeds() -> list[Seed]:
    """One of each real file, its long values cut short; one of the same bytes only once."""
    seeds: dict[tuple[bytes, bytes], Seed] = {}
    for folder in folders_of_real_files():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.stat().st_size <= 4 << 20:
                seed = _of_file(path.name, path.read_bytes())
                seeds.setdefault((seed.meta, seed.data), seed)
    return [seed for seed in seeds.values() if len(seed.data) <= LONGEST_SEED]


def _of_file(name: str, content: bytes) -> Seed:
    pos, syntax = 132, ""
    try:
        if content[128:132] != b"DICM":
            raise NoElements
        while content[pos : pos + 2] == b"\2\0":
            tag, _, length, value = _header(content, pos, EXPLICIT)
            pos = value + length
            if tag == 0x00020010:
                syntax = content[value:pos].decode("ascii", "replace").rstrip("\0 ")
        data = content[pos:]
        if syntax == DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 4 << 20)
        kind = syntax if syntax in (IMPLICIT, BIG) else EXPLICIT
        elements = tuple(_shortened(element, kind) for element in split(data, kind))
    except (NoElements, zlib.error):
        return Seed(name, EXPLICIT, content[:LONGEST_SEED])
    data = b"".join(element.raw for element in elements)
    return Seed(name, syntax or EXPLICIT, data, content[:pos], elements)


def _shortened(element: Element, syntax: str) -> Element:
    opaque = element.vr in (b"OB", b"OW", b"OF", b"UN", b"UT", b"")
    if len(element.value) <= _LONGEST_VALUE or not opaque:
        return element
    order = ">" if syntax == BIG else "<"
    [length] = struct.unpack_from(f"{order}I", element.raw, element.head - 4)
    if length == UNDEFINED:
        if element.tag != 0x7FE00010:
            return element
        fragment = struct.pack("<HHI", 0xFFFE, 0xE000, 64) + element.value[16:80]
        value = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + fragment * 2
        value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return Element(element.tag, element.vr, element.head, element.raw[: element.head] + value)
    raw = make_element(element.tag, element.vr, element.value[:64], syntax)
    return Element(element.tag, element.vr, element.head, raw)
