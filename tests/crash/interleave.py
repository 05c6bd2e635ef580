"""Running several actors in every order: one goes on at a time, from one primitive to the next.

Each actor is a function in a thread of its own that stops before every primitive of
``archive/tree/durable.py`` that others may notice, and before some looks at the tree that they may
change; ``Stage`` lets one go on, to its next stop. ``explore`` runs the actors anew for each order:
those with few switches first (away from an actor that could have gone on; few are needed to show
what a race can do), then seeded random ones with any number.

In one of the orders' variants an actor is killed where it stands: it does nothing any more, as if
its process had died; nothing it would do on the way out is done.

What nobody else can notice is no stop, as it makes no difference when it is done: syncs (there is
no power loss here), work on an unfinished file of one's own, and derived files that one actor
alone touches.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from plainpacs.archive.store import manifest_writer, publish, writer
from plainpacs.archive.tree import durable, publisher, root
from plainpacs.indexer.index import rebuild
from plainpacs.indexer.service import indexer as service
from tests.crash.power import PRIMITIVES, SYNCS

_OWN = re.compile(r"/\.plainpacs/incoming/[^/]*$|/\.plainpacs/incoming/.*/\d+$")
_DERIVED = re.compile(
    r"/(studies\.jsonl|study\.json)$|/\.plainpacs/(instances|seen|audit)(/|$)|"
    r"/\.plainpacs/indexing/(clock\.|[^/]*\.new)"
)
_LOOKS = (
    (durable, "open_folder"),
    (publisher, "same_file"),
    (publisher.Publisher, "_in_place"),
    (publish.Publication, "_holds_same"),
    (rebuild, "study_files"),
    (rebuild, "read_manifest"),
    (service, "facts_of"),
)
"""What looks at the tree, without changing it, where an actor stops too."""


_A_WHILE = "a while"


class Killed(BaseException):
    """Ends the thread of an actor that was killed; no ``except Exception`` stops it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which actor goes on at a stop, or is ``killed`` there."""

    actor: int
    killed: bool = False


@dataclass
class Actor:
    number: int
    run: Callable[[], Any]
    result: Any = None
    error: BaseException | None = None
    killed: bool = False
    ended: bool = False
    stop: str = ""
    """Before what it stands."""
    waits: Callable[[], bool] | None = None
    """While this is true it cannot go on."""
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Stage:
    """Runs actors, one at a time, stop by stop."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._arrived = threading.Semaphore(0)

    def run(
        self, actors: Sequence[Callable[[], Any]], choose: Callable[[list[Choice], int], Choice]
    ) -> tuple[list[Actor], list[str]]:
        """Runs them to their ends. ``choose(possible, last)`` says who goes on; ``last`` is who
        did before. Returns the actors, and what was done by whom."""
        cast = [Actor(number, run) for number, run in enumerate(actors)]
        threads = [threading.Thread(target=self._play, args=(one,)) for one in cast]
        told: list[str] = []
        for thread in threads:
            thread.start()
            self._wait()
        last = -1
        while any(not one.ended for one in cast):
            able = [one for one in cast if not one.ended and not (one.waits and one.waits())]
            assert able, f"all wait for one another: {told}"
            # Who waits for a while does so until the others can go on no more.
            able = [one for one in able if one.stop != _A_WHILE] or able
            possible = [Choice(one.number) for one in able]
            # Of one that stood still meanwhile it makes no difference when it dies.
            possible += [Choice(last, killed=True)] if Choice(last) in possible else []
            choice = choose(possible, last)
            chosen = cast[choice.actor]
            chosen.killed = choice.killed
            told.append(f"{chosen.number}{' killed before' if choice.killed else ''} {chosen.stop}")
            last = chosen.number
            chosen.waits = None
            chosen.go.release()
            self._wait()
        for thread in threads:
            thread.join()
        return cast, told

    def _wait(self) -> None:
        assert self._arrived.acquire(timeout=30), "an actor does not come to its next stop"

    def _play(self, actor: Actor) -> None:
        self._here.actor = actor
        try:
            self.stop("the beginning")
            actor.result = actor.run()
        except Killed:
            pass
        except BaseException as error:
            actor.error = error
        finally:
            actor.ended = True
            self._arrived.release()

    def stop(self, what: str, waits: Callable[[], bool] | None = None) -> None:
        """Called by an actor: it stands here until it is let go on."""
        actor: Actor | None = getattr(self._here, "actor", None)
        if actor is None:
            return
        if actor.killed:
            raise Killed
        actor.stop, actor.waits = what, waits
        self._arrived.release()
        actor.go.acquire()
        if actor.killed:
            raise Killed

    @property
    def is_dead(self) -> bool:
        actor: Actor | None = getattr(self._here, "actor", None)
        return actor is not None and actor.killed

    # --- where they stop -----------------------------------------------------------------------

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Puts the stops in, and locks that know of the stage."""
        stage = self

        class Lock:
            """A lock for actors: whoever waits for it lets the others go on."""

            def __init__(self) -> None:
                self._held = False

            def __enter__(self) -> None:
                if self._held:
                    stage.stop("a lock", lambda: self._held)
                self._held = True

            def __exit__(self, *_: object) -> None:
                self._held = False

        with pytest.MonkeyPatch.context() as patch:
            for name in PRIMITIVES:
                patch.setattr(durable, name, self._stopping(name, getattr(durable, name)))
            for where, name in _LOOKS:
                patch.setattr(where, name, self._looking(name, getattr(where, name)))
            threads = SimpleNamespace(**vars(threading) | {"Lock": Lock})
            for module in (publisher, manifest_writer, publish):
                patch.setattr(module, "threading", threads)
            # Who waits for another process lets it go on.
            time = SimpleNamespace(**vars(writer.time) | {"sleep": lambda _: stage.stop(_A_WHILE)})
            patch.setattr(writer, "time", time)
            patch.setattr(root, "fcntl", SimpleNamespace(**vars(fcntl) | {"flock": self._flock}))
            yield

    def _flock(self, fd: int, kind: int) -> None:
        def taken() -> bool:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

        if kind & fcntl.LOCK_NB or getattr(self._here, "actor", None) is None:
            fcntl.flock(fd, kind)
        elif taken():
            self.stop("a lock of processes", taken)

    def _stopping(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def primitive(*args: Any, **kwargs: Any) -> Any:
            if self.is_dead:
                raise Killed
            if getattr(self._here, "actor", None) is not None and name not in SYNCS:
                path = _path(args, kwargs)
                if not _unnoticed(name, path):
                    self.stop(f"{name} {path}")
            return real(*args, **kwargs)

        return primitive

    def _looking(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **kwargs: Any) -> Any:
            self.stop(name)
            return real(*args, **kwargs)

        return look


def _path(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a primitive is about, as a full path."""
    if "to_folder" in kwargs:
        return f"{_of(kwargs['to_folder'])}/{args[1]}"
    if "folder" in kwargs:
        return f"{_of(kwargs['folder'])}/{args[0]}"
    return _of(args[0])


def _of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _unnoticed(name: str, path: str) -> bool:
    # How many links a file has is noticed by who heals: the end of an unfinished one is a stop.
    return bool(_DERIVED.search(path)) or (name != "unlink" and bool(_OWN.search(path)))


# --- the orders ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: what was chosen, and what came of it."""

    chosen: tuple[Choice, ...]
    actors: list[Actor]
    told: list[str]


def explore(
    stage: Stage,
    play: Callable[[Callable[[list[Choice], int], Choice]], tuple[list[Actor], list[str]]],
    *,
    switches: int,
    at_most: int,
    lucky: int,
) -> Iterator[Run]:
    """Runs ``play(choose)`` in orders with at most ``switches`` switches, a kill counting as one:
    all with few, and of those with more a seeded choice, ``at_most`` together; then in ``lucky``
    random orders.
    """
    rng = random.Random(0)
    todo: list[tuple[int, float, tuple[Choice, ...]]] = [(0, 0.0, ())]
    for _ in range(at_most):
        if not todo:
            break
        wanted = heapq.heappop(todo)[2]
        script = _Script(wanted)
        actors, told = play(script)
        yield Run(tuple(script.chosen), actors, told)
        for at in range(len(wanted), len(script.chosen)):
            for other in script.possible[at]:
                plan = (*script.chosen[:at], other)
                cost = script.cost(plan)
                once = sum(one.killed for one in plan) <= 1
                if other != script.chosen[at] and once and cost <= switches:
                    heapq.heappush(todo, (cost, rng.random(), plan))
    for seed in range(lucky):
        luck = _Luck(seed)
        actors, told = play(luck)
        yield Run(tuple(luck.chosen), actors, told)


class _Script:
    """Chooses as wanted, then lets whoever goes on go on."""

    def __init__(self, wanted: tuple[Choice, ...]) -> None:
        self._wanted = wanted
        self.chosen: list[Choice] = []
        self.possible: list[list[Choice]] = []

    def __call__(self, possible: list[Choice], last: int) -> Choice:
        at = len(self.chosen)
        choice = Choice(last) if Choice(last) in possible else possible[0]
        if at < len(self._wanted):
            choice = self._wanted[at]
            assert choice in possible, "the same choices lead to the same stops"
        self.possible.append(possible)
        self.chosen.append(choice)
        return choice

    def cost(self, plan: tuple[Choice, ...]) -> int:
        """How often ``plan`` leaves an actor that could have gone on, or kills one."""
        cost, last = 0, -1
        for choice, possible in zip(plan, self.possible, strict=False):
            cost += choice.killed or (choice.actor != last and Choice(last) in possible)
            last = choice.actor
        return cost


class _Luck:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._kill_at = self._rng.randrange(100)
        self.chosen: list[Choice] = []

    def __call__(self, possible: list[Choice], last: int) -> Choice:
        kill = len(self.chosen) == self._kill_at
        some = [one for one in possible if one.killed is kill] or possible[:1]
        self.chosen.append(self._rng.choice(some))
        return self.chosen[-1]
