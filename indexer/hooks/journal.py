"""The folder ``.plainpacs/hooks``: which studies wait for a command, and what was run before.

    on                                {"study": TIME, "instance": TIME}: since when each is on
    study/<month>~<study>             an empty file: the study grew, and is to be dealt with
    instance/<month>~<study>          the same, for the command of its instances
    failed/<kind>~<month>~<study>     the command failed for good
    log/<month>/<study>.jsonl         what was done; only appended to

Lines of a log; a *level* is ``"instances": N, "last_stored": TIME``:

    {"settled": TIME, LEVEL, "exit": N}    the command for the settled study is dealt with
    {"given": TIME, LEVEL}                 so are the instances up to this level
    {"of": "<SeriesInstanceUID>/<SOPInstanceUID> <stored>", "ran": TIME, "exit": N}    one of them
    {"again": TIME}                        what had failed is to be tried again

The marker goes last: whoever is killed leaves it, and the command is run at least once.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import orjson

from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.publisher import Publisher
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.index.rebuild import Study

log = logging.getLogger(__name__)
T = TypeVar("T")

_FAILED = f"{layout.HOOKS}/failed"
_ON = f"{layout.HOOKS}/on"
_STYLE = orjson.OPT_APPEND_NEWLINE


class Kind(enum.Enum):
    """What a command is run for."""

    STUDY = "study"
    INSTANCE = "instance"


class Level(NamedTuple):
    """How far a study has grown: its instances, and when the last was stored."""

    instances: int
    last_stored: str

    def above(self, before: Level | None, since: str) -> bool:
        """Whether an instance came after ``before``; with none before, after ``since``.

        The number is looked at too: clocks are set back, and those of several nodes differ.
        """
        if before is None:
            return self.last_stored >= since
        return self.last_stored > before.last_stored or self.instances > before.instances


_NOTHING = Level(-1, "")


class Failure(NamedTuple):
    exit: int
    time: str


@dataclass(slots=True)
class History:
    """What a study's log says. ``dealt_with``: instances, by the key in their line; the study's
    own failure has the key ``""``."""

    levels: dict[Kind, Level] = field(default_factory=dict)
    dealt_with: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> History:
        """Takes every line that parses, and skips the rest."""
        history = cls()
        for raw in data.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                history._take(orjson.loads(raw))
        return history

    def _take(self, line: Mapping[str, Any]) -> None:
        if "settled" in line:
            self.levels[Kind.STUDY] = Level(int(line["instances"]), str(line["last_stored"]))
            self._ended("", int(line["exit"]), str(line["settled"]))
        elif "given" in line:
            self.levels[Kind.INSTANCE] = Level(int(line["instances"]), str(line["last_stored"]))
        elif "of" in line:
            self.dealt_with.add(str(line["of"]))
            self._ended(str(line["of"]), int(line["exit"]), str(line["ran"]))
        elif "again" in line:
            if "" in self.failures:
                self.levels[Kind.STUDY] = _NOTHING
            self.dealt_with.difference_update(self.failures)
            self.failures.clear()

    def _ended(self, key: str, status: int, at: str) -> None:
        if status:
            self.failures[key] = Failure(status, at)
        else:
            self.failures.pop(key, None)

    def failing(self, kind: Kind) -> list[Failure]:
        return [one for key, one in self.failures.items() if bool(key) is (kind is Kind.INSTANCE)]


class HookJournal:
    """The folder, beneath the open ``root``. Methods raise OSError, StorageUnavailable."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._publisher = Publisher(root)

    # --- since when ---------------------------------------------------------------------------

    def since(self) -> dict[Kind, str]:
        """The kinds that are on; an instance stored before is nothing new."""
        try:
            found = orjson.loads(durable.read_file(_ON, folder=self._root) or b"")
            return {kind: str(found[kind.value]) for kind in Kind if kind.value in found}
        except (ValueError, TypeError, OSError):
            return {}

    def turn_on(self, kinds: Collection[Kind], now: str) -> dict[Kind, str]:
        """These kinds are on from ``now``, or have been since before; the others are off."""
        before = self.since()
        wanted = {kind: before.get(kind, now) for kind in kinds}
        if wanted != before:
            data = {kind.value: time for kind, time in wanted.items()}
            try:
                self._publisher.folder(layout.HOOKS)
                durable.replace_file(self._root, _ON, orjson.dumps(data, option=_STYLE))
            except (OSError, PlainpacsError) as error:  # indexing does not wait for hooks
                log.warning("cannot record that hooks are on, until the next start: %s", error)
        return wanted

    # --- markers ------------------------------------------------------------------------------

    def waiting(self, kind: Kind) -> list[Study]:
        names = self._list(_marks(kind))
        return [study for name in names if (study := layout.study_of_pending(name))]

    def failed(self) -> list[tuple[Kind, Study]]:
        found = []
        for name in sorted(self._list(_FAILED)):
            kind, _, rest = name.partition("~")
            study = layout.study_of_pending(rest)
            if study and kind in (one.value for one in Kind):
                found.append((Kind(kind), study))
        return found

    def mark(self, kind: Kind, study: Study) -> None:
        name = layout.pending_name(*study)
        self._within(_marks(kind), lambda folder: durable.touch(name, folder=folder))

    def open_mark(self, kind: Kind, study: Study) -> int:
        """An open file, to lock."""
        name = layout.pending_name(*study)
        return self._within(
            _marks(kind), lambda folder: durable.open_to_append(name, folder=folder)
        )

    def done(self, kind: Kind, study: Study) -> None:
        """Nothing waits, and nothing is failed any more."""
        for path in (_failed(kind, study), _mark(kind, study)):
            with contextlib.suppress(FileNotFoundError):
                durable.unlink(path, folder=self._root)

    def give_up(self, kind: Kind, study: Study) -> None:
        paths = _mark(kind, study), _failed(kind, study)
        with contextlib.suppress(FileNotFoundError):
            self._within(
                _FAILED,
                lambda _: durable.rename(*paths, folder=self._root, to_folder=self._root),
            )

    def try_again(self, kind: Kind, study: Study) -> None:
        """What failed for good waits to be tried as if it were new."""
        self.append(study, {"again": stamp(time.time_ns())})
        self.mark(kind, study)
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(_failed(kind, study), folder=self._root)

    # --- logs ---------------------------------------------------------------------------------

    def read(self, study: Study) -> History:
        return History.of(durable.read_file(_log(study), folder=self._root) or b"")

    def append(self, study: Study, *lines: Mapping[str, Any]) -> None:
        """Durably."""
        data = b"".join(orjson.dumps(line, option=_STYLE) for line in lines)
        self._within(
            _log(study).rpartition("/")[0],
            lambda _: durable.append_lines(self._root, _log(study), data),
        )
        durable.settle(self._root, _log(study))

    def _within(self, folder: str, change: Callable[[int], T]) -> T:
        """``change`` in the open folder, which is made when absent; once more when it went away."""
        try:
            return change(self._publisher.folder(folder).fd)
        except FileNotFoundError:
            self._publisher.forget(folder)
            return change(self._publisher.folder(folder).fd)

    def _list(self, path: str) -> list[str]:
        try:
            folder = durable.open_folder(path, folder=self._root)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(folder)
        finally:
            os.close(folder)


def _marks(kind: Kind) -> str:
    return f"{layout.HOOKS}/{kind.value}"


def _mark(kind: Kind, study: Study) -> str:
    return f"{_marks(kind)}/{layout.pending_name(*study)}"


def _failed(kind: Kind, study: Study) -> str:
    return f"{_FAILED}/{kind.value}~{layout.pending_name(*study)}"


def _log(study: Study) -> str:
    return f"{layout.HOOKS}/log/{study[0]}/{study[1]}.jsonl"
