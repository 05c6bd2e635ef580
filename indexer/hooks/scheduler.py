"""When the user's commands are run: for a study that settled, for an instance that came.

The indexer reports each study that it rebuilt (``Hooks.note``). One that has grown gets a marker
before the indexer releases it. A thread of its own does the rest: it waits until the study has had
no new instance for ``settle_seconds``, and starts the commands (``runner``) in the order in which
studies settled, a few at once, and again after a pause when they fail. A finished command gets a
line in the study's log; then its marker is removed. So a kill at any moment loses no command, and
may run one twice.

Times are of the monotonic clock; how long a study has been quiet when the indexer starts is told by
its folders, in the file system's own time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import LOCK_EX

from plainpacs.archive.app.hook_command import HookWords
from plainpacs.archive.app.settings import Settings, environment
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import file_system_now, stamp, try_lock
from plainpacs.indexer.hooks.journal import HookJournal, Kind, Level
from plainpacs.indexer.hooks.runner import PLACES, HookRun, ran_line
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.index.study_record import StudyRecord, study_record

log = logging.getLogger(__name__)

BACK_OFF = (10.0, 60.0, 300.0, 1800.0)
"""Seconds to wait after the first, second … try that failed; the one after the last is final."""
_LOOK_EVERY = 10.0
_AFTER_ERROR = 30.0
_AT_A_TIME = 200
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class HookSettings:
    """The ``settings`` say which commands are run, and are theirs, too. What was stored before
    ``since`` is nothing new when a kind is turned on."""

    settings: Settings
    since: str

    @property
    def commands(self) -> dict[Kind, HookWords]:
        """Those that there are."""
        chosen = self.settings
        texts = {Kind.STUDY: chosen.on_study_settled, Kind.INSTANCE: chosen.on_instance}
        return {kind: HookWords.parse(text, PLACES[kind]) for kind, text in texts.items() if text}


@dataclass(slots=True)
class _Job:
    """A marker, to be dealt with when ``ready``; the study is at ``level`` as far as is known.

    ``known`` false: it was there before us. ``tries`` failed since the study last ``changed``;
    ``began`` and ``thread`` tell that we have been, and are, at work on it.
    """

    ready: float
    level: Level | None = None
    known: bool = False
    tries: int = 0
    changed: bool = False
    began: bool = False
    thread: threading.Thread | None = None


class Hooks:
    """The user's commands on the archive at ``path``, open as ``root``, of its one indexer.

    Without ``settings`` nothing is run: studies are noted for whoever does.
    """

    def __init__(self, path: str, root: int, settings: HookSettings | None = None) -> None:
        self._path = path
        self._root = root
        self._commands = settings.commands if settings else {}
        self._settings = settings.settings if settings else Settings()
        self._turned_on = settings.since if settings else ""
        self._book = HookJournal(root)
        self._since = self._book.since()
        self._jobs: dict[tuple[Kind, Study], _Job] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._looked = 0.0
        self._thread: threading.Thread | None = None

    # --- the indexer's side -------------------------------------------------------------------

    def note(self, study: Study, record: StudyRecord | None) -> None:
        """The study was indexed. Durable when it returns, as far as markers are.

        Raises OSError, StorageUnavailable.
        """
        level = Level(record.instances, record.last_stored) if record else None
        for kind, since in self._since.items():
            with self._lock:
                job = self._jobs.get((kind, study))
                if job is None:
                    if level is None:
                        continue
                    if not level.above(self._book.read(study).levels.get(kind), since):
                        continue
                    self._book.mark(kind, study)
                    job = self._jobs[kind, study] = _Job(0.0, known=True)
                self._heard(kind, job, level)
        self._wake.set()

    def _heard(self, kind: Kind, job: _Job, level: Level | None) -> None:
        if not job.known or level == job.level:  # what we found, we look at ourselves
            return
        job.level, job.changed, job.tries = level, True, 0
        job.ready = time.monotonic() + (self._settings.settle_seconds if kind is Kind.STUDY else 0)

    # --- at work ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, the commands are run; whoever is given none turns them off.

        At the end no more are started. What runs is given a few seconds to end, and then left to
        itself; it is run again by whoever indexes next. Raises StorageUnavailable.
        """
        self.turn_on()
        if self._since:
            self._thread = threading.Thread(target=self._run, name="hooks")
            self._thread.start()
        try:
            yield
        finally:
            self._stop()

    def turn_on(self) -> None:
        """What is stored from now on is new; or has been since, when it was on already."""
        self._since = self._book.turn_on(self._commands, self._turned_on)

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread:
            self._thread.join()
        deadline = time.monotonic() + _PATIENCE
        for job in list(self._jobs.values()):
            if thread := job.thread:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.turn()
            except (OSError, PlainpacsError) as error:
                log.warning("cannot look after the commands to be run, trying again: %s", error)
                self._stopping.wait(1.0)
            self._wake.wait(self._seconds_to_next())

    def turn(self) -> None:
        """Does what there is to do just now."""
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._find_marked()
            self._looked = now
        for key, job in [one for one in self._ready(now) if not one[1].known][:_AT_A_TIME]:
            self._trying(self._look_at, *key, job)
        for key, job in self._ready(now):
            if not self._free() or self._stopping.is_set():
                return
            if job.known:
                self._trying(self._begin, *key, job)

    def _find_marked(self) -> None:
        """Markers that were there before us, or were set by hand since."""
        for kind in self._since:
            for study in self._book.waiting(kind):
                with self._lock:
                    self._jobs.setdefault((kind, study), _Job(time.monotonic()))

    def _ready(self, now: float) -> list[tuple[tuple[Kind, Study], _Job]]:
        with self._lock:
            found = [one for one in self._jobs.items() if one[1].ready <= now]
        return sorted((one for one in found if not one[1].thread), key=lambda one: one[1].ready)

    def _free(self) -> int:
        """How many more commands may be started."""
        with self._lock:
            running = sum(job.thread is not None for job in self._jobs.values())
        return self._settings.hooks_at_once - running

    def _seconds_to_next(self) -> float:
        """Until a job is ready that can be dealt with; one that ends wakes us."""
        free = self._free()
        with self._lock:
            jobs = [
                job for job in self._jobs.values() if not job.thread and (free or not job.known)
            ]
        times = [job.ready for job in jobs]
        return min(_LOOK_EVERY, max(0.0, min(times, default=_FAR) - time.monotonic()))

    def _trying(
        self, step: Callable[[Kind, Study, _Job], None], kind: Kind, study: Study, job: _Job
    ) -> None:
        """One study that cannot be dealt with does not hold up the others."""
        try:
            step(kind, study, job)
        except (OSError, PlainpacsError) as error:
            log.warning("cannot look after the %s command of study %s/%s, trying again later: %s",
                        kind.value, *study, error)  # fmt: skip
            job.ready = time.monotonic() + _AFTER_ERROR

    # --- one study ----------------------------------------------------------------------------

    def _look_at(self, kind: Kind, study: Study, job: _Job) -> None:
        """Reads how far the study of a marker found at the start has grown, and when it settles."""
        with self._lock:
            record = study_record(self._path, *study)
            job.level = Level(record.instances, record.last_stored) if record else None
            job.known = True
            if kind is Kind.STUDY and job.level:
                job.ready = time.monotonic() + self._quiet_left(study)

    def _quiet_left(self, study: Study) -> float:
        """Seconds until the study has been quiet for long enough, by the times of its folders; how
        long ago that was, with a minus."""
        times = []
        with (
            contextlib.suppress(FileNotFoundError),
            os.scandir(os.path.join(self._path, *study)) as entries,
        ):
            times = [e.stat().st_mtime_ns for e in entries if e.is_dir(follow_symlinks=False)]
        quiet = self._settings.settle_seconds
        if not times:
            return quiet
        return min(quiet, quiet - (file_system_now(self._root) - max(times)) / 1e9)

    def _is_pending(self, study: Study) -> bool:
        name = layout.pending_name(*study)
        folders = (layout.PENDING, layout.INDEXING)
        return any(os.path.exists(os.path.join(self._path, folder, name)) for folder in folders)

    def _begin(self, kind: Kind, study: Study, job: _Job) -> None:
        """Starts the command, unless nothing is new or an earlier run of it is still at work."""
        with self._lock:
            level = job.level
            if kind is Kind.STUDY:
                if level and self._is_pending(study):  # we shall hear of it
                    job.ready = time.monotonic() + 1.0
                    return
                before = self._book.read(study).levels.get(kind)
                if level and not level.above(before, self._since[kind]):
                    level = None
            if level is None:
                self._dealt_with(kind, study)
                return
            lock = self._book.open_mark(kind, study)
            # A command that an indexer before us began may be at work yet.
            if not try_lock(lock, LOCK_EX) and not job.began:
                os.close(lock)
                job.ready = time.monotonic() + 1.0
                return
            job.began, job.changed = True, False
            command, environ = self._commands[kind], environment(self._settings)
            run = HookRun(self._book, kind, self._path, study, command, environ, lock)
            job.thread = threading.Thread(
                target=self._work, args=(run, job, level), name="hook", daemon=True
            )
        job.thread.start()

    def _work(self, run: HookRun, job: _Job, level: Level) -> None:
        """In a thread of its own."""
        try:
            self._trying(lambda *_: self._run_and_record(run, job, level), run.kind, run.study, job)
        finally:
            os.close(run.lock)
            job.thread = None
            self._wake.set()

    def _run_and_record(self, run: HookRun, job: _Job, level: Level) -> None:
        kind, study = run.kind, run.study
        if kind is Kind.STUDY:
            log.info("study %s/%s settled with %d instances", *study, level.instances)
            status = run.for_study()
            failed = {"": status} if status else {}
        else:
            level, failed = run.for_instances(self._since[kind])
        with self._lock:
            if failed and (job.changed or self._stopping.is_set()):
                return
            if failed and job.tries < len(BACK_OFF):
                job.ready = time.monotonic() + BACK_OFF[job.tries]
                job.tries += 1
                return
            self._record(run, level, failed)
            if job.changed:
                return
            self._dealt_with(kind, study, failed=bool(failed))
        if failed:
            log.error("study %s/%s: the %s command failed for good; `plainpacs status` lists it",
                      *study, kind.value)  # fmt: skip

    def _record(self, run: HookRun, level: Level, failed: dict[str, int]) -> None:
        now = stamp(time.time_ns())
        if run.kind is Kind.STUDY:
            lines = [{"settled": now, **level._asdict(), "exit": failed.get("", 0)}]
        else:
            lines = [ran_line(key, status) for key, status in failed.items()]
            lines.append({"given": now, **level._asdict()})
        self._book.append(run.study, *lines)

    def _dealt_with(self, kind: Kind, study: Study, *, failed: bool = False) -> None:
        (self._book.give_up if failed else self._book.done)(kind, study)
        del self._jobs[kind, study]


_FAR = float("inf")
