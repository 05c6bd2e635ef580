"""A disk that loses its power: what is asked of it is recorded, what it may then hold is built.

``Recorder`` replaces the primitives of ``archive/tree/durable.py`` with ones that do the same and
note it: which directory got or lost which name, which inode got which bytes, what was synced (and
by whom), and what was promised to somebody (``promise``). ``states`` gives, for every moment of
such a record, what a disk may hold when the power fails there.

The model is as weak as POSIX lets a file system be:

- A sync of a file pins its bytes, length and time up to then; not its name.
- A sync of a directory pins its own names up to then; not what they lead to, nor its own name in
  the folder above. What cannot be reached from the top is lost.
- All else may or may not have reached the disk, in whatever order: each operation by itself.
- A rename happens wholly or not, in both directories; syncing either pins it in both.
- Bytes written but not synced are there, not there, cut off half-way, or as long as they should be
  and zero.
- An inode has as many links as names that survived; times of inodes are those of the last change
  of theirs that survived.
- ``.plainpacs/seen`` holds device facts of folders (ctime, inode), which a copy cannot have: where
  a folder holds just what it held, they are rewritten to be those of the copy, as they would have
  been found unchanged on the real disk.

Not modelled: disks that lose what they said was synced, torn renames, bytes of somebody else.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from plainpacs.archive.tree import durable

SYNCS = ("sync_file", "sync_folder")
PRIMITIVES = (
    *SYNCS,
    *("link", "rename", "unlink", "make_folder", "remove_folder", "create", "open_to_append"),
    *("touch", "write", "copy_range", "set_time", "set_mode", "truncate"),
)
Node = int
"""An inode, by a number of ours: the system's are given out again."""
TOP: Node = 0


@dataclass(frozen=True)
class Names:
    """Names given (to a node) or taken away (None), all at once."""

    changes: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True)
class Bytes:
    """``data`` at ``offset``; ``cut``: the file was emptied instead. ``time``: the mtime then."""

    node: Node
    offset: int
    data: bytes
    time: int
    cut: bool = False


@dataclass(frozen=True)
class Time:
    node: Node
    time: int


@dataclass(frozen=True)
class Mode:
    node: Node
    mode: int


@dataclass(frozen=True)
class Sync:
    """``site``: the primitive, and the functions that asked for it, innermost first; ``place``:
    the primitive and the innermost one."""

    node: Node
    site: str

    @property
    def place(self) -> str:
        return self.site.partition(" < ")[0]


@dataclass(frozen=True)
class Promise:
    """Something said to somebody. ``holds``: of the files of a tree, by path."""

    words: str
    holds: Callable[[Mapping[str, bytes]], bool]


Operation = Names | Bytes | Time | Mode | Sync | Promise


@dataclass(slots=True)
class Inode:
    mode: int
    folder: bool
    names: dict[str, Node] = field(default_factory=dict)
    data: bytes = b""
    time: int = 0
    _sorted: tuple[tuple[str, Node], ...] | None = None

    def listed(self) -> tuple[tuple[str, Node], ...]:
        """The names and nodes of a folder that changes no more, sorted."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self.names.items()))
        return self._sorted


class Recorder:
    """Records what is done below the folder ``top``. A context manager; thread-safe."""

    def __init__(self, top: str | Path) -> None:
        self.top = str(top)
        self.log: list[Operation] = []
        self.inodes: dict[Node, Inode] = {}
        self.facts: dict[Node, list[tuple[int, tuple[int, int, int]]]] = {}
        self._nodes: dict[tuple[int, int], Node] = {}
        self._lock = threading.RLock()
        self._real: dict[str, Callable[..., Any]] = {}
        self._scan(self.top)
        self.before = {node: _copy_of(inode) for node, inode in self.inodes.items()}

    def promise(self, words: str, holds: Callable[[Mapping[str, bytes]], bool]) -> None:
        """From here on it must hold, whatever happens to the power."""
        with self._lock:
            self.log.append(Promise(words, holds))

    def look_again(self) -> None:
        """Takes what was done around the primitives as done, and on the disk: call it first."""
        assert not self.log, "nothing is recorded yet"
        self.inodes.clear()
        self.facts.clear()
        self._nodes.clear()
        self._scan(self.top)
        self.before = {node: _copy_of(inode) for node, inode in self.inodes.items()}

    # --- what is there before ------------------------------------------------------------------

    def _scan(self, path: str) -> Node:
        facts = os.lstat(path)
        key = (facts.st_dev, facts.st_ino)
        if key in self._nodes:
            return self._nodes[key]
        node = self._add(facts)
        inode = self.inodes[node]
        if inode.folder:
            for name in sorted(os.listdir(path)):
                inode.names[name] = self._scan(os.path.join(path, name))
        else:
            inode.data = Path(path).read_bytes()
            inode.time = facts.st_mtime_ns
        return node

    def _add(self, facts: os.stat_result) -> Node:
        node = len(self.inodes)
        self._nodes[facts.st_dev, facts.st_ino] = node
        self.inodes[node] = Inode(facts.st_mode & 0o7777, folder=(facts.st_mode >> 12) == 0o04)
        self._note_facts(node, facts)
        return node

    def _note_facts(self, node: Node, facts: os.stat_result) -> None:
        if self.inodes[node].folder:
            found = (facts.st_ctime_ns, facts.st_mtime_ns, facts.st_ino)
            self.facts.setdefault(node, []).append((len(self.log) + 1, found))

    # --- recording -----------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        for name in PRIMITIVES:
            self._real[name] = getattr(durable, name)
            setattr(durable, name, self._recorded(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(durable, name, real)

    def _recorded(self, name: str) -> Callable[..., Any]:
        note: Callable[..., Any] = getattr(self, f"_{name}")

        def called(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return note(self._real[name], *args, **kwargs)

        return called

    def _node(self, fd: int) -> Node | None:
        facts = os.fstat(fd)
        return self._nodes.get((facts.st_dev, facts.st_ino))

    def _named(self, name: str, folder: int) -> Node | None:
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self._nodes.get((facts.st_dev, facts.st_ino))

    def _names(self, *changes: tuple[int, str, Node | None]) -> None:
        """Notes names changed, given relative to open folders, of those below the top."""
        known = []
        for folder, path, node in changes:
            above, _, name = path.rpartition("/")
            facts = os.stat(above, dir_fd=folder) if above else os.fstat(folder)
            where = self._nodes.get((facts.st_dev, facts.st_ino))
            if where is not None:
                self._note_facts(where, facts)
                known.append((where, name, node))
        if known:
            self.log.append(Names(tuple(known)))

    def _added(self, name: str, folder: int) -> None:
        """Notes a new inode with its first name."""
        if self._node(folder) is not None:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            self._names((folder, name, self._add(facts)))

    def _sync_file(self, real: Callable[..., Any], fd: int) -> None:
        self._synced("sync_file", real, fd)

    def _sync_folder(self, real: Callable[..., Any], fd: int) -> None:
        self._synced("sync_folder", real, fd)

    def _synced(self, name: str, real: Callable[..., Any], fd: int) -> None:
        real(fd)
        node = self._node(fd)
        if node is not None:
            self.log.append(Sync(node, f"{name}: {' < '.join(callers())}"))

    def _link(
        self, real: Callable[..., Any], name: str, to: str, *, folder: int, to_folder: int
    ) -> None:
        real(name, to, folder=folder, to_folder=to_folder)
        self._names((to_folder, to, self._named(to, to_folder)))

    def _rename(
        self, real: Callable[..., Any], name: str, to: str, *, folder: int, to_folder: int
    ) -> None:
        node, target = self._named(name, folder), self._named(to, to_folder)
        real(name, to, folder=folder, to_folder=to_folder)
        if node != target:  # two names of one file: rename does nothing
            self._names((folder, name, None), (to_folder, to, node))

    def _unlink(self, real: Callable[..., Any], name: str, *, folder: int) -> None:
        real(name, folder=folder)
        self._names((folder, name, None))

    _remove_folder = _unlink

    def _make_folder(
        self, real: Callable[..., Any], name: str, mode: int = 0o777, *, folder: int
    ) -> None:
        real(name, mode, folder=folder)
        self._added(name, folder)

    def _create(
        self, real: Callable[..., Any], name: str, mode: int = 0o666, *, folder: int
    ) -> int:
        fd: int = real(name, mode, folder=folder)
        self._added(name, folder)
        return fd

    def _open_to_append(self, real: Callable[..., Any], name: str, *, folder: int) -> Any:
        there = os.access(name, os.F_OK, dir_fd=folder, follow_symlinks=False)
        result = real(name, folder=folder)
        if not there:
            self._added(name, folder)
        return result

    _touch = _open_to_append

    def _write(self, real: Callable[..., Any], fd: int, buffers: Any) -> int:
        at = os.fstat(fd).st_size if _appends(fd) else os.lseek(fd, 0, os.SEEK_CUR)
        taken: int = real(fd, buffers)
        self._bytes(fd, at, b"".join(buffers)[:taken])
        return taken

    def _copy_range(
        self, real: Callable[..., Any], source: int, to: int, length: int, offset: int
    ) -> int:
        at = os.lseek(to, 0, os.SEEK_CUR)
        taken: int = real(source, to, length, offset)
        if taken:
            self._bytes(to, at, os.pread(source, taken, offset))
        return taken

    def _truncate(self, real: Callable[..., Any], fd: int) -> None:
        real(fd)
        self._bytes(fd, 0, b"", cut=True)

    def _bytes(self, fd: int, at: int, data: bytes, *, cut: bool = False) -> None:
        node = self._node(fd)
        if node is not None:
            self.log.append(Bytes(node, at, data, os.fstat(fd).st_mtime_ns, cut))

    def _set_time(self, real: Callable[..., Any], fd: int, nanoseconds: int) -> None:
        real(fd, nanoseconds)
        node = self._node(fd)
        if node is not None:
            self.log.append(Time(node, nanoseconds))

    def _set_mode(self, real: Callable[..., Any], fd: int, mode: int) -> None:
        real(fd, mode)
        node = self._node(fd)
        if node is not None:
            self.log.append(Mode(node, mode))


def _appends(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def _copy_of(inode: Inode) -> Inode:
    return Inode(inode.mode, inode.folder, dict(inode.names), inode.data, inode.time)


_ROOMS = {"archive", "indexer", "scp"}


_PASSING = ("_create_whole", "Publisher._sync_once", "Publisher.sync", "Publisher.sync_published")
"""They pass a wish for a sync on."""
_WHOLES = ("Indexer.", "Archive.open", "refresh", "remove")
"""Who wants a step done makes no other step of it."""


def callers() -> list[str]:
    """The functions of the program that led here, innermost first, one after another once."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not _ROOMS.isdisjoint(code.co_filename.split("/")[-3:-1]) and (
            code.co_qualname not in (*_PASSING, *found[-1:])
            and not code.co_qualname.startswith(_WHOLES)
        ):
            found.append(code.co_qualname)
        frame = frame.f_back
    return found


# --- what may be left --------------------------------------------------------------------------


class How(Enum):
    """What came of an operation that nothing pinned."""

    WHOLE = "whole"
    CUT = "cut"
    ZERO = "zero"


Chosen = dict[int, How]
"""By number in the log: the unpinned operations that reached the disk all the same."""


@dataclass(slots=True)
class State:
    """What a disk holds: inodes by node, from ``TOP`` on. ``moment``: operations done before."""

    moment: int
    inodes: Mapping[Node, Inode]
    chosen: Chosen
    promises: tuple[Promise, ...] = ()
    lost: int = 0
    """How many operations did not wholly reach the disk."""
    prints: dict[Node, object] = field(default_factory=dict)
    """Of what holds only what is pinned; the states until the next sync share them."""
    unlike: set[Node] = field(default_factory=set)
    """Where more than that is, or below."""

    def walk(self) -> Iterator[tuple[str, Node, Inode]]:
        """Every path that can be reached, folders before what is in them."""
        stack = [("", TOP)]
        while stack:
            path, node = stack.pop()
            inode = self.inodes[node]
            yield path, node, inode
            for name, below in inode.listed():
                stack.append((f"{path}/{name}" if path else name, below))

    def files(self) -> dict[str, bytes]:
        return {path: inode.data for path, _, inode in self.walk() if not inode.folder}

    def print(self) -> object:
        """Equal for states of one record that nobody can tell apart."""
        return self._print(TOP, "")

    def _print(self, node: Node, name: str) -> object:
        known = None if node in self.unlike else self.prints.get(node)
        if known is None:
            inode = self.inodes[node]
            if inode.folder:
                known = tuple((below, self._print(one, below)) for below, one in inode.listed())
            else:
                dated = inode.time if name.endswith((".dcm", ".json")) else 0
                known = node, inode.data, dated
            if node not in self.unlike:
                self.prints[node] = known
        return known


class _Disk:
    """The pinned part of a record, moved on operation by operation, and what is not pinned yet."""

    def __init__(self, recorder: Recorder) -> None:
        self._all = recorder.inodes
        self.pinned = {node: _copy_of(inode) for node, inode in recorder.before.items()}
        self.open: dict[int, Names | Bytes | Time | Mode] = {}
        self._above = _above(recorder)
        self._prints: dict[Node, object] = {}

    def add(self, number: int, operation: Operation) -> None:
        if isinstance(operation, Sync):
            self._pin(operation.node)
        elif not isinstance(operation, Promise):
            self.open[number] = operation

    def _pin(self, node: Node) -> None:
        self._prints = {}
        done = [number for number, one in self.open.items() if node in _touched(one)]
        for number in done:
            operation = self.open.pop(number)
            self._apply(self.pinned, operation, How.WHOLE, set())
            if isinstance(operation, Names):
                # What came before to the same names is settled with it.
                self._forget({(where, name) for where, name, _ in operation.changes}, number)

    def _forget(self, names: set[tuple[Node, str]], before: int) -> None:
        for number, one in list(self.open.items()):
            if number < before and isinstance(one, Names):
                left = tuple(change for change in one.changes if change[:2] not in names)
                if left != one.changes:
                    del self.open[number]
                    if left:
                        self.open[number] = Names(left)
        self.open = dict(sorted(self.open.items()))

    def state(self, moment: int, chosen: Chosen) -> State:
        inodes = dict(self.pinned)
        own: set[Node] = set()
        for number, operation in self.open.items():
            if number in chosen:
                self._apply(inodes, operation, chosen[number], own)
        unlike = set(own)
        stack = list(own)
        while stack:
            more = self._above.get(stack.pop(), set()) - unlike
            unlike |= more
            stack += more
        reached = _Reached(inodes, self._all)
        return State(moment, reached, chosen, prints=self._prints, unlike=unlike)

    def _apply(
        self, inodes: dict[Node, Inode], operation: Operation, how: How, own: set[Node]
    ) -> None:
        for node in _touched(operation):
            if node not in inodes or node not in own:
                inodes[node] = _copy_of(inodes.get(node) or self._fresh(node))
                own.add(node)
        if isinstance(operation, Names):
            for where, name, node in operation.changes:
                if node is None:
                    inodes[where].names.pop(name, None)
                else:
                    inodes[where].names[name] = node
        elif isinstance(operation, Time):
            inodes[operation.node].time = operation.time
        elif isinstance(operation, Mode):
            inodes[operation.node].mode = operation.mode
        elif isinstance(operation, Bytes):
            inode = inodes[operation.node]
            inode.data = b"" if operation.cut else _written(inode.data, operation, how)
            inode.time = operation.time

    def _fresh(self, node: Node) -> Inode:
        return Inode(self._all[node].mode, self._all[node].folder)


def _above(recorder: Recorder) -> dict[Node, set[Node]]:
    """The folders that a node ever had a name in."""
    above: dict[Node, set[Node]] = {}
    for where, inode in recorder.before.items():
        for node in inode.names.values():
            above.setdefault(node, set()).add(where)
    for operation in recorder.log:
        if isinstance(operation, Names):
            for where, _, named in operation.changes:
                if named is not None:
                    above.setdefault(named, set()).add(where)
    return above


class _Reached(dict[Node, Inode]):
    """Inodes; one of which nothing but a name reached the disk is empty."""

    def __init__(self, inodes: dict[Node, Inode], known: dict[Node, Inode]) -> None:
        super().__init__(inodes)
        self._known = known

    def __missing__(self, node: Node) -> Inode:
        inode = self[node] = Inode(self._known[node].mode, self._known[node].folder)
        return inode


def _touched(operation: Operation) -> set[Node]:
    if isinstance(operation, Names):
        return {where for where, _, _ in operation.changes}
    return set() if isinstance(operation, Promise) else {operation.node}


def _written(data: bytes, operation: Bytes, how: How) -> bytes:
    new = operation.data
    if how is How.CUT:
        new = new[: len(new) // 2]
    elif how is How.ZERO:
        new = bytes(len(new))
    start, end = operation.offset, operation.offset + len(new)
    return data[:start].ljust(start, b"\0") + new + data[end:]


def states(
    recorder: Recorder,
    *,
    without: Callable[[Sync], bool] = lambda sync: False,
    seed: int = 0,
    pairs: int = 10,
    random_each: int = 6,
    shuffle: bool = False,
) -> Iterator[State]:
    """Every state of the model worth looking at, many of them more than once, moment by moment.

    At each moment: nothing unpinned reached the disk, all did, each alone, each but one, pairs
    (where at most ``pairs`` are unpinned), and ``random_each`` seeded subsets, with bytes cut and
    zeroed. ``without``: the syncs of which this is true were never made.
    """
    rng = random.Random(seed)
    disk = _Disk(recorder)
    promises: tuple[Promise, ...] = ()
    for moment, operation in enumerate(recorder.log, 1):
        if isinstance(operation, Sync) and without(operation):
            continue
        disk.add(moment - 1, operation)
        if isinstance(operation, Promise):
            promises = (*promises, operation)
        for chosen in _choices(disk.open, rng, pairs, random_each):
            state = disk.state(moment, chosen)
            state.promises = promises
            state.lost = sum(chosen.get(number) is not How.WHOLE for number in disk.open)
            yield state


def _choices(
    unpinned: Mapping[int, Operation], rng: random.Random, pairs: int, random_each: int
) -> Iterator[Chosen]:
    everything = dict.fromkeys(unpinned, How.WHOLE)
    names = {n: How.WHOLE for n, one in unpinned.items() if isinstance(one, Names)}
    written = [n for n, one in unpinned.items() if isinstance(one, Bytes) and not one.cut]
    yield {}
    yield everything
    yield names
    for how in (How.CUT, How.ZERO):
        if written:
            yield everything | dict.fromkeys(written, how)
        for number in written:
            yield everything | {number: how}
            yield names | {number: how}
    for number in unpinned:
        yield {number: How.WHOLE}
        yield {n: how for n, how in everything.items() if n != number}
    if len(unpinned) <= pairs:
        numbers = list(unpinned)
        for at, one in enumerate(numbers):
            for other in numbers[at + 1 :]:
                yield {one: How.WHOLE, other: How.WHOLE}
                yield {n: how for n, how in everything.items() if n not in (one, other)}
    for _ in range(random_each if len(unpinned) > 2 else 0):
        share = rng.random()
        chosen = {n: How.WHOLE for n in unpinned if rng.random() < share}
        for number in written:
            if number in chosen:
                chosen[number] = rng.choice(list(How))
        yield chosen


# --- a state as files --------------------------------------------------------------------------


def build(recorder: Recorder, state: State, top: str) -> None:
    """Makes the folder ``top`` (new) hold what the disk holds."""
    made: dict[Node, str] = {}
    seen: list[tuple[str, Inode]] = []
    for path, node, inode in state.walk():
        full = os.path.join(top, path) if path else top
        if inode.folder:
            os.mkdir(full)
        elif node in made:
            os.link(made[node], full)
        else:
            made[node] = full
            if "/.plainpacs/seen/" in full:
                seen.append((full, inode))
            _put(full, inode)
    for full, inode in seen:
        _put(full, Inode(inode.mode, folder=False, data=_seen_here(recorder, state, top, inode)))


def _put(full: str, inode: Inode) -> None:
    fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, inode.mode)
    os.write(fd, inode.data)
    if inode.time:
        os.utime(fd, ns=(inode.time, inode.time))
    os.close(fd)


def _seen_here(recorder: Recorder, state: State, top: str, inode: Inode) -> bytes:
    """``seen`` with the device facts of folders that hold what they held."""
    try:
        seen = json.loads(inode.data)
    except ValueError:
        return inode.data
    latest = _latest(recorder, state.moment)
    for path, node, folder in state.walk():
        parts = path.split("/")
        study = seen.get(parts[-2]) if folder.folder and len(parts) == 4 else None
        facts = (study or {}).get("series", {}).get(parts[-1])
        if facts is None or list(_facts_at(recorder, node, state.moment)) != facts:
            continue
        if set(latest.get(node, ())) == set(folder.names):
            here = os.stat(os.path.join(top, path))
            study["series"][parts[-1]] = [here.st_ctime_ns, here.st_mtime_ns, here.st_ino]
    return json.dumps(seen).encode()


def _facts_at(recorder: Recorder, node: Node, moment: int) -> tuple[int, int, int]:
    return [facts for number, facts in recorder.facts[node] if number <= moment][-1]


def _latest(recorder: Recorder, moment: int) -> dict[Node, dict[str, Node]]:
    """The names in every folder as the program saw them at the moment."""
    names = {node: dict(inode.names) for node, inode in recorder.before.items() if inode.folder}
    for operation in recorder.log[:moment]:
        if isinstance(operation, Names):
            for where, name, node in operation.changes:
                folder = names.setdefault(where, {})
                if node is None:
                    folder.pop(name, None)
                else:
                    folder[name] = node
    return names
