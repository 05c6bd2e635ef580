"""Which studies lie in several months, so that a query need not look for the parts of each.

``.plainpacs/several`` has a line for every such study; the last one for a study counts, and one
with fewer than two months says that it lies in several no more:

    {"several":true}
    {"StudyInstanceUID":"1.2","months":["202401","202402"]}

The first line is there when it is whole. The indexer keeps it, and writes a study's line before it
lists the study; where it is missing, as on a copy without ``.plainpacs``, every month is looked
through instead.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_month, is_name
from plainpacs.indexer.index import catalogue

Months = tuple[str, ...]

_FIRST = b'{"several":true}\n'
_LISTED = re.compile(rb'\n\{"StudyInstanceUID":"([^"\n]*)"')


def several_months(root: str, months: Iterable[str]) -> dict[str, Months]:
    """The months, earliest first, of each study that lies in more than one of ``months``; perhaps
    of others, too, in some of which nothing is left."""
    known = recorded(root)
    return by_looking(root, months) if known is None else known


def recorded(root: str) -> dict[str, Months] | None:
    """What the index says; None when it is missing or may not be read."""
    data = _read(root)
    if data is None:
        return None
    found = dict(_lines(data))
    return {study: where for study, where in found.items() if len(where) > 1}


def _read(root: str, most: int = -1) -> bytes | None:
    """The file, ``most`` bytes of it; None without its first line, as when it was removed while
    somebody appended."""
    try:
        with open(os.path.join(root, layout.SEVERAL), "rb") as file:
            data = file.read(most)
    except OSError:
        return None
    return data if data.startswith(_FIRST) else None


def _lines(data: bytes) -> Iterator[tuple[str, Months]]:
    for raw in data.split(b"\n"):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            line: Any = orjson.loads(raw)
            study, where = line["StudyInstanceUID"], line["months"]
            if is_name(study) and all(is_month(month) for month in where):
                yield study, tuple(where)


def by_looking(root: str, months: Iterable[str]) -> dict[str, Months]:
    """What the folders and the catalogues say; those that cannot be read say nothing."""
    # The names of a million studies would take a lot of memory: their hashes do to find the few.
    once: set[int] = set()
    again: set[int] = set()
    months = sorted(months)
    for month in months:
        hashes = {hash(study) for study in _named_in(root, month)}
        again |= once & hashes
        once |= hashes
    if not again:
        return {}
    found: dict[str, list[str]] = {}
    for month in months:
        for study in _named_in(root, month):
            if hash(study) in again:
                found.setdefault(study, []).append(month)
    return {study: tuple(where) for study, where in found.items() if len(where) > 1}


def _named_in(root: str, month: str) -> set[str]:
    names: set[str] = set()
    with contextlib.suppress(OSError):
        names.update(name for name in os.listdir(os.path.join(root, month)) if is_name(name))
    with contextlib.suppress(OSError):
        data = catalogue.read(root, month) or b""
        names.update(name.decode("utf-8", "replace") for name in _LISTED.findall(b"\n" + data))
    return names


class SplitStudies:
    """The index, for the indexer that keeps it: of the archive at ``path``, open as ``root``."""

    def __init__(self, path: str, root: int) -> None:
        self._path = path
        self._root = root
        self._known: Mapping[str, Months] | None = None
        self._read = False
        self._unsettled = False

    def note(self, study: str) -> None:
        """Sees to it that the index says where the study lies. Raises OSError."""
        if not self._read:
            self._known, self._read = recorded(self._path), True
        if self._known is None:  # it says nothing of other studies either
            return
        months = catalogue.months(self._path)
        where = [m for m in months if os.path.isdir(os.path.join(self._path, m, study))]
        now = tuple(sorted(where)) if len(where) > 1 else ()
        if now == self._known.get(study, ()):
            return
        durable.append_lines(self._root, layout.SEVERAL, _line(study, now))
        self._unsettled = True
        self._known = {**self._known, study: now}

    def settle(self) -> None:
        """What was noted outlives a power loss; where there is no index, it is made anew. Raises
        as that does."""
        if not _read(self._path, len(_FIRST)):
            self.make_anew()
        elif self._unsettled:
            durable.settle(self._root, layout.SEVERAL)
        self._unsettled = False

    def make_anew(self) -> None:
        """Looks through every month, and puts what it found in the index's place. Raises OSError,
        NotAnArchive."""
        found = by_looking(self._path, catalogue.months(self._path))
        lines = b"".join(_line(study, found[study]) for study in sorted(found))
        durable.replace_file(self._root, layout.SEVERAL, _FIRST + lines)
        self._known, self._read = found, True


def _line(study: str, months: Months) -> bytes:
    line = {"StudyInstanceUID": study, "months": months}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
