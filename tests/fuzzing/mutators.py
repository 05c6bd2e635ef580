"""How the fuzzer changes a seed: element by element, and byte by byte. All by the given ``rng``."""

from __future__ import annotations

import struct
from random import Random

from tests.fuzzing.seeds import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    LONG_VRS,
    UNDEFINED,
    Element,
    Seed,
    make_element,
)

_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF)
_EXTREMES += (0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, UNDEFINED)
_VRS = (*LONG_VRS, b"AE", b"AT", b"CS", b"DS", b"FD", b"IS", b"LO", b"PN", b"SS", b"UI", b"US")
_VRS += (b"ZZ", b"\0\0")
_VALUES = (b"", b" ", b"\0", b"\0\0", b"1", b"-1", b"1.5e3", b"1e400", b"\\", b"\\\\\\", b"\x1b$B")
_VALUES += (b"\xff" * 9, b"../..", b"19000101", b"ISO_IR 192", b"1.2.3\0")
_LONGEST = 8 << 20


def changed_elements(rng: Random, seed: Seed, other: Seed) -> bytes:
    """The data set of ``seed`` with some of its elements changed, gone, doubled or moved."""
    syntax = seed.syntax if seed.syntax in (IMPLICIT, BIG) else EXPLICIT
    elements = list(seed.elements)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not elements:
            break
        at = rng.randrange(len(elements))
        elements[at : at + 1] = _changed(rng, elements, at, other.elements, syntax)
    return b"".join(element.raw for element in elements)


def _changed(
    rng: Random, elements: list[Element], at: int, others: tuple[Element, ...], syntax: str
) -> list[Element]:
    """What takes the place of the element ``at``."""
    one = elements[at]
    match rng.randrange(12):
        case 0:
            return []
        case 1:
            return [one] * rng.choice((2, 2, 3, 50))
        case 2:  # out of order
            elements.insert(rng.randrange(len(elements) + 1), one)
            return [one]
        case 3:
            with_other = rng.randrange(len(elements))
            elements[with_other], one = one, elements[with_other]
            return [one]
        case 4 | 5:
            return [_made(one.tag, one.vr, one.value, syntax, rng.choice(_EXTREMES))]
        case 6:
            lie = len(one.value) + rng.choice((-2, -1, 1, 2, 8, 100))
            return [_made(one.tag, one.vr, one.value, syntax, max(0, lie))]
        case 7:
            return [_made(one.tag, rng.choice(_VRS), one.value, syntax)]
        case 8:
            return [_made(one.tag, one.vr, rng.choice(_VALUES), syntax)]
        case 9:
            return [_made(one.tag, one.vr, rng.randbytes(rng.choice((1, 2, 8, 64, 1000))), syntax)]
        case 10 if others:
            return [one, rng.choice(others)]
        case _:  # inside a sequence, in one that wants it or in any
            tag = rng.choice((0x00081115, 0x00081140, 0x00400275, 0x00091001, one.tag))
            item = struct.pack("<HHI", 0xFFFE, 0xE000, rng.choice((len(one.raw), UNDEFINED)))
            length = rng.choice((-1, UNDEFINED))
            return [_made(tag, b"SQ", item + one.raw, syntax, length)]


def _made(tag: int, vr: bytes, value: bytes, syntax: str, length: int = -1) -> Element:
    if vr not in LONG_VRS:
        value = value[:0xFFFF]
    raw = make_element(tag, vr, value, syntax, length)
    return Element(tag, vr, len(raw) - len(value), raw)


def changed_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    """``data`` with bits turned, runs written over, lengths made extreme, cut, or spliced."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(changed) + 1)
        # Most of what is read lies at the beginning, most of the bytes may not.
        if rng.random() < 0.5:
            at = min(at, rng.randrange(1, 2000))
        match rng.randrange(10):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                run = rng.choice((1, 2, 4, 8, 40, 400))
                byte = rng.choice((b"\0", b"\xff", b" ", b"\x1b", b"\\", b"A"))
                changed[at : at + run] = byte * min(run, len(changed) - at)
            case 3:
                size = rng.choice("BHI")
                most = (1 << 8 * struct.calcsize(size)) - 1
                lie = struct.pack(rng.choice("<>") + size, rng.choice(_EXTREMES) & most)
                changed[at : at + len(lie)] = lie
            case 4:  # the length of an item
                found = changed.find(b"\xfe\xff", at)
                if 0 <= found <= len(changed) - 8:
                    struct.pack_into("<I", changed, found + 4, rng.choice(_EXTREMES))
            case 5:
                del changed[at:]
            case 6:
                del changed[at : at + rng.choice((1, 2, 4, 8, 100))]
            case 7:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))
            case 8:
                changed[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                start = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rng.choice((8, 64, 1000))]
    return bytes(changed[:_LONGEST])
