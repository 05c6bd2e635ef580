"""The five formats, tables that fit, and nothing dangerous on a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from plainpacs.indexer.output import formats, humanize, table
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.output.table import Column

HOSTILE = "a\x1b[31mb\x07c\x9bd\u202ee\u2066f\u200bg\ufeffh\u2028i\x7fj\U000e0041k\u115fl\u034fm"
COLUMNS = (
    Column("Date", 10),
    Column("Patient", 8),
    Column("Note", 6, rank=1),
    Column("UID", uid=True),
)
ROWS = [
    ["2024-01-31", "Doe, Jane", "short", "1.2.840.113619.2.55.3.604688119"],
    ["2024-01-30", "山田 太郎 (やまだ)", "x" * 40, "1.2.3"],
    ["", "e\u0301" * 9, "", "1.2.826.0.1.3680043.8.498.12406831542731051035295345080039845114"],
]


UNSEEN = (
    "HANGUL CHOSEONG FILLER",
    "VARIATION SELECTOR",
    "GRAPHEME JOINER",
    "VOWEL INHERENT",
    "VOWEL SEPARATOR",
)


def dangerous(character: str) -> bool:
    """What a terminal obeys, or hides from who reads it; accents and the like are neither."""
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return True
    name = unicodedata.name(character, "")
    return cell_len(character) == 0 and any(word in name for word in UNSEEN)


def test_no_character_that_is_dangerous_stays_visible() -> None:
    stay = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isprintable() and visible(c) == c]
    assert not [c for c in stay if dangerous(c)]
    assert visible(HOSTILE).count("\ufffd") == 12
    assert visible("\u3164") == visible("\uffa0") == "\ufffd"  # wide, and nothing to be seen
    controls = map(chr, [*range(32), *range(127, 160), 0xAD, 0x61C, 0x200E, 0x202A, 0xE0020])
    assert {visible(c) for c in controls} == {"\ufffd"}


@pytest.mark.parametrize(
    "text", ["Doe, Jane", "Müller", "山田　太郎", "김희중", "e\u0301", "Ἀχιλλεύς"]
)
def test_names_of_people_stay(text: str) -> None:
    assert visible(text) == text.replace("\u3000", " ")


def test_a_variation_selector_only_chooses_a_glyph() -> None:
    assert visible("葛\U000e0100城") == "葛城"


@given(st.text(max_size=30))
def test_visible_once_is_visible_for_good(text: str) -> None:
    assert visible(visible(text)) == visible(text)


WIDTHS = [*range(20, 131), 200]


def test_a_table_fits_and_a_wider_one_never_shows_less() -> None:
    titles: list[str] = []
    for width in WIDTHS:
        head, *rows = table.lines(COLUMNS, ROWS, width, bold=False)
        assert all(cell_len(line) <= width for line in rows)
        assert set(titles) <= set(head.split()), width
        titles = head.split()
    assert titles == ["Date", "Patient", "Note", "UID"]


def test_uids_are_shortened_first_and_from_the_left_and_dates_never() -> None:
    for width in WIDTHS:
        _, *rows = table.lines(COLUMNS, ROWS, width, bold=False)
        shown = [line.split()[-1] for line in rows]
        for uid, row in zip(shown, ROWS, strict=True):
            assert uid == row[-1] or (uid[0] == "…" and row[-1].endswith(uid[1:]))
            assert len(uid) >= min(10, len(row[-1]))
        if "…" in rows[0].replace(shown[0], ""):  # something else is cut, too
            assert len(shown[-1]) == 10
        assert "2024-01-3…" not in "".join(rows)


def test_uids_that_end_alike_are_told_apart() -> None:
    rows = [["a" * 30, f"1.2.840.{n}.000.000.000"] for n in range(3)]
    _, *shown = table.lines((Column("Note"), Column("UID", uid=True)), rows, 30, bold=False)
    assert len({line.split()[-1] for line in shown}) == 3


def test_what_is_copied_whole_is_never_cut() -> None:
    columns = (Column("Patient"), Column("Path", whole=True))
    rows = [["Doe", "/archive/" + "x" * 60]]
    assert list(table.lines(columns, rows, 80, bold=False))[1] == "Doe      " + rows[0][1]
    assert list(table.lines(columns, rows, 40, bold=False))[2:] == ["Doe", "    " + rows[0][1]]


def test_a_wide_table_is_on_one_line_a_row_and_aligned() -> None:
    title, *lines = table.lines(COLUMNS, ROWS, 200, bold=False)
    assert len(lines) == len(ROWS)
    at = cell_len(title[: title.index("UID")])
    for line, row in zip(lines, ROWS, strict=True):
        assert cell_len(line[: line.index(row[-1])]) == at


def test_a_narrow_table_drops_what_may_go_and_cuts_with_an_ellipsis() -> None:
    lines = list(table.lines(COLUMNS, ROWS, 24, bold=False))
    assert "Note" not in lines[0]
    assert not any("xxxxx" in line for line in lines)
    cut = list(table.lines((Column("Note", 6), Column("UID")), [["x" * 40, "1.2"]], 20, bold=False))
    assert cut[1] == "x" * 14 + "…  1.2"


def test_without_a_width_nothing_is_cut() -> None:
    lines = "\n".join(table.lines(COLUMNS, ROWS, None, bold=False))
    assert "x" * 40 in lines


def test_an_empty_column_is_left_out_and_an_empty_table_has_titles() -> None:
    assert next(table.lines(COLUMNS, [["", "a", "", "1"]], 80, bold=False)).split() == [
        "Patient",
        "UID",
    ]
    assert list(table.lines(COLUMNS, [], 80, bold=False)) == ["UID"]
    paths = table.lines((Column("Path", whole=True),), [["/" + "x" * 90]], 20, bold=False)
    assert list(paths)[1] == "/" + "x" * 90
    without = table.lines(
        (*COLUMNS, Column("Why", whole=True)), [["", "a", "", "1", ""]], 20, bold=False
    )
    assert list(without) == ["Patient  UID", "a        1"]


def test_markup_and_escapes_in_cells_are_text() -> None:
    lines = list(table.lines(COLUMNS, [["[bold]x[/]", HOSTILE, "", "1"]], None, bold=False))
    assert "[bold]x[/]" in lines[1]
    assert "\x1b" not in lines[1]
    assert list(table.lines(COLUMNS, [], 80, bold=True)) == ["\x1b[1mUID\x1b[0m"]


def printed(call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What ``call`` writes to a standard output that is no terminal."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    call()
    stream.flush()
    monkeypatch.undo()
    return stream.buffer.getvalue()  # type: ignore[attr-defined]  # it is the BytesIO above


RECORDS: list[dict[str, Any]] = [
    {"PatientName": 'Doe, "Jane"', "PatientID": "=cmd|'/C calc'!A0", "bytes": 5},
    {"PatientName": "a\nb", "PatientID": "+49", "ModalitiesInStudy": ["CT", "SR"]},
    {"PatientName": "Müller", "PatientID": "plain", "conflicting": {"PatientID": ["A", "B"]}},
    {},
]


def test_csv_is_rfc_4180_with_formulas_disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("PatientName", "PatientID", "ModalitiesInStudy", "bytes", "conflicting")
    data = printed(lambda: formats.write_csv(columns, RECORDS), monkeypatch)
    assert data.startswith(b"PatientName,PatientID,ModalitiesInStudy,bytes,conflicting\r\n")
    assert data.endswith(b"\r\n")
    assert list(csv.reader(io.StringIO(data.decode(), newline="")))[1:] == [
        ['Doe, "Jane"', "'=cmd|'/C calc'!A0", "", "5", ""],
        ["a\nb", "'+49", "CT\\SR", "", ""],
        ["Müller", "plain", "", "", "PatientID"],
        ["", "", "", "", ""],
    ]


@pytest.mark.parametrize("number", [0, 1, 255, 256, 257, 600])
def test_json_and_jsonl_of_any_number(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [orjson.dumps({"n": n, "name": HOSTILE}) for n in range(number)]
    array = json.loads(printed(lambda: formats.write_json(objects), monkeypatch))
    assert [one["n"] for one in array] == list(range(number))
    lines = printed(lambda: formats.write_jsonl(objects), monkeypatch)
    assert lines == b"".join(one + b"\n" for one in objects)


def test_the_format_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(lambda: print(formats.chosen(None), formats.chosen("csv")), monkeypatch) == (
        b"jsonl csv\n"
    )


SCRIPT = """
import orjson
from plainpacs.indexer.output import formats as output
from plainpacs.indexer.output.table import Column
hostile = {hostile!r}
what = {what!r}
record = {{"PatientName": hostile}}
if what == "table":
    output.write_table([Column("Name"), Column("UID")], [[hostile, "1.2"]])
elif what == "csv":
    output.write_csv(["PatientName"], [record])
elif what == "object":
    output.write_object(record)
elif what == "json":
    output.write_json([orjson.dumps(record)] * 2)
elif what == "jsonl":
    output.write_jsonl([orjson.dumps(record)])
elif what == "paths":
    output.write_paths(["/archive/" + hostile])
elif what == "note":
    output.note(hostile)
elif what == "chosen":
    print(output.chosen(None))
"""


def on_a_terminal(what: str, **variables: str) -> bytes:
    """What a process shows on a terminal (its standard output and error), without colour."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", **variables}
    command = [sys.executable, "-c", SCRIPT.format(hostile=HOSTILE, what=what)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # Linux says EIO when the other side has gone
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown


@pytest.mark.parametrize("what", ["table", "csv", "json", "jsonl", "object", "paths", "note"])
def test_nothing_dangerous_reaches_a_terminal(what: str) -> None:
    shown = on_a_terminal(what).decode()
    assert "a" in shown
    assert not [c for c in shown.replace("\r\n", "") if dangerous(c)]
    if what in ("json", "jsonl", "object"):
        [record] = json.loads(shown)[:1] if what == "json" else [json.loads(shown)]
        assert record["PatientName"] == HOSTILE  # escaped, not lost


def test_on_a_terminal_the_format_is_a_table() -> None:
    assert on_a_terminal("chosen") == b"table\r\n"


def test_a_table_has_the_width_of_the_terminal() -> None:
    shown = on_a_terminal("table", COLUMNS="20").decode()
    assert all(cell_len(line) <= 20 for line in shown.split("\r\n"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Doe^John", "Doe, John"),
        ("Doe", "Doe"),
        ("", ""),
        ("^^^^", ""),
        ("Wang^XiaoDong=王^小東=", "Wang, XiaoDong (王 小東)"),
        ("==やまだ^たろう", "やまだ たろう"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "Hong, Gildong (洪 吉洞)"),
        ("a^b^c^d^e^f^g=x=y=z", "a, d b c, e, f, g (x)"),
        (["no", "text"], ""),
        (5, ""),
    ],
)
def test_names_as_people_read_them(name: object, shown: str) -> None:
    assert humanize.person_name(name) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1000, "1.0 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (10**16, "10 PB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert humanize.size(count) == shown


def test_dates_and_times_that_are_none_stay_as_they_are() -> None:
    assert humanize.date("1997.04.24") == "1997-04-24"
    assert humanize.date("NotADate") == "NotADate"
    assert humanize.time_of_day("101530.25") == "10:15"
    assert humanize.time_of_day("10:15:30") == "10:15"
    assert humanize.time_of_day("noon") == "noon"
    assert humanize.time_of_day(None) == ""
    assert humanize.local_time("soon") == "soon"
    assert len(humanize.local_time("2024-02-28T02:38:10.123Z")) == len("2024-02-28 03:38")


ENDLESS = """
import itertools
from plainpacs.indexer.output import formats as output

output.write_{how}({arguments})
"""


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("jsonl", "itertools.repeat(b'{}')"),
        ("json", "itertools.repeat(b'{}')"),
        ("csv", "['a'], itertools.repeat({'a': 'b'})"),
        ("paths", "itertools.repeat('a')"),
    ],
)
def test_no_more_is_asked_for_when_the_reader_has_gone(how: str, arguments: str) -> None:
    """What comes would take for ever."""
    script = ENDLESS.format(how=how, arguments=arguments)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(30) == 0
