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
from collections.abc import Callable, Iterator
from typing import Any

import orjson

_REMEMBERED = 200_000  # values; more of them would take a lot of memory
_NOT_LITERAL = set('"\\/\n')  # which JSON may spell otherwise, or which parts values here


class Column:
    """One key, and what is asked of it: ``passes`` takes all values that one occurrence holds.

    ``within``: lower-case text that is in every value that passes, as far as it is ASCII without
    ``^``. It saves asking for each value, where all are different.
    """

    def __init__(
        self, keyword: str, passes: Callable[[list[Any]], bool], within: str | None = None
    ) -> None:
        self._passes = passes
        self._within = within.encode() if within and not set(within) & _NOT_LITERAL else None
        key = re.escape(orjson.dumps(keyword) + b":")
        self._values = re.compile(key + rb'("[^"]*|\[[^\]]*|[^,}\]]*)')
        self._judged: dict[bytes, bool] = {}

    def hits(self, data: bytes) -> Iterator[int]:
        """Where in the bytes of a catalogue the key has a value that passes, or may."""
        judged = self._judged
        if len(judged) > _REMEMBERED:
            judged.clear()
        values = set(self._values.findall(data))
        if self._within is not None:
            every = b"\n".join(values)
            plain = every.isascii() and b"^" not in every and b"\\u" not in every
            if plain and self._within not in every.lower():
                return
        for raw in values.difference(judged):
            judged[raw] = self._may_pass(raw)
        if wanted := {raw for raw in values if judged[raw]}:
            for found in self._values.finditer(data):
                if found[1] in wanted:
                    yield found.start()

    def _may_pass(self, raw: bytes) -> bool:
        end = {0x22: b'"', 0x5B: b"]"}.get(raw[0], b"") if raw else b""
        try:
            value = orjson.loads(raw + end)
        except ValueError:  # a quote or bracket within the text, or no JSON
            return True
        return self._passes(value if isinstance(value, list) else [value])
