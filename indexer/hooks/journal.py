"""What the user's commands were run for, and what they wait for: ``.plainpacs/hooks``.

    on                        since when each kind is on: {"study": "2024-…", "instance": "2024-…"}
    study/<month>~<study>     an empty file: a study that grew, whose settling is not dealt with yet
    instance/<month>~<study>  the same: it has instances that are not all given to the command yet
    failed/<kind>~<month>~<study>    what failed for good
    log/<month>/<study>.jsonl        what was done for the study; only appended to

Whoever runs a command holds the lock (``flock``) on the marker meanwhile. The log has lines of four
kinds; times are UTC, a *level* is ``{"instances": N, "last_stored": TIME}``:

    {"settled": TIME, LEVEL}            the study, at this level, had no new instance for a while
    {"given": TIME, LEVEL}              all instances of this level were given to ``on_instance``
    {"of": WHAT, "ran": TIME, "exit": N}     the command ended; WHAT is the TIME of a settling, or
                                        "<SeriesInstanceUID>/<SOPInstanceUID> <stored>"
    {"again": TIME}                     what failed is to be tried again

What is to be done follows from the level of the study as it is and from this log alone
(``hook_history``), so that it does not matter when whoever does it is killed, nor how often the
same is asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import orjson

from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.publisher import Publisher
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.hooks.retry_policy import History, Kind

log = logging.getLogger(__name__)
T = TypeVar("T")
Study = tuple[str, str]
"""(month, StudyInstanceUID), as elsewhere; its module would take a process of hooks 60 ms."""

_FAILED = f"{layout.HOOKS}/failed"
_ON = f"{layout.HOOKS}/on"


class HookBook:
    """The folder, beneath the open ``root``. Methods raise OSError, StorageUnavailable."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._publisher = Publisher(root)

    # --- since when ---------------------------------------------------------------------------

    def since(self) -> dict[Kind, str]:
        """The kinds that are on; an instance stored before is nothing new."""
        try:
            found = orjson.loads(self._read(_ON))
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
        self.settle(study)
        self.mark(kind, study)
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(_failed(kind, study), folder=self._root)

    # --- logs ---------------------------------------------------------------------------------

    def read(self, study: Study) -> History:
        return History.of(self._read(_log(study)))

    def append(self, study: Study, line: Mapping[str, Any]) -> None:
        """It outlives a power loss when ``settle`` returns."""
        data = orjson.dumps(line, option=_STYLE)
        self._within(
            _log(study).rpartition("/")[0],
            lambda _: durable.append_lines(self._root, _log(study), data),
        )

    def settle(self, study: Study) -> None:
        durable.settle(self._root, _log(study))

    def _within(self, folder: str, change: Callable[[int], T]) -> T:
        """``change`` in the open folder, which is made when absent; once more when it went away."""
        try:
            return change(self._publisher.folder(folder).fd)
        except FileNotFoundError:
            self._publisher.forget(folder)
            return change(self._publisher.folder(folder).fd)

    def _read(self, path: str) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return b""
        with open(fd, "rb") as file:
            return file.read()

    def _list(self, path: str) -> list[str]:
        try:
            folder = durable.open_folder(path, folder=self._root)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(folder)
        finally:
            os.close(folder)


_STYLE = orjson.OPT_APPEND_NEWLINE


def _marks(kind: Kind) -> str:
    return f"{layout.HOOKS}/{kind.value}"


def _mark(kind: Kind, study: Study) -> str:
    return f"{_marks(kind)}/{layout.pending_name(*study)}"


def _failed(kind: Kind, study: Study) -> str:
    return f"{_FAILED}/{kind.value}~{layout.pending_name(*study)}"


def _log(study: Study) -> str:
    return f"{layout.HOOKS}/log/{study[0]}/{study[1]}.jsonl"
