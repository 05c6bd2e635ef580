"""What some writers do to data sets, and everybody reads: it is stored, imported and described."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from plainpacs.archive.dicom.element_tree import read_elements
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.store.store import Archive
from tests.support.archives import MODALITY, data_set, new_archive

PIXELS = bytes(range(256)) * 2048
CREATOR = struct.pack("<HH2sH8s", 9, 0x0010, b"LO", 8, b"SOMEBODY")


def short(vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 9, 0x1001, vr, len(value)) + value


def long(vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2s2xL", 9, 0x1001, vr, len(value)) + value


def with_private(element: bytes, **changes: bytes) -> bytes:
    """A data set with ``element`` in group 0009, before most of what is kept."""
    whole = data_set(PixelData=PIXELS, **changes)
    at = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    return whole[:at] + CREATOR + element + whole[at:]


@pytest.mark.parametrize(
    "element",
    [
        short(b"--", b"abcd"),
        short(b"--", b""),
        short(b"--", b"a" * 4000),
        short(b"  ", b"abcd"),
        short(b"\6\0", b"abcd"),
        short(b"??", b"abcdef"),
        short(b"\0\0", b""),
        short(b"--", b"ab") + struct.pack("<HH2sH2s", 9, 0x1002, b"--", 2, b"cd"),
        long(b"--", b"abcd"),
        long(b"??", b"a" * 70_000),
        long(b"XX", b"abcdef"),
        long(b"ZZ", b""),
        long(b"QQ", b"a" * 70_000),
        short(b"UK", b"abcd"),
        short(b"RE", b"ab"),
        short(b"XX", b""),
        struct.pack("<HHL4s", 9, 0x1001, 4, b"abcd"),  # without a VR, amid explicit ones
        struct.pack("<HHL4s", 9, 0x1001, 0x12000, b"abcd") + bytes(0x12000 - 4),
    ],
)
def test_a_vr_that_nobody_knows(tmp_path: Path, element: bytes) -> None:
    data = with_private(element)
    whole = with_private(b"")
    with Archive.open(new_archive(tmp_path / "a")) as archive:
        stored = archive.store(data, EXPLICIT_LITTLE_ENDIAN, MODALITY)
        assert stored.outcome is StoreOutcome.STORED
    assert read_header(data, EXPLICIT_LITTLE_ENDIAN) == read_header(whole, EXPLICIT_LITTLE_ENDIAN)
    tags = {
        tag for tag in read_elements(DataSet(data, EXPLICIT_LITTLE_ENDIAN)) if tag != 0x00091002
    }
    assert tags == {*read_elements(DataSet(whole, EXPLICIT_LITTLE_ENDIAN)), 0x00091001}
    with Archive.open(new_archive(tmp_path / "b")) as other:
        [found] = import_all(other, sources([str(tmp_path / "a")]))
        assert found.stored is not None


@pytest.mark.parametrize("vr", [b"--", b"  ", b"ZZ"])
def test_a_kept_attribute_in_a_vr_that_nobody_knows(vr: bytes) -> None:
    data = data_set()
    for known, tag in (
        (b"PN", b"\x10\0\x10\0"),
        (b"LO", b"\x10\0\x20\0"),
        (b"CS", b"\x08\0\x60\0"),
    ):
        data = data.replace(tag + known, tag + vr)
    assert read_header(data, EXPLICIT_LITTLE_ENDIAN) == read_header(
        data_set(), EXPLICIT_LITTLE_ENDIAN
    )


@pytest.mark.parametrize("tail", [b"\r\n", b"\n", b"\0\0", b"\r\n\r\n", b"\x1a", b"\r\n" * 500])
@pytest.mark.parametrize("pixels", [None, b"\1\2" * 64])
def test_what_a_program_leaves_behind_a_data_set(
    tmp_path: Path, tail: bytes, pixels: bytes | None
) -> None:
    data = data_set(PixelData=pixels) + tail
    with Archive.open(new_archive(tmp_path / "a")) as archive:
        archive.store(data, EXPLICIT_LITTLE_ENDIAN, MODALITY)
    assert read_header(data, EXPLICIT_LITTLE_ENDIAN, whole=True)
    assert list(DataSet(data, EXPLICIT_LITTLE_ENDIAN))
    with Archive.open(new_archive(tmp_path / "b")) as other:
        [found] = import_all(other, sources([str(tmp_path / "a")]))
        assert found.stored is not None


@pytest.mark.parametrize("tail", [b"\x20\0", b"\0", b"\x08\0\x18\0UI", b"--"])
def test_what_may_be_the_beginning_of_an_element_is_no_padding(tail: bytes) -> None:
    with pytest.raises(UnreadableDataSet):
        read_header(data_set(PixelData=None) + tail, EXPLICIT_LITTLE_ENDIAN)


@pytest.mark.parametrize("before", [bytes(128) + b"DICM", b"DICM", b""])
@pytest.mark.parametrize("length_first", [True, False])
def test_file_meta_in_implicit_vr(tmp_path: Path, before: bytes, length_first: bool) -> None:
    values = (
        (0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x0003, b"1.2.3.4.5\0"),
        (0x0010, IMPLICIT_LITTLE_ENDIAN.encode() + b"\0"),
    )
    meta = b"".join(struct.pack("<HHL", 2, tag, len(value)) + value for tag, value in values)
    if length_first:
        meta = struct.pack("<HHLL", 2, 0, 4, len(meta)) + meta
    explicit, implicit, at = data_set(PixelData=None), b"", 0
    while at < len(explicit):
        group, number, _, length = struct.unpack_from("<HH2sH", explicit, at)
        implicit += struct.pack("<HHL", group, number, length) + explicit[at + 8 : at + 8 + length]
        at += 8 + length
    path = tmp_path / "file"
    path.write_bytes(before + meta + implicit)
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        [found] = import_all(archive, sources([str(path)]))
        assert found.stored is not None, found.error
    [file] = Path(root).rglob("*.dcm")
    # PS3.10 7.1: the File Meta of a file is in explicit VR; the data set stays as it is.
    assert file.read_bytes().endswith(implicit)
    assert file.read_bytes()[132:140] == b"\2\0\0\0UL\4\0"
