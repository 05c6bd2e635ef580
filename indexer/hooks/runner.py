"""Runs a command of the user for one study, or for each new instance of it, and waits for it."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import orjson

from plainpacs.archive.app.hook_command import (
    INSTANCE_PLACES,
    STUDY_PLACES,
    HookWords,
    LooksLikeAnOption,
)
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.hooks.journal import HookJournal, Kind, Level
from plainpacs.indexer.index.manifest_facts import InstanceFacts, present
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.output.printable import visible

_LOG = logging.getLogger("plainpacs.hooks")
_HEAD, _TAIL = 2000, 2000
_CANNOT_RUN, _NOT_FOUND = 126, 127
"""Exit statuses as those of a shell."""
PLACES = {Kind.STUDY: STUDY_PLACES, Kind.INSTANCE: INSTANCE_PLACES}


class _Present(NamedTuple):
    """An instance that lies in the tree, and the line that counts for it."""

    series: str
    name: str
    facts: InstanceFacts

    @property
    def key(self) -> str:
        return f"{self.series}/{layout.instance_of(self.name)} {self.facts.stored}"


def _present_in(path: str, study: Study) -> list[_Present]:
    """The instances of the study that have a valid line, in the order in which they were stored.

    Raises OSError.
    """
    found = [_Present(*one) for one in present(path, *study)]
    return sorted(found, key=lambda one: (one.facts.stored, one.series, one.name))


@dataclass(frozen=True, slots=True)
class HookRun:
    """The command of one kind, for one study of the archive at ``path``.

    ``environ``: what the command's environment has besides what it is told. ``lock``: the open
    marker, locked. The command holds it, too: should we be killed, whoever indexes next does not
    run it a second time before it has ended.
    """

    book: HookJournal
    kind: Kind
    path: str
    study: Study
    command: HookWords
    environ: Mapping[str, str]
    lock: int

    def for_study(self) -> int:
        """The exit status of the command; 0 when nothing of the study is there any more."""
        there = _present_in(self.path, self.study)
        return self._call(self._study_values(there)) if there else 0

    def for_instances(self, since: str) -> tuple[Level, dict[str, int]]:
        """Gives the command each instance that the log does not name; those stored before ``since``
        are not new. What succeeded is logged. How far it got, and exit statuses of what failed."""
        dealt_with = self.book.read(self.study).dealt_with
        there = _present_in(self.path, self.study)
        failed = {}
        for one in there:
            if one.facts.stored < since or one.key in dealt_with:
                continue
            if status := self._call(self._instance_values(one)):
                failed[one.key] = status
            else:
                self.book.append(self.study, ran_line(one.key, 0))
        return _level_of(there), failed

    # --- what the command is told -------------------------------------------------------------

    def _study_values(self, there: list[_Present]) -> dict[str, str]:
        lines = [orjson.loads(one.facts.raw) for one in there]
        level = _level_of(there)
        return {
            **self._values(layout.study_folder(*self.study), lines),
            "series": str(len({one.series for one in there})),
            "instances": str(level.instances),
            "first_stored": min(one.facts.stored for one in there),
            "last_stored": level.last_stored,
        }

    def _instance_values(self, one: _Present) -> dict[str, str]:
        line = orjson.loads(one.facts.raw)
        folder = layout.study_folder(*self.study)
        return {
            **self._values(f"{folder}/{one.series}/{one.name}", [line]),
            "SeriesInstanceUID": one.series,
            "SOPInstanceUID": str(layout.instance_of(one.name)),
            "SOPClassUID": one.facts.sop_class,
            "transfer_syntax": _text(line.get("transfer_syntax")),
            "origin": _text(line.get("origin")),
            "stored": one.facts.stored,
        }

    def _values(self, path: str, lines: list[Mapping[str, Any]]) -> dict[str, str]:
        def several(key: str) -> str:
            return ",".join(sorted({_text(line.get(key)) for line in lines} - {""}))

        return {
            "path": os.path.join(self.path, path),
            "archive": self.path,
            "month": self.study[0],
            "StudyInstanceUID": self.study[1],
            "bytes": str(sum(line["bytes"] for line in lines)),
            "calling_ae": several("calling_ae"),
            "called_ae": several("called_ae"),
            "peer": several("peer"),
        }

    # --- running it ---------------------------------------------------------------------------

    def _call(self, values: Mapping[str, str]) -> int:
        """Runs the command; its exit status, or minus the signal that ended it."""
        what = values.get("SOPInstanceUID", "")
        place = f"study {'/'.join(self.study)}{what and ', instance '}{what}"
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                self.command.filled(values),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(values),
                pass_fds=(self.lock,),
                start_new_session=True,
            )
        except (LooksLikeAnOption, ValueError) as error:
            _LOG.warning("%s: the command was not run: %s", place, error)
            return _CANNOT_RUN
        except OSError as error:
            _LOG.warning("%s: the command cannot be run: %s", place, error.strerror)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN
        assert process.stdout
        output = _Output(process.stdout)
        status = process.wait()
        for line in output.lines():
            _LOG.info("%s says: %s", place, line)
        took = time.monotonic() - began
        level = logging.WARNING if status else logging.INFO
        _LOG.log(level, "%s: the command ended with %d after %.1f s", place, status, took)
        return status

    def _environment(self, values: Mapping[str, str]) -> dict[str, str]:
        # A plainpacs that the command calls is to work on this archive.
        ours = {"PLAINPACS_ARCHIVE": self.path, "HOOK_KIND": self.kind.value}
        told = {PLACES[self.kind][name]: value for name, value in values.items()}
        return {**self.environ, **ours, **told}


def ran_line(key: str, status: int) -> dict[str, Any]:
    return {"of": key, "ran": stamp(time.time_ns()), "exit": status}


def _level_of(there: list[_Present]) -> Level:
    return Level(len(there), max((one.facts.stored for one in there), default=""))


def _text(value: object) -> str:
    return value.replace("\0", "") if isinstance(value, str) else ""


class _Output:
    """What a command prints, its start and its end; what lies between is read and forgotten."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._head = self._tail = b""
        self._left_out = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while some := os.read(self._pipe.fileno(), 1 << 16):
                room = _HEAD - len(self._head)
                self._head += some[:room]
                self._left_out |= len(self._tail) + len(some[room:]) > _TAIL
                self._tail = (self._tail + some[room:])[-_TAIL:]

    def lines(self) -> Iterator[str]:
        """When the command has ended."""
        # Something that it left behind may hold the pipe open for ever.
        self._thread.join(1.0)
        gap = b"\n[...]\n" if self._left_out else b""
        for line in (self._head + gap + self._tail).decode("utf-8", "replace").splitlines():
            if line.strip():
                yield visible(line)
