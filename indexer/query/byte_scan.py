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
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import orjson

_REMEMBERED = 200_000  # values; more of them would take a lot of memory
# A value as it stands in the bytes, without what ends a text or an array.
_VALUE = rb'("[^"\n]*|\[[^\]\n]*|[^,}\]\n]*)'
# The rest of a text with more in it than plain ASCII without "=" and backslashes.
_ODD = rb"[ !#-<>-\[\]-~]*+[^ -<>-\[\]-~\n]"


class Column:
    """One key, and what is asked of it: ``passes`` takes all values that one occurrence holds.

    ``likely``: an expression for texts, see ``whole``, ``within`` and ``from_on``, which saves
    asking for each value where most are different. So does ``only``: the texts of which one must be
    among the values.
    """

    def __init__(
        self,
        keyword: str,
        passes: Callable[[list[Any]], bool],
        likely: bytes | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self._passes = passes
        self._only = None if only is None else {orjson.dumps(text)[:-1] for text in only}
        self._key = orjson.dumps(keyword) + b":"
        self._narrow = likely is not None
        ahead = rb'(?="(?:' + likely + rb')|[^"])' if likely is not None else b""
        self._values = re.compile(re.escape(self._key) + ahead + _VALUE)
        self._judged: dict[bytes, bool] = {}

    def hits(self, data: bytes) -> Iterator[int]:
        """Where in the bytes of a catalogue the key has a value that passes, or may."""
        if len(self._judged) > _REMEMBERED:
            self._judged.clear()
        if self._narrow:
            matches = self._values.finditer(data)
            return (found.start() for found in matches if self._may_pass(found[1]))
        values = self._values.findall(data)
        wanted = set(values)
        if self._only is not None:
            wanted = {raw for raw in wanted if raw in self._only or not _is_plain(raw)}
        wanted = {raw for raw in wanted if self._may_pass(raw)}
        if not all(map(_end_of, wanted)):  # numbers, of which one may begin as another does
            return (m.start() for m in self._values.finditer(data) if m[1] in wanted)
        return self._find(data, [raw for raw in values if raw in wanted] if wanted else [])

    def _find(self, data: bytes, values: list[bytes]) -> Iterator[int]:
        # From each to the next: quicker than to look at every match once more.
        at = -1
        for raw in values:
            found = data.find(self._key + raw + _end_of(raw), at + 1)
            if found >= 0:  # it has an end; a torn one is nobody's
                at = found
                yield at

    def _may_pass(self, raw: bytes) -> bool:
        known = self._judged.get(raw)
        if known is None:
            known = self._judged[raw] = self._judge(raw)
        return known

    def _judge(self, raw: bytes) -> bool:
        try:
            value = orjson.loads(raw + _end_of(raw))
        except ValueError:  # a quote or bracket within the text, or no JSON
            return True
        return self._passes(value if isinstance(value, list) else [value])


def _is_plain(raw: bytes) -> bool:
    """Whether this is a text that is spelled in one way only."""
    return raw[:1] == b'"' and b"\\" not in raw


def _end_of(raw: bytes) -> bytes:
    """What ends a text or an array; nothing for other values."""
    return {b'"': b'"', b"[": b"]"}.get(raw[:1], b"")


def whole(patterns: Sequence[str]) -> bytes:
    """For texts that one of these expressions (ASCII, without quotes and newlines) matches as a
    whole, whatever their case and but for ``^`` and blanks at the end; and for odd ones that may
    be the same but for accents, or in a component group of theirs."""
    odd = _ODD
    firsts = "".join(pattern[:1] for pattern in patterns)
    if len(firsts) == len(patterns) and firsts.isalnum():
        # What begins with another plain letter is another text, whatever follows.
        begins = f"(?=[{firsts}{firsts.upper()}]|[^ -~])".encode() + _ODD
        odd = begins + rb'|[^"\n=\\]*+[=\\]'
    return b"(?i:" + "|".join(patterns).encode("ascii") + rb')[\^ ]*"|' + odd


def within(text: str) -> bytes:
    """For texts with ``text`` (lower case) in them, or in what a person name is shown as; and for
    odd ones."""
    if not text.isascii():
        return _ODD  # in no plain text
    first, rest = (
        re.escape(part).replace(",\\ ", r"(?:,\ |\^)").replace("\\ ", r"[ \^]")
        for part in (text[0], text[1:])
    )
    if not text[0].isalnum():
        return rb'[^"\n]*?(?i:' + (first + rest).encode() + b")|" + _ODD
    # From one first letter to the next, and never back, as it is looked for in every value.
    one = f"[{first}{first.upper()}]"
    others = f'[^"\\n{first}{first.upper()}]*'
    found = f"(?>{others}(?:{one}(?!(?i:{rest})){others})*){one}(?i:{rest})"
    return found.encode() + b"|" + _ODD


def from_on(first: str) -> bytes:
    """For texts that are not before ``first`` in its first ten characters: times, by their day."""
    day = first[:10]
    later = [
        re.escape(day[:at]) + f"[{re.escape(chr(ord(character) + 1))}-~]"
        for at, character in enumerate(day)
        if character < "~"
    ]
    return "|".join([*later, re.escape(day)]).encode("ascii") + b"|" + _ODD
