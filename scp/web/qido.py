"""QIDO-RS: searching for studies, series and instances (PS3.18 10.6), on the queries of C-FIND.

What is matched is what ``indexer.query`` can match; any other key is passed over, and the answer
says so in a Warning, as 8.3.4.1.1 allows. An attribute without a value is left out of an answer: a
study list of OHIF's stops at an empty ModalitiesInStudy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.attributes import BY_KEYWORD, Level
from plainpacs.archive.dicom.dicom_json import Json, of_elements, of_record
from plainpacs.archive.dicom.dictionary import keyword_of, tag_of
from plainpacs.archive.errors import BadQuery, PlainpacsError
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query import matching
from plainpacs.indexer.query.find import find, record_of
from plainpacs.indexer.query.keys import SEQUENCE
from plainpacs.indexer.query.query import Asked, Condition, Query, asked
from plainpacs.indexer.query.search import studies
from plainpacs.scp.web.media import DICOM_JSON, need_json
from plainpacs.scp.web.places import Place, Tree, place_of, unavailable

MOST = 10_000
"""Results of one answer; the rest is had with ``offset``."""
_COUNTED_ON = 200
"""Results behind those asked for that are counted; of more it is only said that there are more."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

# PS3.18 Tables 10.6.3-3, -4 and -5.
_OF_STUDY = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName"),
    *("TimezoneOffsetFromUTC", "PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "StudyDescription",
)
_OF_SERIES = (
    *("Modality", "TimezoneOffsetFromUTC", "SeriesDescription", "SeriesInstanceUID"),
    *("SeriesNumber", "NumberOfSeriesRelatedInstances", "PerformedProcedureStepStartDate"),
    *("PerformedProcedureStepStartTime", SEQUENCE),
)
_OF_INSTANCE = (
    *("SOPClassUID", "SOPInstanceUID", "TimezoneOffsetFromUTC", "InstanceNumber", "Rows"),
    *("Columns", "BitsAllocated", "NumberOfFrames"),
)


class Search(NamedTuple):
    """What is asked. ``fields``: keywords of what is returned, None for everything at hand;
    ``others``: tags to be returned that only the instance's own file has."""

    query: Query
    limit: int
    offset: int
    fields: frozenset[str] | None
    others: frozenset[int]
    passed_over: list[str]


def search(tree: Tree, request: Request, level: Level, base: str) -> Response:
    """Answers a search. Raises HTTPException."""
    need_json(request)
    place = place_of(request)
    wanted = read_search(request.query_params, level, place)
    try:
        hits, read = _hits(tree, wanted)
        found = [
            orjson.dumps(_answer(tree, read(hit), wanted, level, base), option=orjson.OPT_SORT_KEYS)
            for hit in islice(hits, wanted.limit)
        ]
        more = sum(1 for _ in islice(hits, _COUNTED_ON + 1))
        if not found:
            tree.check()
    except (PlainpacsError, OSError) as error:
        raise unavailable(error) from None
    warnings = []
    if more:
        count = f"more than {_COUNTED_ON}" if more > _COUNTED_ON else str(more)
        words = f"There are {count} additional results that can be requested"
        warnings.append(f"299 {base}: {words}")
    if wanted.passed_over:
        names = ", ".join(wanted.passed_over[:8])
        warnings.append(f"299 {base}: these keys were not matched: {names}")
    headers = {"Warning": ", ".join(warnings)} if warnings else {}
    if not found:
        return Response(status_code=204, headers=headers)
    return Response(b"[" + b",".join(found) + b"]", 200, headers, DICOM_JSON)


def read_search(parameters: QueryParams, level: Level, place: Place) -> Search:
    """What the query of the address means. Raises HTTPException 400."""
    keys: dict[str, Asked] = {}
    passed_over: list[str] = []
    numbers = {"limit": MOST, "offset": 0}
    included: list[str] = []
    fuzzy = False
    for name, value in parameters.multi_items():
        if name in numbers:
            if not (value.isascii() and value.isdecimal() and len(value) < 10):
                raise HTTPException(400, f"{name} is no whole number")
            numbers[name] = int(value)
        elif name == "includefield":
            included += value.split(",")
        elif name == "fuzzymatching":
            fuzzy = value.lower() == "true"
        elif name not in ("accept", "charset"):
            _add_key(keys, passed_over, name, value)
    for keyword, uid in zip(_UIDS, place, strict=True):
        if uid:
            keys[keyword] = uid
    names, more = _fuzzy_names(keys, level) if fuzzy else (keys, ())
    query = _query(names, level, passed_over)
    query = replace(query, conditions=(*query.conditions, *more))
    fields, others = _fields(included, level, place, keys)
    limit = min(numbers["limit"], MOST)
    return Search(query, limit, numbers["offset"], fields, others, passed_over)


def _add_key(keys: dict[str, Asked], passed_over: list[str], name: str, value: str) -> None:
    path = [keyword for one in name.split(".")[:3] if (keyword := _keyword(one))]
    if len(path) != name.count(".") + 1:
        passed_over.append(_shown(name))
        return
    keyword = path[-1]
    if len(path) == 2 and path[0] != SEQUENCE:
        passed_over.append(_shown(name))
        return
    if value == '""':  # which is how an empty value is spelled (8.3.4.1.1)
        value = ""
    values = value.replace(",", "\\").split("\\") if keyword.endswith("UID") else [value]
    if len(path) == 2:
        items = keys.setdefault(SEQUENCE, {})
        assert isinstance(items, dict)
        items[keyword] = values
    elif isinstance(known := keys.get(keyword), list):
        known += values
    else:
        keys[keyword] = values


def _keyword(name: str) -> str:
    """The keyword that a name in the query means; empty for what is none."""
    if _TAG.fullmatch(name):
        return keyword_of(int(name, 16))
    return name if _KEYWORD.fullmatch(name) else ""


def _shown(name: str) -> str:
    """A name as the Warning has it: as little as an attribute can be called."""
    return re.sub(r"[^A-Za-z0-9.]", "?", name[:64])


def _query(keys: Mapping[str, Asked], level: Level, passed_over: list[str]) -> Query:
    """The query of those of the keys that can be matched here."""
    kept: dict[str, Asked] = {}
    for keyword, value in keys.items():
        try:
            asked({keyword: ""}, level)
        except BadQuery:
            passed_over.append(_shown(keyword))
            continue
        kept[keyword] = value
    try:
        return asked(kept, level, combined=True)
    except BadQuery:
        raise HTTPException(400, _faulty(kept, level)) from None


def _faulty(keys: Mapping[str, Asked], level: Level) -> str:
    """Which key's value cannot be; the value itself may be a patient's."""
    for keyword, value in keys.items():
        try:
            asked({keyword: value}, level)
        except BadQuery:
            return f"the value of {_shown(keyword)} cannot be matched"
    return "a date and its time cannot be matched together"


def _fuzzy_names(
    keys: Mapping[str, Asked], level: Level
) -> tuple[dict[str, Asked], tuple[Condition, ...]]:
    """Names by their words, each anywhere in the name; case and accents never count."""
    kept = dict(keys)
    conditions: list[Condition] = []
    for keyword, value in keys.items():
        about = BY_KEYWORD.get(keyword)
        if about is None or about.vr != "PN" or not isinstance(value, list):
            continue
        text = " ".join(value)
        if not text.strip() or matching.has_wildcard(text):
            continue
        del kept[keyword]
        for word in re.split(r"[\s^=,]+", text):
            if word:
                test = matching.person_name(keyword, f"*{word}*")
                conditions.append(Condition((keyword,), (test,), about.level))
    return kept, tuple(conditions)


# --- what is returned -----------------------------------------------------------------------------


def _fields(
    included: list[str], level: Level, place: Place, keys: Mapping[str, Asked]
) -> tuple[frozenset[str] | None, frozenset[int]]:
    names = {one.strip() for one in included if one.strip()}
    if "all" in names:
        return None, frozenset()
    wanted = {_keyword(one.rpartition(".")[0] or one) for one in names} | keys.keys()
    wanted |= {_keyword(one) for one in names} | set(_UIDS)
    if level is Level.INSTANCE:
        wanted |= set(_OF_INSTANCE)
    if level is Level.SERIES or (level is Level.INSTANCE and not place.series):
        wanted |= set(_OF_SERIES)
    if level is Level.STUDY or not place.study:
        wanted |= set(_OF_STUDY)
    others: set[int] = set()
    if level is Level.INSTANCE:
        for keyword in wanted - BY_KEYWORD.keys():
            try:
                others.add(tag_of(keyword))
            except KeyError:
                continue
    return frozenset(wanted), frozenset(others)


def _hits(tree: Tree, wanted: Search) -> tuple[Iterator[Any], Callable[[Any], Record]]:
    """What matches, from the offset on, and what makes a record of a hit: studies that are passed
    over, or only counted, need not be read."""
    if wanted.query.level is not Level.STUDY:
        found: Iterator[Any] = find(tree.path, wanted.query, tree.note)
        return islice(found, wanted.offset, None), lambda record: record
    return islice(studies(tree.path, wanted.query, tree.note), wanted.offset, None), record_of


def _answer(tree: Tree, record: Record, wanted: Search, level: Level, base: str) -> Json:
    fields = wanted.fields
    shown: Mapping[str, Any] = record
    if fields is not None:
        shown = {key: record[key] for key in fields & record.keys()}
    found = of_record(shown)
    uids = [
        str(record.get(keyword, "")) for keyword in _UIDS[: 3 if level is Level.INSTANCE else 2]
    ]
    place = Place(*(uids[:1] if level is Level.STUDY else uids))
    if wanted.others:
        found |= _from_file(tree, place, wanted.others)
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    found["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
    found["00081190"] = {"vr": "UR", "Value": [base + place.url]}
    return found


def _from_file(tree: Tree, place: Place, tags: frozenset[int]) -> Json:
    """What no index has. Nothing, when the file has gone or cannot be read: the answer goes on."""
    try:
        opened = tree.open(place)
        try:
            elements = opened.header().elements
        finally:
            opened.close()
    except HTTPException:
        return {}
    kept = {tag: element for tag, element in elements.items() if tag in tags and element.value}
    return of_elements(kept)
