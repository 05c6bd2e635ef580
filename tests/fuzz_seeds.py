"""What the fuzzer starts from: real files made small, and data sets made to do harm.

Shares no code with what it tests. A seed that is DICOM is known as its elements, so that it can be
changed element by element; one that is not, as bytes only.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from support import real_folders

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
UNDEFINED = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")
LONG_VRS += (b"UV",)
_LONGEST_VALUE = 1024
_LONGEST_SEED = 48 << 10


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
    for folder in real_folders():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.stat().st_size <= 4 << 20:
                seed = _of_file(path.name, path.read_bytes())
                seeds.setdefault((seed.meta, seed.data), seed)
    return [seed for seed in seeds.values() if len(seed.data) <= _LONGEST_SEED]


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
        return Seed(name, EXPLICIT, content[:_LONGEST_SEED])
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


# --- bombs ----------------------------------------------------------------------------------------

_ITEM, _ITEM_END = (
    struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED),
    struct.pack("<HHI", 0xFFFE, 0xE00D, 0),
)
_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_BASE = (
    (0x00080005, b"CS", b"ISO 2022 IR 87"),
    (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
    (0x00080018, b"UI", b"1.2.3.4.5\0"),
    (0x00080020, b"DA", b"20240131"),
    (0x00080060, b"CS", b"CT"),
    (0x00100010, b"PN", b"Doe^Jane"),
    (0x00100020, b"LO", b"P1"),
    (0x0020000D, b"UI", b"1.2.3\0"),
    (0x0020000E, b"UI", b"1.2.3.4\0"),
    (0x00280010, b"US", b"\2\0"),
    (0x7FE00010, b"OW", b"\1\2\3\4"),
)


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def bombs() -> list[Seed]:
    """Small instances, each with something in it that is meant to do harm."""
    seeds = [_bomb(*one) for one in (*_plain(), *_lengths(), *_items(), *_texts(), *_many())]
    seeds.append(Seed("nothing", EXPLICIT, b""))
    seeds.append(Seed("zeros alone", EXPLICIT, bytes(200_000) + b"x"))
    return seeds + list(_deflate_bombs())


_Bomb = tuple[str, bytes, int] | tuple[str, bytes, int, str]
"""Name, elements, the tag of the first, and the transfer syntax unless explicit little endian."""


def _bomb(name: str, extra: bytes, tag: int, syntax: str = EXPLICIT) -> Seed:
    before = [make_element(*one, syntax) for one in _BASE if one[0] < tag]
    after = [make_element(*one, syntax) for one in _BASE if one[0] > tag]
    data = b"".join((*before, extra, *after))
    elements: tuple[Element, ...] = ()
    if len(data) < _LONGEST_SEED:
        with contextlib.suppress(NoElements):
            elements = split(data, syntax if syntax in (IMPLICIT, BIG) else EXPLICIT)
    return Seed(name, syntax, data, file_meta(syntax), elements)


def _e(tag: int, vr: bytes, value: bytes, length: int = -1, syntax: str = EXPLICIT) -> bytes:
    return make_element(tag, vr, value, syntax, length)


def _plain() -> Iterator[_Bomb]:
    for syntax in (EXPLICIT, IMPLICIT, BIG, DEFLATED, JPEG):
        yield f"plain {syntax}", b"", 0x00091001, syntax
    maker = _e(0x00090010, b"LO", b"MAKER") + _e(0x00091001, b"UN", b"\0" * 99)
    yield "private", maker + _e(0x00090011, b"LO", b"MAKER 2") * 200, 0x00091001
    creators = b"".join(_e(0x00090010 + n, b"LO", b"M") for n in range(0xF0))
    yield "private creators", creators, 0x00090010


def _lengths() -> Iterator[_Bomb]:
    for vr in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
        yield f"undefined {vr!r}", _e(0x00091001, vr, b"no items", UNDEFINED), 0x00091001
        yield f"huge {vr!r}", _e(0x00091001, vr, b"", 0xFFFFFFF0), 0x00091001
        yield f"negative {vr!r}", _e(0x00091001, vr, b"", 0x80000000), 0x00091001
        yield f"ended {vr!r}", _e(0x00091001, vr, b"abcd" + _END, UNDEFINED), 0x00091001
    for length in (0, 1, 3, 65535, 65534):
        yield f"length {length}", _e(0x00081030, b"LO", b"x" * length), 0x00081030
        yield f"claims {length}", _e(0x00081030, b"LO", b"abcd", length), 0x00081030
        group_length = struct.pack("<I", length)
        yield f"group length {length}", _e(0x00080000, b"UL", group_length), 0x00080000
    yield "group length of everything", _e(0x00080000, b"UL", b"\xff" * 4), 0x00080000
    for vr in (b"ZZ", b"\0\0", b"  ", b"sq", b"US", b"FD", b"SQ", b"UN", b"AT"):
        lies = _e(0x0020000D, vr, b"1.2.3\0") + _e(0x00280010, vr, b"\2\0")
        yield f"VR lie {vr!r}", lies, 0x0020000D


def _items() -> Iterator[_Bomb]:
    for depth in (50, 400, 100_000):
        for syntax in (EXPLICIT, IMPLICIT, DEFLATED):
            for tag in (0x00081140, 0x00091001, 0x00400275, 0x0040A730):
                nested = _nested(depth, tag, syntax)
                yield f"nested {depth} {tag:08X} {syntax}", nested, tag, syntax
    for depth in (50, 400, 2000):
        nested = b""
        for _ in range(depth):
            nested = _e(0x00081115, b"SQ", _item(nested))
        yield f"nested defined {depth}", nested, 0x00081115
    uid, request = _e(0x00081155, b"UI", b"1.2.3.4\0"), _e(0x00401001, b"SH", b"A1")
    wanted = ((0x00081140, uid), (0x00400275, request), (0x0040A730, b""), (0x00091001, uid))
    for tag, inside in wanted:
        yield f"65,536 items {tag:08X}", _e(tag, b"SQ", _item(inside) * 65536), tag
        open_items = (_ITEM + inside + _ITEM_END) * 65536 + _END
        yield f"65,536 open items {tag:08X}", _e(tag, b"SQ", open_items, UNDEFINED), tag
    claims = _item(uid)[:4] + b"\xf0\xff\xff\x7f" + uid
    yield "item claims more", _e(0x00081140, b"SQ", claims), 0x00081140
    yield "items without end", _e(0x00081140, b"SQ", (_ITEM + uid) * 300, UNDEFINED), 0x00081140
    search = _e(0x00081140, b"SQ", _item(_e(0x00091001, b"UN", b"no items", UNDEFINED)))
    yield "searches", search * 1000 + b"\1" * 500_000, 0x00081140


def _nested(depth: int, tag: int, syntax: str) -> bytes:
    opened = make_element(tag, b"SQ", b"", syntax, UNDEFINED) + _ITEM
    return opened * depth + (_ITEM_END + _END) * depth


_FLOODS = (b"\x1b", b"\x1b$B", b"\x1b$B;3\x1b(J", b"\x1b$B\x80\0", b"\\", b"^=")
_SETS = (b"ISO 2022 IR 6\\ISO 2022 IR 87", b"ISO_IR 192", b"GB18030", b"GBK", b"ISO_IR 13")
_SETS += (b"ISO 2022 IR 149\\" * 99, b"\xff\xfe")
_NUMBERS = (b"1" * 65534, b"1e999", b"-0", b"9007199254740993", b"1_0", b"nan", b"0x1")
_UIDS = (b"../../../etc/passwd", b"con", b"." * 64, b"1" * 65, b"1.2\0/3", b"a\nb", b"\\", b"1.dcm")


def _texts() -> Iterator[_Bomb]:
    for flood in _FLOODS:
        text = flood * (65534 // len(flood))
        both = _e(0x00100010, b"PN", text) + _e(0x00100020, b"LO", text)
        yield f"flood of {flood!r}", both, 0x00100010
        yield f"charset of {flood!r}", _e(0x00080005, b"CS", text), 0x00080005
    text = bytes(range(128, 256)) + b"\x1b$)C" + bytes(range(160, 256)) + b"\x1b-F\xe1\\\xe1"
    for sets in _SETS:
        both = _e(0x00080005, b"CS", sets) + _e(0x00081030, b"LO", text)
        yield f"text in {sets[:16]!r}", both, 0x00080005
    for number in (*_NUMBERS, b"1\\" * 30000):
        three = ((0x00200013, b"IS"), (0x00200032, b"DS"), (0x00280030, b"DS"))
        numbers = b"".join(_e(*one, number) for one in three)
        yield f"number {number[:20]!r}", numbers, 0x00200013
    for uid in (*_UIDS, b"1" * 65534):
        yield f"UID {uid[:20]!r}", _e(0x0020000E, b"UI", uid), 0x0020000E


def _many() -> Iterator[_Bomb]:
    for count in (5_000, 150_000):
        yield f"{count} elements", _e(0x00091000, b"LO", b"") * count, 0x00091000
        yield f"{count} implicit amid explicit", _e(0x00091000, b"", b"") * count, 0x00091000
        yield f"{count} of no VR", _e(0x00091000, b"ZZ", b"") * count, 0x00091000
        big = _e(0x00091000, b"LO", b"", syntax=BIG)
        yield f"{count} big endian", big * count, 0x00091000, BIG
        yield f"{count} of one", _e(0x00100020, b"LO", b"P1") * count, 0x00100020
    yield "zeros", bytes(500_000), 0x00081140


def _deflate_bombs() -> Iterator[Seed]:
    for megabytes in (1, 40, 300):
        # NULs are padding, or a row of elements in implicit VR, unless they lie in a value.
        for tag in (0x00091001, 0x7FE00009):
            head = b"".join(make_element(*one, EXPLICIT) for one in _BASE if one[0] < tag)
            head += _e(tag, b"OB", b"", megabytes << 20)
            zeros = _deflated(bytes(1 << 20)) * megabytes
            stream = _deflated(head) + zeros + _deflated(b"", zlib.Z_FINISH)
            name = f"deflate bomb of {megabytes} MB in {tag:08X}"
            yield Seed(name, f"{DEFLATED} as it is", stream, file_meta(DEFLATED))


def _deflated(data: bytes, ending: int = zlib.Z_FULL_FLUSH) -> bytes:
    """A part of a raw deflate stream that can stand beside others."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush(ending)
