r"""The lines of a catalogue that can match, found without parsing them: what is asked of one key is
asked of the different values that the key has in the bytes; often there are far fewer than lines.

A line holds a study's values for a key at most twice, as ``"PatientID":"A"`` and, where instances
disagree, in ``conflicting`` as ``"PatientID":["A","B"]``. A quote within a text is escaped, so
``"PatientID":`` can be nothing else. What cannot be told from the bytes is to be parsed.

>>> data = b'{"PatientName":"Doe^J"}\n{"PatientName":"Roe"}\n{"PatientName":["DOE^J","Poe"]}\n'
>>> list(Column("PatientName", lambda values: "doe^j" in map(str.lower, values)).hits(data))
[1, 47]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

Sieve = Callable[[set[bytes]], Iterable[bytes]]
"""Of the values in the bytes, as JSON without what ends them, at least those that may pass."""

_REMEMBERED = 200_000  # values; more of them would take a lot of memory
# A value of more than plain ASCII without "=" and backslashes, or no text at all.
_ODD = re.compile(rb'\n(?:[^"\n]|"[ -<>-\[\]-~]*[^ -<>-\[\]-~\n])')


class Column:
    """One key, and what is asked of it: ``passes`` takes all values that one occurrence holds.

    ``sieve`` saves asking for each value, where most are different.
    """

    def __init__(
        self, keyword: str, passes: Callable[[list[Any]], bool], sieve: Sieve | None = None
    ) -> None:
        self._passes = passes
        self._sieve = sieve
        self._key = orjson.dumps(keyword) + b":"
        self._values = re.compile(re.escape(self._key) + rb'("[^"\n]*|\[[^\]\n]*|[^,}\]\n]*)')
        self._judged: dict[bytes, bool] = {}

    def hits(self, data: bytes) -> Iterator[int]:
        """Where in the bytes of a catalogue the key has a value that passes, or may."""
        judged = self._judged
        if len(judged) > _REMEMBERED:
            judged.clear()
        values = self._values.findall(data)
        suspects = set(values)
        if self._sieve:
            suspects.intersection_update(self._sieve(suspects))
        for raw in suspects.difference(judged):
            judged[raw] = self._may_pass(raw)
        wanted = {raw for raw in suspects if judged[raw]}
        if not all(map(_end_of, wanted)):  # numbers, of which one may begin as another does
            yield from (m.start() for m in self._values.finditer(data) if m[1] in wanted)
            return
        # From each to the next: quicker than to look at every match once more.
        at = -1
        for raw in [raw for raw in values if raw in wanted] if wanted else ():
            found = data.find(self._key + raw + _end_of(raw), at + 1)
            if found >= 0:  # it has an end; a torn one is nobody's
                at = found
                yield at

    def _may_pass(self, raw: bytes) -> bool:
        try:
            value = orjson.loads(raw + _end_of(raw))
        except ValueError:  # a quote or bracket within the text, or no JSON
            return True
        return self._passes(value if isinstance(value, list) else [value])


def _end_of(raw: bytes) -> bytes:
    """What ends a text or an array; nothing for other values."""
    return {b'"': b'"', b"[": b"]"}.get(raw[:1], b"")


def whole(pattern: str) -> Sieve:
    """The texts that an expression (ASCII, lower case, all of it on one line) matches as a whole,
    whatever their case and but for ``^``, ``=`` and blanks at the end; and all that are odd."""
    return _by_line(re.compile(b'\n"(?i:' + pattern.encode("ascii") + rb")[\^ =]*(?=\n)"))


def within(text: str) -> Sieve:
    """The texts with ``text`` (lower case) in them, or in what a person name is shown as; and all
    that are odd."""
    if not text.isascii():
        return _by_line(None)
    spelled = re.escape(text).replace(",\\ ", r"(?:,\ |\^)").replace("\\ ", r"[ \^]")
    return _by_line(re.compile(b"(?i:" + spelled.encode() + b")"))


def _by_line(pattern: re.Pattern[bytes] | None) -> Sieve:
    def sieve(values: set[bytes]) -> Iterator[bytes]:
        # One search through all of them takes a fraction of one in each.
        lines = b"\n" + b"\n".join(values) + b"\n"
        for one in (pattern, _ODD):
            for found in one.finditer(lines) if one else ():
                start = lines.rfind(b"\n", 0, found.start() + 1) + 1
                yield lines[start : lines.find(b"\n", start)]

    return sieve


def between(first: str, end: str) -> Sieve:
    """The texts from ``first`` on and before ``end``, both ASCII and as JSON has them."""
    low, high = b'"' + first.encode(), b'"' + end.encode()
    return lambda values: [raw for raw in values if low <= raw < high or raw[:1] != b'"']
