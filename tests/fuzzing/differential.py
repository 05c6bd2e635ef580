"""Data sets changed so that they stay valid, read by us and by pydicom: both must say the same.

    python -m tests.fuzzing.differential [--cases N] [--seed N] [--first N]

Elements of real files go, or take the value that another element of their VR has elsewhere. What
pydicom makes of the result is put into our terms by the oracle of ``test_header``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import UnreadableDataSet
from tests.archive.test_header import DIFFERENT, comparable, expected, parse
from tests.fuzzing.seeds import BIG, EXPLICIT, IMPLICIT, Element, Seed, make_element, real_seeds

_CHARACTER_SET = 0x00080005
_LAST = 0x00400275
_AROUND_BACKSLASH = re.compile(r"\s*\\\s*")


class Valid:
    """Valid data sets, each a function of the seed number and its own."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._seeds = [seed for seed in real_seeds() if self._is_read_alike(seed)]
        values: dict[bytes | int, set[bytes]] = defaultdict(set)
        for seed in self._seeds:
            for one in seed.elements:
                # Whether bytes above 7F are text depends on the character set they came with.
                text = one.value.isascii() and b"\x1b" not in one.value
                if text and one.tag <= _LAST and one.vr != b"SQ" and len(one.value) < 1000:
                    values[_kind(one, seed.syntax)].add(one.value)
        self._values = {kind: sorted(of) for kind, of in values.items()}

    @staticmethod
    def _is_read_alike(seed: Seed) -> bool:
        known = seed.elements and seed.name not in DIFFERENT
        return bool(known) and not list(differences(seed.data, _encoding(seed)))

    def case(self, number: int) -> tuple[str, bytes, str]:
        """The seed's name, a data set, its encoding."""
        rng = Random(f"{self._number}/{number}")
        seed = rng.choice(self._seeds)
        elements = list(seed.elements)
        for _ in range(rng.choice((1, 2, 4, 8))):
            candidates = [
                at for at, one in enumerate(elements) if _CHARACTER_SET < one.tag <= _LAST
            ]
            if not candidates:
                break
            at = rng.choice(candidates)
            of_its_kind = self._values.get(_kind(elements[at], seed.syntax))
            if of_its_kind and rng.random() < 0.8:
                elements[at] = _with_value(elements[at], rng.choice(of_its_kind), _encoding(seed))
            else:
                del elements[at]
        return seed.name, b"".join(one.raw for one in elements), _encoding(seed)


def _encoding(seed: Seed) -> str:
    return seed.syntax if seed.syntax in (IMPLICIT, BIG) else EXPLICIT


def _kind(element: Element, syntax: str) -> bytes | int:
    """Between whose elements values may be exchanged; binary ones only in their byte order."""
    return element.tag if syntax in (IMPLICIT, BIG) else element.vr


def _with_value(element: Element, value: bytes, encoding: str) -> Element:
    raw = make_element(element.tag, element.vr, value, encoding)
    return Element(element.tag, element.vr, len(raw) - len(value), raw)


def differences(data: bytes, encoding: str) -> Iterator[str]:
    """The keywords on which we and pydicom differ, with both values."""
    try:
        ours = comparable(read_header(data, encoding))
    except UnreadableDataSet as error:
        yield f"refused: {error}"
        return
    theirs = comparable(expected(parse(data, encoding)))
    for keyword in sorted({*ours, *theirs}):
        our, their = ours.get(keyword), theirs.get(keyword)
        # Several values where there may be one: pydicom strips each, we all of it.
        if isinstance(our, str) and isinstance(their, str):
            our, their = (_AROUND_BACKSLASH.sub(r"\\", text) for text in (our, their))
        if our != their:
            yield f"{keyword}: {our!r}, pydicom {their!r}"


def run(number: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """How many of each encoding were read alike, and what was not."""
    valid, read, findings = Valid(number), Counter[str](), []
    for one in numbers:
        name, data, encoding = valid.case(one)
        if found := list(differences(data, encoding)):
            findings.append(f"case {one} of {name}: {'; '.join(found)}")
        read[encoding] += not found
    return read, findings


def main(given: Sequence[str] | None = None) -> int:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing.differential", description=words)
    parser.add_argument("--cases", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--seed", type=int, default=1, help="another number, other cases (1)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (0)")
    options = parser.parse_args(given)
    read, findings = run(options.seed, range(options.first, options.first + options.cases))
    print(f"{options.cases} cases, {len(findings)} differences; read alike: {dict(read)}")
    print("\n".join(findings[:20]))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
