"""DICOM Part 10 files: the File Meta Information we write, and finding it in files of others.

Source: PS3.10 section 7.1 (preamble, prefix, File Meta Information, always Explicit VR Little
Endian) and PS3.7 annex D.3.3.2 (implementation identification).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.elements import LONG_VRS
from plainpacs.archive.errors import NotDICOM, UnreadableDataSet

IMPLEMENTATION_CLASS_UID = "2.25.201813011709181747927516081455315232277"
IMPLEMENTATION_VERSION_NAME = "PLAINPACS_F1"
"""Names the format on disk, not the release: the same instance gives the same File Meta."""

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

LONGEST_META = 1 << 20
"""Bytes within which the File Meta Information of a file must end."""

_LONGEST_UID = 64
_PREAMBLE = 128
_PROLOGUE = bytes(_PREAMBLE) + b"DICM"
_LENGTH = struct.Struct("<HH2sHL")
_SHORT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LONG = struct.Struct("<HH2sHL")
_LONG_VRS = {vr.encode() for vr in LONG_VRS}


@dataclass(frozen=True, slots=True)
class Part10:
    """Where the data set of a file starts, and what its File Meta says of it.

    ``whole`` is False when there is no preamble, or no File Meta Information in explicit VR that
    says what it has to: the transfer syntax may be a guess, and the file is not kept as it is.
    """

    dataset_offset: int
    transfer_syntax: str
    sop_class: str
    sop_instance: str
    whole: bool
    calling_ae: str = ""
    """(0002,0016): who sent it, or wrote the file."""
    prefixed: bool = True
    """Whether it says of itself that it is DICOM; False for a bare data set, which is a guess."""


def file_meta(
    sop_class: str,
    sop_instance: str,
    transfer_syntax: str,
    *,
    calling_ae: str = "",
    called_ae: str = "",
) -> bytes:
    """Preamble, prefix and File Meta Information of a received instance.

    (0002,0016) and (0002,0017) are the calling AE, (0002,0018) the called AE; left out when empty.
    Raises UnreadableDataSet when a UID is too long to be one (PS3.5 9.1).
    """
    if max(len(sop_class), len(sop_instance), len(transfer_syntax)) > _LONGEST_UID:
        raise UnreadableDataSet(f"a UID is longer than {_LONGEST_UID} characters")
    before, after = _around_sop_instance(sop_class, transfer_syntax, calling_ae, called_ae)
    body = b"".join((before, _text(0x0003, b"UI", sop_instance), after))
    return b"".join((_PROLOGUE, _LENGTH.pack(2, 0, b"UL", 4, len(body)), body))


@lru_cache(maxsize=256)  # the same for all instances of a series
def _around_sop_instance(
    sop_class: str, transfer_syntax: str, calling_ae: str, called_ae: str
) -> tuple[bytes, bytes]:
    version = struct.pack("<HH2sHL2s", 2, 0x0001, b"OB", 0, 2, b"\0\1")
    after = (
        _text(0x0010, b"UI", transfer_syntax),
        _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        _text(0x0016, b"AE", calling_ae),
        _text(0x0017, b"AE", calling_ae),
        _text(0x0018, b"AE", called_ae),
    )
    return version + _text(0x0002, b"UI", sop_class), b"".join(after)


def _text(element: int, vr: bytes, value: str) -> bytes:
    if not value:
        return b""
    data = value.encode("ascii", "replace")
    if len(data) % 2:
        data += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(2, element, vr, len(data)) + data


def read_part10(head: Buffer) -> Part10:
    """What the first bytes of a file (``LONGEST_META`` of them, or all) say of its data set.

    The File Meta ends where its group length says (PS3.10 7.1): a data set of a broken sender
    may begin with elements of group 0002, too, and those are its own. A group length that is
    missing, or that leads past what is needed of the File Meta or into an element, is wrong: it
    then ends at the first element of another group. A file that is a bare data set is recognised
    by its first element. Raises UnreadableDataSet for what is neither.
    """
    view = memoryview(head)
    if is_prefixed(view):
        values, offset, explicit = _read_meta(view, _PREAMBLE + 4)
        transfer_syntax = values.get(0x0010, "")
        whole = bool(explicit and transfer_syntax and values.get(0x0002) and values.get(0x0003))
        return Part10(
            offset,
            transfer_syntax or guess_transfer_syntax(view[offset:]),
            values.get(0x0002, ""),
            values.get(0x0003, ""),
            whole,
            values.get(0x0016, ""),
        )
    # Some programs leave out the preamble, some the File Meta with it.
    values, offset, _ = _read_meta(view, 4 if bytes(view[:4]) == b"DICM" else 0)
    guess = values.get(0x0010) or guess_transfer_syntax(view[offset:])
    return Part10(
        *(offset, guess, values.get(0x0002, ""), values.get(0x0003, "")),
        whole=False,
        calling_ae=values.get(0x0016, ""),
        prefixed=False,
    )


def is_prefixed(head: Buffer) -> bool:
    """Whether a file that begins so has the prefix of a Part 10 file (PS3.10 7.1)."""
    return bytes(head[_PREAMBLE : _PREAMBLE + 4]) == b"DICM"


def _read_meta(view: memoryview, offset: int) -> tuple[dict[int, str], int, bool]:
    """The values that count; where the data set starts; whether all is in explicit VR."""
    values: dict[int, str] = {}
    explicit = True
    size = len(view)
    stated_end = -1
    while offset + 8 <= size and bytes(view[offset : offset + 2]) == b"\2\0":
        if offset == stated_end and 0x0010 in values:
            break
        _, element, vr, length = _SHORT.unpack_from(view, offset)
        start = offset + 8
        if vr in _LONG_VRS:
            if offset + 12 > size:
                raise UnreadableDataSet("the file ends within its File Meta Information")
            length = _LONG.unpack_from(view, offset)[4]
            start = offset + 12
        elif not (vr.isalpha() and vr.isupper()):
            explicit = False
            length = _IMPLICIT.unpack_from(view, offset)[2]
        if start + length > size:
            raise UnreadableDataSet("the file ends within its File Meta Information")
        if element == 0x0000 and length == 4 and stated_end < 0:
            stated_end = start + length + int.from_bytes(view[start : start + 4], "little")
        elif element in (0x0002, 0x0003, 0x0010, 0x0016):
            value = bytes(view[start : start + length]).decode("ascii", "replace").strip("\0 ")
            values[element] = value if len(value) <= _LONGEST_UID else ""
        offset = start + length
    return values, offset, explicit


def guess_transfer_syntax(data_set: Buffer) -> str:
    """The transfer syntax of a bare data set, by its first element. Raises NotDICOM."""
    head = bytes(data_set[:8])
    if len(head) == 8:
        spelled = head[4:6].isalpha() and head[4:6].isupper()
        if head[:2] in (b"\x08\0", b"\x04\0"):
            return EXPLICIT_LITTLE_ENDIAN if spelled else IMPLICIT_LITTLE_ENDIAN
        if head[:2] in (b"\0\x08", b"\0\x04") and spelled:
            return EXPLICIT_BIG_ENDIAN
    raise NotDICOM("it is not DICOM: neither a Part 10 file nor a data set")
