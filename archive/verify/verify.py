"""Looking over an archive, or a part of it: a stream of findings. Nothing is changed, ever.

Study by study, its folder is held against its manifests (``verify_study``). What is not sound by
that is looked at once more, since a receiver, a removal or the indexer may be at work, and then
closely (``verify_instance``). Of what is sound the digests are computed, in several threads: a file
that has the digest in its line is what was read when the line was made, so what the line says of
its header holds. ``Check``s look at what goes beyond an instance.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import digest_of
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import months, studies_in
from plainpacs.archive.tree.targets import Target
from plainpacs.archive.verify.finding import Finding, FindingKind, Severity
from plainpacs.archive.verify.instance import (
    Reader,
    examine,
    meta_fault,
    open_instance,
    read_error,
)
from plainpacs.archive.verify.study import Sound, StudyLook, look, sorted_out

_BATCH_BYTES = 32 << 20
_BATCH_FILES = 64
_AHEAD = 4  # batches in hand for each thread


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify. ``targets``: only these; none: everything. ``since``: only instances stored
    at or after, in nanoseconds. ``rate``: bytes read in a second. ``after``: digests only of
    studies after this one, ``<month>/<StudyInstanceUID>``."""

    targets: tuple[Target, ...] = ()
    since: int | None = None
    fast: bool = False
    threads: int = 1
    rate: float | None = None
    after: str = ""

    @property
    def whole(self) -> bool:
        """Whether it looks at all there is, so that what is nowhere can be told."""
        return not self.targets and self.since is None


@dataclass(slots=True)
class Progress:
    """How far it is. ``damage``: how many of the findings are. ``reached``: the last study of
    which, as of all before it, all is done."""

    studies: int = 0
    instances: int = 0
    findings: int = 0
    damage: int = 0
    reached: str = ""
    reader: Reader = field(default_factory=Reader)


class Check:
    """Looks at what goes beyond an instance, as verifying comes by."""

    def study(self, seen: StudyLook) -> Iterable[Finding]:
        """Called with each study, month by month."""
        return ()

    def month(self, month: str) -> Iterable[Finding]:
        """Called after the last study of a month, when all of it was seen."""
        return ()

    def end(self) -> Iterable[Finding]:
        """Called after everything else."""
        return ()


Job = Callable[[], list[Finding]]


class Verification:
    """One look over the archive at the path ``root``. Iterate over it once, for its findings.

    ``tick`` is called when all of a study is read. Raises NotAnArchive, StorageUnavailable.
    """

    def __init__(
        self,
        root: str,
        options: Options,
        checks: Sequence[Check] = (),
        tick: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.progress = Progress(reader=Reader(options.rate))
        self._root = root
        self._options = options
        self._checks = checks
        self._tick = tick
        self.forbidden = _forbidden(root)
        self._waiting: deque[tuple[str, Future[list[Finding]]]] = deque()

    def __iter__(self) -> Iterator[Finding]:
        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="verify") as pool:
            try:
                for finding in self._findings(pool):
                    self.progress.findings += 1
                    self.progress.damage += finding.severity is Severity.DAMAGE
                    yield finding
            finally:
                for _, future in self._waiting:
                    future.cancel()

    def _findings(self, pool: ThreadPoolExecutor) -> Iterator[Finding]:
        for month in months(self._root):
            try:
                studies = self._studies(month)
            except OSError as error:
                yield Finding.of_path(FindingKind.READ_ERROR, month, read_error(error), month)
                continue
            for study in studies:
                try:
                    yield from self._study(pool, month, study)
                except OSError as error:
                    path, words = layout.study_folder(month, study), read_error(error)
                    yield Finding.of_study(FindingKind.READ_ERROR, month, study, path, words)
                yield from self._done(self._options.threads * _AHEAD)
            if self._options.whole:
                for check in self._checks:
                    yield from check.month(month)
        yield from self._done(0)
        for check in self._checks:
            yield from check.end()

    def _studies(self, month: str) -> list[str]:
        studies = studies_in(self._root, month)
        if self._options.targets:
            named = {one.study for one in self._options.targets if one.month == month}
            return [study for study in studies if study in named]
        if self._options.since is not None:
            return [study for study in studies if self._changed_since(month, study)]
        return studies

    def _changed_since(self, month: str, study: str) -> bool:
        """Whether anything was put into, or taken out of, the study since. Also when unsure."""
        since = self._options.since or 0
        try:
            with os.scandir(os.path.join(self._root, month, study)) as entries:
                return any(entry.stat().st_mtime_ns >= since for entry in entries)
        except OSError:
            return True

    def _study(self, pool: ThreadPoolExecutor, month: str, study: str) -> Iterator[Finding]:
        seen = look(self._root, month, study)
        sound, suspect = sorted_out(seen, self.forbidden)
        suspect = [key for key in suspect if wanted(self._options, key)]
        sound = [one for one in sound if wanted(self._options, one.key, one.file.mtime)]
        self.progress.studies += 1
        self.progress.instances += len(sound) + len(suspect)
        path = layout.study_folder(month, study)
        if suspect:
            self._submit(pool, path, lambda: self._examine(month, study, suspect))
        if not self._options.fast and path > self._options.after:
            for batch in _batches(sound):
                self._submit(pool, path, lambda batch=batch: self._hash(batch))  # type: ignore[misc]  # the lambda's default binds this turn's batch
        for check in self._checks:
            yield from check.study(seen)

    # --- in threads -----------------------------------------------------------------------------

    def _submit(self, pool: ThreadPoolExecutor, path: str, job: Job) -> None:
        self._waiting.append((path, pool.submit(job)))

    def _done(self, most: int) -> Iterator[Finding]:
        """The findings of the jobs that are done, waiting until no more than ``most`` are not."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][1].done()):
            path, future = self._waiting.popleft()
            yield from future.result()
            if not self._waiting or self._waiting[0][0] != path:
                self.progress.reached = path
                self._tick(self.progress)

    def _examine(self, month: str, study: str, keys: Iterable[InstanceKey]) -> list[Finding]:
        """Looks at the study anew, and closely at these instances."""
        try:
            seen = look(self._root, month, study)
        except OSError:  # said already, or the study is gone
            return []
        found = (self._examine_one(seen, key) for key in keys)
        return [finding for finding in found if finding is not None]

    def _examine_one(self, seen: StudyLook, key: InstanceKey) -> Finding | None:
        subject = seen.subject(key)
        if subject.file and not wanted(self._options, key, subject.file.mtime):
            return None
        fast, reader = self._options.fast, self.progress.reader
        return examine(self._root, subject, reader, self.forbidden, thorough=not fast)

    def _hash(self, batch: list[Sound]) -> list[Finding]:
        suspect = [one.key for one in batch if not self._is_what_was_stored(one)]
        return self._examine(batch[0].key.month, batch[0].key.study, suspect) if suspect else []

    def _is_what_was_stored(self, one: Sound) -> bool:
        name, wanted = digest_of(one.line)
        try:
            fd = open_instance(self._root, one.key)
            try:
                if name and self.progress.reader.digest(fd, name) != wanted:
                    return False
                return not meta_fault(fd, one.key, one.line)
            finally:
                os.close(fd)
        except OSError:
            return False


def wanted(options: Options, key: InstanceKey, mtime: int | None = None) -> bool:
    """Whether ``options`` mean the instance, whose file is of ``mtime`` as far as that is known."""
    if options.since is not None and mtime is not None and mtime < options.since:
        return False
    return not options.targets or any(target.covers(key) for target in options.targets)


def _batches(sound: list[Sound]) -> Iterator[list[Sound]]:
    batch: list[Sound] = []
    size = 0
    for one in sound:
        batch.append(one)
        size += one.file.size
        if size > _BATCH_BYTES or len(batch) == _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _forbidden(root: str) -> Forbidden:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Forbidden.load(fd)
    except StorageUnavailable as error:
        # Another user's archive: what lies in .plainpacs is not ours to see.
        if isinstance(error.__cause__, PermissionError):
            return Forbidden()
        raise
    finally:
        os.close(fd)
