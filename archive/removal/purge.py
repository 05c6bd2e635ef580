"""Erasing what a removal leaves: lines in manifests, the trash, what is kept aside.

After it nothing of the instances is in the archive but their UIDs: in their manifests a tombstone
each, ``{"file":…,"removed":…,"purged":true}``. In no other case is a manifest replaced: written
beside, synced, renamed. A receiver that has the old one open notices before its next line that the
name is another file's; what it had appended to the old one since that was read is carried over. (A
line lost all the same is made again from its instance by the indexer.)

It begins when the instances are in the trash and no index lists them any more, and the files come
last: killed anywhere, the same purge again finds them, and finishes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from plainpacs.archive.removal import trash
from plainpacs.archive.store import manifest, set_aside
from plainpacs.archive.store.manifest import Line, encoded, lines_in
from plainpacs.archive.store.set_aside import Lines, SetAside
from plainpacs.archive.tree import durable, layout, machines
from plainpacs.archive.tree.targets import Identity, Target, files_in, identity, names_in

_SETTLE = 0.1
"""Seconds in which a receiver ends a line that it began before the manifest was replaced."""

_PATIENCE = 20.0
"""Seconds for a receiver to answer an instance that was taken from under it."""


@dataclass(frozen=True, slots=True)
class Purged:
    """How many files were erased. ``linked``: of those, files that have other names, outside of
    the archive, where their bytes stay."""

    instances: int
    variants: int
    linked: int


def purge(root: int, targets: Iterable[Target]) -> Purged:
    """Erases what is left of the ``targets``: the lines of what does not lie in the tree, all that
    the trash and the conflicts have of them. Under the lock of a ``Removal``. Raises OSError.
    """
    targets = list(targets)
    entries = trash.entries(root, targets)
    linked = _wait_for_receivers(root, entries)
    for target in targets:
        _bury(root, target)
        _forget_headers(root, target)
    variants = set_aside.kept(root, layout.CONFLICTS, targets)
    for top in (layout.CONFLICTS, layout.TRASH):
        for target in targets:
            _forget_lines(root, top, target)
    # The files last, by which an interrupted purge is found again.
    set_aside.drop(root, variants)
    set_aside.drop(root, entries)
    for top in (layout.CONFLICTS, layout.TRASH):
        for target in targets:
            _tidy(root, top, target)
    return Purged(len(entries), len(variants), linked)


def empty_trash(root: int, before: str) -> Purged:
    """Erases what was removed before that stamp and nothing younger lies beside in the trash, with
    every line about it. Under the lock of a ``Removal``. Raises OSError."""
    erased = linked = 0
    for study in set_aside.studies(root, layout.TRASH):
        entries = trash.entries(root, [study])
        young = {one.key for one in entries if trash.removed(one) >= before}
        old = [one for one in entries if one.key not in young]
        if not old:
            continue
        linked += _wait_for_receivers(root, old)
        _bury(root, study, {layout.instance_name(one.key.instance) for one in old})
        _forget_lines(root, layout.TRASH, study, {one.name for one in old})
        set_aside.drop(root, old)
        _tidy(root, layout.TRASH, study)
        erased += len(old)
    return Purged(erased, 0, linked)


# --- manifests ----------------------------------------------------------------------------------


def _bury(root: int, target: Target, only: Collection[str] = ()) -> None:
    """Leaves tombstones of the target's instances (of these files ``only``) that do not lie in the
    tree."""
    folder = layout.study_folder(target.month, target.study)
    by_series: dict[str, list[str]] = {}
    for name in set_aside.manifests(root, folder, target.series):
        by_series.setdefault(layout.series_of_manifest(name) or "", []).append(name)
    with _Rewriting(root) as rewriting:
        for series, names in by_series.items():
            lines = set_aside.lines_of(root, folder, series)
            wanted = {layout.instance_name(target.instance)} if target.instance else only
            removed = _removals(root, f"{folder}/{series}", lines, wanted)
            for name in names:
                rewriting.rewrite(f"{folder}/{name}", _Burial(removed))


def _removals(root: int, series: str, lines: Lines, wanted: Collection[str]) -> dict[str, str]:
    """When each file of a series (those ``wanted``, if any) was removed; those in the tree that
    were stored since are among them, for what was known before."""
    present = {name for name, _ in files_in(root, series)}
    found: dict[str, str] = {}
    for name, known in lines.items():
        if not wanted or name in wanted:
            removed = [str(line["removed"]) for line in known if line.get("removed")]
            if name not in present and not manifest.removal_in_force(known):
                found[name] = manifest.later_than(known)  # it was taken away by hand
            elif removed:
                found[name] = max(removed)
    return found


@dataclass(frozen=True, slots=True)
class _Burial:
    """Which lines of a manifest stay: of a file that is in ``removed`` those since its removal."""

    removed: dict[str, str]

    def __call__(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        buried: set[str] = set()
        for line, raw in lines_in(data):
            name = line["file"]
            removed = self.removed.get(name)
            if removed is None or _since(line, removed):
                kept.append(raw + b"\n")
            elif name not in buried:
                buried.add(name)
                tombstone = {"file": name, "removed": removed, "purged": True}
                kept.append(encoded(tombstone))
        return b"".join(kept)


def _since(line: Line, removed: str) -> bool:
    stamps = (line.get("stored"), line.get("restored"))
    return any(isinstance(stamp, str) and stamp >= removed for stamp in stamps)


def _forget_lines(root: int, top: str, target: Target, only: Collection[str] = ()) -> None:
    """Leaves no line of the target (of these files ``only``) in the manifests beneath ``top``,
    trash or conflicts."""

    def is_forgotten(file: str) -> bool:
        return file in only if only else file.startswith(f"{target.instance}~")

    def others(data: bytes) -> bytes:
        if not (target.instance or only):
            return b""
        return b"".join(
            raw + b"\n" for line, raw in lines_in(data) if not is_forgotten(line["file"])
        )

    folder = f"{top}/{layout.study_folder(target.month, target.study)}"
    with _Rewriting(root) as rewriting:
        for name in set_aside.manifests(root, folder, target.series):
            rewriting.rewrite(f"{folder}/{name}", others)


def _forget_headers(root: int, target: Target) -> None:
    """Leaves no copy of the study's headers for browsers: it is made again when it is wanted."""
    folder = f"{layout.WEB}/{layout.study_folder(target.month, target.study)}"
    for name, _ in files_in(root, folder):
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(f"{folder}/{name}", folder=root)


def _tidy(root: int, top: str, target: Target) -> None:
    """Takes the manifests away beneath ``top`` of series of which nothing is there any more."""
    folder = f"{top}/{layout.study_folder(target.month, target.study)}"
    for name in set_aside.manifests(root, folder, target.series):
        set_aside.tidy(root, f"{folder}/{layout.series_of_manifest(name)}")


class _Rewriting:
    """Replaces manifests, and at its end carries over what was appended to the old ones."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._old: list[tuple[int, int, str, Callable[[bytes], bytes]]] = []

    def __enter__(self) -> _Rewriting:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._carry_over()
        finally:
            for fd, *_rest in self._old:
                os.close(fd)
            self._old.clear()

    def rewrite(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Puts what ``change`` makes of the manifest's bytes in its place. Raises OSError."""
        fd = durable.open_file(path, folder=self._root)
        data = _read_from(fd, 0)
        # What has no newline yet may be half of a line: it is carried over, if it becomes one.
        whole = data.rfind(b"\n") + 1
        changed = change(data[:whole])
        if changed == data:
            os.close(fd)
            return
        self._old.append((fd, whole, path, change))
        durable.replace_file(self._root, path, changed)
        if len(self._old) >= 100:
            self._carry_over()

    def _carry_over(self) -> None:
        if self._old:
            time.sleep(_SETTLE)
        for fd, read, path, change in self._old:
            late = change(_read_from(fd, read))
            if late:
                durable.append_lines(self._root, path, late)
                durable.settle(self._root, path)


def _read_from(fd: int, offset: int) -> bytes:
    parts = []
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


# --- links --------------------------------------------------------------------------------------


def _wait_for_receivers(root: int, entries: Iterable[SetAside]) -> int:
    """Lets no file in ``incoming`` be one of the ``entries`` any more; returns how many of them
    have other names elsewhere.

    A receiver at work on one may still write its line, so it is waited for; what a dead one left
    is taken away.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        own: dict[Identity, int] = {}
        links: dict[Identity, int] = {}
        for one in entries:
            facts = os.stat(one.path, dir_fd=root, follow_symlinks=False)
            own[identity(facts)] = own.get(identity(facts), 0) + 1
            links[identity(facts)] = facts.st_nlink
        linked = {file for file, count in links.items() if count > own[file]}
        if not linked or not _clear_incoming(root, linked) or time.monotonic() > deadline:
            return len(linked)
        time.sleep(0.02)


def _clear_incoming(root: int, linked: set[Identity]) -> bool:
    """Unlinks those of the files that a dead process left; whether there were any, or a living
    process still has some."""
    found = False
    for name in names_in(root, layout.INCOMING):
        path = f"{layout.INCOMING}/{name}"
        for file, facts in files_in(root, path):
            if identity(facts) in linked:
                found = True
                if machines.is_gone(root, f"{path}/lock"):
                    with contextlib.suppress(FileNotFoundError):
                        durable.unlink(f"{path}/{file}", folder=root)
    return found
