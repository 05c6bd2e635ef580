"""Results for people and programs: the five formats, and nothing dangerous on a terminal.

- ``table``: for people; see ``table``.
- ``json``: one document. ``jsonl``: one object a line. Keys as in ``study.json``. On a terminal,
  what it might obey or hide is escaped (``\\u202e``), which JSON readers undo.
- ``csv``: RFC 4180, UTF-8, a header line, CRLF. The columns are fixed. Several values are
  separated by backslashes. A cell that a spreadsheet would take for a formula (it starts with
  ``= + - @``, tab or return) gets an apostrophe before it; json and jsonl have the exact value.
- ``paths``: one path a line.

Every result leaves through ``write``.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import orjson

from plainpacs.archive.errors import PlainpacsError

FORMATS = ("table", "json", "jsonl", "csv", "paths")

F = TypeVar("F", bound=Callable[..., Any])

# Beyond ASCII, as ours has newlines and JSON escapes the other controls itself; DEL it does not.
_TO_ESCAPE = re.compile(
    "[\x7f-\xa0\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_PORTION = 256
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def format_option(command: F) -> F:
    """Gives a click command ``--format``; it arrives as ``format_``, see ``chosen``."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        help="How to print.  [a table on a terminal, jsonl elsewhere]",
    )(command)


def on_terminal() -> bool:
    return sys.stdout.isatty()


def chosen(format_: str | None) -> str:
    """The format asked for, else what suits where standard output goes."""
    return format_ or ("table" if on_terminal() else "jsonl")


def write(data: bytes) -> None:
    """Results to standard output. When its reader has gone, the rest is dropped in silence.

    Raises PlainpacsError when they cannot be written.
    """
    stream = sys.stdout
    try:
        stream.flush()
        if data:
            stream.buffer.write(data)
        stream.buffer.flush()
    except BrokenPipeError:
        # What is left in the buffers goes nowhere when the interpreter flushes them at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except OSError as error:
        why = os.strerror(error.errno or errno.EIO)
        raise PlainpacsError(f"cannot write the results: {why}") from None


def write_text(lines: Iterable[str]) -> None:
    """Text whose every character is safe already, in the terminal's own encoding."""
    text = "".join(line + "\n" for line in lines)
    write(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))


def write_json(objects: Sequence[bytes]) -> None:
    """One array of objects given as JSON, each on a line."""
    write(b"[")
    _write_joined(objects, b",\n")
    write(b"]\n")


def write_jsonl(objects: Sequence[bytes]) -> None:
    """Objects given as JSON without newlines, one a line."""
    _write_joined(objects, b"\n")
    if objects:
        write(b"\n")


def _write_joined(objects: Sequence[bytes], between: bytes) -> None:
    # In portions: one string of all would take as much memory again, and the time to get it.
    for at in range(0, len(objects), _PORTION):
        write((between if at else b"") + _shown(between.join(objects[at : at + _PORTION])))


def write_object(value: object) -> None:
    """One JSON document, laid out as ``study.json`` is."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write(_shown(orjson.dumps(value, option=options)))


def _shown(json: bytes) -> bytes:
    if not on_terminal():
        return json
    return _TO_ESCAPE.sub(_escaped, json.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def write_csv(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    """The records' values for ``columns``, in that order, as the module says."""
    rows = [",".join(columns)]
    rows += [",".join(_cell(record.get(column)) for column in columns) for record in records]
    text = "\r\n".join(rows) + "\r\n"
    if on_terminal():
        from plainpacs.indexer.table import visible  # rich is slow to load  # noqa: PLC0415

        write_text(visible(row) for row in rows)
    else:
        write(text.encode())


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = list(value)
    if isinstance(value, list):
        value = "\\".join(_plain(item) for item in value)
    text = _plain(value)
    if text.startswith(_FORMULA) and not isinstance(value, (int, float)):
        text = "'" + text
    if any(special in text for special in '",\r\n') or text != text.strip(" "):
        return '"' + text.replace('"', '""') + '"'
    return text


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def write_paths(paths: Iterable[str]) -> None:
    write(b"".join(os.fsencode(path) + b"\n" for path in paths))


def terminal_width() -> int | None:
    """Cells in a line: $COLUMNS, else the terminal's; None, any number, when there is none."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(20, int(columns))
    try:
        return max(20, os.get_terminal_size(sys.stdout.fileno()).columns or 80)
    except (OSError, ValueError):
        return None


def write_table(columns: Sequence[Any], rows: Sequence[Sequence[str]]) -> None:
    """A table of ``table.Column``s."""
    from plainpacs.indexer import table  # rich is slow to load  # noqa: PLC0415

    bold = on_terminal() and not os.environ.get("NO_COLOR")
    write_text(table.lines(columns, rows, terminal_width(), bold=bold))


def note(text: str) -> None:
    """One line to the user on standard error."""
    words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    click.echo(words, err=True)
