"""Searches find what a naive reading of everything finds, whatever state the catalogues are in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import catalogue
from plainpacs.indexer.index.merge import merge
from plainpacs.indexer.index.split_studies import SplitStudies, by_looking, recorded
from plainpacs.indexer.query import byte_scan as columns
from plainpacs.indexer.query import conditions, matching
from plainpacs.indexer.query import parallel as scanning
from plainpacs.indexer.query.byte_scan import Column
from plainpacs.indexer.query.query import Query, asked, parse
from plainpacs.indexer.query.search import everything, search, studies
from tests.support.archives import new_archive

Record = dict[str, Any]

MONTHS = ("202312", "202401", "202402", "undated")
NAMES = (
    "Doe^Jane",
    "DOE^JOHN^^Dr.",
    "Müller^Jörg",
    "MULLER^A",
    "Yamada^T=山田^太郎",
    'Quo"te^X',
    "",
)
IDS = ("PAT-1", "PAT-2", "pat-1", "P\\A", "Ä-77", "")
DESCRIPTIONS = ("CT Thorax", "Schädel nativ [1]", "ct thorax", "")


def study_at(month: str, draw: st.DrawFn, uid: str) -> Record:
    """One part of a study as a line of that month's catalogue."""
    day = draw(st.sampled_from(["01", "15", "28"]))
    dates = [f"{month}{day}", f"{month[:4]}.{month[4:]}.{day}"]
    date = draw(st.sampled_from(["", "nonsense", None] if month == "undated" else dates))
    record: Record = {
        "PatientID": draw(st.sampled_from(IDS)),
        "PatientName": draw(st.sampled_from(NAMES)),
        "AccessionNumber": draw(st.sampled_from(["ACC-100", "ACC-200", ""])),
        "StudyDate": date,
        "StudyTime": draw(st.sampled_from(["101500", "2359", ""])),
        "StudyDescription": draw(st.sampled_from(DESCRIPTIONS)),
        "ModalitiesInStudy": draw(st.lists(st.sampled_from(["CT", "MR", "SR"]), max_size=2)),
        "NumberOfStudyRelatedInstances": draw(st.integers(1, 4)),
        "bytes": draw(st.integers(1, 3)),
        "last_stored": draw(st.sampled_from(["2024-01-01T00:00:00.000Z", "2024-02-01T"])),
        "conflicting": draw(
            st.sampled_from(
                [{}, {}, {"PatientID": ["PAT-2", "PAT-9"]}, {"PatientName": ["Doe^Jane", "Roe^R"]}]
            )
        ),
    }
    return {"StudyInstanceUID": uid} | {k: v for k, v in record.items() if v not in ("", None)}


@st.composite
def months_of_lines(draw: st.DrawFn) -> dict[str, list[bytes]]:
    """The lines of each month: superseded, removed and torn ones, garbage, studies in several."""
    months: dict[str, list[bytes]] = {}
    for month in draw(st.lists(st.sampled_from(MONTHS), unique=True, min_size=1)):
        lines = []
        for _ in range(draw(st.integers(0, 9))):
            uid = f"1.{draw(st.integers(1, 9))}"
            line = orjson.dumps(study_at(month, draw, uid))
            kind = draw(st.sampled_from(["good"] * 6 + ["removed", "torn", "garbage"]))
            if kind == "removed":
                line = catalogue.removal(uid)[:-1]
            elif kind == "torn":
                line = line[: draw(st.integers(1, len(line) - 1))]
            elif kind == "garbage":
                line = draw(
                    st.sampled_from([b"\0" * 9, b"{}", b'"PAT-1"', b'x {"PatientID":"PAT-1"}'])
                )
            lines.append(line)
        months[month] = lines
    return months


def live(lines: list[bytes]) -> dict[str, Record]:
    """By UID what counts of a month, in the words of FORMAT.md."""
    found: dict[str, Record] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or "StudyInstanceUID" not in record:
            continue
        found.pop(record["StudyInstanceUID"], None)
        if record.get("removed") is not True:
            found[record["StudyInstanceUID"]] = record
    return found


def wholes(months: dict[str, list[bytes]]) -> dict[str, tuple[list[str], Record]]:
    parts: dict[str, list[tuple[str, Record]]] = {}
    for month, lines in months.items():
        for uid, record in live(lines).items():
            parts.setdefault(uid, []).append((month, record))
    return {uid: (sorted(m for m, _ in some), merge(some)) for uid, some in parts.items()}


def folded(text: str) -> str:
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(one for one in apart if not unicodedata.combining(one))


def like(pattern: str, text: str) -> bool:
    expression = "".join({"*": ".*", "?": "."}.get(one, re.escape(one)) for one in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def values(record: Record, key: str) -> list[Any]:
    own = record.get(key)
    found = list(own) if isinstance(own, list) else [own] if own else []
    return found + record.get("conflicting", {}).get(key, [])


def name_like(pattern: str) -> Callable[[Record], bool]:
    def holds(record: Record) -> bool:
        names = [folded(name) for name in values(record, "PatientName")] or [""]
        groups = [group for name in names for group in (name, *name.split("="))]
        return any(like(folded(pattern), group) for group in groups)

    return holds


def plain(date: object) -> str:
    digits = str(date or "").replace(".", "")
    return digits if re.fullmatch("[0-9]{8}", digits) else ""


def between(first: str, last: str) -> Callable[[Record], bool]:
    return lambda record: any(
        first <= plain(date) <= last for date in values(record, "StudyDate") if plain(date)
    )


def texts(record: Record) -> list[str]:
    keys = ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "StudyInstanceUID")
    found = [value for key in keys for value in values(record, key)]
    shown = [text.replace("^", ", ", 1).replace("^", " ") for text in found]
    return [folded(text) for text in found + shown]


ASKED: dict[str, Callable[[Record], bool]] = {
    "PatientID=PAT-1": lambda r: "PAT-1" in values(r, "PatientID"),
    "PatientID=PAT-9": lambda r: "PAT-9" in values(r, "PatientID"),
    "PatientID=Ä-77": lambda r: "Ä-77" in values(r, "PatientID"),
    "PatientID=?at-*": lambda r: any(like("?at-*", v) for v in values(r, "PatientID")),
    "PatientID=?*": lambda r: bool(values(r, "PatientID")),
    "PatientID=*": lambda r: True,
    "AccessionNumber=ACC-100": lambda r: "ACC-100" in values(r, "AccessionNumber"),
    "StudyInstanceUID=1.1": lambda r: r["StudyInstanceUID"] == "1.1",
    "StudyInstanceUID=1.2\\1.3\\7.7": lambda r: r["StudyInstanceUID"] in ("1.2", "1.3"),
    "PatientName=doe^*": name_like("doe^*"),
    "PatientName=mu?ler^*": name_like("mu?ler^*"),
    "PatientName=山田^太郎": name_like("山田^太郎"),
    "PatientName=*": lambda r: True,
    "StudyDescription=*THORAX": lambda r: any(
        like("*thorax", folded(v)) for v in values(r, "StudyDescription")
    ),
    "Modality=SR": lambda r: "SR" in values(r, "ModalitiesInStudy"),
    "NumberOfStudyRelatedInstances=4-": lambda r: r["NumberOfStudyRelatedInstances"] >= 4,
    "bytes=2": lambda r: r["bytes"] == 2,
    "StudyDate=20240115": between("20240115", "20240115"),
    "StudyDate=20240102-20240215": between("20240102", "20240215"),
    "StudyDate=-20231231": between("", "20231231"),
    "doe": lambda r: any("doe" in text for text in texts(r)),
    "Doe, Jane": lambda r: any("doe, jane" in text for text in texts(r)),
    "muller": lambda r: any("muller" in text for text in texts(r)),
    "schadel": lambda r: any("schadel" in text for text in texts(r)),
    "[1]": lambda r: any("[1]" in text for text in texts(r)),
    'o"t': lambda r: any('o"t' in text for text in texts(r)),
    "1.2": lambda r: any("1.2" in text for text in texts(r)),
    "acc?1": lambda r: any(like("*acc?1*", text) for text in texts(r)),
}


def expected(months: dict[str, list[bytes]], terms: list[str]) -> list[tuple[str, list[str]]]:
    found = [
        ((plain(record.get("StudyDate")), str(record.get("StudyTime", ""))), uid, where)
        for uid, (where, record) in wholes(months).items()
        if all(ASKED[term](record) for term in terms)
    ]
    found.sort(key=lambda one: one[1])
    found.sort(key=lambda one: one[0], reverse=True)
    return [(uid, where) for _, uid, where in found]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_archive(tmp_path_factory.mktemp("search") / "a")


def write(root: str, months: dict[str, list[bytes]], lost: set[str], known: bool) -> None:
    """The archive whose catalogues have these lines; of the months ``lost`` there is none, but the
    study.json files."""
    for name in os.listdir(root):
        if name in MONTHS:
            shutil.rmtree(Path(root, name))
    for month, lines in months.items():
        Path(root, month).mkdir()
        for uid, record in live(lines).items():
            folder = Path(root, month, uid)
            folder.mkdir()
            if month in lost:
                (folder / "study.json").write_bytes(orjson.dumps({**record, "series": []}))
        if month not in lost:
            Path(root, month, "studies.jsonl").write_bytes(b"\n".join(lines))
    Path(root, ".plainpacs", "several").unlink(missing_ok=True)
    if known:
        fd = open_root(root)
        SplitStudies(root, fd).make_anew()
        os.close(fd)


@pytest.fixture(params=["alone", "shared out"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "shared out":
        monkeypatch.setattr(scanning, "_ALONE", 0)
        monkeypatch.setattr(scanning, "_WORTH_IT", 0)
        monkeypatch.setattr(scanning, "_processes", lambda: 2)


@pytest.fixture(params=["few hits", "many hits"])
def amount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many hits":
        monkeypatch.setattr(catalogue, "_FEW_HITS", 0)
        monkeypatch.setattr(conditions, "_MOST_NEEDLES", 0)


@pytest.mark.usefixtures("way", "amount")
@settings(deadline=None, max_examples=60)
@given(
    months_of_lines(),
    st.lists(st.sampled_from(sorted(ASKED)), max_size=2, unique_by=lambda t: t.partition("=")[0]),
    st.sets(st.sampled_from(MONTHS), max_size=1),
    st.booleans(),
)
def test_a_search_finds_what_a_naive_reading_finds(
    root: str, months: dict[str, list[bytes]], terms: list[str], lost: set[str], known: bool
) -> None:
    write(root, months, lost, known)
    notes: list[str] = []
    found = search(root, parse(terms), notes.append)
    assert [(one.study, list(one.months)) for one in found] == expected(months, terms)
    there = wholes(months)
    for one in found:
        record = json.loads(one.line)
        record.pop("series", None)
        assert record == there[one.study][1]


@settings(deadline=None, max_examples=100)
@given(months_of_lines(), st.sets(st.sampled_from(MONTHS), max_size=1), st.booleans())
def test_everything_is_every_study_once(
    root: str, months: dict[str, list[bytes]], lost: set[str], known: bool
) -> None:
    write(root, months, lost, known)
    lines = b"".join(everything(root, lambda _: None)).splitlines()
    found = {(record := json.loads(line))["StudyInstanceUID"]: record for line in lines}
    assert len(found) == len(lines)
    assert found == {uid: record for uid, (_, record) in wholes(months).items()}


@settings(deadline=None, max_examples=50)
@given(months_of_lines())
def test_tidy_catalogues_are_taken_as_they_are(root: str, months: dict[str, list[bytes]]) -> None:
    write(root, months, set(), known=True)
    fd = open_root(root)
    for month, lines in months.items():
        catalogue.compact(fd, month)
        data = catalogue.read(root, month)
        assert data is not None
        listed = catalogue.compacted(data)
        assert listed == sorted(uid.encode() for uid in live(lines))
    os.close(fd)
    assert {
        json.loads(one.line)["StudyInstanceUID"] for one in search(root, Query(), print)
    } == set(wholes(months))


@settings(deadline=None, max_examples=100)
@given(months_of_lines())
def test_the_index_of_several_months_says_what_looking_says(
    root: str, months: dict[str, list[bytes]]
) -> None:
    write(root, months, set(), known=True)
    found = recorded(root)
    assert found is not None
    there = {uid: tuple(where) for uid, (where, _) in wholes(months).items() if len(where) > 1}
    # Perhaps more, of lines that take a study out: who follows it looks.
    assert {uid: where for uid, where in found.items() if uid in there} == {
        uid: tuple(sorted({*where, *found[uid]})) for uid, where in there.items()
    }
    assert found == by_looking(root, catalogue.months(root))


def test_an_index_without_its_first_line_says_nothing(root: str) -> None:
    write(root, {"202401": [b'{"StudyInstanceUID":"1.2"}']}, set(), known=True)
    index = Path(root, ".plainpacs", "several")
    assert recorded(root) == {}
    index.write_bytes(b'{"StudyInstanceUID":"1.2","months":["202401","202402"]}\n')
    assert recorded(root) is None
    assert [one.months for one in search(root, Query(), print)] == [("202401",)]


def test_the_newest_are_found_without_reading_what_is_older(root: str) -> None:
    lines = {
        month: [orjson.dumps({"StudyInstanceUID": f"1.{n}", "StudyDate": f"{month}01"})]
        for n, month in enumerate(("202401", "202402"))
    }
    write(root, lines, set(), known=True)
    notes: list[str] = []
    found = studies(root, Query(), notes.append)
    assert next(found).study == "1.1"
    Path(root, "202401", "studies.jsonl").unlink()  # so that reading it gives a note
    assert notes == []
    assert list(found) == []
    assert len(notes) == 1


def test_who_stops_early_leaves_no_process_behind(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_ALONE", 0)
    monkeypatch.setattr(scanning, "_WORTH_IT", 0)
    monkeypatch.setattr(scanning, "_processes", lambda: 3)
    # More than a pipe holds, so that the others wait.
    lines = {
        month: [
            orjson.dumps({"StudyInstanceUID": f"{month}.{n}", "PatientID": "A" * 5000})
            for n in range(99)
        ]
        for month in MONTHS
    }
    write(root, lines, set(), known=False)
    found = studies(root, asked({"PatientID": "A*"}), print)
    assert next(found).study
    found.close()  # type: ignore[attr-defined]  # of a generator, which is what it is
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_process_that_is_killed_is_made_up_for(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_ALONE", 0)
    monkeypatch.setattr(scanning, "_WORTH_IT", 0)
    monkeypatch.setattr(scanning, "_processes", lambda: 2)
    parent = os.getpid()
    search_month = scanning.in_month

    def dies(*arguments: Any) -> Any:
        if os.getpid() != parent:
            os._exit(1)
        return search_month(*arguments)

    lines = {m: [b'{"StudyInstanceUID":"%s.1","PatientID":"A"}' % m.encode()] for m in MONTHS}
    write(root, lines, set(), known=False)
    monkeypatch.setattr(scanning, "in_month", dies)
    found = [one.study for one in studies(root, asked({"PatientID": "A"}), print)]
    assert found == ["202402.1", "202401.1", "202312.1", "undated.1"]


def test_no_process_outlives_the_one_that_searches(root: str) -> None:
    lines = {
        month: [
            orjson.dumps({"StudyInstanceUID": f"{month}.{n}", "PatientID": "A" * 5000})
            for n in range(99)
        ]
        for month in MONTHS
    }
    write(root, lines, set(), known=False)
    script = (
        "import os, signal, sys\n"
        "from plainpacs.indexer.query import parallel as scanning, search\n"
        "from plainpacs.indexer.query.query import asked\n"
        "scanning._ALONE = scanning._WORTH_IT = 0\n"
        "scanning._processes = lambda: 3\n"
        "found = search.studies(sys.argv[1], asked({'PatientID': 'A*'}), print)\n"
        "next(found)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # They hold standard output as well: it ends when the last of them has.
    done = subprocess.run(
        [sys.executable, "-c", script, root], stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL


VALUES = st.one_of(
    st.text('ab"\\[]{},:é\n', max_size=5), st.integers(0, 9), st.lists(st.sampled_from("ab"))
)


@pytest.mark.parametrize("only", [None, ["a"], ["a", "b", '"']])
@given(st.lists(st.dictionaries(st.sampled_from(["K", "L", "K2"]), VALUES), max_size=6))
def test_a_column_hits_every_line_whose_value_passes(
    only: list[str] | None, records: list[Record]
) -> None:
    lines = [orjson.dumps(record) for record in records]
    data = b"".join(line + b"\n" for line in lines)
    column = Column("K", lambda found: "a" in found, only=only)
    hits = {data.count(b"\n", 0, at) for at in column.hits(data)}
    for number, record in enumerate(records):
        own = record.get("K")
        if "a" in (own if isinstance(own, list) else [own]):
            assert number in hits
        if "K" not in record:
            assert number not in hits
    assert hits == {data.count(b"\n", 0, at) for at in column.hits(data)}, "and once more"


TEXT = st.text('aAbÄé\u0301ß^= *?"\\[.', max_size=6)


@given(TEXT, st.lists(TEXT, max_size=5))
def test_what_is_likely_is_every_value_that_passes(asked_for: str, texts: list[str]) -> None:
    if not asked_for.strip(" ^="):
        return
    data = b"".join(orjson.dumps({"K": text}) + b"\n" for text in texts)
    kinds = [matching.person_name, matching.description, matching.identifier]
    for kind in kinds:
        test = kind("K", asked_for)
        likely = columns.whole([test.pattern]) if test.pattern is not None else None
        column = Column("K", lambda found, test=test: any(map(test.passes, found)), likely)
        hits = {data.count(b"\n", 0, at) for at in column.hits(data)}
        assert {number for number, text in enumerate(texts) if test.passes(text)} <= hits
    query = parse([asked_for.replace("=", "")])
    for word in query.words:
        likely = columns.within(word.text) if word.text else None
        hits = {data.count(b"\n", 0, at) for at in Column("K", lambda _: True, likely).hits(data)}
        names = [{"PatientName": text} for text in texts]
        assert {number for number, name in enumerate(names) if query.matches(name)} <= hits


def test_most_values_are_spared_the_asking() -> None:
    odd = ["Müller", ["a"], 5, "Doe=x", "a\\b"]
    values: list[Any] = ["Doe^Jane", "ROE", "2024-05-06T", *odd]
    data = b"".join(orjson.dumps({"K": value}) + b"\n" for value in values)

    def judged(likely: bytes) -> list[Any]:
        found: list[Any] = []
        list(Column("K", lambda those: bool(found.append(those)), likely).hits(data))
        return [those if those == ["a"] else those[0] for those in found]

    # "Müller" can be neither of them, "Doe=x" may be in a component group of its own.
    assert judged(columns.whole(['doe[^"\\n]*'])) == ["Doe^Jane", ["a"], 5, "Doe=x", "a\\b"]
    assert judged(columns.whole(["roe"])) == ["ROE", ["a"], 5, "Doe=x", "a\\b"]
    assert judged(columns.whole(["roe", r"\*"])) == ["ROE", *odd]
    assert judged(columns.whole(["m"])) == odd
    assert judged(columns.within("doe, j")) == ["Doe^Jane", *odd]
    assert judged(columns.within("ä")) == odd
    for first in ("2024-05-06T10", "2024-04-30", "1999", ""):
        assert "2024-05-06T" in judged(columns.from_on(first))
    for first in ("2024-05-07", "2024-06", "2025"):
        assert "2024-05-06T" not in judged(columns.from_on(first))


def test_what_columns_remember_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_REMEMBERED", 3)
    column = Column("K", lambda found: found == ["5"])
    data = b"".join(b'{"K":"%d"}\n' % n for n in range(9))
    for _ in range(3):
        assert list(column.hits(data)) == [data.index(b'"K":"5"')]
