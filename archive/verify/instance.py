"""Looking at one instance closely: what, if anything, is wrong with it."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.part10 import Part10
from plainpacs.archive.errors import RefusedInstance, UnreadableDataSet
from plainpacs.archive.store import manifest
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import DIGESTS, ORIGIN_C_STORE, Line, digest_of
from plainpacs.archive.store.reread_facts import read_facts
from plainpacs.archive.store.temporary import PATIENCE, new_digest
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import InstanceFile
from plainpacs.archive.verify.finding import Finding, FindingKind
from plainpacs.archive.verify.study import (
    Subject,
    belongs,
    is_expected,
    is_sound,
    promised,
    stored_line,
)

_PIECE = 256 << 10  # bytes read and hashed at once: they stay in the processor's cache

_WITHOUT_LINE = (FindingKind.FILE_WITHOUT_LINE, FindingKind.WRONG_FILE_META)


class Reader:
    """Hashes files, not faster than ``rate`` bytes per second. Thread-safe.

    It reads and does not map: a bad sector is to be a finding, not the end of the process.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.bytes = 0
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()
        self._buffers = threading.local()

    def digest(self, fd: int, name: str, *, before: bytes = b"", skip: int = 0) -> str:
        """The digest called ``name`` of the open file from byte ``skip`` on, after ``before``.

        Raises OSError.
        """
        return self.digests(fd, [name], before=before, skip=skip)[0]

    def digests(
        self, fd: int, names: list[str], *, before: bytes = b"", skip: int = 0
    ) -> list[str]:
        """As ``digest``, several at once."""
        view, hashed = self._buffer(), [new_digest(name) for name in names]
        for one in hashed:
            one.update(before)
        offset = skip
        taken = _PIECE
        while taken == _PIECE:  # a regular file gives less only at its end
            taken = os.preadv(fd, [view], offset)
            for one in hashed:
                one.update(view[:taken])
            offset += taken
            if self._rate:
                self._wait(taken)
        with self._lock:
            self.bytes += offset - skip
        return [str(one.hexdigest()) for one in hashed]

    def _buffer(self) -> memoryview:
        view: memoryview | None = getattr(self._buffers, "view", None)
        if view is None:
            view = self._buffers.view = memoryview(bytearray(_PIECE))
        return view

    def _wait(self, taken: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + taken / (self._rate or 1)
            pause = self._free - now
        if pause > 0.01:
            time.sleep(pause)


def open_instance(root: str, key: InstanceKey) -> int:
    """Raises OSError."""
    return durable.open_file(os.path.join(root, layout.instance_path(key)))


def examine(
    root: str, subject: Subject, reader: Reader, forbidden: Forbidden, *, thorough: bool = True
) -> Finding | None:
    """What is wrong with the instance; None when nothing is, or it is just being received.

    ``thorough`` false: a file whose lines give no cause is not opened.
    """
    key, file, lines = subject.key, subject.file, subject.lines
    if file is None:
        return _missing(root, subject)
    if forbidden.covers(key.study, key.series, key.instance):
        words = "it is forbidden, and here; `plainpacs rm` it, or `plainpacs repair`"
        return Finding.of_instance(FindingKind.REMOVED_REAPPEARED, key, words)
    if stamp := manifest.removal_in_force(lines):
        words = f"removed at {stamp}, and here; `plainpacs rm` it again, or `plainpacs restore` it"
        return Finding.of_instance(FindingKind.REMOVED_REAPPEARED, key, words)
    line = stored_line(file, lines)
    if line is not None and not thorough and is_sound(line, key):
        return None
    try:
        fd = open_instance(root, key)
    except FileNotFoundError:
        return None  # taken out a moment ago
    except OSError as error:
        return _read_error(key, error)
    try:
        found = _judge(fd, subject, line, reader)
    except OSError as error:
        return _read_error(key, error)
    finally:
        os.close(fd)
    # What is being received has its line in a moment; it is whole, and in its place, already.
    waits = found is not None and found.kind in _WITHOUT_LINE and not lines
    return None if waits and _is_being_received(file) else found


def _missing(root: str, subject: Subject) -> Finding | None:
    key, lines = subject.key, subject.lines
    if not lines and subject.damaged:
        words = (
            "a damaged manifest line names it, and it is not here; bring it back from a backup or "
            "have it sent again; `plainpacs rm` it if it is gone for good"
        )
        return Finding.of_instance(FindingKind.MISSING_FILE, key, words)
    if not is_expected(lines):
        return None
    last = [line for line in lines if "bytes" in line][-1]
    place = belongs(last)
    if place not in (None, key) and os.path.lexists(
        os.path.join(root, layout.instance_path(place))
    ):
        return None  # it never belonged here, and is where it does
    words = (
        f"stored at {last.get('stored')}, {last['bytes']} bytes, and not here; bring it back from "
        "a backup or have it sent again; `plainpacs rm` it if it is gone for good"
    )
    return Finding.of_instance(FindingKind.MISSING_FILE, key, words)


def _is_being_received(file: InstanceFile) -> bool:
    """Its second link is the receiver's temporary one, unless it has been there for long."""
    return file.links > 1 and time.time_ns() - file.ctime < PATIENCE * 1_000_000_000


def read_error(error: OSError) -> str:
    """The words of a read-error."""
    return f"cannot be read: {error.strerror}; look after the disk, or permissions"


def _read_error(key: InstanceKey, error: OSError) -> Finding:
    return Finding.of_instance(FindingKind.READ_ERROR, key, read_error(error))


def _wrong_place(key: InstanceKey, place: InstanceKey | None) -> Finding | None:
    if place in (None, key):
        return None
    words = f"by its own header it belongs at {layout.instance_path(place)}"
    return Finding.of_instance(FindingKind.WRONG_PLACE, key, words)


def _judge(fd: int, subject: Subject, line: Line | None, reader: Reader) -> Finding | None:
    """``line``: the one that says what was stored, if the file has its length. Raises OSError."""
    key, lines = subject.key, subject.lines
    if line is not None and (not digest_of(line)[0] or _has_digest(fd, line, reader)):
        if digest_of(line)[0] and belongs(line) == key:
            wrong = meta_fault(fd, key, line)
            return _meta_disagrees(key, wrong) if wrong else None
        place = belongs(header_of(fd, key)[0])
        return _damaged_line(key) if place == key else _wrong_place(key, place or belongs(line))
    stored = promised(lines)
    attributes, fault = header_of(fd, key)
    place = belongs(attributes)
    if place == key and any(_has_digest(fd, one, reader) for one in subject.damaged):
        return _damaged_line(key)
    if restored_meta(fd, stored, key, reader):
        return _wrong_meta(key, "its File Meta Information was changed; the data set is unharmed")
    readable = f"it cannot be read: {fault}" if fault else "it can still be read"
    if line is not None or stored:
        last = line or stored[-1]
        differs = f"it is not what was stored at {last['stored']}"
        if line is None:
            size = os.fstat(fd).st_size
            differs = f"{size} bytes, {last['bytes']} were stored at {last['stored']}"
        # A line without a checksum may be what is damaged, where the file is an instance in its
        # place; so may those be that were left out, where other lines of it are damaged.
        if place == key and (subject.damaged or "crc32" not in last):
            words = (
                f"{differs}, but the line or the file may be damaged; look at the instance, then "
                "`plainpacs repair --apply --trust file` (or line) with its UID"
            )
            return Finding.of_instance(FindingKind.LINE_DISAGREES, key, words)
        kind = FindingKind.DIGEST_DIFFERS if line is not None else FindingKind.SIZE_DIFFERS
        return Finding.of_instance(kind, key, f"{differs}; {readable}")
    if fault:
        words = f"no manifest has a line for it, and {readable}"
        return Finding.of_instance(FindingKind.UNREADABLE, key, words)
    if found := _wrong_place(key, place):
        return found
    if wrong := meta_fault(fd, key, attributes):
        return _wrong_meta(key, wrong)
    if subject.damaged:
        return _damaged_line(key)
    words = "no manifest has a line for it; it can be made again from the file"
    return Finding.of_instance(FindingKind.FILE_WITHOUT_LINE, key, words)


def _has_digest(fd: int, line: Line, reader: Reader) -> bool:
    name, wanted = digest_of(line)
    return bool(name) and reader.digest(fd, name) == wanted


def _damaged_line(key: InstanceKey) -> Finding:
    words = "its manifest line is damaged; `plainpacs repair --apply` makes it again from the file"
    return Finding.of_instance(FindingKind.DAMAGED_LINE, key, words)


def _meta_disagrees(key: InstanceKey, words: str) -> Finding:
    words = f"{words}; it came so and is kept, and the data set counts: nothing is to be done"
    return Finding.of_instance(FindingKind.FILE_META_DISAGREES, key, words)


def _wrong_meta(key: InstanceKey, words: str) -> Finding:
    return Finding.of_instance(FindingKind.WRONG_FILE_META, key, words)


# --- the file's own words -----------------------------------------------------------------------


def head_of(fd: int) -> bytes:
    """The bytes in which the File Meta Information lies. Raises OSError."""
    return os.pread(fd, part10.LONGEST_META, 0)


def meta_fault(fd: int, key: InstanceKey, line: dict[str, Any]) -> str:
    """What is wrong with the File Meta Information of the open file, whose data set has this
    manifest line (or these attributes); empty when nothing is. Raises OSError."""
    if line.get("origin") == ORIGIN_C_STORE:
        return ""  # it is ours, and the digest vouches for it
    # As far as the line says it goes; of a file without one, as far as it may go.
    offset = line.get("dataset_offset", part10.LONGEST_META)
    try:
        found = part10.read_part10(os.pread(fd, offset, 0))
    except UnreadableDataSet as error:
        return str(error)
    for name, is_right in (
        ("it has no complete File Meta Information", found.whole),
        ("(0002,0003) is not its SOP Instance UID", found.sop_instance == key.instance),
        ("(0002,0002) is not its SOP Class UID",
         found.sop_class == line.get("SOPClassUID", found.sop_class)),
        ("(0002,0010) is not its transfer syntax",
         found.transfer_syntax == line.get("transfer_syntax", found.transfer_syntax)),
    ):  # fmt: skip
        if not is_right:
            return name
    return ""


def header_of(fd: int, key: InstanceKey) -> tuple[dict[str, Any], str]:
    """The attributes of the open file; the words say why, when it cannot be read as an instance.

    Raises OSError.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with open(fd, "rb", buffering=0, closefd=False) as file:
            _, attributes = read_facts(file, layout.instance_name(key.instance), DIGESTS[0])
        InstanceKey.of_attributes(attributes)
    except RefusedInstance as error:
        return {}, str(error)
    return attributes, ""


def restored_meta(
    fd: int, stored: list[Line], key: InstanceKey, reader: Reader
) -> tuple[Line, bytes, Part10] | None:
    """The line, File Meta Information, and Part10 of the open file as it is, when with that File
    Meta its data set has the line's digest: proof that nothing else was changed.

    Raises OSError.
    """
    try:
        found = part10.read_part10(head_of(fd))
    except UnreadableDataSet:
        return None
    length = os.fstat(fd).st_size - found.dataset_offset
    for line in reversed(stored):
        meta = part10.file_meta(
            str(line.get("SOPClassUID", "")),
            key.instance,
            str(line.get("transfer_syntax", "")),
            calling_ae=str(line.get("calling_ae", "")),
            called_ae=str(line.get("called_ae", "")),
        )
        name, wanted = digest_of(line)
        if not name or len(meta) + length != line.get("bytes"):
            continue
        if reader.digest(fd, name, before=meta, skip=found.dataset_offset) == wanted:
            return line, meta, found
    return None
