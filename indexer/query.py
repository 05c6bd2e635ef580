"""What ``ls`` is asked: terms, as typed, and whether a study is meant by them.

>>> query = parse(["PatientID=A1", "PatientID=A2", "StudyDate=20240101-20240331", "doe"])
>>> query.matches({"PatientID": "A2", "StudyDate": "2024.02.28", "PatientName": "Doe^John"})
True
>>> query.months(["202404", "202402", "undated"])
['202402']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from plainpacs.archive.errors import BadQuery
from plainpacs.archive.identity import UNDATED, is_month
from plainpacs.indexer import matching
from plainpacs.indexer.matching import Test, fold

KEYS: dict[str, Callable[[str, str], Test]] = {
    "PatientName": matching.person_name,
    "PatientID": matching.identifier,
    "IssuerOfPatientID": matching.identifier,
    "PatientBirthDate": matching.date,
    "PatientSex": matching.code,
    "PatientAge": matching.code,
    "PatientIdentityRemoved": matching.code,
    "StudyInstanceUID": matching.identifier,
    "StudyDate": matching.date,
    "StudyTime": matching.time_of_day,
    "AccessionNumber": matching.identifier,
    "StudyID": matching.identifier,
    "StudyDescription": matching.description,
    "ReferringPhysicianName": matching.person_name,
    "InstitutionName": matching.description,
    "ModalitiesInStudy": matching.code,
    "SOPClassesInStudy": matching.identifier,
    "NumberOfStudyRelatedSeries": matching.number,
    "NumberOfStudyRelatedInstances": matching.number,
    "bytes": matching.number,
}
"""The keys of terms, and how each compares."""

ALIASES = {"Modality": "ModalitiesInStudy"}

_SPELLINGS = {key.lower(): key for key in KEYS} | {k.lower(): v for k, v in ALIASES.items()}
_WORD_KEYS = ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "StudyInstanceUID")
_PERIOD = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# A shorter needle (with its quotes) is found in nearly every line.
_SHORTEST_NEEDLE = 5
_BETWEEN = "\0"  # in no argument of a command
_END = "~"  # sorts behind every time


@dataclass(frozen=True, slots=True)
class Condition:
    """One keyword; a study meets it when a value of its passes any of the tests."""

    keyword: str
    tests: tuple[Test, ...]

    def met_by(self, record: Mapping[str, Any]) -> bool:
        values = values_of(record, self.keyword) or [""]
        return any(test.passes(value) for test in self.tests for value in values)


@dataclass(frozen=True, slots=True)
class Query:
    """All that must hold of a study. Without any part it matches every study.

    ``stored``: the first and last ``last_stored`` that count, as those are written.
    """

    conditions: tuple[Condition, ...] = ()
    words: tuple[Callable[[str], bool], ...] = ()
    stored: tuple[str, str] | None = None
    only_months: frozenset[str] | None = None

    def is_empty(self) -> bool:
        """Whether every study of the months asked for matches."""
        return not (self.conditions or self.words or self.stored)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether the study of this record (of ``study.json``, or a catalogue line) is meant."""
        if self.stored:
            since, until = self.stored
            if not since <= str(record.get("last_stored", "")) < until:
                return False
        for condition in self.conditions:
            if not condition.met_by(record):
                return False
        if not self.words:
            return True
        texts = _texts(record)
        return all(word(texts) for word in self.words)

    def months(self, known: Iterable[str]) -> list[str]:
        """Those of the ``known`` months in which a study that matches has instances."""
        chosen = [m for m in known if self.only_months is None or m in self.only_months]
        for condition in self.conditions:
            if condition.keyword == "StudyDate":
                # What lies in "undated" has no date, so no date of it can match.
                spans = [test.span for test in condition.tests if test.span]
                chosen = [
                    month
                    for month in chosen
                    if month != UNDATED and any(a[:6] <= month <= b[:6] for a, b in spans)
                ]
        return chosen

    def needles(self) -> tuple[bytes, ...] | None:
        """Byte strings of which every matching study's line holds one; None when there are none
        that are worth searching for."""
        for condition in self.conditions:
            found = tuple(test.needle for test in condition.tests if test.needle)
            long = all(len(needle) >= _SHORTEST_NEEDLE for needle in found)
            if len(found) == len(condition.tests) and long:
                return found
        return None


def values_of(record: Mapping[str, Any], keyword: str) -> list[Any]:
    """Every value the study has for ``keyword``, those on which instances disagree included."""
    found: list[Any] = []
    conflicting = record.get("conflicting")
    others = conflicting.get(keyword) if isinstance(conflicting, dict) else None
    for value in (record.get(keyword), others):
        for item in value if isinstance(value, list) else [value]:
            found += item if isinstance(item, list) else [] if item in (None, "") else [item]
    return found


def _texts(record: Mapping[str, Any]) -> str:
    if record.get("conflicting"):
        texts = [str(value) for keyword in _WORD_KEYS for value in values_of(record, keyword)]
    else:  # the same, faster
        texts = [value for key in _WORD_KEYS if isinstance(value := record.get(key), str)]
    # A name is also found as the table shows it: "Doe, John".
    texts += [text.replace("^", ", ", 1).replace("^", " ") for text in texts if "^" in text]
    return fold(_BETWEEN.join(texts))


def parse(
    terms: Sequence[str],
    stored: str | None = None,
    months: Sequence[str] = (),
    now: datetime | None = None,
) -> Query:
    """The query that ``terms`` (``KEY=VALUE``, or bare words), ``--stored`` and ``--month`` ask.

    A repeated key means either value, different keys and words mean all of them. ``now`` carries
    the time zone whose days "today" and dates in ``stored`` are; the machine's by default.
    Raises BadQuery.
    """
    tests: dict[str, list[Test]] = {}
    words: list[Callable[[str], bool]] = []
    for term in terms:
        key, equals, value = term.partition("=")
        if not equals:
            if term.strip():
                words.append(_word(term.strip()))
            continue
        keyword = _keyword(key)
        if not value.strip(" \\"):
            raise BadQuery(
                f"{keyword}= has no value; write {keyword}=VALUE, {keyword}=?* for any value, "
                "or leave it out"
            )
        parts = (part for part in value.split("\\") if part.strip())
        tests.setdefault(keyword, []).extend(KEYS[keyword](keyword, part) for part in parts)
    return Query(
        tuple(Condition(keyword, tuple(several)) for keyword, several in tests.items()),
        tuple(words),
        None if stored is None else _stored(stored, now),
        frozenset(_month(month) for month in months) if months else None,
    )


def _keyword(key: str) -> str:
    keyword = _SPELLINGS.get(key.strip().lower())
    if keyword:
        return keyword
    import difflib  # only here, for a fast start of every other run  # noqa: PLC0415

    near = difflib.get_close_matches(key.lower(), _SPELLINGS, 1, 0.0)
    raise BadQuery(
        f"{key!r} is not a key of studies; the nearest is {_SPELLINGS[near[0]]} "
        "(`plainpacs ls --help` lists them)"
    )


def _word(word: str) -> Callable[[str], bool]:
    if matching.has_wildcard(word):
        lines = matching.wildcard(f"*{word}*", fold)
        return lambda texts: any(lines.fullmatch(text) for text in texts.split(_BETWEEN))
    folded = fold(word)
    return lambda texts: folded in texts


def _month(month: str) -> str:
    plain = month.strip().replace("-", "")
    if not is_month(plain):
        raise BadQuery(f"--month {month} cannot be: write it as 202401, or {UNDATED}")
    return plain


def _stored(stored: str, now: datetime | None) -> tuple[str, str]:
    """[from, until) of ``last_stored``, as it is written: ISO, UTC, milliseconds."""
    asked = stored.strip().lower()
    zone = now.tzinfo if now else None
    now = now or datetime.now().astimezone()
    if period := _PERIOD.fullmatch(asked):
        try:
            return _utc(now - timedelta(**{_UNITS[period[2]]: int(period[1])})), _END
        except OverflowError:
            return "", _END
    day = timedelta(days=1)
    if asked in ("today", "yesterday"):
        first = last = f"{now if asked == 'today' else now - day:%Y%m%d}"
    else:
        try:
            first, last = matching.date("--stored", asked).span or ("", "")
        except BadQuery:
            raise BadQuery(
                f"--stored {stored} cannot be: write today, yesterday, 30m, 1h, 7d, a date "
                "YYYYMMDD or a range of dates"
            ) from None
    return _midnight(first, zone) or "", _midnight(last, zone, later=day) or _END


def _midnight(day: str, zone: tzinfo | None, later: timedelta = timedelta()) -> str | None:
    """When ``day`` begins, ``later``; None for the ends of open ranges."""
    try:
        start = datetime(int(day[:4]), int(day[4:6]), int(day[6:])) + later
        # Without a zone the machine's is asked for that very day: summer time may lie between.
        return _utc(start.replace(tzinfo=zone) if zone else start.astimezone())
    except (ValueError, OverflowError):
        return None


def _utc(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
