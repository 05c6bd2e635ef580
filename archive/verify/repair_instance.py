"""Mending one instance: moving it to its place, writing its File Meta anew, keeping it aside.

What cannot stay where it lies gets its other name first, durably, then loses the old one.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from datetime import datetime

from plainpacs.archive.dicom import part10
from plainpacs.archive.errors import RefusedInstance, StorageUnavailable, UnreadableDataSet
from plainpacs.archive.store.manifest import (
    ORIGIN_RECOVERED,
    FileFacts,
    Line,
    Provenance,
    encoded,
    line_of,
    provenance_of,
)
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.reread_facts import read_facts
from plainpacs.archive.store.temporary import TemporaryFile
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.publisher import Publisher
from plainpacs.archive.tree.root import locked, stamp
from plainpacs.archive.tree.targets import Identity, identity
from plainpacs.archive.verify.finding import FindingKind
from plainpacs.archive.verify.instance import Reader, header_of, restored_meta
from plainpacs.archive.verify.study import belongs, promised

_CHANGED = "it was changed in this moment; verify again"


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done. ``left``: something is for the user to do yet. ``rebuild``: every index is
    to be made again."""

    words: str
    left: bool = False
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """An instance to be mended: its file and its series' folder, open. ``line`` is the one that
    says what was stored, if the file has its length."""

    key: InstanceKey
    folder: int
    fd: int
    identity: Identity
    lines: list[Line]
    line: Line | None

    @property
    def name(self) -> str:
        return layout.instance_name(self.key.instance)

    def is_unchanged(self) -> bool:
        """Whether its name still is that of the file that was looked at."""
        try:
            return identity(os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)) == (
                self.identity
            )
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class _Anew:
    """What a file is written anew with: ``meta``, before its data set, which starts at ``offset``.

    ``line`` is that of the result when ``attributes`` is None, else only tells where it came from.
    """

    meta: bytes
    offset: int
    line: Line
    attributes: dict[str, object] | None = None


class InstanceMender:
    """Mends instances of the archive of ``writer``. Methods raise OSError, StorageUnavailable."""

    def __init__(self, writer: Writer, reader: Reader, digest: str) -> None:
        self._writer = writer
        self._reader = reader
        self._digest = digest
        self._publisher = Publisher(writer.root)
        self._manifests = ManifestWriter(self._publisher)
        self._numbers = itertools.count()

    def close(self) -> None:
        self._manifests.close()

    def mark(self, month: str, study: str) -> None:
        """Asks the indexer to look at the study."""
        path = f"{layout.PENDING}/{layout.pending_name(month, study)}"
        durable.touch(path, folder=self._writer.root)

    def write_line(self, one: Opened) -> Mended:
        """Its manifest line anew, from the file; who sent it as in the line it has."""
        told = one.line or next(reversed(promised(one.lines)), {})
        facts, attributes = self._read(one, one.name)
        line = line_of(facts, provenance_of(told), attributes)
        self._append(layout.study_folder(one.key.month, one.key.study), one.key.series, line)
        self.mark(one.key.month, one.key.study)
        return Mended("its line was made again from the file")

    # --- to its place ---------------------------------------------------------------------------

    def move(self, one: Opened) -> Mended:
        """To where it belongs by its own header; aside, when another instance is there."""
        attributes, fault = header_of(one.fd, one.key)
        place = belongs(attributes)
        if place in (None, one.key):
            return Mended(f"could not be mended: {fault or 'it lies where it belongs'}", left=True)
        path = layout.instance_path(place)
        left = False
        if self._publisher.publish(one.name, one.folder, path):
            self._append_at(place, one)
            words = f"moved to {path}"
        elif self._is_same(one, path):
            words = f"the same instance is at {path}; this name was taken away"
        else:
            kept = self._keep_aside(one, place, FindingKind.WRONG_PLACE)
            words, left = f"another instance is at {path}; moved to {kept}", True
        self.mark(place.month, place.study)
        self._take_away(one)
        return Mended(words, left)

    def _append_at(self, place: InstanceKey, one: Opened) -> None:
        name = layout.instance_name(place.instance)
        if one.line is not None:
            line = encoded({**one.line, "file": name})
        else:
            facts, attributes = self._read(one, name)
            line = line_of(facts, Provenance(origin=ORIGIN_RECOVERED), attributes)
        self._append(layout.study_folder(place.month, place.study), place.series, line)

    # --- its File Meta Information --------------------------------------------------------------

    def rewrite(self, one: Opened) -> Mended:
        """With the File Meta Information that was stored, where the digest proves it; else with
        one of ours that is of its data set."""
        restored = restored_meta(one.fd, promised(one.lines), one.key, self._reader)
        if restored:
            line, meta, found = restored
            return self._replace(one, _Anew(meta, found.dataset_offset, line))
        attributes, fault = header_of(one.fd, one.key)
        found = part10.read_part10(os.pread(one.fd, part10.LONGEST_META, 0))
        if fault or not (one.line or found.whole):
            # Its transfer syntax is nobody's word, and the bytes alone do not tell it.
            kept = self._keep_aside(one, one.key, FindingKind.WRONG_FILE_META)
            self._take_away(one)
            return Mended(f"nothing tells its transfer syntax; moved to {kept}", left=True)
        line = one.line or {"transfer_syntax": found.transfer_syntax}
        sender = provenance_of(line)
        meta = part10.file_meta(
            str(attributes.get("SOPClassUID") or found.sop_class),
            one.key.instance,
            line["transfer_syntax"],
            calling_ae=sender.calling_ae,
            called_ae=sender.called_ae,
        )
        return self._replace(one, _Anew(meta, found.dataset_offset, line, attributes))

    def _replace(self, one: Opened, anew: _Anew) -> Mended:
        """Puts another File Meta Information and the file's data set in the file's place."""
        attributes = anew.attributes
        stored = _nanoseconds(anew.line) if attributes is None else None
        name = f"mended.{next(self._numbers)}"
        with TemporaryFile(self._writer.incoming, name, self._digest) as new:
            new.write(anew.meta)
            offset = anew.offset
            while chunk := os.pread(one.fd, 1 << 20, offset):
                new.write(chunk)
                offset += len(chunk)
            now = new.date(stored)
            new.sync()
            with locked(self._writer.root, layout.REPLACING_LOCK):
                kept = self._keep_aside(one, one.key, FindingKind.WRONG_FILE_META)
                if attributes is not None:
                    # Before the file is in its place: until then it is of another time or length.
                    facts = FileFacts(
                        one.name,
                        new.size,
                        len(anew.meta),
                        self._digest,
                        new.hexdigest(),
                        now,
                        anew.line["transfer_syntax"],
                    )
                    added = line_of(facts, provenance_of(anew.line), attributes)
                    folder = layout.study_folder(one.key.month, one.key.study)
                    self._append(folder, one.key.series, added)
                path = layout.instance_path(one.key)
                incoming, before = self._writer.incoming, one.identity
                if not self._publisher.replace(name, incoming, path, before):
                    return Mended(_CHANGED, left=True)
        self.mark(one.key.month, one.key.study)
        how = "as it was stored" if attributes is None else "with right File Meta"
        return Mended(f"written anew {how}; as it was found it is {kept}", left=True)

    # --- aside ----------------------------------------------------------------------------------

    def put_aside(self, one: Opened, reason: FindingKind) -> Mended:
        """Out of the tree, so that the instance can be stored again."""
        kept = self._keep_aside(one, one.key, reason)
        self._take_away(one)
        return Mended(f"moved to {kept}; have it sent again, or bring it back from a backup", True)

    def _keep_aside(self, one: Opened, key: InstanceKey, reason: FindingKind) -> str:
        """Gives the file another name beneath ``conflicts``, where variants of ``key`` are kept,
        with a line that has the ``reason``; returns its path."""
        name = f"{key.instance}~{self._digest_of_data_set(one.fd)}"
        folder = f"{layout.CONFLICTS}/{layout.study_folder(key.month, key.study)}"
        path = f"{folder}/{key.series}/{name}"
        if self._publisher.publish(one.name, one.folder, path):
            self._append(folder, key.series, self._line_aside(one, name, reason))
        elif not self._is_same(one, path):
            raise StorageUnavailable(f"{path} does not hold what its name says; move it away")
        return path

    def _line_aside(self, one: Opened, name: str, reason: FindingKind) -> bytes:
        size = os.fstat(one.fd).st_size
        sender = next((line for line in reversed(one.lines) if "bytes" in line), {})
        try:
            facts, attributes = self._read(one, name)
        except RefusedInstance:
            facts_of_file = os.fstat(one.fd)
            line: Line = {
                "file": name,
                "bytes": size,
                self._digest: self._reader.digest(one.fd, self._digest),
                "stored": stamp(facts_of_file.st_mtime_ns),
                "reason": reason.value,
            }
            return encoded(line)
        return line_of(facts, provenance_of(sender), {"reason": reason.value, **attributes})

    def _take_away(self, one: Opened) -> None:
        """The old name, of what has another by now."""
        with locked(self._writer.root, layout.REPLACING_LOCK):
            if one.is_unchanged():
                durable.unlink(one.name, folder=one.folder)
                durable.sync_folder(one.folder)
        self.mark(one.key.month, one.key.study)

    # --- shared ---------------------------------------------------------------------------------

    def _read(self, one: Opened, name: str) -> tuple[FileFacts, dict[str, object]]:
        """Raises RefusedInstance."""
        os.lseek(one.fd, 0, os.SEEK_SET)
        with open(one.fd, "rb", buffering=0, closefd=False) as file:
            return read_facts(file, name, self._digest)

    def _append(self, folder: str, series: str, line: bytes) -> None:
        path = f"{folder}/{layout.manifest_name(series, self._writer.node)}"
        self._manifests.append_durably(path, line)

    def _digest_of_data_set(self, fd: int) -> str:
        """Of what makes an instance the same; of all bytes of what is no Part 10 file."""
        try:
            found = part10.read_part10(os.pread(fd, part10.LONGEST_META, 0))
            syntax, offset = found.transfer_syntax, found.dataset_offset
        except UnreadableDataSet:
            syntax, offset = "", 0
        before = syntax.encode("ascii", "replace") + b"\0"
        return self._reader.digest(fd, "blake3", before=before, skip=offset)

    def _is_same(self, one: Opened, path: str) -> bool:
        """Whether the file at ``path`` is the same instance; its bytes are durable then."""
        fd = durable.open_file(path, folder=self._writer.root)
        try:
            if self._digest_of_data_set(fd) != self._digest_of_data_set(one.fd):
                return False
            self._publisher.sync_published(fd, path)
            return True
        finally:
            os.close(fd)


def _nanoseconds(line: Line) -> int:
    moment = datetime.fromisoformat(line["stored"])
    return round(moment.timestamp() * 1000) * 1_000_000
