r"""A month's catalogue, ``202401/studies.jsonl``: writing it, and reading it fast.

A line is JSON and starts with ``{"StudyInstanceUID":"…"``, spelled so to the byte; anything else
is nobody's line and is skipped, wherever it stands. The last line for a study counts; one with
``"removed":true`` takes the study out. The compacted form has the live lines sorted by UID.

>>> torn = b'{"StudyInstanceUID":"1.2","bytes":1}\n\0\0{"Stu\n{"StudyInstanceUID":"1.2"}\n{"Study'
>>> list(live(torn))
[('1.2', {'StudyInstanceUID': '1.2'}, b'{"StudyInstanceUID":"1.2"}')]

Readers open once, read once, never map and never write: the file may be replaced at any time.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from operator import itemgetter, lt
from typing import Any

import orjson

from plainpacs.archive.errors import NotAnArchive
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_month
from plainpacs.indexer.index.file_cache import FileCache, read_file

Line = tuple[str, dict[str, Any], bytes]
"""(StudyInstanceUID, the parsed line, its bytes without the newline)"""

_START = b'{"StudyInstanceUID":"'
_DATE = b'"StudyDate":"'
_TIME = b'"StudyTime":"'
_REMOVED = b',"removed":true}'
_LISTED = rb'\{"StudyInstanceUID":"([0-9a-z_-][0-9a-z._-]{0,63})"(?!,"removed":true\})'
_FIRST_LINE = re.compile(_LISTED)
_NEXT_LINE = re.compile(rb"\}\n" + _LISTED)
_LINE = re.compile(rb'\{"StudyInstanceUID":"([^"\\/.\x80-\xff][^"\\/\x80-\xff]*)"')
_NO_NAME = ("", ".")
# Beyond so many, looking for further lines of each costs more than looking at every line.
_FEW_HITS = 4

_cache: FileCache | None = None


# --- writing: the indexer alone, which holds the root's lock -----------------------------------


def append(root: int, month: str, lines: Iterable[bytes]) -> None:
    """Adds whole lines (each ending in a newline), beneath the open ``root``. Raises OSError."""
    data = b"".join(lines)
    if data:
        durable.append_lines(root, _name(month), data)


def make(root: int, month: str) -> None:
    """Sees to it that the month has a catalogue, be it an empty one. Raises OSError."""
    durable.append_lines(root, _name(month), b"")


def removal(study: str) -> bytes:
    """The line that takes ``study`` out."""
    return orjson.dumps({"StudyInstanceUID": study, "removed": True}) + b"\n"


def rewrite(root: int, month: str, lines: Iterable[bytes]) -> bool:
    """Puts the compacted form of ``lines`` in the catalogue's place; of several for a study the
    last counts. Returns whether that changed anything. Raises OSError."""
    return _replace(root, month, b"".join(lines))


def compact(root: int, month: str) -> bool:
    """Leaves the live lines, sorted by UID. Returns whether that changed anything.

    Nobody else may append meanwhile. A month without a catalogue stays without. Raises OSError.
    """
    data = read_file(_name(month), root)
    return data is not None and _replace(root, month, data)


def _replace(root: int, month: str, data: bytes) -> bool:
    compacted = b"".join(line + b"\n" for _, _, line in sorted(live(data), key=itemgetter(0)))
    if compacted == read_file(_name(month), root):
        return False
    durable.replace_file(root, _name(month), compacted)
    return True


def _name(month: str) -> str:
    return f"{month}/{layout.CATALOGUE}"


# --- reading -----------------------------------------------------------------------------------


def months(root: str) -> list[str]:
    """The months of the archive at the path ``root``, newest first, ``undated`` last.

    Raises NotAnArchive when its folder cannot be listed.
    """
    try:
        with os.scandir(root) as entries:
            found = [entry.name for entry in entries if is_month(entry.name) and entry.is_dir()]
    except OSError as error:
        raise NotAnArchive(f"cannot list {root}: {error.strerror}") from None
    return sorted(found, key=lambda month: month if month.isdigit() else "", reverse=True)


def read(root: str, month: str) -> bytes | None:
    """The catalogue as it is; None when there is none. Raises OSError when it is unreadable."""
    path = f"{root}/{month}/{layout.CATALOGUE}"
    return read_file(path) if _cache is None else _cache.read(path)


def remember() -> None:
    """From now on this process keeps what it reads, some of it, for as long as the file stays the
    same: for one that answers queries again and again."""
    global _cache  # noqa: PLW0603 - of the process, as a cache of its files is
    _cache = _cache or FileCache()


def live(data: bytes) -> Iterator[Line]:
    """The studies that a catalogue's bytes list, the line that counts of each, last lines first."""
    decided: set[str] = set()
    loads = orjson.loads
    for line in reversed(data.split(b"\n")):
        if not line.startswith(_START):
            continue
        try:
            record = loads(line)
            study = record["StudyInstanceUID"]
            # No folder's name, so nobody's line. is_name() would take as long as all the rest.
            if "/" in study or study[:1] in _NO_NAME:
                continue
        except (ValueError, TypeError):
            continue
        if study in decided:
            continue
        decided.add(study)
        if "removed" not in record or record["removed"] is not True:
            yield study, record, line


def glance(data: bytes) -> list[tuple[str, str, bytes]] | None:
    """Of a catalogue in its compacted form, (study, StudyDate and StudyTime joined, line) of each
    study, without parsing the lines, which takes three times as long.

    None when anything about the bytes is not as compaction leaves them, or a date or time is not in
    the plain form: then they are to be read by ``live``.
    """
    return _glance(data) if _cache is None else _glanced(data)


def _glance(data: bytes) -> list[tuple[str, str, bytes]] | None:
    lines = data.split(b"\n")
    if lines.pop() or b"\0" in data or data.count(_START) != len(lines):
        return None
    found = []
    before = b""
    try:
        for line in lines:
            if line[: len(_START)] != _START or line[-1:] != b"}" or line.endswith(_REMOVED):
                return None
            end = line.index(b'"', len(_START))
            study = line[len(_START) : end]
            if study <= before or b"/" in study or study[:1] == b".":
                return None
            before = study
            # Within a text the quotes would be escaped: this can only be the attribute.
            date = line.index(_DATE, end) + len(_DATE)
            time = line.index(_TIME, date) + len(_TIME)
            when = line[date : date + 8] + line[time : line.index(b'"', time)]
            if line[date + 8] != 0x22 or b":" in when:
                return None
            found.append((study.decode(), when.decode(), line))
    except ValueError:
        return None
    return found


# The newest months are looked at again and again; bytes that are remembered are the same object.
_glanced = lru_cache(maxsize=2)(_glance)


def compacted(data: bytes) -> list[bytes] | None:
    """The studies of a catalogue whose bytes are as compaction leaves them, so that every line
    counts and none needs to be parsed, which for all of them takes longer than all else.

    None when anything is otherwise; then ``live`` is to tell.
    """
    first = _FIRST_LINE.match(data)
    studies = [first[1], *_NEXT_LINE.findall(data)] if first else []
    lines = len(studies)
    if data.count(b"\n") != lines or data.count(_START) != lines or b"\0" in data:
        return None
    if data and not data.endswith(b"}\n"):
        return None
    return studies if all(map(lt, studies, islice(studies, 1, None))) else None


def line_of(record: Mapping[str, Any]) -> bytes:
    """The catalogue's line, without newline, for a study's record (that of ``study.json``)."""
    rest = {k: v for k, v in record.items() if k not in ("StudyInstanceUID", "series")}
    head = orjson.dumps({"StudyInstanceUID": record["StudyInstanceUID"]})[:-1]
    return (
        head + b"," + orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)[1:] if rest else head + b"}"
    )


def last_line(data: bytes, study: str) -> Line | None:
    """The line that counts for ``study``; None when it has none, or was taken out."""
    start = _START + study.encode() + b'"'
    stop = len(data)
    while (at := data.rfind(start, 0, stop)) >= 0:
        stop = at
        if at and data[at - 1] != 0x0A:
            continue
        end = data.find(b"\n", at)
        line = data[at : end if end >= 0 else len(data)]
        try:
            record = orjson.loads(line)
        except ValueError:
            continue
        return None if record.get("removed") is True else (study, record, line)
    return None


def hits(data: bytes, needles: Iterable[bytes]) -> Iterator[int]:
    """Where the bytes hold one of the ``needles``, once a line for each."""
    for needle in needles:
        at = data.find(needle)
        while at >= 0:
            yield at
            end = data.find(b"\n", at)
            at = data.find(needle, end) if end >= 0 else -1


def live_at(data: bytes, hits: Iterable[int]) -> list[Line]:
    """Of ``live(data)`` every line that one of the ``hits``, positions in ``data``, lies in, and
    perhaps a few more.

    A hit says only which study to look at: its last line counts, which may be another one.
    """
    starts = sorted({data.rfind(b"\n", 0, at) + 1 for at in hits})
    found = {start: match[1] for start in starts if (match := _LINE.match(data, start))}
    # A study with another line may be said otherwise by that.
    several = _with_several_lines(data, found)
    lines = [
        line
        for start, study in found.items()
        if study not in several and (line := _line_at(data, start)) is not None
    ]
    if len(several) <= _FEW_HITS:
        last = (last_line(data, study.decode()) for study in several)
        return lines + [line for line in last if line is not None]
    names = {study.decode() for study in several}
    return lines + [line for line in live(data) if line[0] in names]


def _with_several_lines(data: bytes, found: Mapping[int, bytes]) -> set[bytes]:
    """The studies ``found``, by where in ``data`` each has a line, that have a further one."""
    starts = {study: _START + study + b'"' for study in found.values()}
    if len(found) <= _FEW_HITS:
        return {
            study for at, study in found.items() if data.find(starts[study], at + len(_START)) >= 0
        }
    lines = data.split(b"\n")
    # Sorted, as compaction leaves it, but for what was appended since: so a study's lines in the
    # sorted part lie together.
    unsorted = (at for at, less in enumerate(map(lt, lines, lines[1:]), 1) if not less)
    appended = next(unsorted, len(lines))
    counted = Counter(line[: line.find(b'"', len(_START)) + 1] for line in lines[appended:])
    for start in starts.values():
        at = bisect_left(lines, start, hi=appended)
        counted[start] += sum(line.startswith(start) for line in lines[at : min(at + 2, appended)])
    return {study for study, start in starts.items() if counted[start] > 1}


def _line_at(data: bytes, start: int) -> Line | None:
    end = data.find(b"\n", start)
    line = data[start : end if end >= 0 else len(data)]
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    return None if record.get("removed") is True else (record["StudyInstanceUID"], record, line)
