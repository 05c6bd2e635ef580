"""Taking instances out of the tree, into the trash, and bringing them back.

The order of a removal, series by series: the lines of the entries in the trash's manifest and the
removal lines in the series' manifest, both durable; then each file is renamed into the trash; then
the trash's folder is synced, then the series'; an empty series folder goes; the study is marked for
the indexer. The study's manifests stay: they hold the removal lines.

Killed anywhere, an instance is either in the tree or in the trash, whole, and the same command
again finishes. Receivers may be at work meanwhile. What a removal takes is what it listed, by
device, inode, size and mtime: another file by then (removed by hand and stored again) stays. An
instance whose receiver has not answered yet (its second link is there) is taken like any other; it
is answered 0000 all the same, as if it had been stored just before the removal.

To restore is to store again: the entry is published by the same way as an instance that arrives
(``Publication.save``), so it is never put over another, then it leaves the trash.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from plainpacs.archive.errors import InUse, RefusedInstance
from plainpacs.archive.removal import trash
from plainpacs.archive.store import manifest, set_aside
from plainpacs.archive.store.incoming_cleanup import mark_published
from plainpacs.archive.store.manifest import (
    ORIGIN_RECOVERED,
    Line,
    Provenance,
    best_line,
)
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.publish import Candidate, Publication, Stored
from plainpacs.archive.store.reread_facts import read_facts
from plainpacs.archive.store.set_aside import Lines, SetAside
from plainpacs.archive.store.temporary import Temporary
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.publisher import Folder, Publisher
from plainpacs.archive.tree.root import locked, try_lock
from plainpacs.archive.tree.targets import Present, Target, identity, present

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of an entry: ``stored``, or ``error`` says why it stays in the trash."""

    entry: SetAside
    stored: Stored | None = None
    error: str = ""


class Removal:
    """A process that removes, the only one on its archive. Made by ``Removal.open``; a context
    manager. Its methods raise OSError and StorageUnavailable."""

    def __init__(self, writer: Writer, lock: int, digest: str) -> None:
        self.writer = writer
        self.root = writer.root
        self._lock = lock
        self._digest = digest
        self._publisher = Publisher(writer.root)
        self._manifests = ManifestWriter(self._publisher)
        self._publication = Publication(writer, sync=True)
        self._numbers = itertools.count()

    @classmethod
    def open(cls, path: str, *, node: str | None = None, digest: str = "blake3") -> Removal:
        """Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable."""
        writer = Writer.open(path, node, mark_published)
        try:
            lock = durable.open_to_append(layout.REMOVAL_LOCK, folder=writer.root)
            try:
                if not try_lock(lock, fcntl.LOCK_EX):
                    raise InUse(f"another removal is at work on {path}; try again when it ended")
                return cls(writer, lock, digest)
            except BaseException:
                os.close(lock)
                raise
        except BaseException:
            writer.close()
            raise

    def __enter__(self) -> Removal:
        return self

    def __exit__(self, *_: object) -> None:
        self._publication.close()
        self._manifests.close()
        os.close(self._lock)
        self.writer.close()

    # --- into the trash -------------------------------------------------------------------------

    def remove(self, instances: Iterable[Present]) -> list[SetAside]:
        """Takes the ``instances`` out; returns where they went. What is not there any more, or
        is another file now, is left out."""
        gone: list[SetAside] = []
        for _, series in groupby(sorted(instances, key=_key_of), key=_series_of):
            gone += self._remove_series(list(series))
        return gone

    def _remove_series(self, listed: list[Present]) -> list[SetAside]:
        key = listed[0].key
        lines = set_aside.lines_of(self.root, layout.study_folder(key.month, key.study), key.series)
        # The stamps first, then another look: what others put there since is stored later than
        # its removal, and what they put there before gets no removal line.
        entries = [(one, self._entry(one, lines)) for one in listed]
        there = self._now(listed)
        taken = [(one, entry) for one, entry in entries if one in there]
        if not taken:
            return []
        self._announce(taken, lines)
        # Before, too: should we die in between, the indexer is to look all the same.
        self._publication.mark_pending(key.month, key.study)
        gone = self._rename(taken)
        self._publication.mark_pending(key.month, key.study)
        return gone

    def _now(self, instances: list[Present]) -> set[Present]:
        """What lies where these were listed."""
        wanted = {one.key for one in instances}
        key = instances[0].key
        target = Target(key.month, key.study, key.series)
        return {one for one in present(self.root, [target]) if one.key in wanted}

    def _entry(self, one: Present, lines: Lines) -> SetAside:
        removed = manifest.later_than(lines.get(layout.instance_name(one.key.instance), ()))
        entry = trash.entry(one.key, removed)
        return replace(entry, identity=one.identity, size=one.size)

    def _announce(self, taken: list[tuple[Present, SetAside]], lines: Lines) -> None:
        key, folder = taken[0][0].key, taken[0][1].folder
        kept, removals = [], []
        for one, entry in taken:
            name = layout.instance_name(one.key.instance)
            best = best_line(lines.get(name, ()), one.size, one.mtime)
            kept.append(trash.line_of(entry, best))
            removals.append(manifest.encoded({"file": name, "removed": trash.removed(entry)}))
        beside = folder.rpartition("/")[0]
        self._append(beside, key, kept)
        self._append(layout.study_folder(key.month, key.study), key, removals)

    def _append(self, folder: str, key: InstanceKey, lines: list[bytes]) -> None:
        path = f"{folder}/{layout.manifest_name(key.series, self.writer.node)}"
        self._manifests.append_durably(path, b"".join(lines))

    def _rename(self, taken: list[tuple[Present, SetAside]]) -> list[SetAside]:
        key = taken[0][0].key
        to = self._publisher.folder(taken[0][1].folder)
        path = layout.series_folder(key)
        try:
            series = Folder(durable.open_folder(path, folder=self.root), path)
        except FileNotFoundError:
            return []
        # Nobody shall take what is stored after this for what he has kept aside before it.
        with locked(self.root, layout.REPLACING_LOCK):
            gone = [entry for one, entry in taken if self._take(one, series.fd, entry, to.fd)]
        self._publisher.sync(to)
        self._publisher.sync(series)
        if not os.listdir(series.fd):
            above = durable.open_folder(path.rpartition("/")[0], folder=self.root)
            try:
                # Not empty any more: a receiver was quicker.
                with contextlib.suppress(OSError):
                    durable.remove_folder(key.series, folder=above)
                durable.sync_folder(above)
            finally:
                os.close(above)
        return gone

    def _take(self, one: Present, series: int, entry: SetAside, to: int) -> bool:
        name = layout.instance_name(one.key.instance)
        try:
            if not one.is_file(os.stat(name, dir_fd=series, follow_symlinks=False)):
                return False
            durable.rename(name, entry.name, folder=series, to_folder=to)
        except FileNotFoundError:
            return False
        facts = os.stat(entry.name, dir_fd=to, follow_symlinks=False)
        if one.is_file(facts):
            return True
        # Whoever put another file there in this very moment gets it back.
        other = replace(entry, size=facts.st_size, identity=identity(facts))
        folder = layout.study_folder(one.key.month, one.key.study)
        back = self._restore(other, to, {}, set_aside.lines_of(self.root, folder, one.key.series))
        if back.stored:
            durable.unlink(entry.name, folder=to)
        else:
            log.error("%s was stored just now and is in the trash: %s", entry.path, back.error)
        return False

    # --- and back -------------------------------------------------------------------------------

    def restore(self, entries: Iterable[SetAside]) -> list[Restored]:
        """Brings ``entries`` of the trash back; returns what became of each.

        DUPLICATE: the same instance was there. CONFLICT: other bytes were, and the entry is among
        the conflicts now. Either way it has left the trash.
        """
        done: list[Restored] = []
        for folder, series in groupby(sorted(entries), key=lambda entry: entry.folder):
            done += self._restore_series(folder, list(series))
        return done

    def tidy(self) -> None:
        """Takes away what an interrupted ``restore`` left: folders and manifests of the trash for
        which nothing is there any more."""
        set_aside.tidy_all(self.root, layout.TRASH)

    def _restore_series(self, folder: str, entries: list[SetAside]) -> list[Restored]:
        key = entries[0].key
        kept = set_aside.lines_of(self.root, folder.rpartition("/")[0], key.series)
        tree = set_aside.lines_of(self.root, layout.study_folder(key.month, key.study), key.series)
        trashed = durable.open_folder(folder, folder=self.root)
        try:
            done = [self._restore(one, trashed, kept, tree) for one in entries]
            self._publication.flush()
        finally:
            os.close(trashed)
        set_aside.drop(self.root, [one.entry for one in done if one.stored])
        return done

    def _restore(self, entry: SetAside, trashed: int, kept: Lines, tree: Lines) -> Restored:
        temporary = f"restored.{next(self._numbers)}"
        known = tree.get(layout.instance_name(entry.key.instance), [])
        try:
            self.writer.forbidden.check(entry.key)
            candidate = self._candidate(entry, trashed, temporary, kept.get(entry.name, []), known)
        except RefusedInstance as error:
            return Restored(entry, error=str(error))
        file = Temporary(self.writer.incoming, temporary, of=entry.name, folder=trashed)
        return Restored(entry, self._publication.save(file, candidate))

    def _candidate(
        self, entry: SetAside, trashed: int, temporary: str, kept: list[Line], tree: list[Line]
    ) -> Candidate:
        """Raises RefusedInstance when no line tells what the entry is, and it cannot be read."""
        fd = durable.open_file(entry.name, folder=trashed)
        with open(fd, "rb", buffering=0) as file:
            facts = os.fstat(fd)
            best = best_line(kept, facts.st_size, facts.st_mtime_ns)
            best = best or best_line(tree, facts.st_size, facts.st_mtime_ns)
            name = layout.instance_name(entry.key.instance)
            restored = _not_before(manifest.later_than([]), trash.removed(entry), tree)
            said = manifest.said_by(best, name) if best else None
            if said is None:
                found, attributes = read_facts(file, name, self._digest)
                said = found, Provenance(origin=ORIGIN_RECOVERED), attributes
            found, provenance, attributes = said
        return Candidate(
            temporary, entry.key, found, provenance, {"restored": restored, **attributes}
        )

    def accept(self, instances: Iterable[Present]) -> list[Present]:
        """For instances that came back by other ways, from a backup say, while their removal is in
        force: a line says that they may be there. Returns those it was said of."""
        accepted: list[Present] = []
        for _, some in groupby(sorted(instances, key=_key_of), key=_series_of):
            series = list(some)
            key = series[0].key
            folder = layout.study_folder(key.month, key.study)
            lines = set_aside.lines_of(self.root, folder, key.series)
            added = []
            for one in series:
                name = layout.instance_name(one.key.instance)
                known = lines.get(name, [])
                if manifest.removal_in_force(known):
                    line = {"file": name, "restored": manifest.later_than(known)}
                    added.append(manifest.encoded(line))
                    accepted.append(one)
            if added:
                self._append(folder, key, added)
                self._publication.mark_pending(key.month, key.study)
        return accepted


def _not_before(now: str, removed: str, lines: Iterable[Line]) -> str:
    """A stamp that ends every removal known: of now, or theirs where a clock was ahead."""
    stamps = (line.get("removed") for line in lines)
    return max(now, removed, *(stamp for stamp in stamps if isinstance(stamp, str)), "")


def _key_of(one: Present) -> InstanceKey:
    return one.key


def _series_of(one: Present) -> str:
    return layout.series_folder(one.key)
