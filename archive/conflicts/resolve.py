"""Deciding conflicts: which of several files with one UID is the published one.

What is not wanted goes to the trash, from which ``restore`` brings it back as a variant kept aside.

*First*: what is published stays, the variants go to the trash.

*Second*: one variant, the latest unless another is named, becomes the published one. The order, for
an instance: the other variants go to the trash; what is published is linked into ``conflicts`` and
goes from there to the trash, while it has its final name still; the variant is put in its place
(``Publication.replace``); its name among the conflicts goes. Killed anywhere, both are somewhere,
the final name holds one of them, and the same command again finishes: as long as a variant differs
from what is published, the decision is to be carried out yet, and no other variant is left to be
taken for it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from plainpacs.archive.errors import NoMatch, RefusedInstance
from plainpacs.archive.removal import trash
from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store import manifest, set_aside
from plainpacs.archive.store.manifest import ORIGIN_RECOVERED, Provenance, best_line
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.publish import Candidate, Publication, variant_digest
from plainpacs.archive.store.reread_facts import read_facts
from plainpacs.archive.store.set_aside import SetAside
from plainpacs.archive.store.temporary import Temporary
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.publisher import Folder, Publisher
from plainpacs.archive.tree.targets import Identity, Target, identity


@dataclass(frozen=True, slots=True)
class Decided:
    """What was done about one instance: what went to the trash, and which variant is published
    now. ``error`` says why nothing could be."""

    key: InstanceKey
    trashed: tuple[SetAside, ...] = ()
    published: SetAside | None = None
    error: str = ""


class Decider:
    """Decides under the lock of a ``Removal``. A context manager. Its methods raise OSError and
    StorageUnavailable; then the same again goes on."""

    def __init__(self, removal: Removal, *, digest: str = "blake3") -> None:
        self.writer = removal.writer
        self.root = removal.root
        self._digest = digest
        self._publisher = Publisher(self.root)
        self._manifests = ManifestWriter(self._publisher)
        self._publication = Publication(self.writer, sync=True)
        self._numbers = itertools.count()
        self._stamp = ""
        self._trashed: dict[str, dict[Identity, SetAside]] = {}

    def __enter__(self) -> Decider:
        return self

    def __exit__(self, *_: object) -> None:
        self._publication.close()
        self._manifests.close()

    def keep_first(self, waiting: Mapping[InstanceKey, list[SetAside]]) -> list[Decided]:
        """Takes the variants that are ``waiting``, by instance, to the trash."""
        there = {key: self._identity(layout.instance_path(key)) for key in waiting}
        decided = {key: some for key, some in waiting.items() if there[key] is not None}
        gone: dict[InstanceKey, list[SetAside]] = {}
        for one in self._clear([one for some in decided.values() for one in some], there):
            gone.setdefault(one.key, []).append(one)
        words = "nothing is published under its UID: `--keep second` publishes what is kept"
        return [
            Decided(key, tuple(gone.get(key, ())), error="" if key in decided else words)
            for key in waiting
        ]

    def keep_second(self, variants: list[SetAside], digest: str = "") -> Decided:
        """Publishes one of the ``variants`` of one instance: the one whose digest begins with
        ``digest``, else the latest of those that differ from what is published.

        Raises NoMatch when none or several have that digest.
        """
        key = variants[0].key
        published = self._published(key)
        differing = [one for one in variants if one.mark != published]
        chosen = self._chosen(variants if digest else differing, digest)
        trashed = self._to_trash([one for one in differing if one is not chosen])
        if chosen is not None and chosen in differing:
            try:
                trashed += self._put_in_place(chosen, published is not None)
            except RefusedInstance as error:
                return Decided(key, tuple(trashed), error=str(error))
        there = {key: self._identity(layout.instance_path(key))}
        now = self._published(key)
        left = [one for one in variants if self._identity(one.path) == one.identity]
        # What is left is what is published now, under a second name or in a second file.
        done = [one for one in left if one.mark == now or one.identity == there[key]]
        trashed += self._clear(done, there)
        if chosen in left and chosen not in done:
            return Decided(key, tuple(trashed), error="something was stored just now; do it again")
        return Decided(key, tuple(trashed), chosen)

    def _published(self, key: InstanceKey) -> str | None:
        """The digest of what is published, as a variant has it; None when nothing is."""
        try:
            fd = durable.open_file(layout.instance_path(key), folder=self.root)
        except FileNotFoundError:
            return None
        with open(fd, "rb", buffering=0) as file:
            return variant_digest(file)

    def _chosen(self, variants: list[SetAside], digest: str) -> SetAside | None:
        named = [one for one in variants if one.mark.startswith(digest)]
        if digest and len(named) != 1:
            raise NoMatch(f"{len(named) or 'no'} variants have a digest that begins with {digest}")
        return max(named, key=self._stored, default=None)

    def _stored(self, one: SetAside) -> int:
        return os.stat(one.path, dir_fd=self.root, follow_symlinks=False).st_mtime_ns

    # --- the variant in place -------------------------------------------------------------------

    def _put_in_place(self, chosen: SetAside, something_there: bool) -> list[SetAside]:
        """Publishes the variant; returns where what was published went. Raises RefusedInstance."""
        self.writer.forbidden.check(chosen.key)
        temporary = f"decided.{next(self._numbers)}"
        candidate = self._candidate(chosen, temporary)
        trashed: list[SetAside] = []
        folder = durable.open_folder(chosen.folder, folder=self.root)
        try:
            file = Temporary(self.writer.incoming, temporary, of=chosen.name, folder=folder)
        finally:
            os.close(folder)
        if something_there:
            with file:
                self._publication.replace(
                    candidate, lambda old: trashed.extend(self._to_trash([old]))
                )
        else:
            self._publication.save(file, candidate)
            self._publication.flush()
        return trashed

    def _candidate(self, chosen: SetAside, temporary: str) -> Candidate:
        key = chosen.key
        name = layout.instance_name(key.instance)
        study = layout.study_folder(key.month, key.study)
        beside = f"{layout.CONFLICTS}/{study}"
        kept = set_aside.lines_of_file(self.root, beside, key.series, chosen.name)
        with open(durable.open_file(chosen.path, folder=self.root), "rb", buffering=0) as file:
            self._publisher.sync_published(file.fileno(), chosen.path)
            facts = os.fstat(file.fileno())
            best = best_line(kept, facts.st_size, facts.st_mtime_ns)
            said = manifest.said_by(best, name) if best else None
            if said is None:
                found, attributes = read_facts(file, name, self._digest)
                said = found, Provenance(origin=ORIGIN_RECOVERED), attributes
        found, provenance, attributes = said
        lines = set_aside.lines_of_file(self.root, study, key.series, name)
        if manifest.removal_in_force(lines):
            attributes = {"restored": manifest.later_than(lines), **attributes}
        return Candidate(temporary, key, found, provenance, attributes)

    # --- to the trash ---------------------------------------------------------------------------

    def _clear(
        self, variants: list[SetAside], published: Mapping[InstanceKey, Identity | None]
    ) -> list[SetAside]:
        """Takes ``variants`` to the trash, but for a second name of what is ``published`` (a
        replacement that was killed leaves one), which just goes."""
        set_aside.drop(self.root, [one for one in variants if one.identity == published[one.key]])
        return self._to_trash(one for one in variants if one.identity != published[one.key])

    def _to_trash(self, variants: Iterable[SetAside]) -> list[SetAside]:
        """Takes ``variants`` to the trash; returns where they went."""
        gone: list[SetAside] = []
        for folder, some in groupby(sorted(variants), key=lambda one: one.folder):
            gone += self._series_to_trash(folder, list(some))
        return gone

    def _series_to_trash(self, path: str, variants: list[SetAside]) -> list[SetAside]:
        key = variants[0].key
        known = self._in_trash(key)
        # A kill after the link and before the decision was carried out left it there already.
        twice = [one for one in variants if one.identity in known]
        taken = [(one, self._entry(one)) for one in variants if one.identity not in known]
        to = self._publisher.folder(f"{layout.TRASH}/{layout.series_folder(key)}")
        if taken:
            lines = b"".join(self._lines_of(taken))
            name = layout.manifest_name(key.series, self.writer.node)
            self._manifests.append_durably(f"{to.path.rpartition('/')[0]}/{name}", lines)
        folder = Folder(durable.open_folder(path, folder=self.root), path)
        for one, entry in taken:
            durable.rename(one.name, entry.name, folder=folder.fd, to_folder=to.fd)
            known[one.identity] = entry
        self._publisher.sync(to)
        self._publisher.sync(folder)
        set_aside.drop(self.root, twice)
        set_aside.tidy(self.root, path)
        return [known[one.identity] for one in variants]

    def _in_trash(self, key: InstanceKey) -> dict[Identity, SetAside]:
        """The entries of a series; nobody else changes them while we have the lock."""
        path = layout.series_folder(key)
        if path not in self._trashed:
            there = trash.entries(self.root, [Target(key.month, key.study, key.series)])
            self._trashed[path] = {one.identity: one for one in there}
        return self._trashed[path]

    def _lines_of(self, taken: list[tuple[SetAside, SetAside]]) -> Iterator[bytes]:
        """The lines in the trash of variants of one series, given with their entries."""
        key = taken[0][0].key
        beside = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
        every = set_aside.lines_of(self.root, beside, key.series) if len(taken) > 1 else {}
        for one, entry in taken:
            lines = every.get(one.name) or set_aside.lines_of_file(
                self.root, beside, key.series, one.name
            )
            yield trash.line_of(entry, best_line(lines, one.size, self._stored(one)))

    def _entry(self, one: SetAside) -> SetAside:
        while True:
            self._stamp = manifest.later_than([{"removed": self._stamp}])
            entry = trash.entry(one.key, self._stamp)
            if self._identity(entry.path) is None:
                return replace(entry, identity=one.identity, size=one.size)

    def _identity(self, path: str) -> Identity | None:
        try:
            return identity(os.stat(path, dir_fd=self.root, follow_symlinks=False))
        except FileNotFoundError:
            return None
