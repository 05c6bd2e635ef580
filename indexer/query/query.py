"""What is asked: terms as typed, or keys as a program has them, and whether a record is meant.

>>> query = parse(["PatientID=A1", "PatientID=A2", "StudyDate=20240101-20240331", "doe"])
>>> query.matches({"PatientID": "A2", "StudyDate": "2024.02.28", "PatientName": "Doe^John"})
True
>>> query.months(["202404", "202402", "undated"])
['202402']
>>> asked({"PatientName": "doe^*", "StudyDate": ""}).matches({"PatientName": "DOE^JOHN"})
True
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import BadQuery, QueryTooLarge
from plainpacs.archive.tree.identity import UNDATED, is_month
from plainpacs.indexer.query import byte_scan as columns
from plainpacs.indexer.query import matching
from plainpacs.indexer.query.byte_scan import Column
from plainpacs.indexer.query.conditions import (
    Condition,
    ItemCondition,
    PartOfUID,
    Word,
    shown,
    texts_of,
    values_of,
    word_keys,
)
from plainpacs.indexer.query.keys import ALIASES, DATE_TIMES, SEQUENCE, Key, key_named, keys_at
from plainpacs.indexer.query.matching import Test, fold
from plainpacs.indexer.query.stored_period import END, period

__all__ = ["ALIASES", "KEYS", "Condition", "Query", "asked", "parse", "values_of"]

KEYS = keys_at(Level.STUDY)
"""The keys of terms for studies; ``keys.keys_at`` has those of the other levels."""

Asked = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""What a key is to be: one value (or range, or wildcard), any of several, or, for a sequence, what
its item's keys are to be. Empty: anything at all."""

# What a study must have when a series or instance of it is to have it.
_OF_THE_STUDY = {"Modality": "ModalitiesInStudy", "SOPClassUID": "SOPClassesInStudy"}
MOST_VALUES = 5000
"""Of an identifying key in a program's query: what is found is looked up among them."""
# Other values, each of which is compared with each that the archive has.
_MOST_COMPARED = 64


@dataclass(frozen=True, slots=True)
class Query:
    """All that must hold of a record at ``level``. Without any part it matches every one.

    ``stored``: the first and last ``last_stored`` (of an instance: ``stored``) that count, as those
    are written.
    """

    conditions: tuple[Condition | ItemCondition | PartOfUID, ...] = ()
    words: tuple[Word, ...] = ()
    stored: tuple[str, str] | None = None
    only_months: frozenset[str] | None = None
    level: Level = Level.STUDY

    def is_empty(self) -> bool:
        """Whether every record of the months asked for matches."""
        return not (self.conditions or self.words or self.stored)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether this record is meant. It has the attributes of the levels above its own, too."""
        if self.stored:
            key = "stored" if self.level is Level.INSTANCE else "last_stored"
            if not _any_between([record.get(key, "")], *self.stored):
                return False
        for condition in self.conditions:
            if not condition.met_by(record):
                return False
        if not self.words:
            return True
        texts = texts_of(record, self.level)
        return all(word.is_in(texts) for word in self.words)

    def of_studies(self) -> Query:
        """What holds of every study that has a record that matches; itself for studies."""
        if self.level is Level.STUDY:
            return self
        conditions: list[Condition | ItemCondition | PartOfUID] = []
        for one in self.conditions:
            if one.level in (Level.PATIENT, Level.STUDY):
                conditions.append(one)
            elif isinstance(one, Condition) and one.keywords[0] in _OF_THE_STUDY:
                keywords = (_OF_THE_STUDY[one.keywords[0]],)
                conditions.append(replace(one, keywords=keywords, level=Level.STUDY))
        stored = self.stored
        if stored and self.level is Level.INSTANCE:
            stored = stored[0], END  # later ones may have come
        words = self.words if self.level is Level.PATIENT else ()
        return Query(tuple(conditions), words, stored, self.only_months)

    def exactly(self, keyword: str) -> list[str] | None:
        """The only values that ``keyword`` may have; None when it may have others."""
        for one in self.conditions:
            if (
                isinstance(one, Condition)
                and one.keywords == (keyword,)
                and one.exactly is not None
            ):
                return sorted(one.exactly)
        return None

    def by_another_value(self, record: Mapping[str, Any]) -> list[str]:
        """The keywords by which the record matches only through ``conflicting``: the value that it
        shows is not what was asked for, but some of its instances have it."""
        if not record.get("conflicting"):
            return []
        alone = {key: value for key, value in record.items() if key != "conflicting"}
        return [
            keyword
            for one in self.conditions
            if isinstance(one, Condition) and not one.met_by(alone) and one.met_by(record)
            for keyword in one.keywords
        ]

    def months(self, known: Iterable[str]) -> list[str]:
        """Those of the ``known`` months in which a study that matches has instances."""
        chosen = [m for m in known if self.only_months is None or m in self.only_months]
        for condition in self.conditions:
            if isinstance(condition, Condition) and condition.keywords[0] == "StudyDate":
                # What lies in "undated" has no date, so no date of it can match.
                spans = [test.span for test in condition.tests if test.span]
                chosen = [
                    month
                    for month in chosen
                    if month != UNDATED and any(a[:6] <= month <= b[:6] for a, b in spans)
                ]
        return chosen

    def columns(self) -> list[Column]:
        """What finds, in a catalogue's bytes, the lines of every study that matches: one or another
        of these; none when nothing is asked for that a line must hold."""
        if self.stored:
            since, until = self.stored
            later = columns.from_on(since)
            return [Column("last_stored", lambda found: _any_between(found, since, until), later)]
        # The months are chosen by StudyDate already.
        ranked = sorted(self.conditions, key=lambda one: "StudyDate" in one.keywords)
        for one in ranked:
            if isinstance(one, Condition) and len(one.keywords) == 1 and not one.met_by({}):
                keyword, only = one.keywords[0], one.exactly
                return [Column(keyword, one.met_by_one_of, one.likely(), only)]
        if self.words:
            word = self.words[0]
            keys = word_keys(self.level)
            likely = columns.within(word.text) if word.text else None
            return [Column(key, lambda values: word.is_in(shown(values)), likely) for key in keys]
        return []

    def needles(self) -> tuple[bytes, ...] | None:
        """Byte strings of which every matching study's line holds one; None when there are none
        that are worth searching for."""
        found = (condition.needles() for condition in self.conditions)
        return next((needles for needles in found if needles), None)


def _any_between(values: Iterable[Any], since: str, until: str) -> bool:
    return any(since <= str(value) < until for value in values)


def parse(
    terms: Sequence[str],
    stored: str | None = None,
    months: Sequence[str] = (),
    now: datetime | None = None,
    level: Level = Level.STUDY,
) -> Query:
    """The query that ``terms`` (``KEY=VALUE``, or bare words), ``--stored`` and ``--month`` ask.

    A repeated key means either value, different keys and words mean all of them. ``now`` carries
    the time zone whose days "today" and dates in ``stored`` are; the machine's by default.
    Raises BadQuery.
    """
    keys: dict[str, list[str]] = {}
    words = []
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals:
            words += [term] if term.strip() else []
            continue
        keyword = key_named(name, level).keyword
        if not value.strip(" \\"):
            raise BadQuery(
                f"{keyword}= has no value; write {keyword}=VALUE, {keyword}=?* for any value, "
                "or leave it out"
            )
        keys.setdefault(keyword, []).append(value)
    return Query(
        tuple(_conditions(keys, level, strict=False)),
        tuple(_word(word.strip()) for word in words),
        None if stored is None else period(stored, now),
        frozenset(_month(month) for month in months) if months else None,
        level,
    )


def asked(
    keys: Mapping[str, Asked],
    level: Level = Level.STUDY,
    *,
    words: Sequence[str] = (),
    stored: tuple[str, str] | None = None,
    combined: bool = False,
) -> Query:
    """The query of a program: ``keys`` by keyword, matched as PS3.4 C.2.2.2 says.

    A key with an empty value matches everything. Text is compared to the letter, names are not.
    A sequence's value is itself a mapping. With ``combined`` the date and the time of one event are
    one range (C.2.2.2.5.4). ``words`` and ``stored``: see ``parse`` and ``stored.period``.
    Raises BadQuery for a key that ``keys.keys_at(level)`` lacks, or a value that cannot be.
    """
    plain: dict[str, list[str]] = {}
    for name, value in keys.items():
        items = value if isinstance(value, Mapping) else {name: value}
        if isinstance(value, Mapping) and name != SEQUENCE:
            raise BadQuery(f"{name} has no items that can be asked for")
        for key, several in items.items():
            texts = [several] if isinstance(several, str) else list(several)
            if texts := [text for text in texts if text.strip(" \0\\")]:
                plain[key_named(key, level).keyword] = texts
    if combined:
        _combine(plain)
    conditions = tuple(_conditions(plain, level, strict=True))
    return Query(conditions, tuple(map(_word, words)), stored, level=level)


def _conditions(
    keys: Mapping[str, Sequence[str]], level: Level, *, strict: bool
) -> Iterable[Condition | ItemCondition]:
    items: dict[str, list[Condition]] = {}
    for name, values in keys.items():
        key = key_named(name, level)
        condition = Condition(key.parts or (name,), _tests(key, values, strict), key.level)
        if key.item_of:
            items.setdefault(key.item_of, []).append(condition)
        else:
            yield condition
    for sequence, conditions in items.items():
        yield ItemCondition(sequence, tuple(conditions))


def _tests(key: Key, values: Sequence[str], strict: bool) -> tuple[Test, ...]:
    compare = key.strict if strict else key.compare
    if not strict:  # a person's list may be long, and takes nobody else's memory
        return tuple(compare(key.keyword, part) for part in _parts(values))
    most = MOST_VALUES if compare is matching.identifier else _MOST_COMPARED
    if sum(value.count("\\") for value in values) + len(values) > most:
        raise QueryTooLarge(f"{key.keyword} has more than {most} values")
    patterns = [part for part in _parts(values) if matching.has_wildcard(part)]
    if len(patterns) > _MOST_COMPARED or sum(map(len, patterns)) > matching.LONGEST_PATTERN:
        raise QueryTooLarge(f"{key.keyword} has more or longer patterns than are compared")
    return tuple(compare(key.keyword, part) for part in _parts(values))


def _parts(values: Sequence[str]) -> Iterator[str]:
    return (part for value in values for part in value.split("\\") if part.strip(" \0"))


def _combine(keys: dict[str, list[str]]) -> None:
    """Puts date and time together, where one range of each is asked for."""
    for joined, (date, time) in DATE_TIMES.items():
        if len(keys.get(date, [])) == len(keys.get(time, [])) == 1:
            bounds = []
            for text in (keys.pop(date)[0].strip(" \0"), keys.pop(time)[0].strip(" \0")):
                low, hyphen, high = text.partition("-")
                bounds.append((low, high if hyphen else low))
            (first, last), (start, end) = bounds
            low, high = first + (start if first else ""), last + (end if last else "")
            keys[joined] = [low if low == high else f"{low}-{high}"]


def _word(word: str) -> Word:
    if matching.has_wildcard(word):
        return Word(None, matching.wildcard(f"*{word}*", fold))
    return Word(fold(word))


def _month(month: str) -> str:
    plain = month.strip().replace("-", "")
    if not is_month(plain):
        raise BadQuery(f"--month {month} cannot be: write it as 202401, or {UNDATED}")
    return plain
