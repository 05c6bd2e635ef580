"""Storing an instance: from the bytes of its data set to a promise.

The order (design, section 3) is: temporary file, write, sync, link to the final name, sync the
folders, manifest line, pending marker, unlink the temporary file. It is proved; the middle of it
is ``durable.Publisher.publish``.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import blake3

from plainpacs.archive import durable, layout, manifest, part10
from plainpacs.archive.durable import Buffer, Publisher
from plainpacs.archive.errors import (
    DataSetMismatch,
    NotDICOM,
    RefusedInstance,
    StorageUnavailable,
    UnreadableDataSet,
)
from plainpacs.archive.header import Attributes, read_header
from plainpacs.archive.identity import InstanceKey, as_name, strip_padding
from plainpacs.archive.manifest import FileFacts, ManifestWriter, Provenance
from plainpacs.archive.root import Writer, stamp

__all__ = ["Archive", "Provenance", "StoreOutcome", "Stored", "key_of_attributes"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_MILLISECOND = 1_000_000


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
class _Candidate:
    """A finished temporary file, about to be published."""

    name: str
    key: InstanceKey
    data_set: memoryview
    facts: FileFacts
    provenance: Provenance
    attributes: Attributes


def key_of_attributes(attributes: Attributes) -> InstanceKey:
    """The key of an instance with these attributes. Raises UnreadableDataSet, InvalidUID."""
    values: list[str] = []
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = attributes.get(keyword)
        if not isinstance(value, str) or not value:
            raise UnreadableDataSet(f"the data set has no {keyword}")
        values.append(value)
    return InstanceKey.of(attributes.get("StudyDate"), *values)


class Archive:
    """An archive open for storing. Thread-safe; made by ``Archive.open``, a context manager."""

    def __init__(self, writer: Writer, *, sync: bool = True, digest: str = "blake3") -> None:
        self.root = writer.path
        self.node = writer.node
        self._writer = writer
        self._sync = sync
        self._digest = digest
        self._publisher = Publisher(writer.root, sync=sync)
        self._manifests = ManifestWriter(self._publisher, sync=sync)
        self._pending = durable.open_folder(layout.PENDING, folder=writer.root)
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, root: str, *, node: str | None = None, sync: bool = True, digest: str = "blake3"
    ) -> Archive:
        """Opens the archive at ``root`` for storing as ``node`` (the marker's by default).

        Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
        """
        return cls(Writer.open(root, node, mark_published), sync=sync, digest=digest)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes everything durable and leaves nothing unfinished behind."""
        self._manifests.close()
        os.close(self._pending)
        self._writer.close()

    def flush(self) -> None:
        """Makes the manifest lines durable that were appended since the last flush."""
        self._manifests.flush()

    def check(self) -> None:
        """Raises StorageUnavailable when the root went away; looks at most once a second."""
        self._writer.check()

    def write_service_note(self, note: bytes) -> None:
        """Puts what the running service says of itself where ``status`` finds it."""
        path = f"{layout.INTERNAL}/service.{self.node}.json"
        durable.replace_file(self._writer.root, path, note)

    def store(
        self,
        data_set: Buffer,
        transfer_syntax: str,
        provenance: Provenance,
        *,
        sop_class: str | None = None,
        sop_instance: str | None = None,
    ) -> Stored:
        """Keeps an instance, byte for byte; when this returns it outlives a power loss.

        ``data_set`` is encoded in ``transfer_syntax``; ``sop_class`` and ``sop_instance`` are
        those of the C-STORE request (PS3.7 9.1.1.1), with which the data set must agree.
        Raises UnreadableDataSet, InvalidUID, DataSetMismatch and StorageUnavailable; then nothing
        of it is in the tree, or (StorageUnavailable only) the whole file is and a retry finds it.
        """
        attributes = read_header(data_set, transfer_syntax)
        key = key_of_attributes(attributes)
        _agree("SOPClassUID", attributes, sop_class)
        _agree("SOPInstanceUID", attributes, sop_instance)
        meta = part10.file_meta(
            attributes.get("SOPClassUID") or sop_class or "",
            key.instance,
            transfer_syntax,
            calling_ae=provenance.calling_ae,
            called_ae=provenance.called_ae,
        )
        with _as_unavailable():
            self.check()
            with self._temporary() as (name, fd):
                length = durable.write_all(fd, [meta, data_set])
                digest = self._digest_of(meta, data_set)
                facts = FileFacts(
                    layout.instance_name(key.instance),
                    length,
                    len(meta),
                    self._digest,
                    digest,
                    self._finish(fd, provenance.stored),
                    transfer_syntax,
                )
                view = memoryview(data_set)
                return self._publish(_Candidate(name, key, view, facts, provenance, attributes))

    def import_file(self, source: int, provenance: Provenance) -> Stored:
        """Takes in the DICOM file open as ``source``, copying it (reflinked where possible).

        A valid Part 10 file is kept whole; a bare data set gets File Meta Information of ours.
        The whole of it is read: one that was cut short is refused.
        Raises as ``store`` does.
        """
        with _as_unavailable():
            self.check()
            with self._temporary() as (name, fd):
                _copy(source, fd)
                with _mapped(self._writer.incoming, name) as view:
                    found = part10.read_part10(view[: part10.LONGEST_META])
                    data_set = view[found.dataset_offset :]
                    if found.sop_class == part10.MEDIA_STORAGE_DIRECTORY:
                        raise NotDICOM("it is a DICOMDIR, not an instance")
                    attributes = _header_of_file(data_set, found)
                    if not found.whole:
                        return self.store(data_set, found.transfer_syntax, provenance)
                    key = key_of_attributes(attributes)
                    facts = FileFacts(
                        layout.instance_name(key.instance),
                        len(view),
                        found.dataset_offset,
                        self._digest,
                        self._digest_of(view),
                        self._finish(fd, provenance.stored),
                        found.transfer_syntax,
                    )
                    return self._publish(
                        _Candidate(name, key, data_set, facts, provenance, attributes)
                    )

    # --- the steps ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[str, int]]:
        """A new file in ``incoming``; whatever happens, it is gone afterwards."""
        name = str(next(self._numbers))
        fd = durable.create(name, 0o444, folder=self._writer.incoming)
        try:
            yield name, fd
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                durable.unlink(name, folder=self._writer.incoming)

    def _finish(self, fd: int, stored: int | None) -> str:
        """Dates the temporary file and makes its bytes durable; returns ``stored``."""
        now = time.time_ns() if stored is None else stored
        now -= now % _MILLISECOND
        durable.set_time(fd, now)
        if self._sync:
            durable.sync_file(fd)
        return stamp(now)

    def _digest_of(self, *buffers: Buffer) -> str:
        digest: Any = blake3.blake3() if self._digest == "blake3" else hashlib.sha256()
        for buffer in buffers:
            digest.update(buffer)
        return str(digest.hexdigest())

    def _publish(self, candidate: _Candidate) -> Stored:
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

    def _keep_aside(self, candidate: _Candidate) -> Stored:
        key = candidate.key
        # Of what makes an instance the same, not of the file: a retry by another AE adds nothing.
        digest = blake3.blake3(candidate.facts.transfer_syntax.encode() + b"\0")
        digest.update(candidate.data_set)
        name = f"{key.instance}~{digest.hexdigest()}"
        path = f"{layout.CONFLICTS}/{layout.series_folder(key)}/{name}"
        if self._publisher.publish(candidate.name, self._writer.incoming, path):
            folder = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
            facts = replace(candidate.facts, file=name)
            self._append_line(folder, replace(candidate, facts=facts))
        elif not self._holds_same(path, candidate):
            raise StorageUnavailable(f"{path} does not hold what its name says; move it away")
        return Stored(StoreOutcome.CONFLICT, key, path)

    def _append_line(self, folder: str, candidate: _Candidate) -> None:
        """The manifest line. It can be made again from the file: a failure is logged only."""
        path = f"{folder}/{layout.manifest_name(candidate.key.series, self.node)}"
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

    def _holds_same(self, path: str, candidate: _Candidate) -> bool:
        """Whether the file at ``path`` is the same instance; its bytes are durable then."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, dir_fd=self._writer.root), "rb", buffering=0) as file:
            try:
                found = part10.read_part10(file.read(part10.LONGEST_META))
            except UnreadableDataSet:
                return False
            if found.transfer_syntax != candidate.facts.transfer_syntax:
                return False
            wanted = candidate.data_set
            if os.fstat(file.fileno()).st_size - found.dataset_offset != len(wanted):
                return False
            file.seek(found.dataset_offset)
            position = 0
            while position < len(wanted):
                chunk = file.read(_CHUNK)
                if not chunk or chunk != wanted[position : position + len(chunk)]:
                    return False
                position += len(chunk)
            if self._sync:
                durable.sync_file(file.fileno())
            return True


def _header_of_file(data_set: memoryview, found: part10.Part10) -> Attributes:
    """The header of a file's data set, of which the whole must be there."""
    try:
        return read_header(data_set, found.transfer_syntax, whole=True)
    except UnreadableDataSet as error:
        if found.prefixed:
            raise
        # Its first bytes only happened to look like a bare data set.
        raise NotDICOM(f"it is not DICOM: {error}") from None


def _agree(keyword: str, attributes: Attributes, command: str | None) -> None:
    value = attributes.get(keyword)
    if command is None or value is None:
        return
    if strip_padding(value) != strip_padding(command):
        raise DataSetMismatch(f"the data set has another {keyword} than the request")


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turns what the system says into what the sender is told."""
    try:
        yield
    except IsADirectoryError as error:
        raise StorageUnavailable(
            "a folder lies where the instance belongs; move it away"
        ) from error
    except OSError as error:
        raise StorageUnavailable(error.strerror or str(error)) from error


def _copy(source: int, to: int) -> None:
    """Copies a whole file; the file system shares the blocks where it can.

    Raises UnreadableDataSet when the source cannot be read, OSError when we cannot write.
    """
    offset = 0
    # Whatever it fails at, the plain way finds out whose fault it is, or that it can. After
    # success too: some file systems (procfs, FUSE) claim there is nothing to copy.
    with contextlib.suppress(OSError):
        while taken := durable.copy_range(source, to, 1 << 30, offset):
            offset += taken
    while chunk := _read_source(source, offset):
        offset += durable.write_all(to, [chunk])


def _read_source(source: int, offset: int) -> bytes:
    try:
        return os.pread(source, _CHUNK, offset)
    except OSError as error:
        raise UnreadableDataSet(f"it cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _mapped(folder: int, name: str) -> Iterator[memoryview]:
    """The bytes of our own file: nobody cuts it short while it is mapped.

    Unmapped when the last view of it is gone, which a traceback may hold on to for a while.
    """
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(fd).st_size == 0:
            raise NotDICOM("the file is empty")
        yield memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)


def mark_published(writer: Writer, folder: int) -> None:
    """Clears what a dead process left in its ``incoming`` folder, marking each study first.

    A temporary file with a second link was published; its study may not have been marked.
    """
    pending = durable.open_folder(layout.PENDING, folder=writer.root)
    try:
        for name in os.listdir(folder):
            if name == "lock":
                continue
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_nlink > 1:
                with contextlib.suppress(RefusedInstance):
                    key = read_key(name, folder)
                    durable.touch(layout.pending_name(key.month, key.study), folder=pending)
            durable.unlink(name, folder=folder)
    finally:
        os.close(pending)


def read_key(name: str, folder: int) -> InstanceKey:
    """The key of the instance in the Part 10 file ``name``. Raises OSError, RefusedInstance."""
    with _mapped(folder, name) as view:
        found = part10.read_part10(view[: part10.LONGEST_META])
        data_set = view[found.dataset_offset :]
        return key_of_attributes(read_header(data_set, found.transfer_syntax))


def as_uid(uid: str) -> str:
    """A UID given by a person, as a name in the tree. Raises InvalidUID."""
    return as_name("the UID", uid.strip())
