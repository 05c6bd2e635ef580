"""What can be asked for: every key of a query, the level it is of, and how it compares.

The keys are the attributes kept (``archive.attributes``), the counts that an index has, and some of
the archive's own facts. A query at one level takes the keys of that level and of those above it
(PS3.4 C.4.1.1.3.1, relational on the way up).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from plainpacs.archive.dicom.attributes import KEPT, REQUESTED, Level
from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.query import matching
from plainpacs.indexer.query.matching import Test

Compare = Callable[[str, str], Test]

LEVELS = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
"""From the top down."""

SEQUENCE = "RequestAttributesSequence"
DATE_TIMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        f"{stem}DateTime": (f"{stem}Date", f"{stem}Time")
        for stem in ("Study", "Series", "PerformedProcedureStepStart", "Acquisition", "Content")
    }
)
"""Keys that ask for a date and its time together: one range (PS3.4 C.2.2.2.5.4)."""

ALIASES = {"Modality": "ModalitiesInStudy", "SOPClassUID": "SOPClassesInStudy"}
"""What a key of a lower level means in a query for studies or patients."""

_IDENTIFIERS = {"PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"}
_NOT_ASKED = {"SpecificCharacterSet", "TimezoneOffsetFromUTC", SEQUENCE}
_BY_VR: Mapping[str, Compare] = {
    "AS": matching.code,
    "CS": matching.code,
    "DA": matching.date,
    "DS": matching.decimal,
    "IS": matching.integer,
    "LO": matching.description,
    "PN": matching.person_name,
    "SH": matching.description,
    "TM": matching.time_of_day,
    "UI": matching.identifier,
    "US": matching.number,
}
_STRICT = {"LO", "SH"}  # which C-FIND compares to the letter


@dataclass(frozen=True, slots=True)
class Key:
    """``compare`` is kind to who types, ``strict`` as C-FIND has it. ``parts``: of a key that asks
    for a date and its time, their keywords; ``item_of``: the sequence whose items have the key."""

    keyword: str
    level: Level
    compare: Compare
    strict: Compare
    parts: tuple[str, str] | None = None
    item_of: str = ""


def _kept() -> list[Key]:
    keys = []
    for kept in KEPT:
        if kept.keyword in _NOT_ASKED:
            continue
        kind = matching.identifier if kept.keyword in _IDENTIFIERS else _BY_VR[kept.vr]
        strict = matching.identifier if kept.vr in _STRICT else kind
        keys.append(Key(kept.keyword, kept.level, kind, strict))
    return keys


def _facts() -> list[Key]:
    number, identifier = matching.number, matching.identifier
    return [
        Key("ModalitiesInStudy", Level.STUDY, matching.code, matching.code),
        Key("SOPClassesInStudy", Level.STUDY, identifier, identifier),
        Key("NumberOfStudyRelatedSeries", Level.STUDY, number, number),
        Key("NumberOfStudyRelatedInstances", Level.STUDY, number, number),
        Key("NumberOfSeriesRelatedInstances", Level.SERIES, number, number),
        *(
            Key(name, Level.INSTANCE, identifier, identifier)
            for name in ("transfer_syntax", "calling_ae", "called_ae", "peer", "origin")
        ),
    ]


def _joined() -> list[Key]:
    levels = {kept.keyword: kept.level for kept in KEPT}
    moment = matching.moment
    return [
        Key(name, levels[parts[0]], moment, moment, parts=parts)
        for name, parts in DATE_TIMES.items()
    ]


def _requested() -> list[Key]:
    identifier = matching.identifier
    return [
        Key(kept.keyword, kept.level, identifier, identifier, item_of=SEQUENCE)
        for kept in REQUESTED
    ]


# Of the level that is asked for: each has its own.
_BYTES = {
    level: Key("bytes", level, matching.number, matching.number) for level in LEVELS
}  # fmt: skip
_ALL = {key.keyword: key for key in [*_kept(), *_facts(), *_joined(), *_requested()]}


@cache
def keys_at(level: Level) -> Mapping[str, Key]:
    """The keys that a query at ``level`` takes, by keyword: its own and those of the levels above.

    The patient level takes those of studies, too: it means the patients who have such a study.
    """
    reach = LEVELS[: max(2, LEVELS.index(level) + 1)]
    found = {name: key for name, key in _ALL.items() if key.level in reach}
    return MappingProxyType(found | {"bytes": _BYTES[level]})


def key_named(text: str, level: Level) -> Key:
    """The key that ``text`` spells, in whatever case, in a query at ``level``.

    Raises BadQuery, which names the level that has it, or the nearest key.
    """
    at_hand = keys_at(level)
    if text in at_hand:
        return at_hand[text]
    lower = text.strip().lower()
    names = {name.lower(): name for name in at_hand}
    if level in (Level.PATIENT, Level.STUDY):
        names |= {alias.lower(): name for alias, name in ALIASES.items()}
    if lower in names:
        return at_hand[names[lower]]
    what = _THINGS[level]
    for name, key in _ALL.items():
        if name.lower() == lower:
            raise BadQuery(f"{name} is no key of {what}; it is one of {_THINGS[key.level]}")
    import difflib  # only here, for a fast start of every other run  # noqa: PLC0415

    near = difflib.get_close_matches(lower, names, 1, 0.0)
    raise BadQuery(
        f"{text!r} is not a key of {what}; the nearest is {names[near[0]]} "
        "(`plainpacs ls --help` lists them)"
    )


@cache
def fields_at(level: Level) -> Mapping[str, None]:
    """What a record at ``level`` may hold, by keyword, in the order of the levels."""
    reach = LEVELS[: LEVELS.index(level) + 1]
    found = [kept.keyword for at in reach for kept in KEPT if kept.level is at]
    for at in reach:
        found += _RECORDED[at]
    return MappingProxyType(dict.fromkeys(found))


def field_named(text: str, level: Level) -> str:
    """The field of a record at ``level`` that ``text`` spells, in whatever case. Raises BadQuery,
    which names the nearest."""
    fields = {name.lower(): name for name in fields_at(level)}
    if found := fields.get(text.strip().lower()):
        return found
    import difflib  # see key_named  # noqa: PLC0415

    near = difflib.get_close_matches(text.strip().lower(), fields, 1, 0.0)
    raise BadQuery(f"{text!r} is no field of {_THINGS[level]}; the nearest is {fields[near[0]]}")


_SHARED = ("bytes", "first_stored", "last_stored", "conflicting", "by_another_value")
_RECORDED: Mapping[Level, tuple[str, ...]] = {
    Level.PATIENT: (
        *("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries"),
        *("NumberOfPatientRelatedInstances", *_SHARED),
    ),
    Level.STUDY: (
        *("ModalitiesInStudy", "SOPClassesInStudy", "NumberOfStudyRelatedSeries"),
        *("NumberOfStudyRelatedInstances", *_SHARED, "paths"),
    ),
    Level.SERIES: ("NumberOfSeriesRelatedInstances",),
    Level.INSTANCE: (
        *("path", "file", "dataset_offset", "blake3", "sha256", "stored", "transfer_syntax"),
        *("calling_ae", "called_ae", "peer", "origin"),
    ),
}
_THINGS = {
    Level.PATIENT: "patients",
    Level.STUDY: "studies",
    Level.SERIES: "series",
    Level.INSTANCE: "instances",
}
