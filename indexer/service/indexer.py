"""The indexer at work: it alone, on one archive, until it is stopped.

One thread claims and rebuilds the studies that are due; another reconciles now and then. A study
is due half a second after its marker was first seen; one that keeps being added to, at the latest
after ``max(1.5 s, 10 times its last rebuild)``, so that a long acquisition costs a tenth of a core
at most. All times are of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plainpacs.archive.errors import PlainpacsError, StorageUnavailable
from plainpacs.archive.store.incoming_cleanup import mark_published
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import layout
from plainpacs.indexer.hooks.scheduler import Hooks, HookSettings
from plainpacs.indexer.index.rebuild import Rebuilder, Study
from plainpacs.indexer.index.recover_lines import LineRecovery
from plainpacs.indexer.service.browser_headers import BrowserHeaders
from plainpacs.indexer.service.index_lock import (
    check_index_lock,
    lock_index,
    release_index_lock,
)
from plainpacs.indexer.service.pending import (
    REQUEST_HEADERS,
    REQUEST_REBUILD,
    REQUEST_RECONCILE,
    Pending,
    additions_first,
    month_to_compact,
    request_to_compact,
)
from plainpacs.indexer.service.rebuild_all import rebuild_everything, reread_everything
from plainpacs.indexer.service.reconcile import Facts, facts_of, reconcile
from plainpacs.indexer.service.watch import waking

log = logging.getLogger(__name__)

_DEBOUNCE = 0.5
_LIST_EVERY = 1.0
_REBUILD_AT_LEAST_EVERY = 1.5
_REBUILD_SHARE = 10
_RETRY_AFTER = 30.0
_RECONCILE_EVERY = 10.0
_RECONCILE_SHARE = 100
_QUIET = 5.0
_MUCH_APPENDED = 64 << 20
_GATHER = 0.05
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class _Last:
    """When a study's last rebuild ended, how long it took, and what it then looked like."""

    ended: float
    took: float
    facts: Facts | None


class Indexer:
    """The one indexer of an archive. Made by ``Indexer.open``; a context manager.

    ``open`` raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
    """

    def __init__(
        self,
        writer: Writer,
        lock: int,
        digest: str,
        hooks: HookSettings | None = None,
        browsers_after: float | None = None,
    ) -> None:
        self.path = writer.path
        self._writer = writer
        self._lock = lock
        self._recovery = LineRecovery(writer.root, writer.node, digest=digest)
        self._rebuilder = Rebuilder(writer.path, writer.root, self._recovery)
        self._pending = Pending(writer.root)
        self._pending.recover()
        self._hooks = Hooks(writer.path, writer.root, hooks)
        self._headers = BrowserHeaders(writer.path, writer.root, browsers_after)
        self._due: dict[Study, float] = {}
        self._look_again: dict[Study, float] = {}
        self._last: dict[Study, _Last] = {}
        self._taken_out: set[Study] = set()
        self._worked = time.monotonic()
        self._compacted = (0.0, 0.0)
        self._stopping = threading.Event()
        self._wake = threading.Event()

    @classmethod
    def open(
        cls,
        path: str,
        *,
        node: str | None = None,
        digest: str = "blake3",
        wait: Callable[[], bool] | None = None,
        expected: str | None = None,
        hooks: HookSettings | None = None,
        browsers_after: float | None = None,
    ) -> Indexer:
        """As ``lock_index``, on the archive at ``path``; ``expected`` as of ``Writer.open``.

        ``hooks``: the user's commands, which ``run`` has run; ``browsers_after``: seconds after
        which a study has settled and ``run`` makes its headers for browsers.
        """
        writer = Writer.open(path, node, mark_published, expected=expected)
        try:
            lock = lock_index(writer.root, path, wait=wait)
            writer.keep_alive(lock)
            try:
                return cls(writer, lock, digest, hooks, browsers_after)
            except BaseException:
                writer.let_go(lock)
                os.close(lock)
                raise
        except BaseException:
            writer.close()
            raise

    def __enter__(self) -> Indexer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            for study in self._look_again:
                self._pending.mark(study)
        self._recovery.close()
        self._pending.close()
        self._writer.let_go(self._lock)
        release_index_lock(self._writer.root, self._lock)
        self._writer.close()

    def stop(self) -> None:
        """Ends ``run`` soon. From any thread, but not from a signal handler."""
        self._stopping.set()
        self._wake.set()

    # --- all at once ----------------------------------------------------------------------------

    def once(
        self,
        *,
        full: bool = False,
        headers: bool = False,
        reconciling: bool = True,
        tick: Callable[[int], object] = bool,
    ) -> int:
        """Indexes all that is pending or changed, tidies up, and returns how many studies.

        ``full``: every study. ``headers``: the instances' attributes are read again first.
        ``reconciling`` false: only what is pending. ``tick`` is called after each.

        Raises StorageUnavailable; what was not done is done the next time.
        """
        try:
            if headers:
                reread_everything(self.path, self._recovery, self._pending, self._stopping.is_set)
            return self._once(full, reconciling, tick)
        except OSError as error:
            why = error.strerror or str(error)
            raise StorageUnavailable(
                f"cannot index {self.path}: {why}; what is left is done next time"
            ) from error

    def _once(self, full: bool, reconciling: bool, tick: Callable[[int], object]) -> int:
        if full:
            self._pending.request(REQUEST_REBUILD)  # killed half-way, it is wanted all the same
        asked = self._pending.waiting()[1]
        rebuilding = REQUEST_REBUILD in asked
        count = rebuild_everything(self._rebuilder, tick=tick) if rebuilding else 0
        if not rebuilding and (reconciling or REQUEST_RECONCILE in asked):
            reconcile(self.path, self._writer.root, self._pending.mark)
        studies, requests = self._pending.waiting()
        for study in additions_first(self.path, studies):
            count += self._index(study)
            tick(1)
        self._compact_as_asked(requests)
        for name in requests:
            self._pending.done(name)
        return count

    def refresh(self, studies: Iterable[Study]) -> None:
        """Indexes these studies alone, now; their months' catalogues have no line after it of
        what is not there any more. Raises StorageUnavailable when one cannot be indexed."""
        asked = set()
        for study in additions_first(self.path, set(studies)):
            self._pending.mark(study)
            if not self._index(study):
                raise StorageUnavailable(f"study {study[0]}/{study[1]} could not be indexed")
            asked.add(request_to_compact(study[0]))
        self._compact_as_asked(asked)

    def _compact_as_asked(self, requests: set[str]) -> None:
        for request in requests:
            if month := month_to_compact(request):
                self._rebuilder.want_compacted(month)
        self._compact(everything=True)

    def _compact(self, *, everything: bool = False) -> float:
        took = self._rebuilder.compact(everything=everything)
        while self._taken_out:
            self._pending.release(self._taken_out.pop())
        return took

    # --- at work --------------------------------------------------------------------------------

    def run(self) -> None:
        """Keeps the indexes true until ``stop`` is called. Raises StorageUnavailable when the
        archive goes away."""
        pending = os.path.join(self.path, layout.PENDING)
        reconciling = threading.Thread(target=self._reconcile_now_and_then, name="reconcile")
        with waking(pending, self._wake), self._hooks.at_work(), self._headers.at_work():
            reconciling.start()
            try:
                while not self._stopping.is_set():
                    self._wake.wait(self._seconds_to_next())
                    self._wake.clear()
                    # Many studies at once make one list of many, not many of one.
                    self._stopping.wait(_GATHER)
                    self._writer.check()
                    check_index_lock(self._writer.root, self._lock, self.path)
                    try:
                        self._turn()
                    except OSError as error:  # a full disk, say; nothing is lost by waiting
                        log.warning("cannot index, trying again: %s", error)
                        self._stopping.wait(_LIST_EVERY)
            finally:
                self.stop()
                reconciling.join()
        try:
            self._compact(everything=True)
        except OSError as error:  # a full disk, say; whoever indexes next does it
            log.warning("cannot compact the indexes before stopping: %s", error)

    def _turn(self) -> None:
        now = time.monotonic()
        for study in [study for study, at in self._look_again.items() if at <= now]:
            del self._look_again[study]
            self._pending.mark(study)
        studies, requests = self._pending.waiting()
        for study in studies - self._due.keys():
            self._due[study] = self._due_at(study, now)
        if requests:
            self._answer(requests)
        ready = [study for study, due in self._due.items() if due <= now]
        for study in additions_first(self.path, ready):
            if self._stopping.is_set():
                return
            del self._due[study]
            self._index(study)
        self._tidy()

    def _due_at(self, study: Study, now: float) -> float:
        last = self._last.get(study)
        if last is None:
            return now + _DEBOUNCE
        pause = max(_REBUILD_AT_LEAST_EVERY, _REBUILD_SHARE * last.took)
        return max(now + _DEBOUNCE, last.ended + pause)

    def _seconds_to_next(self) -> float:
        soonest = min(self._due.values(), default=time.monotonic() + _LIST_EVERY)
        return min(_LIST_EVERY, max(0.0, soonest - time.monotonic()))

    def _index(self, study: Study) -> int:
        """Claims and rebuilds a study; one that cannot be read is tried again later."""
        if not self._pending.claim(study):
            return 0
        began = time.monotonic()
        try:
            facts = facts_of(self.path, *study)
            rebuilt = self._rebuilder.rebuild(study)
            self._hooks.note(study, rebuilt.record)
            self._headers.note(study, there=rebuilt.record is not None)
            after = facts_of(self.path, *study)
            if facts and after:
                facts["index"] = after["index"]
        except (OSError, PlainpacsError) as error:
            self._writer.check()
            log.warning("cannot index study %s/%s, trying again later: %s", *study, error)
            self._pending.give_back(study)
            self._due[study] = time.monotonic() + _RETRY_AFTER
            return 0
        now = time.monotonic()
        if self._rebuilder.left_in_shards(study):
            self._taken_out.add(study)  # claimed until that is done, should we be killed before
        else:
            self._pending.release(study)
        self._last.pop(study, None)
        self._last[study] = _Last(now, now - began, facts)
        if len(self._last) > _REMEMBERED:
            del self._last[next(iter(self._last))]
        self._worked = now
        # Who stores marks the study once more when the line is there; this is for who never does.
        self._look_again.pop(study, None)
        if rebuilt.waiting:
            self._look_again[study] = now + _RETRY_AFTER
        log.debug("indexed study %s/%s in %.0f ms", *study, 1000 * (now - began))
        return 1

    def _answer(self, requests: set[str]) -> None:
        if REQUEST_REBUILD in requests:
            log.info("rebuilding every index, as asked")
            rebuild_everything(self._rebuilder, self._stopping.is_set)
        if REQUEST_HEADERS in requests:
            log.info("reading the headers again, as asked")
            reread_everything(self.path, self._recovery, self._pending, self._stopping.is_set)
        elif REQUEST_RECONCILE in requests and REQUEST_REBUILD not in requests:
            reconcile(self.path, self._writer.root, self._pending.mark, self._is_indexed)
        if self._stopping.is_set():
            return
        studies, _ = self._pending.waiting()
        failed = set()
        for study in additions_first(self.path, studies):
            self._due.pop(study, None)
            if not self._index(study):
                failed.add(study[0])
        self._compact_as_asked(requests)
        for name in requests:
            # Whoever asks for a month to be compacted relies on it.
            if month_to_compact(name) not in failed:
                self._pending.done(name)

    def _tidy(self) -> None:
        """Compacts when it is quiet, or much was appended; one per cent of the time at most."""
        at, took = self._compacted
        now = time.monotonic()
        busy = now - self._worked < _QUIET and self._rebuilder.appended() < _MUCH_APPENDED
        if busy or now - at < max(_QUIET, _RECONCILE_SHARE * took):
            return
        took = self._compact()
        self._compacted = (time.monotonic(), took)

    # --- reconciling ----------------------------------------------------------------------------

    def _is_indexed(self, study: Study, facts: Facts) -> bool:
        last = self._last.get(study)
        return last is not None and last.facts == facts

    def _reconcile_now_and_then(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            began = time.monotonic()
            try:
                marked = reconcile(
                    self.path,
                    self._writer.root,
                    self._pending.mark,
                    self._is_indexed,
                    self._stopping.is_set,
                )
            except (OSError, PlainpacsError) as error:
                log.warning("cannot look for changes, trying again later: %s", error)
            else:
                log.debug("%d studies differ from when they were last looked at", marked)
            pause = max(_RECONCILE_EVERY, _RECONCILE_SHARE * (time.monotonic() - began))
