"""The order of a store: a temporary file gets its place, its manifest line, the indexer's marker.

The same instance again changes nothing; other bytes under a stored UID are kept aside, or take the
place of the first, which is kept aside before (``on_conflict = replace``).

The order of a replacement, under a lock: the file that is there is made durable and linked into
``conflicts``, and gets its manifest line there; the line of the new one is appended to the series'
manifest and made durable, as nothing but that line tells the two apart when they are of one length;
the new file is renamed over the old one (``Publisher.replace``). At every moment both are
somewhere, and the final name holds one of them, whole.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
from collections.abc import Callable
from io import FileIO
from typing import NamedTuple

import blake3

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import Attributes
from plainpacs.archive.errors import StorageUnavailable, UnreadableDataSet
from plainpacs.archive.store import manifest, set_aside
from plainpacs.archive.store.manifest import FileFacts, Line, Provenance
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.set_aside import SetAside
from plainpacs.archive.store.temporary import Temporary, mapped
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.publisher import Linked, Publisher
from plainpacs.archive.tree.root import locked, stamp
from plainpacs.archive.tree.targets import identity

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_MILLISECOND = 1_000_000

KEEP, REPLACE = "keep", "replace"
"""What ``on_conflict`` may be."""


class StoreOutcome(enum.Enum):
    """What became of an instance. All three are success: its bytes are kept, durably."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The same instance was there: equal transfer syntax and data set bytes. Nothing changed."""
    CONFLICT = "conflict"
    """Other bytes have the UID: the first stays, these are kept under ``conflicts``; or, with
    ``on_conflict = replace``, these are published and the first is kept there."""


class Stored(NamedTuple):
    """The outcome, the instance's key and the path, relative to ROOT, of the bytes kept."""

    outcome: StoreOutcome
    key: InstanceKey
    path: str


class Candidate(NamedTuple):
    """A finished temporary file in ``incoming``, about to be published as ``key``."""

    name: str
    key: InstanceKey
    facts: FileFacts
    provenance: Provenance
    attributes: Attributes


class Publication:
    """Publishes finished temporary files. Thread-safe; one for a process. Close it."""

    def __init__(self, writer: Writer, *, sync: bool, on_conflict: str = KEEP) -> None:
        self._writer = writer
        self._sync = sync
        self._on_conflict = on_conflict
        self._publisher = Publisher(writer.root, sync=sync)
        self._manifests = ManifestWriter(self._publisher, sync=sync)
        self._pending = durable.open_folder(layout.PENDING, folder=writer.root)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._manifests.close()
        os.close(self._pending)

    def flush(self) -> None:
        """Makes the manifest lines durable that were appended since the last flush."""
        self._manifests.flush()

    def save(self, file: Temporary, new: Candidate, *, may_replace: bool = True) -> Stored:
        """Keeps the instance that was written to ``file``: the order of a store, a step a line.

        When this returns the instance is kept, and whoever sent it may be told so. The order is
        proved by model (``tests/crash``); a step moved breaks a promise. ``may_replace`` false:
        other bytes that are there stay, whatever ``on_conflict`` says. Raises OSError,
        StorageUnavailable; after one the file may be in its place, whole, and a retry finds it.
        """
        key, incoming, publisher = new.key, self._writer.incoming, self._publisher
        path = layout.instance_path(key)
        with file:  # at the end its temporary name goes, whatever happens
            file.sync()  # the bytes are durable
            for folder in publisher.attempts(layout.series_folder(key)):  # durable, up to ROOT
                linked = publisher.link(file.name, incoming, folder, new.facts.file)
                if linked is Linked.NOWHERE:
                    continue
                publisher.sync(folder)  # the name is durable, whoever's file has it
                if linked is Linked.TAKEN:
                    if stored := self._taken(path, new, may_replace):
                        return stored
                    continue
                self._append_line(layout.study_folder(key.month, key.study), new)
                self.mark_pending(key.month, key.study)
                return Stored(StoreOutcome.STORED, key, path)
        raise StorageUnavailable(f"{path} keeps coming and going")

    def _taken(self, path: str, new: Candidate, may_replace: bool) -> Stored | None:
        """What becomes of an instance whose name another file has; None: that one was removed in
        this very moment."""
        try:
            if self._holds_same(path, new):
                return Stored(StoreOutcome.DUPLICATE, new.key, path)
            if may_replace and self._on_conflict == REPLACE:
                self._writer.check()
                return self.replace(new)
            return self._set_aside(new)
        except FileNotFoundError:
            return None

    # --- other bytes: kept aside ----------------------------------------------------------------

    def _set_aside(self, candidate: Candidate) -> Stored:
        key = candidate.key
        path = f"{self._conflicts(key)}/{self._variant_name(candidate)}"
        self._writer.check(path=path)
        if self._publisher.publish(candidate.name, self._writer.incoming, path):
            folder = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
            facts = candidate.facts._replace(file=path.rpartition("/")[2])
            self._append_line(folder, candidate._replace(facts=facts))
        elif not self._holds_same(path, candidate):
            raise StorageUnavailable(f"{path} does not hold what its name says; move it away")
        return Stored(StoreOutcome.CONFLICT, key, path)

    def _conflicts(self, key: InstanceKey) -> str:
        return f"{layout.CONFLICTS}/{layout.series_folder(key)}"

    def _variant_name(self, candidate: Candidate) -> str:
        # Of what makes an instance the same, not of the file: a retry by another AE adds nothing.
        digest = blake3.blake3(candidate.facts.transfer_syntax.encode() + b"\0")
        digest.update(self._data_set(candidate))
        return f"{candidate.key.instance}~{digest.hexdigest()}"

    # --- other bytes: published -----------------------------------------------------------------

    def replace(
        self, candidate: Candidate, put_by: Callable[[SetAside], None] | None = None
    ) -> Stored:
        """Publishes the candidate in place of what lies there, which is kept aside first.

        ``put_by`` is called with the old file's place among the conflicts, before it loses its
        final name: it may take it further. A variant kept aside that is the same instance as the
        candidate goes: it is published now. The manifest line is durable. Raises OSError
        (FileNotFoundError when nothing lies there) and StorageUnavailable; then either lies there.
        """
        key = candidate.key
        path = layout.instance_path(key)
        with locked(self._writer.root, layout.REPLACING_LOCK), self._open(path) as old:
            if self._is_same(old, candidate):  # somebody else was quicker
                self._publisher.sync_published(old.fileno(), path)
                return Stored(StoreOutcome.DUPLICATE, key, path)
            folder, _, name = path.rpartition("/")
            study, _, series = folder.rpartition("/")
            lines = set_aside.lines_of_file(self._writer.root, study, series, name)
            kept = self._keep_old(key, old, lines)
            if put_by:
                put_by(kept)
            candidate = self._dated_apart(candidate, old, lines)
            self._append_line_surely(candidate)
            self.mark_pending(key.month, key.study)
            before = identity(os.fstat(old.fileno()))
            if not self._publisher.replace(candidate.name, self._writer.incoming, path, before):
                raise StorageUnavailable(f"{path} was changed in this moment; send it again")
            self._drop_variant(candidate)
        self.mark_pending(key.month, key.study)
        return Stored(StoreOutcome.CONFLICT, key, path)

    def _keep_old(self, key: InstanceKey, old: FileIO, lines: list[Line]) -> SetAside:
        """Links the open, published file ``old`` into ``conflicts``, durably, with its line."""
        facts = os.fstat(old.fileno())
        path = layout.instance_path(key)
        mark = variant_digest(old)
        kept = SetAside(layout.CONFLICTS, key, mark, identity(facts), facts.st_size, facts.st_nlink)
        self._publisher.sync_published(old.fileno(), path)
        series, _, name = path.rpartition("/")
        folder = self._publisher.folder(series)  # held on to: it is open as long as it is
        if not self._publisher.publish(name, folder.fd, kept.path):
            with self._open(kept.path) as there:
                if variant_digest(there) != kept.mark:
                    raise StorageUnavailable(
                        f"{kept.path} does not hold what its name says; move it away"
                    )
                self._publisher.sync_published(there.fileno(), kept.path)
            return kept
        there_now = os.stat(kept.path, dir_fd=self._writer.root, follow_symlinks=False)
        if identity(there_now) != kept.identity:
            raise StorageUnavailable(f"{path} was changed in this moment; send it again")
        found = manifest.best_line(lines, facts.st_size, facts.st_mtime_ns)
        line = found or {
            "bytes": facts.st_size,
            "stored": stamp(facts.st_mtime_ns),
            "origin": manifest.ORIGIN_RECOVERED,
        }
        beside = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
        self._append_lightly(beside, key.series, manifest.encoded({**line, "file": kept.name}))
        return kept

    def _dated_apart(self, candidate: Candidate, old: FileIO, lines: list[Line]) -> Candidate:
        """The candidate, of another millisecond than the old file and than other bytes that had
        the name before: by its mtime a manifest line is known to be a file's."""
        facts = candidate.facts
        taken = {
            line.get("stored") for line in lines if line.get(facts.digest_name) != facts.digest
        }
        taken.add(stamp(os.fstat(old.fileno()).st_mtime_ns))
        if facts.stored not in taken:
            return candidate
        with self._open(candidate.name, self._writer.incoming) as file:
            moment = os.fstat(file.fileno()).st_mtime_ns
            while stamp(moment) in taken:
                moment += _MILLISECOND
            durable.set_time(file.fileno(), moment)
            if self._sync:
                durable.sync_file(file.fileno())
        return candidate._replace(facts=facts._replace(stored=stamp(moment)))

    def _drop_variant(self, candidate: Candidate) -> None:
        """The published candidate's twin among the conflicts, if there is one, is not needed."""
        twin = SetAside(
            layout.CONFLICTS, candidate.key, self._variant_name(candidate).partition("~")[2]
        )
        try:
            if self._holds_same(twin.path, candidate):
                set_aside.drop(self._writer.root, [twin])
        except FileNotFoundError:
            pass
        except (OSError, StorageUnavailable) as error:
            log.warning("cannot remove %s, which is published now: %s", twin.path, error)

    # --- manifest lines and markers -------------------------------------------------------------

    def _append_line(self, folder: str, candidate: Candidate) -> None:
        """The manifest line. It can be made again from the file: a failure is logged only."""
        line = manifest.line_of(candidate.facts, candidate.provenance, candidate.attributes)
        self._append_lightly(folder, candidate.key.series, line)

    def _append_lightly(self, folder: str, series: str, line: bytes) -> None:
        path = f"{folder}/{layout.manifest_name(series, self._writer.node)}"
        try:
            self._manifests.append(path, line)
        except (OSError, StorageUnavailable) as error:
            log.warning("cannot append to manifest %s: %s", path, error)

    def _append_line_surely(self, candidate: Candidate) -> None:
        key = candidate.key
        folder = layout.study_folder(key.month, key.study)
        path = f"{folder}/{layout.manifest_name(key.series, self._writer.node)}"
        line = manifest.line_of(candidate.facts, candidate.provenance, candidate.attributes)
        append = self._manifests.append_durably if self._sync else self._manifests.append
        append(path, line)

    def mark_pending(self, month: str, study: str) -> None:
        """Asks the indexer to rebuild a study's index. Raises OSError."""
        name = layout.pending_name(month, study)
        try:
            durable.touch(name, folder=self._pending)
        except FileNotFoundError:  # somebody removed the folder: it may be made again
            with self._lock:
                with contextlib.suppress(FileExistsError):
                    durable.make_folder(layout.PENDING, folder=self._writer.root)
                anew = durable.open_folder(layout.PENDING, folder=self._writer.root)
                os.dup2(anew, self._pending, inheritable=False)
                os.close(anew)
            durable.touch(name, folder=self._pending)

    # --- what is there already ------------------------------------------------------------------

    def _data_set(self, candidate: Candidate) -> memoryview:
        return mapped(self._writer.incoming, candidate.name)[candidate.facts.dataset_offset :]

    def _open(self, path: str, folder: int | None = None) -> FileIO:
        within = self._writer.root if folder is None else folder
        return open(durable.open_file(path, folder=within), "rb", buffering=0)

    def _holds_same(self, path: str, candidate: Candidate) -> bool:
        """Whether the file at ``path`` is the same instance; its bytes are durable then."""
        with self._open(path) as file:
            if not self._is_same(file, candidate):
                return False
            self._publisher.sync_published(file.fileno(), path)
            return True

    def _is_same(self, file: FileIO, candidate: Candidate) -> bool:
        try:
            found = part10.read_part10(file.read(part10.LONGEST_META))
        except UnreadableDataSet:
            return False
        if found.transfer_syntax != candidate.facts.transfer_syntax:
            return False
        length = candidate.facts.size - candidate.facts.dataset_offset
        if os.fstat(file.fileno()).st_size - found.dataset_offset != length:
            return False
        wanted = self._data_set(candidate)
        file.seek(found.dataset_offset)
        position = 0
        while position < len(wanted):
            chunk = file.read(_CHUNK)
            if not chunk or chunk != wanted[position : position + len(chunk)]:
                return False
            position += len(chunk)
        return True


def variant_digest(file: FileIO) -> str:
    """What tells a variant apart: of its transfer syntax and data set; of a file that is not
    Part 10, of all its bytes."""
    file.seek(0)
    try:
        found = part10.read_part10(file.read(part10.LONGEST_META))
        syntax, offset = found.transfer_syntax, found.dataset_offset
    except UnreadableDataSet:
        syntax, offset = "", 0
    digest = blake3.blake3(syntax.encode("ascii", "replace") + b"\0")
    file.seek(offset)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return str(digest.hexdigest())
