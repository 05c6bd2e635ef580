"""Terms as ``ls`` takes them, turned into what a C-FIND can ask for, level by level.

A C-FIND asks for all of its keys at once, for one value of each, and knows no words. So what means
"either" becomes several queries, whose answers are united, and what cannot be asked for at all (a
range of numbers, say) is judged here, as ``ls`` would.

>>> terms = read(["PatientID=A", "PatientID=B", "Modality=CT", "SeriesNumber=3-"], Level.SERIES)
>>> terms.questions(Level.STUDY)
[{'ModalitiesInStudy': 'CT', 'PatientID': 'A'}, {'ModalitiesInStudy': 'CT', 'PatientID': 'B'}]
>>> terms.questions(Level.SERIES), terms.means(Level.SERIES, {"SeriesNumber": 2})
([{'Modality': 'CT'}], False)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from plainpacs.archive.dicom.attributes import BY_KEYWORD, REQUESTED, Level
from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query.keys import Key, key_named
from plainpacs.indexer.query.matching import has_wildcard
from plainpacs.indexer.query.query import Query, parse, values_of

COUNTS = (
    *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "NumberOfSeriesRelatedInstances",
)
"""Which peers tell, but do not match."""

_MOST_QUESTIONS = 200
_VRS = {
    **{keyword: kept.vr for keyword, kept in BY_KEYWORD.items()},
    **{kept.keyword: kept.vr for kept in REQUESTED},
    **dict.fromkeys(COUNTS, "US"),
    "ModalitiesInStudy": "CS",
    "SOPClassesInStudy": "UI",
}
_OF_THE_STUDY = {"Modality": "ModalitiesInStudy", "SOPClassUID": "SOPClassesInStudy"}
"""What a study has to have for a series or instance of it to have it."""
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+", re.ASCII)
_SIGNED = re.compile(r"[+-]?[0-9.]+", re.ASCII)

Question = dict[str, str]
"""The matching keys of one C-FIND. Those of RequestAttributesSequence go by their own keywords."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for at one level: ``sent`` to the peer, and ``judged`` here.

    ``typed``: the terms, by keyword.
    """

    sent: Mapping[str, Sequence[str]]
    judged: Query
    typed: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for, of records at ``level``. ``words`` are looked for in what is known of a
    study, or patient."""

    level: Level
    words: tuple[str, ...]
    asked: Mapping[Level, _Asked]

    def questions(self, level: Level) -> list[Question]:
        """What to ask the peer for at ``level``: the answers to all of these count."""
        keys = dict(self.asked[level].sent) if level in self.asked else {}
        if level is Level.STUDY:
            keys = {**self._hints(), **keys}
        found: list[Question] = [
            dict(zip(keys, values, strict=True)) for values in product(*keys.values())
        ]
        if self.words and level is _top(level):
            # One word is looked for there, the one that finds the fewest; the others here.
            places = _places(max(self.words, key=len), level)
            found = [{**place, **one} for one in found for place in places]
        return [one for at, one in enumerate(found) if one not in found[:at]]

    def means(self, level: Level, record: Record, *, complete: bool = True) -> bool:
        """Whether a ``record`` that the peer gave for ``level`` is meant after all.

        ``complete``: the peer heeded all keys. Else all of them are judged here, as far as it told
        their values.
        """
        asked = self.asked.get(level)
        if asked is None:
            return True
        if not asked.judged.matches(record):
            return False
        if complete:
            return True
        told = [
            term
            for keyword, terms in asked.typed.items()
            if values_of(record, keyword)
            for term in terms
        ]
        return parse(told, level=level).matches(record)

    def _hints(self) -> dict[str, Sequence[str]]:
        return {
            above: asked.sent[keyword]
            for level, asked in self.asked.items()
            for keyword, above in _OF_THE_STUDY.items()
            if level in (Level.SERIES, Level.INSTANCE) and keyword in asked.sent
        }


def read(terms: Sequence[str], level: Level) -> Terms:
    """The ``terms`` for records at ``level``. Raises BadQuery, in the words that ``ls`` has."""
    parse(terms, level=level)
    words = tuple(term.strip() for term in terms if "=" not in term and term.strip())
    typed: dict[Level, dict[str, list[str]]] = {_top(level): {}} if words else {}
    for term in terms:
        name, equals, value = term.partition("=")
        if equals:
            key = key_named(name, level)
            at = _level_of(key, level)
            typed.setdefault(at, {}).setdefault(key.keyword, []).append(f"{key.keyword}={value}")
    asked = {
        at: _asked(at, by_keyword, words if at is _top(level) else ())
        for at, by_keyword in typed.items()
    }
    found = Terms(level, words, asked)
    number = (len(values) for one in asked.values() for values in one.sent.values())
    if math.prod(number) > _MOST_QUESTIONS:
        raise BadQuery(f"that makes more than {_MOST_QUESTIONS} queries: ask for fewer values")
    return found


def _top(level: Level) -> Level:
    """Where a search for records at ``level`` begins."""
    return Level.PATIENT if level is Level.PATIENT else Level.STUDY


def _level_of(key: Key, level: Level) -> Level:
    """At which level of a search for ``level`` the key is asked for."""
    if key.keyword not in _VRS and key.parts is None:
        raise BadQuery(f"{key.keyword} is told by plainpacs archives only; no peer can be asked")
    if level is Level.PATIENT and key.level is not Level.PATIENT:
        raise BadQuery(f"{key.keyword} is no key of patients; look for studies (--level study)")
    return _top(level) if key.level in (Level.PATIENT, Level.STUDY) else key.level


def _asked(level: Level, typed: dict[str, list[str]], words: Sequence[str]) -> _Asked:
    sent: dict[str, list[str]] = {}
    hard: list[str] = []
    for keyword, terms in typed.items():
        key = key_named(keyword, level)
        values = [part for term in terms for part in term.partition("=")[2].split("\\")]
        texts = [_sendable(key, value.strip()) for value in values if value.strip()]
        if key.parts is not None or None in texts:
            hard += terms
        if None not in texts:
            name = key.parts[0] if key.parts else keyword
            sent[name] = list(dict.fromkeys(text for text in texts if text))
            if _VRS[name] == "UI":  # of UIDs a list may be asked for (PS3.4 C.2.2.2.2)
                sent[name] = ["\\".join(sent[name])]
    return _Asked(sent, parse([*hard, *words], level=level), typed)


def _sendable(key: Key, value: str) -> str | None:
    """``value`` as C-FIND has it; None when it cannot be asked for. It is a valid one."""
    if key.parts or _VRS[key.keyword] == "DA":
        first, last = key.compare(key.keyword, value).span or ("", "")
        low, high = first.replace("00000000", ""), last.replace("99999999", "")
        return low if low == high else f"{low}-{high}"
    match _VRS[key.keyword]:
        case "US":
            return None
        case "IS" | "DS":
            return value if _SIGNED.fullmatch(value) else None
        case "UI":
            return None if has_wildcard(value) else value
        case "TM":
            return value.replace(":", "")
        case "CS" | "AS":
            return value.upper()
    return value


def _places(word: str, level: Level) -> list[Question]:
    """Where a word may stand, in the spellings that a peer may tell apart."""
    spellings = dict.fromkeys((word, word.upper(), word.capitalize()))
    found = [{"PatientName": f"*{one}*"} for one in spellings] + [{"PatientID": f"*{word}*"}]
    if level is Level.PATIENT:
        return found
    found += [{"StudyDescription": f"*{one}*"} for one in spellings]
    found.append({"AccessionNumber": f"*{word}*"})
    if _UID.fullmatch(word):
        found.insert(0, {"StudyInstanceUID": word})
    return found
