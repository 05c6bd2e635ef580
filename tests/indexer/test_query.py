"""Terms: C-FIND matching against a naive oracle, words, times, and errors that help."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.dicom.attributes import PATIENT_AND_STUDY
from plainpacs.archive.errors import BadQuery
from plainpacs.archive.tree.identity import UNDATED, month_of
from plainpacs.indexer.query import matching
from plainpacs.indexer.query.query import KEYS, Query, parse

STUDY: dict[str, Any] = {
    "StudyInstanceUID": "1.2.840.99",
    "PatientName": "Müller^Jörg^^Dr.=山田^太郎=やまだ^たろう",
    "PatientID": "Ab12",
    "PatientSex": "M",
    "PatientBirthDate": "1960.02.29",
    "AccessionNumber": "ACC-7",
    "StudyDate": "20240131",
    "StudyTime": "101530.250",
    "StudyDescription": "Schädel nativ",
    "ModalitiesInStudy": ["CT", "SR"],
    "SOPClassesInStudy": ["1.2.840.10008.5.1.4.1.1.2"],
    "NumberOfStudyRelatedInstances": 120,
    "NumberOfStudyRelatedSeries": 3,
    "bytes": 5000,
    "conflicting": {"PatientID": ["Ab12", "Zz9"], "PatientName": ["Doe^Jane", "Müller^Jörg"]},
    "last_stored": "2024-02-28T02:38:10.123Z",
}


def test_every_patient_and_study_attribute_is_a_key() -> None:
    assert KEYS.keys() >= PATIENT_AND_STUDY


@pytest.mark.parametrize(
    "term",
    [
        "PatientID=Ab12",
        "patientid=Ab12",
        "PatientID=Zz9",  # one of two patients under the study's UID
        "PatientID=A?1*",
        "PatientID=*",
        "PatientID=?*",
        "StudyID=*",  # absent counts as empty, which "*" matches
        "PatientName=müller^jörg^^DR.=山田^太郎=やまだ^たろう",
        "PatientName=MULLER^JORG*",
        "PatientName=Mu\u0308ller^*",
        "PatientName=山田^太郎",
        "PatientName=doe^jane^^^",
        "PatientName=?oe^*",
        "StudyDescription=schadel nativ",
        "StudyDescription=*NATIV",
        "Modality=CT",
        "modalitiesinstudy=sr",
        "Modality=MR\\CT",
        "SOPClassesInStudy=1.2.840.10008.5.1.4.1.1.2 ",
        "StudyInstanceUID=1.3\\1.2.840.99",
        "StudyInstanceUID=1.2.840.*",
        "StudyDate=20240131",
        "StudyDate=2024.01.31",
        "StudyDate=2024-01-31",
        "StudyDate=20240101-20240131",
        "StudyDate=20240131-",
        "StudyDate=-20240131",
        "StudyDate=20240101-20240231",  # the last of February, as people write it
        "PatientBirthDate=19600229",
        "PatientBirthDate=19600101-19601231",
        "StudyTime=10",
        "StudyTime=1015",
        "StudyTime=10:15:30",
        "StudyTime=0900-1015",
        "StudyTime=101530.2-101530.3",
        "NumberOfStudyRelatedInstances=120",
        "NumberOfStudyRelatedInstances=100-",
        "NumberOfStudyRelatedInstances=-120",
        "bytes=1-5000",
        "müller",
        "MULLER",
        "山田",
        "doe",  # the other patient
        "Doe, Jane",  # as the table shows it
        "ab12",
        "acc-7",
        "adel NAT",
        "840.99",
        "m?ller*jorg",
    ],
)
def test_what_matches(term: str) -> None:
    assert parse([term]).matches(STUDY)


@pytest.mark.parametrize(
    "term",
    [
        "PatientID=ab12",  # IDs are case-sensitive
        "PatientID=Ab1",
        "PatientID=?",
        "StudyID=?*",
        "PatientName=Müller",
        "PatientName=Jörg^Müller",
        "PatientName=山田",
        "StudyDescription=nativ",
        "Modality=C",
        "Modality=MR",
        "StudyInstanceUID=1.2.840",
        "StudyDate=20240130",
        "StudyDate=20240201-",
        "StudyDate=-20240130",
        "PatientBirthDate=19600301-",
        "StudyTime=1016",
        "StudyTime=-1014",
        "StudyTime=101530.3-",
        "NumberOfStudyRelatedInstances=121-",
        "NumberOfStudyRelatedSeries=-2",
        "NumberOfStudyRelatedSeries=0-2",
        "smith",
        "ct",  # modality is no text that words are looked for in
        "Jörg\nAb12",
        "jorg*ab12",  # a wildcard does not reach from one value into another
    ],
)
def test_what_does_not_match(term: str) -> None:
    assert not parse([term]).matches(STUDY)


def test_a_repeated_key_means_or_and_different_terms_mean_and() -> None:
    assert parse(["PatientID=no", "PatientID=Ab12"]).matches(STUDY)
    assert parse(["PatientID=no", "patientid=Ab12", "Modality=CT", "doe", "7"]).matches(STUDY)
    assert not parse(["PatientID=Ab12", "Modality=MR"]).matches(STUDY)
    assert not parse(["doe", "smith"]).matches(STUDY)


def test_no_term_matches_everything_even_nonsense() -> None:
    assert parse([]).is_empty()
    assert parse([]).matches({"StudyInstanceUID": 5, "conflicting": 7})


@pytest.mark.parametrize("keyword", KEYS)
@pytest.mark.parametrize("value", [None, 5, 1.5, True, [], [[]], {}, {"a": 1}, "", [None, "x"]])
def test_a_value_of_any_type_is_compared_without_failing(keyword: str, value: Any) -> None:
    asked = {"StudyDate": "20240101", "PatientBirthDate": "20240101", "StudyTime": "10"}
    asked["StudyDateTime"] = "20240101"
    term = f"{keyword}={asked.get(keyword, '1')}"
    for record in ({keyword: value}, {"conflicting": {keyword: value}}, {"conflicting": value}):
        parse([term, "word", "w*d"], stored="today").matches(record)


def oracle(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return oracle(pattern[1:], text) or (bool(text) and oracle(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and oracle(pattern[1:], text[1:])


@given(st.text("ab*?.[\n", max_size=9), st.text("ab.[\n", max_size=9))
def test_wildcards_match_as_a_naive_matcher_says(pattern: str, text: str) -> None:
    assert bool(matching.wildcard(pattern).fullmatch(text)) == oracle(pattern, text)


@given(st.text("aAäÄ^=*?", min_size=1, max_size=7), st.text("aAäÄ^", max_size=7))
def test_descriptions_match_folded_as_a_naive_matcher_says(pattern: str, text: str) -> None:
    if pattern.strip():
        passes = matching.description("StudyDescription", pattern).passes
        assert passes(text) == oracle(matching.fold(pattern), matching.fold(text))


def test_no_pattern_takes_long() -> None:
    started = time.perf_counter()
    parse(["PatientID=" + "*a" * 30 + "b"]).matches({"PatientID": "a" * 5000})
    assert time.perf_counter() - started < 5  # backtracking would take years


@given(
    st.dates(min_value=datetime(1, 1, 1).date()),
    st.dates(min_value=datetime(1, 1, 1).date()),
    st.dates(min_value=datetime(1, 1, 1).date()),
    st.sampled_from(["closed", "from", "until", "single"]),
    st.booleans(),
)
def test_dates_match_as_dates_do(low: Any, high: Any, date: Any, kind: str, old: bool) -> None:
    low, high = min(low, high), max(low, high)
    form = "{0:04}.{1:02}.{2:02}" if old else "{0:04}{1:02}{2:02}"
    value = form.format(date.year, date.month, date.day)
    a, b = (f"{d.year:04}{d.month:02}{d.day:02}" for d in (low, high))
    term, expected = {
        "closed": (f"{a}-{b}", low <= date <= high),
        "from": (f"{a}-", low <= date),
        "until": (f"-{b}", date <= high),
        "single": (a, date == low),
    }[kind]
    asked = parse([f"StudyDate={term}"])
    assert asked.matches({"StudyDate": value}) == expected
    # The months to read never leave out a study that matches.
    month = month_of(value)
    assert not expected or asked.months([month]) == [month]


def test_months_to_read() -> None:
    known = ["202403", "202402", "202401", "202312", UNDATED]
    assert parse([]).months(known) == known
    assert parse(["StudyDate=20240101-20240231"]).months(known) == ["202402", "202401"]
    assert parse(["StudyDate=20240215-"]).months(known) == ["202403", "202402"]
    assert parse(["StudyDate=20240215-", "StudyDate=20231201"]).months(known) == [
        "202403",
        "202402",
        "202312",
    ]
    assert parse([], months=["202401", UNDATED]).months(known) == ["202401", UNDATED]
    assert parse(["StudyDate=20240101-"], months=["2024-02"]).months(known) == ["202402"]
    assert parse(["PatientBirthDate=20240101"]).months(known) == known


@given(
    st.sampled_from(["PatientID", "AccessionNumber", "StudyID", "StudyInstanceUID"]),
    st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and not set(t) & set("*?\\=\0")),
)
def test_a_needle_is_in_every_line_that_matches(keyword: str, value: str) -> None:
    value = value.strip()
    asked = parse([f"{keyword}={value}"])
    needles = asked.needles()
    for record in ({keyword: value}, {"conflicting": {keyword: ["other", value]}}):
        if asked.matches(record) and needles:
            assert any(needle in orjson.dumps(record) for needle in needles)


def test_needles_only_where_every_alternative_has_one() -> None:
    assert parse(["PatientID=P123", "PatientID=P124"]).needles() == (b'"P123"', b'"P124"')
    assert parse(["PatientID=P123", "PatientID=P*"]).needles() is None
    assert parse(["PatientName=Doe"]).needles() is None
    assert parse(["PatientID=1"]).needles() is None  # in nearly every line
    assert parse(["doe", "Modality=CT", "AccessionNumber=A-100"]).needles() == (b'"A-100"',)
    assert parse([]).needles() is None


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("PatientID=", "PatientID= has no value; write PatientID=VALUE"),
        ("PatientID=  ", "has no value"),
        ("PatientID=\\", "has no value"),
        ("=x", "not a key"),
        ("PatientsName=x", "nearest is PatientName"),
        ("StudysDescription=x", "nearest is StudyDescription"),
        ("SeriesDescription=x", "SeriesDescription is no key of studies; it is one of series"),
        ("StudyDateTime=now", "it takes a date and time"),
        ("StudyDate=2024", "20240101-20240331"),
        ("StudyDate=202401*", "it takes a date"),
        ("StudyDate=-", "it takes a date"),
        ("StudyDate=20240230", "the calendar has no 20240230"),
        ("StudyDate=20240230-", "the calendar has no 20240230"),
        ("StudyDate=20240201-20240101", "ends before it starts"),
        ("StudyTime=2500", "it takes a time"),
        ("StudyTime=12-10", "ends before it starts"),
        ("NumberOfStudyRelatedInstances=many", "it takes a number"),
        ("bytes=5-4", "ends before it starts"),
    ],
)
def test_errors_say_what_to_write(term: str, words: str) -> None:
    with pytest.raises(BadQuery) as error:
        parse([term])
    assert words in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("month", ["2024", "202413", "january", "../x"])
def test_a_month_that_is_none(month: str) -> None:
    with pytest.raises(BadQuery, match="202401"):
        parse([], months=[month])


NOW = datetime(2024, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))  # still February in UTC


@pytest.mark.parametrize(
    ("asked", "first", "after"),
    [
        ("today", "2024-02-29T23:00:00.000Z", "2024-03-01T23:00:00.000Z"),
        ("Yesterday", "2024-02-28T23:00:00.000Z", "2024-02-29T23:00:00.000Z"),
        ("20240229", "2024-02-28T23:00:00.000Z", "2024-02-29T23:00:00.000Z"),
        ("20240201-20240229", "2024-01-31T23:00:00.000Z", "2024-02-29T23:00:00.000Z"),
        ("20240229-", "2024-02-28T23:00:00.000Z", None),
        ("-20240229", None, "2024-02-29T23:00:00.000Z"),
        ("1h", "2024-02-29T22:30:00.000Z", None),
        ("30m", "2024-02-29T23:00:00.000Z", None),
        ("7d", "2024-02-22T23:30:00.000Z", None),
        ("99991231", "9999-12-30T23:00:00.000Z", None),
        ("999999w", None, None),
    ],
)
def test_stored(asked: str, first: str | None, after: str | None) -> None:
    def stored(time: str) -> bool:
        return parse([], stored=asked, now=NOW).matches({"last_stored": time})

    def before(time: str) -> str:
        moment = datetime.fromisoformat(time) - timedelta(milliseconds=1)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    if first:
        assert stored(first)
        assert not stored(before(first))
    else:
        assert stored("0001-01-02T00:00:00.000Z")
    if after:
        assert not stored(after)
        assert stored(before(after))
    else:
        assert stored("9999-12-31T12:00:00.000Z")


def test_stored_today_means_the_machine_s_day() -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert parse([], stored="1h").matches({"last_stored": now})
    either = [parse([], stored=day).matches({"last_stored": now}) for day in ("today", "yesterday")]
    assert any(either)  # midnight may have passed between the two lines
    assert not parse([], stored="1h").matches({})


@pytest.mark.parametrize("asked", ["", "later", "h", "5y", "20240230", "20241301"])
def test_stored_that_cannot_be(asked: str) -> None:
    with pytest.raises(BadQuery, match="today, yesterday"):
        parse([], stored=asked)


def test_folding_is_stable() -> None:
    for one, two in itertools.pairwise(["STRASSE", "Straße", "straße", "STRAẞE"]):
        assert matching.fold(one) == matching.fold(two)
    assert matching.fold("김철수") == "김철수"  # one syllable stays one character for "?"
    assert matching.fold("が") != matching.fold("か")
    assert Query().matches({})
