"""What a C-FIND asks: from its identifier to keys that are matched, and elements that are returned.

**Levels.** The unique keys of the levels above have to be there, with one value each, unless
relational queries were negotiated (PS3.4 C.4.1.2). Many applications leave them out without: unless
the setting ``strict_queries`` is on, they are answered as if they had. Other keys of those levels
narrow the query, as viewers mean them to. Keys of lower levels count in relational queries alone.

**Keys.** What the indexes have is matched and returned; on the image level, what they have not is
returned from the file, and of a study or series from that of its first instance, unless the setting
``strict_queries`` is on. All else is returned empty and not matched, which the question remembers.
Timezone Offset From UTC is such a key except on the image level, where it is returned: timezone
query adjustment is never agreed to (C.5.1.1), so it shifts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plainpacs.archive.dicom.attributes import REQUESTED, Level
from plainpacs.archive.dicom.dictionary import keyword_of, tag_of
from plainpacs.archive.dicom.elements import CHARACTER_SET
from plainpacs.archive.dicom.identifier import LEVEL, DataSet, terms_of
from plainpacs.archive.dicom.text_encoding import TextEncoding
from plainpacs.archive.errors import BadQuery, QueryTooLarge
from plainpacs.indexer.query.keys import ALIASES, DATE_TIMES, SEQUENCE, fields_at, keys_at
from plainpacs.indexer.query.query import Asked as Wanted
from plainpacs.indexer.query.query import Query
from plainpacs.indexer.query.query import asked as query_of
from plainpacs.scp.query_retrieve.find_response import Column
from plainpacs.scp.query_retrieve.model import (
    LEVELS,
    UNIQUE_KEYS,
    NotOfThisModel,
    level_of,
    levels_down_to,
)

_ANSWERED_BY_US = ("QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability")
_OTHER_NAMES = {"AvailableTransferSyntaxUID": "transfer_syntax"}
"""What the records of instances have under names of their own."""
_IN_ITEMS = frozenset(kept.keyword for kept in REQUESTED)


class CannotMatch(Exception):
    """A key has a value that none can be compared with. ``tag``: of that key. The words have
    nothing of what was sent."""

    def __init__(self, words: str, tag: int) -> None:
        super().__init__(words)
        self.tag = tag


@dataclass(frozen=True, slots=True)
class Question:
    """``wanted``: the values of the keys that are to be matched, by keyword. ``complete``: whether
    all keys are supported, for matching and for being returned. ``combined``: whether the date and
    the time of one event are one range (PS3.4 C.2.2.2.5.4)."""

    level: Level
    wanted: Mapping[str, Wanted]
    columns: tuple[Column, ...]
    repertoire: TextEncoding
    complete: bool
    combined: bool
    missing: str = ""
    """The unique key of a level above without one value, though that was not negotiated."""

    def query(self) -> Query:
        """What all answers match."""
        here = {
            keyword: value
            for keyword, value in self.wanted.items()
            if _key_level(keyword, self.level) is self.level
        }
        return query_of(here, self.level, combined=self.combined)

    def query_below(self) -> Query | None:
        """What some series or instance of each answer matches, when keys of those are asked for, as
        they may in relational queries; else None."""
        found = [_key_level(keyword, self.level) for keyword in self.wanted]
        deepest = max((self.level, *found), key=LEVELS.index)
        if deepest is self.level:
            return None
        return query_of(self.wanted, deepest, combined=self.combined)


def read_question(
    identifier: DataSet, title: str, *, patient_root: bool, relational: bool, combined: bool,
    strict: bool = True,
) -> Question:  # fmt: skip
    """``title``: the AE title that instances can be retrieved from. Raises NotOfThisModel and
    CannotMatch."""
    level = level_of(identifier, patient_root=patient_root, strict=strict)
    missing = "" if relational else _missing_key(identifier, level, patient_root=patient_root)
    if missing and strict:
        words = f"{missing} has to have one value at this level"
        raise NotOfThisModel(words, tag_of(missing))
    named = identifier.elements.get(CHARACTER_SET)
    wanted, all_matched = _wanted(identifier, level, relational=relational)
    _check(wanted, level, combined=combined)
    columns, all_returned = _columns(identifier, level, patient_root=patient_root, strict=strict)
    constants = zip(_ANSWERED_BY_US, (level.value, title, "ONLINE"), strict=True)
    columns += [Column(tag_of(keyword), constant=text) for keyword, text in constants]
    return Question(
        level,
        wanted,
        tuple(columns),
        TextEncoding(terms_of(named.value) if named else ()),
        all_matched and all_returned,
        combined,
        missing,
    )


def _missing_key(identifier: DataSet, level: Level, *, patient_root: bool) -> str:
    """The unique key of a level above that has not one value (PS3.4 C.4.1.2.1), if any."""
    for above in levels_down_to(level, patient_root=patient_root)[:-1]:
        keyword = UNIQUE_KEYS[above]
        value = identifier.text(keyword)
        if not value or any(sign in value for sign in "*?\\"):
            return keyword
    return ""


# --- what is matched ------------------------------------------------------------------------------


def _wanted(
    identifier: DataSet, level: Level, *, relational: bool
) -> tuple[dict[str, Wanted], bool]:
    """The keys to match, and whether that is all of them that have a value."""
    known = keys_at(Level.INSTANCE) if relational else keys_at(level)
    wanted: dict[str, Wanted] = {}
    every = True
    for tag in identifier.elements:
        keyword = keyword_of(tag)
        value: Wanted = identifier.text_at(tag)
        if keyword == SEQUENCE:
            value, every_one = _wanted_of_item(identifier)
            every = every and every_one
            matched = bool(_IN_ITEMS & known.keys())
        else:
            matched = keyword in known or keyword in _aliases(level)
            if not isinstance(value, str) or not value.strip("*"):
                continue  # asterisks alone match everything (C.2.2.2.4)
        if not value or tag in (CHARACTER_SET, LEVEL) or keyword in _ANSWERED_BY_US:
            continue
        if not matched:
            every = False
            continue
        wanted[keyword] = value
    return wanted, every


def _wanted_of_item(identifier: DataSet) -> tuple[dict[str, str], bool]:
    """As ``_wanted``, of the sequence's one item (C.2.2.2.6)."""
    wanted: dict[str, str] = {}
    every = True
    for item in identifier.items(SEQUENCE)[:1]:
        for tag in item.elements:
            value = item.text_at(tag)
            if value.strip("*"):
                if keyword_of(tag) in _IN_ITEMS:
                    wanted[keyword_of(tag)] = value
                else:
                    every = False
    return wanted, every


def _aliases(level: Level) -> Mapping[str, str]:
    return ALIASES if level in (Level.PATIENT, Level.STUDY) else {}


def _key_level(keyword: str, level: Level) -> Level:
    """The lowest level that has to be looked at to match ``keyword`` in a query at ``level``."""
    if keyword == SEQUENCE:
        return max(level, Level.SERIES, key=LEVELS.index)
    if keyword in keys_at(level) or keyword in _aliases(level):
        return level
    return keys_at(Level.INSTANCE)[keyword].level


def _check(wanted: Mapping[str, Wanted], level: Level, *, combined: bool) -> None:
    """Raises CannotMatch for a value that nothing can be compared with."""
    pairs = {time: date for date, time in DATE_TIMES.values() if combined and date in wanted}
    for keyword, value in wanted.items():
        one = {keyword: value}
        if keyword in pairs:  # 2200-0600 may be a range, from one day to the next
            one[pairs[keyword]] = wanted[pairs[keyword]]
        try:
            query_of(one, _key_level(keyword, level), combined=combined)
        except QueryTooLarge as error:
            raise CannotMatch(str(error), tag_of(keyword)) from None
        except BadQuery:  # whose words have the value
            words = f"{keyword} has a value that cannot be matched"
            raise CannotMatch(words, tag_of(keyword)) from None


# --- what is returned -----------------------------------------------------------------------------


def _columns(
    identifier: DataSet, level: Level, *, patient_root: bool, strict: bool
) -> tuple[list[Column], bool]:
    """An element for each key, and the unique keys; and whether the answers can have a value for
    each of them."""
    here = levels_down_to(level, patient_root=patient_root)
    tags = {tag_of(UNIQUE_KEYS[one]) for one in here} | set(identifier.elements)
    tags -= {CHARACTER_SET, LEVEL, *map(tag_of, _ANSWERED_BY_US)}
    columns = [_column(identifier, tag, level, strict=strict) for tag in tags]
    return columns, all(one.source or one.constant or one.beyond for one in columns)


def _column(identifier: DataSet, tag: int, level: Level, *, strict: bool) -> Column:
    keyword = keyword_of(tag)
    if keyword == SEQUENCE and keyword in fields_at(level):
        item = identifier.items(SEQUENCE)[:1]
        return Column(
            tag, keyword, items=tuple(keyword_of(one) for i in item for one in i.elements)
        )
    if keyword and keyword in fields_at(level):
        return Column(tag, keyword)
    if keyword in _aliases(level):  # the studies that match have it, and perhaps others besides
        value = identifier.text_at(tag)
        single = not any(sign in value for sign in "*?\\")
        return Column(tag, constant=value if single else "")
    if level is not Level.INSTANCE:
        below = keyword in fields_at(Level.INSTANCE)  # each instance has one of its own
        return Column(tag, beyond=not (strict or below or level is Level.PATIENT))
    if keyword in _OTHER_NAMES:
        return Column(tag, _OTHER_NAMES[keyword])
    return Column(tag, beyond=True)
