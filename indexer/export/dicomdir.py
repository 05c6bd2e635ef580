"""DICOMDIR: the directory of a File-set (PS3.10 section 8), written record by record.

pydicom's FileSet reads what is written here, and would name the files in the same way. It cannot
be used to write: it encodes each data set anew, and takes time by the square of their number.
"""

from __future__ import annotations

import struct
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from plainpacs.archive.dicom.element_tree import Elements
from plainpacs.archive.dicom.elements import encode_element
from plainpacs.archive.dicom.part10 import (
    EXPLICIT_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
    file_meta,
)
from plainpacs.indexer.export import dicomdir_records as records
from plainpacs.indexer.export.dicomdir_records import (
    NUMBER,
    Make,
    NotDescribed,
    Values,
    encoded_record,
)

NAME = "DICOMDIR"
FileID = tuple[str, ...]
"""The folders and the file: components of 1 to 8 of ``A-Z 0-9 _`` (PS3.10 8.2)."""

_MOST = 1_000_000  # instances: names are two letters and six digits


@dataclass(frozen=True, slots=True)
class Referenced:
    """Which instance a record is of, and how its file is encoded."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str


_FIXED = struct.Struct("<HH2sHL HH2sHH HH2sHL".replace(" ", ""))
"""What each record begins with: the offset of the next, in use, the offset of the lower ones."""
_ITEM = struct.Struct("<HHL")
_BEFORE_FIRST = 12  # bytes: the header of the sequence of records


@dataclass(slots=True)
class _Record:
    """``tail``: the record as encoded, from (0004,1430) on. ``below``, by what tells them apart."""

    tail: bytes = b""
    name: str = ""
    below: dict[object, _Record] = field(default_factory=dict)
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes in the sequence, with the item's header."""
        return _ITEM.size + _FIXED.size + len(self.tail)


class Directory:
    """A DICOMDIR in the making. ``short``: file IDs of two components of three digits."""

    def __init__(self, *, short: bool = False) -> None:
        self.stand_ins: Counter[str] = Counter()
        """How many records have a stand-in for an attribute, by its keyword."""
        self._root = _Record()
        self._short = short
        self._instances: set[str] = set()
        self._others = 0

    def add(self, elements: Elements, of: Referenced) -> FileID:
        """Describes an instance, whose elements are those ``WANTED``; gives its file's ID.

        Raises NotDescribed, and then nothing was added.
        """
        values = Values(elements)
        kind = records.kind_of(of.sop_class, elements)
        for keyword, uid in (
            ("SOP Class", of.sop_class),
            ("transfer syntax", of.transfer_syntax),
            ("SOPInstanceUID", of.sop_instance),
            ("StudyInstanceUID", values.text(records.STUDY)),
            ("SeriesInstanceUID", values.text(records.SERIES)),
        ):
            if not uid:
                raise NotDescribed(f"it has no {keyword}")
        if of.sop_instance in self._instances:
            raise NotDescribed("the same SOPInstanceUID is described already")
        if len(self._instances) >= _MOST:
            raise NotDescribed("there are no more names for files")
        own = records.own_elements(kind, values)
        # From here on nothing is refused.
        study = values.text(records.STUDY)
        who = (
            values.text(records.PATIENT_ID),
            values.text(records.ISSUER),
            values.text(records.PATIENT_NAME),
        )
        # Nothing says that two studies without an ID are of one patient.
        patient = self._below(self._root, who if who[0] else study, "PT", records.patient, values)
        in_study = self._below(patient, study, "ST", records.study, values)
        series = self._below(in_study, values.text(records.SERIES), "SE", records.series, values)
        position = len(series.below)
        if NUMBER in kind.needed and NUMBER not in own:
            own[NUMBER] = encode_element(NUMBER, "IS", b"%d" % (position + 1))
            self.stand_ins["InstanceNumber"] += 1
        name = f"{kind.letters}{position:06d}"
        folders = (patient.name, in_study.name, series.name)
        file_id = self._next_short() if self._short else (*folders, name)
        own |= {
            0x00041500: encode_element(0x00041500, "CS", "\\".join(file_id).encode()),
            0x00041510: encode_element(0x00041510, "UI", of.sop_class.encode()),
            0x00041511: encode_element(0x00041511, "UI", of.sop_instance.encode()),
            0x00041512: encode_element(0x00041512, "UI", of.transfer_syntax.encode()),
        }
        series.below[of.sop_instance] = _Record(encoded_record(kind.record, values, own), name)
        self._instances.add(of.sop_instance)
        return file_id

    def other(self) -> FileID:
        """A file ID for what is not described."""
        if self._short:
            return self._next_short()
        self._others += 1
        return "UNLISTED", f"FI{self._others - 1:06d}"

    def _next_short(self) -> FileID:
        self._others += 1
        return tuple(f"{number:03d}" for number in divmod(self._others - 1, 1000))

    def _below(
        self, above: _Record, key: object, letters: str, make: Make, values: Values
    ) -> _Record:
        found = above.below.get(key)
        if found is None:
            position = len(above.below)
            kind, elements, stand_ins = make(values, position + 1)
            self.stand_ins.update(stand_ins)
            found = _Record(encoded_record(kind, values, elements), f"{letters}{position:06d}")
            above.below[key] = found
        return found

    def encoded(self) -> Iterator[bytes]:
        """The DICOMDIR, in pieces: a Part 10 file in Explicit VR Little Endian (PS3.10 8.6)."""
        uid = f"2.25.{uuid.uuid4().int}"
        head = file_meta(MEDIA_STORAGE_DIRECTORY, uid, EXPLICIT_LITTLE_ENDIAN)
        own = encode_element(0x00041130, "CS", b"")
        own_end = len(encode_element(0x00041200, "UL", bytes(4))) * 2 + len(
            encode_element(0x00041212, "US", b"\0\0")
        )
        first = offset = len(head) + len(own) + own_end + _BEFORE_FIRST
        for record in _in_order(self._root):
            record.offset = offset
            offset += record.size
        roots = list(self._root.below.values())
        yield head + own
        yield encode_element(0x00041200, "UL", struct.pack("<L", roots[0].offset if roots else 0))
        yield encode_element(0x00041202, "UL", struct.pack("<L", roots[-1].offset if roots else 0))
        yield encode_element(0x00041212, "US", b"\0\0")
        yield struct.pack("<HH2sHL", 0x0004, 0x1220, b"SQ", 0, offset - first)
        yield from _items(self._root)


def _in_order(above: _Record) -> Iterator[_Record]:
    for record in above.below.values():
        yield record
        yield from _in_order(record)


def _items(above: _Record) -> Iterator[bytes]:
    records = list(above.below.values())
    for position, record in enumerate(records):
        after = records[position + 1].offset if position + 1 < len(records) else 0
        lower = next(iter(record.below.values())).offset if record.below else 0
        yield _ITEM.pack(0xFFFE, 0xE000, record.size - _ITEM.size)
        yield _FIXED.pack(
            *(0x0004, 0x1400, b"UL", 4, after),
            *(0x0004, 0x1410, b"US", 2, 0xFFFF),
            *(0x0004, 0x1420, b"UL", 4, lower),
        )
        yield record.tail
        yield from _items(record)
