"""Storing an instance: from the bytes of its data set to a promise.

However an instance arrives (in one piece, in many, as a file), it is written to a temporary file
here; ``Publication.save`` does the rest, in the order that makes the answer true.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterable, Mapping

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.header import Attributes, read_header
from plainpacs.archive.dicom.header_cache import HeaderReader
from plainpacs.archive.errors import (
    DataSetMismatch,
    InvalidUID,
    NotDICOM,
    OutOfSpace,
    StorageUnavailable,
    UnreadableDataSet,
)
from plainpacs.archive.store.audit import AuditLog
from plainpacs.archive.store.free_space import NO_RESERVE, Reserve
from plainpacs.archive.store.incoming_cleanup import mark_published, sweep_dead
from plainpacs.archive.store.manifest import FileFacts, Provenance
from plainpacs.archive.store.publish import KEEP, Candidate, Publication, Stored, StoreOutcome
from plainpacs.archive.store.temporary import TemporaryFile
from plainpacs.archive.store.writer import FILES_OF_ONE, Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey, as_name, strip_padding

_HEAD = 32 << 10  # bytes kept of a spooled data set

__all__ = ["Archive", "Provenance", "Spool", "StoreOutcome", "Stored"]


class Archive:
    """An archive open for storing. Thread-safe; made by ``Archive.open``, a context manager."""

    def __init__(
        self, writer: Writer, *, sync: bool = True, digest: str = "blake3", on_conflict: str = KEEP
    ) -> None:
        self.root = writer.path
        self.identity = writer.identity
        self.node = writer.node
        self._writer = writer
        self._sync = sync
        self._digest = digest
        self._publication = Publication(writer, sync=sync, on_conflict=on_conflict)
        self.audit = AuditLog(writer.root, writer.node, sync=sync)
        self._numbers = itertools.count()
        self.headers = HeaderReader()

    @classmethod
    def open(
        cls,
        root: str,
        *,
        node: str | None = None,
        sync: bool = True,
        digest: str = "blake3",
        reserve: Reserve = NO_RESERVE,
        on_conflict: str = KEEP,
        expected: str | None = None,
    ) -> Archive:
        """Opens the archive at ``root`` for storing as ``node`` (the marker's by default).

        What would leave less than the ``reserve`` free is refused, with OutOfSpace. Other bytes
        under a stored UID are kept aside, or (``on_conflict`` "replace") published. ``expected`` is
        the ``identity`` of the one archive meant.
        Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
        """
        writer = Writer.open(root, node, mark_published, reserve, expected)
        try:
            return cls(writer, sync=sync, digest=digest, on_conflict=on_conflict)
        except OSError as error:
            writer.close()
            raise StorageUnavailable(f"cannot write in {root}: {error.strerror}") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes everything durable and leaves nothing unfinished behind."""
        self._publication.close()
        self.audit.close()
        self._writer.close()

    def flush(self) -> None:
        """Makes the manifest lines durable that were appended since the last flush."""
        self._publication.flush()

    def check(
        self, size: int = 0, files: int = FILES_OF_ONE, key: InstanceKey | None = None
    ) -> None:
        """Raises StorageUnavailable when the root went away, or has no room for ``size`` bytes
        more in so many new ``files``. The same instance as is stored at ``key`` needs none."""
        self._writer.check(size, files, layout.instance_path(key) if key else "")

    def sweep(self) -> None:
        """Clears the unfinished files that a dead process of this node left."""
        sweep_dead(self._writer)

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
        may_replace: bool = True,
    ) -> Stored:
        """Keeps an instance, byte for byte; when this returns it outlives a power loss.

        ``data_set`` is encoded in ``transfer_syntax``; ``sop_class`` and ``sop_instance`` are
        those of the C-STORE request (PS3.7 9.1.1.1), with which the data set must agree.
        ``may_replace`` false: it is kept aside where other bytes are, whatever ``on_conflict`` is.
        Raises UnreadableDataSet, InvalidUID, DataSetMismatch, ForbiddenInstance and
        StorageUnavailable; then nothing of it is in the tree, or (StorageUnavailable only) the
        whole file is and a retry finds it.
        """
        above = default_for(provenance.calling_ae)
        attributes = self.headers.read(data_set, transfer_syntax, above)
        key = InstanceKey.of_attributes(attributes)
        _agree("SOPClassUID", attributes, sop_class)
        _agree("SOPInstanceUID", attributes, sop_instance)
        meta = part10.file_meta(
            attributes.get("SOPClassUID") or sop_class or "",
            key.instance,
            transfer_syntax,
            calling_ae=provenance.calling_ae,
            called_ae=provenance.called_ae,
        )
        with _as_unavailable:
            self.check(len(data_set), key=key)
            with self._temporary_file() as file:
                file.write(meta, data_set)
                return self._save(
                    file,
                    key,
                    attributes,
                    offset=len(meta),
                    syntax=transfer_syntax,
                    provenance=provenance,
                    may_replace=may_replace,
                )

    def spool(
        self, transfer_syntax: str, provenance: Provenance, *, sop_class: str, sop_instance: str
    ) -> Spool:
        """For an instance too large to be held in memory: see ``Spool``. Arguments as of ``store``.

        Raises InvalidUID, StorageUnavailable.
        """
        meta = part10.file_meta(
            as_name("SOPClassUID", sop_class),
            as_name("SOPInstanceUID", sop_instance),
            transfer_syntax,
            calling_ae=provenance.calling_ae,
            called_ae=provenance.called_ae,
        )
        with _as_unavailable:
            self._writer.check_root()
            file = self._temporary_file()
            try:
                file.write(meta)
            except BaseException:
                file.discard()
                raise
            command = {"SOPClassUID": sop_class, "SOPInstanceUID": sop_instance}
            return Spool(self, file, command, transfer_syntax, provenance)

    def import_file(
        self,
        source: int | Iterable[Buffer],
        provenance: Provenance,
        *,
        may_replace: bool = True,
        turn: Callable[[InstanceKey], None] = lambda _: None,
    ) -> Stored:
        """Takes in the DICOM file open as ``source`` (reflinked where possible), or its bytes.

        A valid Part 10 file is kept whole; a bare data set gets File Meta Information of ours.
        One that was cut short is refused. ``turn`` is called before it is stored, and may wait.
        Raises as ``store`` does, NotDICOM, and what reading ``source`` raises.
        """
        with _as_unavailable, self._temporary_file() as file:
            if isinstance(source, int):
                self._writer.check_root()
                file.copy(source)
            else:
                for data in source:
                    self.check(len(data))
                    file.write(data)
            view = file.view()
            try:
                found = part10.read_part10(view[: part10.LONGEST_META])
                if found.sop_class == part10.MEDIA_STORAGE_DIRECTORY:
                    raise NotDICOM("it is a DICOMDIR, not an instance")
                attributes = _header_of_file(view[found.dataset_offset :], found)
            except NotDICOM as error:
                error.prefixed = part10.is_prefixed(view)
                raise
            turn(key := InstanceKey.of_attributes(attributes))
            if not found.whole:
                data_set = view[found.dataset_offset :]
                syntax = found.transfer_syntax
                return self.store(data_set, syntax, provenance, may_replace=may_replace)
            self.check(key=key)
            return self._save(
                file,
                key,
                attributes,
                offset=found.dataset_offset,
                syntax=found.transfer_syntax,
                provenance=provenance,
                may_replace=may_replace,
            )

    def _temporary_file(self) -> TemporaryFile:
        name = str(next(self._numbers))
        return TemporaryFile(self._writer.incoming, name, self._digest, sync=self._sync)

    def _save(
        self,
        file: TemporaryFile,
        key: InstanceKey,
        attributes: Attributes,
        *,
        offset: int,
        syntax: str,
        provenance: Provenance,
        may_replace: bool = True,
    ) -> Stored:
        """Keeps the file, whose data set in ``syntax`` starts at ``offset``."""
        self._writer.forbidden.check(key)
        facts = FileFacts(
            layout.instance_name(key.instance),
            file.size,
            offset,
            self._digest,
            file.hexdigest(),
            file.date(provenance.stored),
            syntax,
        )
        candidate = Candidate(file.name, key, facts, provenance, attributes)
        return self._publication.save(file, candidate, may_replace=may_replace)


class Spool:
    """An instance on its way in, written as it comes; made by ``Archive.spool``.

    Its data set goes through ``write``, then ``store`` keeps it. A context manager: what was not
    stored leaves nothing behind.
    """

    def __init__(
        self,
        archive: Archive,
        file: TemporaryFile,
        command: Mapping[str, str],
        transfer_syntax: str,
        provenance: Provenance,
    ) -> None:
        self._archive = archive
        self._file = file
        self._offset = file.size
        self._command = command
        self._transfer_syntax = transfer_syntax
        self._provenance = provenance
        self._above = default_for(provenance.calling_ae)
        self._begun = False
        self._attributes: Attributes | None = None
        self._key: InstanceKey | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Leaves nothing unfinished; also after ``store``, and again."""
        self._file.discard()

    def write(self, data: Buffer) -> None:
        """Adds bytes of the data set; faster in large pieces. Raises StorageUnavailable."""
        if not self._begun:
            # Nearly every header lies in the first bytes; read now, while the rest is on its way.
            self._begun = True
            with contextlib.suppress(UnreadableDataSet, InvalidUID):
                head = memoryview(data)[:_HEAD]
                self._attributes = self._archive.headers.read(
                    head, self._transfer_syntax, self._above, complete=False
                )
                self._key = InstanceKey.of_attributes(self._attributes)
        with _as_unavailable:
            self._archive.check(len(data), files=0, key=self._key)
            self._file.write(data)

    def store(self) -> Stored:
        """Keeps the instance, as ``Archive.store`` does and with its errors."""
        with _as_unavailable, self:
            attributes = self._attributes
            if attributes is None:
                data_set = self._file.view()[self._offset :]
                attributes = read_header(data_set, self._transfer_syntax, self._above)
            key = InstanceKey.of_attributes(attributes)
            self._archive.check(key=key)
            for keyword, uid in self._command.items():
                _agree(keyword, attributes, uid)
            return self._archive._save(
                self._file,
                key,
                attributes,
                offset=self._offset,
                syntax=self._transfer_syntax,
                provenance=self._provenance,
            )


def _header_of_file(data_set: memoryview, found: part10.Part10) -> Attributes:
    """The header of a file's data set, of which the whole must be there."""
    try:
        above = default_for(found.calling_ae)
        return read_header(data_set, found.transfer_syntax, above, whole=True)
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


class _AsUnavailable:
    """Turns what the system says into what the sender is told."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, IsADirectoryError):
            words = "a folder lies where the instance belongs; move it away"
            raise StorageUnavailable(words) from error
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raised = OutOfSpace if full else StorageUnavailable
            raise raised(error.strerror or str(error)) from error


_as_unavailable = _AsUnavailable()
