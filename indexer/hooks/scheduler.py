"""When the user's commands are run: for a study that settled, for an instance that came.

The indexer notes each study that it rebuilt (``Hooks.note``): one that has grown since its commands
were last run gets a marker, before the indexer lets go of it. A thread of its own does the rest: it
waits until a study has had no new instance for the while, records that it settled, and starts the
processes that run the commands (``hook_process``), in the order in which the studies settled, not
more than a few at once, and again after a while when they fail.

What is to be done is decided from the tree and the study's log alone (``hook_history``), so a kill
at any moment forgets nothing and runs nothing twice. Times are of the monotonic clock; how long a
study has been quiet when the indexer starts is told by its folders, in the file system's own time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import LOCK_EX

from plainpacs.archive.app.settings import Settings, environment
from plainpacs.archive.child_process import python_command
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import file_system_now, stamp, try_lock
from plainpacs.indexer.hooks.journal import HookBook
from plainpacs.indexer.hooks.retry_policy import Kind, Level, Verdict, command_of, settled_line
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.index.study_record import StudyRecord, study_record

log = logging.getLogger(__name__)

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
    def commands(self) -> dict[Kind, str]:
        """Those that there are."""
        return {kind: text for kind in Kind if (text := command_of(self.settings, kind))}

    @property
    def quiet(self) -> float:
        return self.settings.settle_seconds

    @property
    def at_once(self) -> int:
        return self.settings.hooks_at_once


@dataclass(slots=True)
class _Job:
    """A marker that waits, to be looked at when ``ready`` (monotonic).

    ``level``: that of the study when last heard of; ``known`` false: not yet. ``changes`` counts
    how often that changed, ``begun`` is what it was when the process was started. Those that are
    ``to_run`` are started by ``order``.
    """

    order: str
    ready: float
    level: Level | None = None
    known: bool = False
    changes: int = 0
    begun: int = 0
    to_run: bool = False
    process: subprocess.Popen[bytes] | None = None


class Hooks:
    """The user's commands on the archive at ``path``, open as ``root``, of its one indexer.

    Without ``settings`` nothing is run: studies are noted for whoever does.
    """

    def __init__(self, path: str, root: int, settings: HookSettings | None = None) -> None:
        self._path = path
        self._root = root
        self._settings = settings
        self._book = HookBook(root)
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
        if not self._since:
            return
        level = Level(record.instances, record.last_stored) if record else None
        for kind, since in self._since.items():
            with self._lock:
                job = self._jobs.get((kind, study))
                if job is not None:
                    self._heard(kind, job, level)
                    continue
            if level is None or not level.above(self._book.read(study).level(kind), since):
                continue
            with self._lock:
                self._book.mark(kind, study)
                job = self._jobs.setdefault((kind, study), _Job(_now(), 0.0, known=True))
                self._heard(kind, job, level)
        self._wake.set()

    def _heard(self, kind: Kind, job: _Job, level: Level | None) -> None:
        if job.known and level == job.level:
            return
        job.changes += 1
        if not job.known:  # found when we started: its folders tell since when it is quiet
            return
        job.level, job.to_run = level, False
        job.ready = time.monotonic()
        if kind is Kind.STUDY and self._settings:
            job.ready += self._settings.quiet

    # --- at work ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, the commands are run; whoever is given none turns them off.

        At the end no more are started. What runs is given a few seconds to end, and then left to
        itself: it records its own end. Raises OSError, StorageUnavailable.
        """
        self._start()
        try:
            yield
        finally:
            self._stop()

    def _start(self) -> None:
        self.turn_on()
        if self._since:
            self._thread = threading.Thread(target=self._run, name="hooks")
            self._thread.start()

    def turn_on(self) -> None:
        """What is stored from now on is new; or has been since, when it was on already."""
        commands = self._settings.commands if self._settings else ()
        self._since = self._book.turn_on(commands, self._settings.since if self._settings else "")

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread:
            self._thread.join()
        deadline = time.monotonic() + _PATIENCE
        for job in self._jobs.values():
            if job.process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.process.wait(max(0.0, deadline - time.monotonic()))

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
        with self._lock:
            jobs = list(self._jobs.items())
        for (kind, study), job in jobs:
            if job.process and job.process.poll() is not None:
                self._trying(self._ended, kind, study, job)
        ready = [(key, job) for key, job in jobs if job.ready <= now and not job.process]
        ready.sort(key=lambda pair: pair[1].ready)
        for (kind, study), job in [pair for pair in ready if not pair[1].to_run][:_AT_A_TIME]:
            self._trying(self._decide, kind, study, job)
        free = self._room(jobs)
        for (kind, study), job in sorted(ready, key=lambda pair: pair[1].order):
            if not free or self._stopping.is_set():
                return
            if job.to_run and not job.process:
                self._trying(self._begin, kind, study, job)
                free -= job.process is not None

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

    def _room(self, jobs: list[tuple[tuple[Kind, Study], _Job]]) -> int:
        assert self._settings
        return self._settings.at_once - sum(job.process is not None for _, job in jobs)

    def _seconds_to_next(self) -> float:
        """Until a job is ready that can be dealt with; one that runs wakes us when it ends."""
        with self._lock:
            jobs = list(self._jobs.items())
        full = not self._room(jobs)
        times = [job.ready for _, job in jobs if not job.process and not (full and job.to_run)]
        return min(_LOOK_EVERY, max(0.0, min(times, default=_FAR) - time.monotonic()))

    def _find_marked(self) -> None:
        """Markers that were there before us, or were set by hand since."""
        for kind in self._since:
            for study in self._book.waiting(kind):
                with self._lock:
                    self._jobs.setdefault((kind, study), _Job("", time.monotonic()))

    # --- one study ----------------------------------------------------------------------------

    def _decide(self, kind: Kind, study: Study, job: _Job) -> None:
        if not job.known and not self._look_at(kind, study, job):
            return
        changes, level, since = job.changes, job.level, self._since[kind]
        history = self._book.read(study)
        verdict = history.verdict(kind, level, since)
        if verdict is Verdict.GREW and kind is Kind.STUDY:
            if self._is_pending(study):  # we shall hear of it
                job.ready = time.monotonic() + 1.0
                return
            assert level
            job.order = _now()
            self._book.append(study, settled_line(job.order, level))
            self._book.settle(study)
            verdict = Verdict.RUN
            log.info("study %s/%s settled with %d instances", *study, level.instances)
        with self._lock:
            if job.changes != changes:
                return
            if verdict in (Verdict.DONE, Verdict.FAILED):
                if verdict is Verdict.DONE:
                    self._book.done(kind, study)
                else:
                    self._book.give_up(kind, study)
                    log.error("study %s/%s: the %s command failed for good; `plainpacs status` "
                              "lists it", *study, kind.value)  # fmt: skip
                del self._jobs[kind, study]
            elif verdict is Verdict.LATER:
                job.ready = time.monotonic() + history.wait(kind)
            else:
                job.order = job.order or history.settled_at or _now()
                job.to_run = True

    def _is_pending(self, study: Study) -> bool:
        name = layout.pending_name(*study)
        folders = (layout.PENDING, layout.INDEXING)
        return any(os.path.exists(os.path.join(self._path, folder, name)) for folder in folders)

    def _look_at(self, kind: Kind, study: Study, job: _Job) -> bool:
        """How far the study has grown, of a marker that we found; False: it settles later."""
        changes = job.changes
        record = study_record(self._path, *study)
        level = Level(record.instances, record.last_stored) if record else None
        before = self._book.read(study).level(kind)
        wait = 0.0
        if kind is Kind.STUDY and level and level.above(before, self._since[kind]):
            wait = self._quiet_left(study)
        with self._lock:
            if job.changes != changes:
                return False
            job.level, job.known = level, True
            job.ready = time.monotonic() + wait
        return not wait

    def _quiet_left(self, study: Study) -> float:
        """Seconds until the study has been quiet for long enough, by the times of its folders."""
        assert self._settings
        times = []
        with (
            contextlib.suppress(FileNotFoundError),
            os.scandir(os.path.join(self._path, *study)) as entries,
        ):
            times = [e.stat().st_mtime_ns for e in entries if e.is_dir(follow_symlinks=False)]
        quiet = self._settings.quiet
        if not times:
            return quiet
        return min(quiet, max(0.0, quiet - (file_system_now(self._root) - max(times)) / 1e9))

    def _begin(self, kind: Kind, study: Study, job: _Job) -> None:
        """Starts the process, unless one that an indexer before us left is still at work."""
        assert self._settings
        lock = self._book.open_mark(kind, study)
        try:
            if not try_lock(lock, LOCK_EX):
                job.ready, job.to_run = time.monotonic() + 1.0, False
                return
            # What that one did may be recorded since we decided.
            history = self._book.read(study)
            if history.verdict(kind, job.level, self._since[kind]) not in _STARTS[kind]:
                job.to_run = False
                return
            job.begun = job.changes
            job.process = subprocess.Popen(
                python_command(
                    "plainpacs.indexer.hooks.runner",
                    *(kind.value, *study, str(lock), str(self._root), self._path),
                    self._since[kind],
                ),
                stdin=subprocess.DEVNULL,
                env=environment(self._settings.settings),
                pass_fds=(lock, self._root),
                start_new_session=True,
            )
        finally:
            os.close(lock)
        threading.Thread(target=self._wake_after, args=(job.process,), daemon=True).start()

    def _wake_after(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._wake.set()

    def _ended(self, kind: Kind, study: Study, job: _Job) -> None:
        assert job.process
        status = job.process.returncode
        job.process = None
        given = self._book.read(study).given
        with self._lock:
            job.to_run = False
            if job.changes == job.begun:
                job.ready = time.monotonic()
                if kind is Kind.INSTANCE:  # it may have found less than we had heard of
                    job.level = given
        if status:
            log.warning("study %s/%s: what runs its commands ended with %d", *study, status)
            job.ready = time.monotonic() + _AFTER_ERROR


def _now() -> str:
    return stamp(time.time_ns())


_FAR = float("inf")
_STARTS = {Kind.STUDY: (Verdict.RUN,), Kind.INSTANCE: (Verdict.RUN, Verdict.GREW)}
