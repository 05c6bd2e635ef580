"""Data sets made to do harm, as seeds for the fuzzer: bombs, floods, lies."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator

from tests.fuzzing.seeds import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    LONGEST_SEED,
    UNDEFINED,
    Element,
    NoElements,
    Seed,
    file_meta,
    make_element,
    split,
)

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
    if len(data) < LONGEST_SEED:
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
