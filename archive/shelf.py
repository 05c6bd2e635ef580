"""Publishing a finished temporary file: its place, its manifest line, the marker for the indexer.

The same instance again changes nothing; other bytes under a stored UID are kept aside.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
from dataclasses import dataclass, replace

import blake3

from plainpacs.archive import durable, layout, manifest, part10
from plainpacs.archive.durable import Publisher
from plainpacs.archive.errors import StorageUnavailable, UnreadableDataSet
from plainpacs.archive.header import Attributes
from plainpacs.archive.identity import InstanceKey
from plainpacs.archive.manifest import FileFacts, ManifestWriter, Provenance
from plainpacs.archive.unfinished import mapped
from plainpacs.archive.writer import Writer

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class StoreOutcome(enum.Enum):
    """What became of an instance. All three are success: its bytes are kept, durably."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The same instance was there: equal transfer syntax and data set bytes. Nothing changed."""
    CONFLICT = "conflict"
    """Other bytes have the UID: the first stays, these are kept under ``conflicts``."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome, the instance's key and the path, relative to ROOT, of the bytes kept."""

    outcome: StoreOutcome
    key: InstanceKey
    path: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished temporary file in ``incoming``, about to be published as ``key``."""

    name: str
    key: InstanceKey
    facts: FileFacts
    provenance: Provenance
    attributes: Attributes


class Shelf:
    """Where candidates are published. Thread-safe; one for a process. Close it."""

    def __init__(self, writer: Writer, *, sync: bool) -> None:
        self._writer = writer
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

    def publish(self, candidate: Candidate) -> Stored:
        """Raises OSError, StorageUnavailable; after one, the file may be in its place, whole."""
        key = candidate.key
        path = layout.instance_path(key)
        if self._publisher.publish(candidate.name, self._writer.incoming, path):
            folder = layout.study_folder(key.month, key.study)
            self._append_line(folder, candidate)
            self.mark_pending(key.month, key.study)
            return Stored(StoreOutcome.STORED, key, path)
        if self._holds_same(path, candidate):
            return Stored(StoreOutcome.DUPLICATE, key, path)
        return self._keep_aside(candidate)

    def _keep_aside(self, candidate: Candidate) -> Stored:
        key = candidate.key
        # Of what makes an instance the same, not of the file: a retry by another AE adds nothing.
        digest = blake3.blake3(candidate.facts.transfer_syntax.encode() + b"\0")
        digest.update(self._data_set(candidate))
        name = f"{key.instance}~{digest.hexdigest()}"
        path = f"{layout.CONFLICTS}/{layout.series_folder(key)}/{name}"
        if self._publisher.publish(candidate.name, self._writer.incoming, path):
            folder = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
            facts = replace(candidate.facts, file=name)
            self._append_line(folder, replace(candidate, facts=facts))
        elif not self._holds_same(path, candidate):
            raise StorageUnavailable(f"{path} does not hold what its name says; move it away")
        return Stored(StoreOutcome.CONFLICT, key, path)

    def _data_set(self, candidate: Candidate) -> memoryview:
        return mapped(self._writer.incoming, candidate.name)[candidate.facts.dataset_offset :]

    def _append_line(self, folder: str, candidate: Candidate) -> None:
        """The manifest line. It can be made again from the file: a failure is logged only."""
        path = f"{folder}/{layout.manifest_name(candidate.key.series, self._writer.node)}"
        try:
            self._manifests.append(
                path, manifest.line_of(candidate.facts, candidate.provenance, candidate.attributes)
            )
        except (OSError, StorageUnavailable) as error:
            log.warning("cannot append to manifest %s: %s", path, error)

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

    def _holds_same(self, path: str, candidate: Candidate) -> bool:
        """Whether the file at ``path`` is the same instance; its bytes are durable then."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, dir_fd=self._writer.root), "rb", buffering=0) as file:
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
            self._publisher.sync_published(file.fileno(), path)
            return True
