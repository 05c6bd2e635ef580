"""Results for people and programs: the five formats, and nothing dangerous on a terminal.

- ``table``: for people; see ``table``.
- ``json``: one document. ``jsonl``: one object a line. Keys as in ``study.json``. On a terminal,
  what it might obey or hide is escaped (``\\u202e``), which JSON readers undo.
- ``csv``: RFC 4180, UTF-8, a header line, CRLF. The columns are fixed. Several values are
  separated by backslashes. A cell that a spreadsheet would take for a formula (it starts with
  ``= + - @``, tab or return) gets an apostrophe before it; json and jsonl have the exact value.
- ``paths``: one path a line, or, with ``-0``, each with a NUL at its end.
- ``uids``, of ``ls`` and ``find``: one UID a line.

Every result leaves through ``write``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TextIO, TypeVar

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, PlainpacsError
from plainpacs.indexer.output.printable import visible

FORMATS = ("table", "json", "jsonl", "csv", "paths")

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

# What JSON has not escaped itself: DEL, and all beyond ASCII.
_UNESCAPED = re.compile("[^\n -~]")
_PORTION = 256

beside: list[Callable[[str], None]] = []
"""What prints a note while a bar is shown: above it, on lines of its own."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def format_choice(*formats: str) -> Callable[[F], F]:
    """Gives a click command ``--format``; it arrives as ``format_``, see ``chosen``."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(formats),
        help="How to print.  [a table on a terminal, jsonl elsewhere]",
    )


format_option = format_choice(*FORMATS)


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def chosen(format_: str | None) -> str:
    """The format asked for, else what suits where standard output goes."""
    return format_ or ("table" if on_terminal() else "jsonl")


def write(data: bytes) -> bool:
    """Results to standard output. False, once, when its reader has gone: there is no use in more,
    and what comes all the same is dropped in silence.

    Raises PlainpacsError when they cannot be written.
    """
    stream = sys.stdout
    if stream is None:
        raise PlainpacsError("cannot write the results: standard output is closed")
    try:
        stream.flush()
        if data:
            stream.buffer.write(data)
        stream.buffer.flush()
    except OSError as error:
        # What is left in the buffers goes nowhere when the interpreter flushes them at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            why = os.strerror(error.errno or errno.EIO)
            raise PlainpacsError(f"cannot write the results: {why}") from None
        return False
    return True


def write_text(lines: Iterable[str]) -> None:
    """Text whose every character is safe already, in the terminal's own encoding."""
    text = "".join(line + "\n" for line in lines)
    write(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))


def write_json(objects: Iterable[bytes]) -> None:
    """One array of objects given as JSON, each on a line."""
    write(b"[")
    for number, portion in enumerate(_portions(objects)):
        if not write((b",\n" if number else b"") + _shown(b",\n".join(portion))):
            return
    write(b"]\n")


def write_jsonl(objects: Iterable[bytes]) -> bool:
    """Objects given as JSON without newlines, one a line. False when their reader has gone."""
    return all(write(_shown(b"\n".join(portion)) + b"\n") for portion in _portions(objects))


def _portions(objects: Iterable[T]) -> Iterator[list[T]]:
    # One string of all would take as much memory again, and the time to get it.
    rest = iter(objects)
    while portion := list(islice(rest, _PORTION)):
        yield portion


def write_object(value: object) -> None:
    """One JSON document, laid out as ``study.json`` is."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write(_shown(orjson.dumps(value, option=options)))


def _shown(json: bytes) -> bytes:
    if not on_terminal():
        return json
    return _UNESCAPED.sub(_escaped, json.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    if visible(match[0]) == match[0]:
        return match[0]
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def write_csv(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    """The records' values for ``columns``, in that order, as the module says."""
    import csv  # only here, for a fast start of every other run  # noqa: PLC0415
    import io  # noqa: PLC0415

    show, ending = (_shown_cell, "\n") if on_terminal() else (_cell, "\r\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=ending)
    writer.writerow(columns)
    for portion in _portions(records):
        for record in portion:
            get = record.get
            writer.writerow([show(get(column)) for column in columns])
        if not write(text.getvalue().encode()):
            return
        text.seek(0)
        text.truncate()
    write(text.getvalue().encode())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    if isinstance(value, (dict, list)):
        return _cell("\\".join(_plain(item) for item in value))
    return _plain(value)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _shown_cell(value: object) -> str:
    return visible(_cell(value))


def write_paths(paths: Iterable[str], *, null: bool = False) -> None:
    """One path a line, as the file system has it; on a terminal, as far as it can be shown.

    ``null``: each ends with NUL instead of a newline, for ``xargs -0``.
    """
    if on_terminal():
        write_text(visible(path) for path in paths)
        return
    end = b"\0" if null else b"\n"
    for portion in _portions(paths):
        if not write(b"".join(os.fsencode(path) + end for path in portion)):
            return


def path_format(form: str | None, null: bool) -> str | None:
    """The format asked for, where ``-0`` asks for paths. Raises BadQuery when it is another."""
    if null and form not in (None, "paths"):
        raise BadQuery(f"-0 ends paths: it goes with --format paths, not {form}")
    return "paths" if null else form


def null_option(command: F) -> F:
    """Gives a click command ``-0``; it arrives as ``null``, see ``path_format``."""
    return click.option(
        "-0", "--null", "null", is_flag=True, help="Print paths, each with a NUL at its end."
    )(command)


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Cells in a line: $COLUMNS, else the terminal's that ``stream`` (standard output) leads to;
    None, any number, when there is none."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(20, int(columns))
    try:
        return max(20, os.get_terminal_size((stream or sys.stdout).fileno()).columns or 80)
    except (OSError, ValueError):
        return None


def write_table(columns: Sequence[Any], rows: Sequence[Sequence[str]]) -> None:
    """A table of ``table.Column``s."""
    from plainpacs.indexer.output import table  # rich is slow to load  # noqa: PLC0415

    bold = on_terminal() and not os.environ.get("NO_COLOR")
    write_text(table.lines(columns, rows, terminal_width(), bold=bold))


def note(text: str) -> None:
    """One line to the user on standard error; the commands in it name the archive (``hint``)."""
    running = click.get_current_context(silent=True)
    known = running.find_object(Context) if running else None
    words = visible(known.hint(text) if known else text)
    if beside:
        beside[-1](words)
    else:
        click.echo(words, err=True)


def note_of_lines(format_: str | None) -> None:
    """Tells who pipes a table, to `less` say, and gets JSON, how to get one."""
    streams = (sys.stdout, sys.stderr)
    if format_ is not None or None in streams or not sys.stderr.isatty():
        return
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            note("a pipe gets JSON, one object a line; for a table add --format table")
