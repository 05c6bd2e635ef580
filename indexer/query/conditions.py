"""What a query is made of: conditions and words; and the values they are held against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from plainpacs.archive.dicom.attributes import Level
from plainpacs.indexer.query import byte_scan
from plainpacs.indexer.query.matching import Test, fold

_WORD_KEYS = ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "StudyInstanceUID")
_MORE_WORD_KEYS: Mapping[Level, tuple[str, ...]] = {
    Level.PATIENT: (),
    Level.STUDY: (),
    Level.SERIES: ("SeriesDescription", "ProtocolName", "SeriesInstanceUID"),
    Level.INSTANCE: ("SeriesDescription", "ProtocolName", "SeriesInstanceUID", "SOPInstanceUID"),
}
_BETWEEN = "\0"  # in no argument of a command
# A shorter needle (with its quotes) is found in nearly every line.
_SHORTEST_NEEDLE = 5
# For each of them the bytes are gone through once.
_MOST_NEEDLES = 6


@dataclass(frozen=True, slots=True)
class Condition:
    """One key; a record meets it when a value of its passes any of the tests.

    ``keywords``: one; two for a date and its time, whose pairs are tested.
    """

    keywords: tuple[str, ...]
    tests: tuple[Test, ...]
    level: Level = Level.STUDY
    exactly: frozenset[str] | None = field(init=False, repr=False, compare=False)
    """The only texts that meet it; None when that cannot be said."""

    def __post_init__(self) -> None:
        texts = frozenset(test.exact for test in self.tests if test.exact is not None)
        only = len(self.keywords) == 1 and all(test.exact is not None for test in self.tests)
        object.__setattr__(self, "exactly", texts if only else None)

    def met_by(self, record: Mapping[str, Any]) -> bool:
        values = values_of(record, self.keywords[0]) or [""]
        if self.exactly is not None:  # of which there may be thousands
            return any(isinstance(value, str) and value in self.exactly for value in values)
        if len(self.keywords) > 1:
            times = values_of(record, self.keywords[1]) or [""]
            values = list(product(values, times))
        return any(test.passes(value) for test in self.tests for value in values)

    def met_by_one_of(self, values: list[Any]) -> bool:
        """Whether a record with these values for the one keyword meets it."""
        return self.met_by({self.keywords[0]: values})

    def needles(self) -> tuple[bytes, ...] | None:
        """Byte strings of which the line of every record that meets it holds one; None when there
        are none that are worth searching for."""
        found = tuple(test.needle for test in self.tests if test.needle)
        long = all(len(needle) >= _SHORTEST_NEEDLE for needle in found)
        return found if len(found) == len(self.tests) <= _MOST_NEEDLES and long else None

    def likely(self) -> bytes | None:
        """An expression for the texts that pass any of the tests; None when that is not known."""
        patterns = [test.pattern for test in self.tests if test.pattern is not None]
        return byte_scan.whole(patterns) if len(patterns) == len(self.tests) else None


@dataclass(frozen=True, slots=True)
class ItemCondition:
    """A sequence; a record meets it when one item of it meets all the conditions (PS3.4
    C.2.2.2.6). A record without an item has an empty one."""

    keyword: str
    conditions: tuple[Condition, ...]
    level: Level = Level.SERIES

    @property
    def keywords(self) -> tuple[str, ...]:
        return (self.keyword,)

    def met_by(self, record: Mapping[str, Any]) -> bool:
        value = record.get(self.keyword)
        found = value if isinstance(value, list) else []
        items = [item for item in found if isinstance(item, dict)] or [{}]
        return any(all(one.met_by(item) for one in self.conditions) for item in items)

    def needles(self) -> None:
        """None, as of ``Condition``."""


@dataclass(frozen=True, slots=True)
class PartOfUID:
    """Digits and dots with which a study's UID begins or ends; or, with ``words``, which are
    anywhere in the other texts that words are looked for in."""

    text: str
    begins: bool = True
    ends: bool = True
    words: bool = True
    level: Level = Level.STUDY

    @property
    def keywords(self) -> tuple[str, ...]:
        return ("StudyInstanceUID",)

    def is_of(self, uid: str) -> bool:
        """Whether the UID begins or ends with it."""
        return (self.begins and uid.startswith(self.text)) or (
            self.ends and uid.endswith(self.text)
        )

    def met_by(self, record: Mapping[str, Any]) -> bool:
        if self.is_of(str(record.get("StudyInstanceUID", ""))):
            return True
        keys = [key for key in _WORD_KEYS if key != "StudyInstanceUID"]
        values = [value for key in keys for value in values_of(record, key)]
        return self.words and self.text in shown(values)

    def needles(self) -> tuple[bytes, ...]:
        """As of ``Condition``."""
        return (self.text.encode("ascii"),)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the user's, folded, or the expression for one with wildcards."""

    text: str | None
    expression: re.Pattern[str] | None = None

    def is_in(self, texts: str) -> bool:
        """Whether one of the ``texts`` of ``shown`` has it."""
        if self.expression is None:
            return self.text is not None and self.text in texts
        return any(self.expression.fullmatch(text) for text in texts.split(_BETWEEN))


def values_of(record: Mapping[str, Any], keyword: str) -> list[Any]:
    """Every value the study has for ``keyword``, those on which instances disagree included."""
    found: list[Any] = []
    conflicting = record.get("conflicting")
    others = conflicting.get(keyword) if isinstance(conflicting, dict) else None
    for value in (record.get(keyword), others):
        for item in value if isinstance(value, list) else [value]:
            found += item if isinstance(item, list) else [] if item in (None, "") else [item]
    return found


def word_keys(level: Level) -> tuple[str, ...]:
    """The keys in whose values words are looked for."""
    return _WORD_KEYS + _MORE_WORD_KEYS[level]


def texts_of(record: Mapping[str, Any], level: Level) -> str:
    """What words are looked for in, of a record at ``level``."""
    keys = word_keys(level)
    if record.get("conflicting"):
        return shown([value for keyword in keys for value in values_of(record, keyword)])
    return shown([record.get(key) for key in keys])  # the same, faster


def shown(values: Iterable[Any]) -> str:
    """What words are looked for in, of these values."""
    texts = [value if isinstance(value, str) else str(value) for value in values if value]
    # A name is also found as the table shows it: "Doe, John".
    texts += [text.replace("^", ", ", 1).replace("^", " ") for text in texts if "^" in text]
    return fold(_BETWEEN.join(texts))
