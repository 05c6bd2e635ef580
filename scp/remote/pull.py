"""Fetching what is missing: several associations at once, each taking the next part of the work.

    for event in pull(plan, work):
        ...

An association that is lost is opened again, and what has not come yet asked for once more. What a
peer does not send by a list of instances is asked for as a whole series.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.store.store import Stored
from plainpacs.scp.network.connection import Stopping
from plainpacs.scp.network.requestor import NoAssociation
from plainpacs.scp.remote import missing
from plainpacs.scp.remote.calling import LOST, Failed, lost
from plainpacs.scp.remote.retrieve import Result, Retriever, Wanted
from plainpacs.scp.storage.store_scp import StoreAnswer

_MOST_TRIES = 2


@dataclass(frozen=True, slots=True)
class Came:
    """Instances that came: one, over the association, or several, that were sent to a receiver.

    ``stored``: what became of the one.
    """

    number: int
    size: int = 0
    stored: Stored | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What was not fetched, or was not kept, and at which step it failed. ``number``: how many
    instances, as far as that is known."""

    what: str
    step: str
    why: str
    number: int = 1


Event = Came | Problem
Take = Callable[[str, StoreAnswer, int], None]
Open = Callable[[Wanted, Take, Callable[[int], None], int], Retriever]
"""Opens an association for a part: what takes instances, what counts them, the stop descriptor."""


class Pull:
    """Fetches the ``wanted`` into the archive at ``root``, by ``jobs`` associations that ``open_``
    opens. Iterate over ``run``."""

    def __init__(self, root: str, wanted: Iterable[Wanted], open_: Open, jobs: int) -> None:
        self._root = root
        self._open = open_
        self._jobs = jobs
        self._waiting = deque(wanted)
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._stopping, self._stop = os.pipe2(os.O_CLOEXEC)

    def stop(self) -> None:
        """Aborts the associations, after the instances in hand. From a signal handler, too."""
        stop, self._stop = self._stop, -1
        if stop >= 0:
            os.close(stop)  # ``_stopping`` is readable from now on

    def run(self) -> Iterator[Event]:
        """What happens, as it does, until all came or it is to ``stop``. Raises StorageUnavailable
        when the archive can take no more, and NoAssociation or Failed when no association came
        about at all; each after what came of the instances in hand."""
        number = min(self._jobs, len(self._waiting))
        workers = [
            threading.Thread(target=_Worker(self).run, name=f"pull {one}") for one in range(number)
        ]
        for worker in workers:
            worker.start()
        refusals: list[NoAssociation | Failed] = []
        trouble: BaseException | None = None
        came = False
        try:
            while number:
                event = self._events.get()
                if event is None:
                    number -= 1
                elif isinstance(event, (NoAssociation, Failed)):
                    refusals.append(event)
                elif isinstance(event, BaseException):
                    trouble = trouble or event
                    self.stop()
                else:
                    came = True
                    yield event
        finally:
            stopped = self._stop < 0
            self.stop()
            for worker in workers:
                worker.join()
            os.close(self._stopping)
        if trouble:
            raise trouble
        if stopped:
            return
        if self._waiting and refusals and not came:
            raise refusals[0]
        for left in self._waiting:  # nobody was left to fetch it
            yield Problem(str(left), refusals[0].step, refusals[0].why, left.number)

    # --- for the workers ----------------------------------------------------------------------

    def tell(self, event: Event | BaseException | None) -> None:
        self._events.put(event)

    def next(self) -> Wanted | None:
        with contextlib.suppress(IndexError):
            return self._waiting.popleft()
        return None

    def put_back(self, wanted: Wanted) -> None:
        self._waiting.append(wanted)

    def open(self, wanted: Wanted, take: Take, moved: Callable[[int], None]) -> Retriever:
        return self._open(wanted, take, moved, self._stopping)

    def present(self, wanted: Wanted) -> dict[str, int]:
        """Raises StorageUnavailable."""
        try:
            series = [wanted.series] if wanted.series else None
            return missing.present(self._root, wanted.study, series)
        except OSError as error:
            raise StorageUnavailable(
                f"cannot list study {wanted.study}: {error.strerror}"
            ) from None


@dataclass(slots=True)
class _Worker:
    """One thread, with one association at a time."""

    pull: Pull
    retriever: Retriever | None = None
    taken: set[str] = field(default_factory=set)
    """Of the part in hand: what came and was kept."""
    refused: set[str] = field(default_factory=set)
    """What came and was not."""
    counted: int = 0
    """How many were sent elsewhere."""

    def run(self) -> None:
        try:
            while (wanted := self.pull.next()) is not None:
                try:
                    self._fetch(wanted)
                except (NoAssociation, Failed) as error:
                    self.pull.put_back(self._rest(wanted))
                    self.pull.tell(error)
                    return
            self._close(abort=False)
        except Stopping:
            pass
        except BaseException as error:  # for the thread that waits
            self.pull.tell(error)
        finally:
            self._close(abort=True)
            self.pull.tell(None)

    def _fetch(self, wanted: Wanted) -> None:
        self.taken, self.refused, self.counted = set(), set(), 0
        for left in range(_MOST_TRIES - 1, -1, -1):
            try:
                result = self._association(wanted).retrieve(wanted)
            except LOST as error:
                self._close(abort=True)
                wanted = self._rest(wanted)
                if wanted.missing == {}:
                    return
                if not left:
                    number = wanted.number
                    self.pull.tell(Problem(str(wanted), "association", lost(error), number))
            else:
                self._judge(wanted, result)
                return

    def _association(self, wanted: Wanted) -> Retriever:
        if self.retriever is not None and not self.retriever.serves(wanted):
            self._close(abort=False)
        if self.retriever is None:
            self.retriever = self.pull.open(wanted, self._take, self._count)
        return self.retriever

    def _close(self, *, abort: bool) -> None:
        retriever, self.retriever = self.retriever, None
        if retriever is not None:
            (retriever.association.give_up if abort else retriever.association.release)()

    def _take(self, uid: str, answer: StoreAnswer, size: int) -> None:
        if answer.stored is not None:
            self.taken.add(uid)
            self.pull.tell(Came(1, size, answer.stored))
        elif isinstance(answer.error, StorageUnavailable):
            raise answer.error
        else:
            self.refused.add(uid)
            self.pull.tell(Problem(uid, "storing", str(answer.error)))

    def _count(self, number: int) -> None:
        self.counted += number
        self.pull.tell(Came(number))

    def _rest(self, wanted: Wanted) -> Wanted:
        """What has not come of ``wanted``."""
        if wanted.missing is None:
            return wanted
        there = self.taken | self.refused
        if self.counted:
            there |= self.pull.present(wanted).keys()
        left = {uid: cls for uid, cls in wanted.missing.items() if uid not in there}
        if len(left) == len(wanted.missing):
            return wanted
        listed = tuple(left) if len(left) <= missing.MOST_LISTED else ()
        return replace(wanted, instances=listed, missing=left)

    def _judge(self, wanted: Wanted, result: Result) -> None:
        """Says what did not come, or asks for it in another way."""
        if wanted.missing is None:
            if result.status:
                self.pull.tell(Problem(str(wanted), "status", result.told))
            for uid in sorted(result.failed - self.refused):
                self.pull.tell(Problem(uid, "status", "the peer could not send it"))
            return
        rest = self._rest(wanted).missing or {}
        if self.counted:
            self._tell_sizes(wanted.missing.keys() - rest.keys(), wanted)
        if not rest:
            return
        nothing = len(rest) == len(wanted.missing) and not (self.counted or result.failed)
        if nothing and wanted.instances:
            # A peer that does not understand lists.
            self.pull.put_back(replace(wanted, instances=()))
        elif nothing and result.status:
            self.pull.tell(Problem(str(wanted), "status", result.told, len(rest)))
        else:
            for uid in rest:
                self.pull.tell(Problem(uid, "status", self._why(uid, result)))

    def _why(self, uid: str, result: Result) -> str:
        if uid in result.failed:
            return f"the peer could not send it; {result.told}"
        if self.counted:
            return "the peer sent it, and it is not in this archive: does its receiver run?"
        return f"it did not come; {result.told}"

    def _tell_sizes(self, uids: Collection[str], wanted: Wanted) -> None:
        present = self.pull.present(wanted)
        self.pull.tell(Came(0, sum(present.get(uid, 0) for uid in uids)))
