"""Removing, restoring and erasing by UID, with the indexes: what the commands do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.removal import trash
from plainpacs.archive.removal.purge import Purged, purge
from plainpacs.archive.removal.remove import Removal, Restored
from plainpacs.archive.store import audit, forbidden, set_aside
from plainpacs.archive.store.set_aside import SetAside
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Present, Target, present
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.links import update as links
from plainpacs.indexer.service.refresh import refresh, refresh_alone

NOTICED = 1.1
"""Seconds after which every receiver has noticed that something is forbidden."""


@dataclass(slots=True)
class Found:
    """What UIDs stand for. ``entries`` are of the trash, ``variants`` of the conflicts; ``unknown``
    are the UIDs of which nothing is anywhere."""

    targets: list[Target] = field(default_factory=list)
    instances: list[Present] = field(default_factory=list)
    entries: list[SetAside] = field(default_factory=list)
    variants: list[SetAside] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(one.size for one in self.instances)


@dataclass(slots=True)
class Removed:
    """What was done: entries of the trash, as far as they are not ``purged``; ``links`` says what
    was not cleared in trees of links."""

    entries: list[SetAside]
    purged: Purged | None = None
    links: list[str] = field(default_factory=list)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """What the system refuses within it is StorageUnavailable, and the words say that the same
    command goes on."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"{error.strerror or error}; what was not done yet, the same command does again"
        ) from error


def find(path: str, uids: Iterable[str], note: Note, level: str | None = None) -> Found:
    """Where the studies, series and instances with these UIDs are, in the tree and aside; of each
    UID as ``lookup.at_one_level`` says.

    Reads only. Raises NotAnArchive, OSError.
    """
    root = open_root(path)
    try:
        found = Found()
        targets: set[Target] = set()
        for uid in uids:
            aside = {
                target.path
                for top in (layout.TRASH, layout.CONFLICTS)
                for target in set_aside.find(root, top, uid)
            }
            here = lookup.at_one_level(lookup.places(path, uid, note, walk=not aside), level)
            of = lookup.LEVELS[here[0].count("/") - 1] if here else level
            own = lookup.at_one_level({*here, *aside}, of)
            targets.update(target for place in own if (target := Target.at(place)))
            if not own:
                found.unknown.append(uid)
        _fill(root, found, targets)
        return found
    finally:
        os.close(root)


def _fill(root: int, found: Found, targets: Collection[Target]) -> None:
    found.targets = sorted(targets)
    found.instances = present(root, targets)
    found.entries = trash.entries(root, targets)
    found.variants = set_aside.kept(root, layout.CONFLICTS, targets)


def remove(
    path: str,
    found: Found,
    *,
    erase: bool = False,
    forbid: Collection[str] = (),
    node: str | None = None,
    digest: str = "blake3",
    rules: Collection[str] = (),
) -> Removed:
    """Takes what was ``found`` out of the tree, and its indexes with it.

    ``erase``: for good, also what is in the trash and among the conflicts. ``forbid``: these UIDs
    are refused from now on. ``rules``: those of retention by which it goes. The same again goes on
    where it was interrupted. Raises InUse, StorageUnavailable, OSError.
    """
    with Removal.open(path, node=node, digest=digest) as removal:
        instances = found.instances
        if forbid:
            forbidden.forbid(removal.root, forbid)
            time.sleep(NOTICED)
            instances = present(removal.root, found.targets)
        entries = removal.remove(instances)
        if forbid:  # what was on its way when it was forbidden
            entries += removal.remove(present(removal.root, found.targets))
        studies = _studies(found.targets)
        if erase:
            # No index may have a line of it, nor anybody be about to write one, before the
            # manifests and the files go.
            refresh(path, studies, node=node, digest=digest)
            kept: list[str] = []
            links.clear(path, {target.study for target in found.targets}, kept.append)
            removed = Removed([], purge(removal.root, found.targets), kept)
        else:
            refresh_alone(path, studies, node=node, digest=digest)
            removed = Removed(entries)
        audit.record(
            removal.writer,
            "purge" if erase else "rm",
            targets=[target.path for target in found.targets],
            instances=removed.purged.instances if removed.purged else len(entries),
            forbidden=sorted(forbid) or None,
            retention=list(rules) or None,
        )
        return removed


def restore(
    path: str, uids: Collection[str], *, node: str | None = None, digest: str = "blake3"
) -> tuple[list[Restored], list[str]]:
    """Brings back what the trash has of the UIDs, of each instance what was removed last.

    Of what is in the tree although it was removed (a backup brought it back) it is put down that
    it may be. Returns what became of each entry, and the UIDs of which the trash has nothing and
    the tree nothing that was removed. Raises InUse, StorageUnavailable, OSError.
    """
    done: list[Restored] = []
    unknown: list[str] = []
    studies: set[Study] = set()
    with Removal.open(path, node=node, digest=digest) as removal:
        for uid in uids:
            targets = set_aside.find(removal.root, layout.TRASH, uid)
            latest = {one.key: one for one in trash.entries(removal.root, targets)}
            done += removal.restore(latest.values())
            places = lookup.places(path, uid, lambda _: None, walk=False)
            targets = [*targets, *(target for place in places if (target := Target.at(place)))]
            # What was there already has no line yet that it may be.
            if not removal.accept(present(removal.root, targets)) and not latest:
                unknown.append(uid)
            studies.update(_studies(targets))
        removal.tidy()
        refresh_alone(path, studies, node=node, digest=digest)
        count = sum(1 for one in done if one.stored)
        audit.record(removal.writer, "restore", uids=list(uids), instances=count)
    return done, unknown


def _studies(targets: Iterable[Target]) -> set[Study]:
    return {(target.month, target.study) for target in targets}
