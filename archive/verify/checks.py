"""Checks on what goes beyond an instance: several places, what is kept aside, unfinished work."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from array import array
from collections.abc import Callable, Iterable, Iterator

from plainpacs.archive.store import set_aside
from plainpacs.archive.store.manifest import ORIGIN_CORRECTED, best_line
from plainpacs.archive.store.temporary import PATIENCE
from plainpacs.archive.tree import layout, machines
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import instances_in_tree
from plainpacs.archive.tree.root import stamp
from plainpacs.archive.tree.targets import Target
from plainpacs.archive.verify.finding import Finding, FindingKind
from plainpacs.archive.verify.study import StudyLook
from plainpacs.archive.verify.verify import Check, Options

Note = Callable[[str], None]

_PARTS = 256
_NAMED = 3


class Numbers:
    """Texts that were seen, eight bytes each: 80 MB for ten million.

    A text stands for itself only as far as its hash does: who finds something looks again.
    """

    def __init__(self) -> None:
        self._parts = [array("q") for _ in range(_PARTS)]

    def add(self, text: str) -> None:
        number = hash(text)
        self._parts[number % _PARTS].append(number)

    def seen_twice(self) -> set[int]:
        """The hashes of texts added more than once."""
        found: set[int] = set()
        for part in self._parts:
            ordered = sorted(part)
            found.update(one for one, next_ in itertools.pairwise(ordered) if one == next_)
        return found


class TwoPlaces(Check):
    """Every SOP Instance UID at one place only, among the studies seen."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen = Numbers()

    def study(self, seen: StudyLook) -> Iterable[Finding]:
        for present in seen.files.instances.values():
            for name in present:
                self._seen.add(name)
        return ()

    def end(self) -> Iterator[Finding]:
        twice = self._seen.seen_twice()
        if not twice:
            return
        places: dict[str, list[InstanceKey]] = {}
        for key in instances_in_tree(self._root):
            if hash(layout.instance_name(key.instance)) in twice:
                places.setdefault(key.instance, []).append(key)
        for keys in places.values():
            for key in keys if len(keys) > 1 else ():
                others = [layout.instance_path(other) for other in keys if other != key]
                more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
                words = (
                    f"also at {', '.join(others[:_NAMED])}{more}; `plainpacs rm` the one that "
                    "should not be"
                )
                yield Finding.of_instance(FindingKind.TWO_PLACES, key, words)


class SetAside(Check):
    """Nothing under ``conflicts`` waits to be decided. What was corrected (``origin`` "corrected")
    was decided by whoever did it."""

    def __init__(self, root: str, options: Options, note: Note) -> None:
        self._root = root
        self._options = options
        self._note = note

    def end(self) -> Iterator[Finding]:
        targets = self._options.targets
        with _opened(self._root) as root:
            try:
                for study in set_aside.studies(root, layout.CONFLICTS):
                    yield from self._of_study(root, study, targets)
            except PermissionError:
                self._note(f"{layout.CONFLICTS} may not be read: not looked at")

    def _of_study(self, root: int, study: Target, targets: tuple[Target, ...]) -> Iterator[Finding]:
        reasons: dict[str, str] = {}
        for one in set_aside.kept(root, layout.CONFLICTS, [study]):
            if targets and not any(target.covers(one.key) for target in targets):
                continue
            if not reasons:
                folder = f"{layout.CONFLICTS}/{study.path}"
                for name, lines in set_aside.lines_of(root, folder, "").items():
                    reasons[name] = str(lines[-1].get("reason", ""))
            if self._was_corrected(root, one):
                continue
            why = reasons.get(one.name) or "other bytes came under a stored UID"
            words = f"kept aside: {why}; `plainpacs conflicts` decides"
            key = one.key
            yield Finding(key.month, key.study, key.series, key.instance, one.path,
                          FindingKind.CONFLICT_WAITING, words)  # fmt: skip

    def _was_corrected(self, root: int, one: set_aside.SetAside) -> bool:
        """Whether ``one`` is what was published before a correction: then it has a line there."""
        key, name = one.key, layout.instance_name(one.key.instance)
        try:
            before, now = (
                os.stat(path, dir_fd=root, follow_symlinks=False)
                for path in (one.path, layout.instance_path(key))
            )
            folder = layout.study_folder(key.month, key.study)
            lines = set_aside.lines_of_file(root, folder, key.series, name)
        except FileNotFoundError:
            return False
        published = best_line(lines, now.st_size, now.st_mtime_ns) or {}
        facts = (before.st_size, stamp(before.st_mtime_ns))
        return published.get("origin") == ORIGIN_CORRECTED and any(
            (line.get("bytes"), line.get("stored")) == facts for line in lines
        )


class Rubbish(Check):
    """No unfinished work in ``incoming`` of a process that is gone."""

    def __init__(self, root: str, note: Note) -> None:
        self._root = root
        self._note = note

    def end(self) -> Iterator[Finding]:
        with _opened(self._root) as root:
            try:
                yield from rubbish(root)
            except FileNotFoundError:  # a copy without it
                return
            except PermissionError:
                self._note(f"{layout.INCOMING} may not be read: not looked at")


def rubbish(root: int) -> Iterator[Finding]:
    """What lies in ``incoming`` of the open ``root`` and nobody is at work on. Raises OSError."""
    folder = os.open(layout.INCOMING, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        names = sorted(os.listdir(folder))
    finally:
        os.close(folder)
    for name in names:
        path = f"{layout.INCOMING}/{name}"
        try:
            facts = os.stat(path, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            continue
        lock = f"{path}/lock"
        if stat.S_ISDIR(facts.st_mode) and _exists(lock, root):
            # In a copy nobody holds it; whoever made it may live, on the original.
            if not machines.is_gone(root, lock) or machines.is_of_living_process(root, lock):
                continue
        elif time.time_ns() - facts.st_ctime_ns < PATIENCE * 1_000_000_000:
            continue  # somebody may be about to lock it
        words = (
            "left by a process that is gone; `plainpacs repair --apply` clears it, as does the "
            "node's next start"
        )
        yield Finding.of_path(FindingKind.INCOMING_RUBBISH, path, words)


def _exists(path: str, root: int) -> bool:
    try:
        os.stat(path, dir_fd=root)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _opened(root: str) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
