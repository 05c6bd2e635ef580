"""How two variants differ: real files re-encoded by other programs, and what nobody should send."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from plainpacs.archive.conflicts.compare import MOST_NAMED, Comparison, ConflictClass, compare
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.errors import UnreadableDataSet
from tests.support.archives import data_set

CT = "1.2.840.10008.5.1.4.1.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"


def bundled(name: str) -> Path:
    """A file that comes with pydicom."""
    return Path(str(pydicom.data.get_testdata_file(name, download=False)))


def whole(body: bytes, syntax: str = part10.EXPLICIT_LITTLE_ENDIAN) -> bytes:
    return part10.file_meta(CT, "1.2.3.4.5", syntax) + body


def compared(folder: Path, first: bytes, second: bytes) -> Comparison:
    (folder / "first").write_bytes(first)
    (folder / "second").write_bytes(second)
    return compare(str(folder), "first", "second")


def written(ds: Dataset, syntax: str | None = None) -> bytes:
    """The data set as pydicom writes it, in ``syntax``."""
    if syntax:
        ds.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    ds.save_as(
        buffer,
        implicit_vr=None if not syntax else syntax == ImplicitVRLittleEndian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def names(found: Comparison) -> list[str]:
    return [one.name for one in found.differing]


# --- encoding -------------------------------------------------------------------------------------

CONVERSIONS = (
    ("dcmconv", "+te", "+e"),  # undefined lengths
    ("dcmconv", "+te", "-e", "+g"),  # defined lengths, group lengths
    ("dcmconv", "+ti", "-e"),
    ("dcmconv", "+tb"),
    ("dcmconv", "+td"),
    ("dcmconv", "+te", "+p", "2048", "64"),  # padding
    ("dcmcrle",),
)


def uncompressed_files(folders: tuple[Path, ...]) -> Iterator[Path]:
    """Real files of several kinds, with sequences, private groups and odd text."""
    names = (
        *("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "rtdose.dcm", "reportsi.dcm"),
        *("SC_rgb.dcm", "nested_priv_SQ.dcm", "priv_SQ.dcm", "color3d_jpeg_baseline.dcm"),
        *("ExplVR_BigEnd.dcm", "image_dfl.dcm", "liver_1frame.dcm", "examples_palette.dcm"),
    )
    for name in names:
        path = pydicom.data.get_testdata_file(name, download=False)
        if path:
            yield Path(str(path))
    for folder in folders[:1]:
        yield from sorted(folder.rglob("*neurolabusc*/**/*.dcm"))[:5]


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=" ".join)
def test_what_dcmtk_encoded_anew_differs_in_encoding(
    conversion: tuple[str, ...], tmp_path: Path, real_folders: tuple[Path, ...]
) -> None:
    if shutil.which(conversion[0]) is None:
        if os.environ.get("CI"):
            pytest.fail("DCMTK is not installed (apt install dcmtk)")
        pytest.skip("DCMTK is not installed (apt install dcmtk)")
    done = 0
    for path in uncompressed_files(real_folders):
        source, target = tmp_path / "first", tmp_path / "second"
        shutil.copyfile(path, source)
        ran = subprocess.run(
            [*conversion, source, target], capture_output=True, check=False, timeout=60
        )
        if ran.returncode:  # it has no pixels, or they are compressed
            continue
        found = compare(str(tmp_path), "first", "second")
        # A variant it changed nothing in is no conflict at all.
        assert found.kind in (ConflictClass.ENCODING, ConflictClass.SAME), (path, found)
        done += found.kind is ConflictClass.ENCODING
        target.unlink()
    assert done >= 3


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_what_pydicom_encoded_anew_differs_in_encoding(syntax: str, tmp_path: Path) -> None:
    ds = pydicom.dcmread(bundled("CT_small.dcm"))
    first = written(ds, ExplicitVRLittleEndian)
    if syntax == RLELossless:
        pytest.importorskip("numpy", reason="pydicom's RLE encoder wants numpy")
        ds.compress(RLELossless, generate_instance_uid=False)
        found = compared(tmp_path, first, written(ds))
    else:
        found = compared(tmp_path, first, written(ds, syntax))
    assert (found.kind, found.why) == (ConflictClass.ENCODING, "")


def rle_of_three_planes() -> tuple[bytes, bytes]:
    """Four RGB pixels, native by pixel and in RLE, written by hand: no encoder is needed."""
    pixels = bytes(range(12))
    common = {
        (0x0028, 0x0002): (b"US", struct.pack("<H", 3)),
        (0x0028, 0x0004): (b"CS", b"RGB "),
        (0x0028, 0x0006): (b"US", struct.pack("<H", 0)),
        (0x0028, 0x0010): (b"US", struct.pack("<H", 2)),
        (0x0028, 0x0011): (b"US", struct.pack("<H", 2)),
        (0x0028, 0x0100): (b"US", struct.pack("<H", 8)),
        (0x0028, 0x0101): (b"US", struct.pack("<H", 8)),
        (0x0028, 0x0102): (b"US", struct.pack("<H", 7)),
        (0x0028, 0x0103): (b"US", struct.pack("<H", 0)),
    }
    head = data_set(PixelData=None) + b"".join(
        struct.pack("<HH2sH", *tag, vr, len(value)) + value for tag, (vr, value) in common.items()
    )
    native = head + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 12) + pixels
    planes = [b"\x03" + pixels[sample::3] + b"\x80" for sample in range(3)]
    header = struct.pack("<16L", 3, 64, 70, 76, *[0] * 12)
    frame = header + b"".join(planes)
    rle = (
        head
        + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
        + struct.pack("<HHL", 0xFFFE, 0xE000, 0)
        + struct.pack("<HHL", 0xFFFE, 0xE000, len(frame))
        + frame
        + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    )
    return native, rle


def test_compressed_pixels_are_decoded(tmp_path: Path) -> None:
    native, rle = rle_of_three_planes()
    found = compared(tmp_path, whole(native), whole(rle, RLELossless))
    assert found == Comparison(ConflictClass.ENCODING)
    other = native[:-1] + b"\xff"
    found = compared(tmp_path, whole(other), whole(rle, RLELossless))
    assert found.kind is ConflictClass.PIXELS


def test_where_fragments_are_cut_is_encoding(tmp_path: Path) -> None:
    _, rle = rle_of_three_planes()
    place = rle.rindex(struct.pack("<HHL", 0xFFFE, 0xE000, 82))
    stream = rle[place + 8 : place + 90]
    cut = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in (stream[:40], stream[40:])
    )
    again = rle[:place] + cut + rle[place + 90 :]
    assert compared(tmp_path, whole(rle, RLELossless), whole(again, RLELossless)) == Comparison(
        ConflictClass.ENCODING
    )


def test_what_cannot_be_decoded_here_counts_as_other_pixels(tmp_path: Path) -> None:
    native, rle = rle_of_three_planes()
    private = whole(rle, "1.2.826.0.1.3680043.9.1")
    found = compared(tmp_path, whole(native), private)
    assert found.kind is ConflictClass.PIXELS
    assert "cannot be decoded here" in found.why


def test_the_character_set_is_encoding(tmp_path: Path) -> None:
    latin = data_set(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^J".encode("latin-1"))
    utf8 = data_set(SpecificCharacterSet="ISO_IR 192", PatientName="Müller^J")
    assert compared(tmp_path, whole(latin), whole(utf8)) == Comparison(ConflictClass.ENCODING)
    greek = latin.replace(b"ISO_IR 100", b"ISO_IR 126")  # the same bytes, another name
    assert names(compared(tmp_path, whole(latin), whole(greek))) == ["PatientName"]


def test_equal_bytes_are_the_same_whatever_the_file_meta(tmp_path: Path) -> None:
    meta = part10.file_meta(CT, "1.2.3.4.5", part10.EXPLICIT_LITTLE_ENDIAN, calling_ae="OTHER")
    found = compared(tmp_path, whole(data_set()), meta + data_set())
    assert found == Comparison(ConflictClass.SAME)


# --- header and pixels ----------------------------------------------------------------------------


def test_one_attribute(tmp_path: Path) -> None:
    ds = pydicom.dcmread(bundled("CT_small.dcm"))
    first = written(ds)
    ds.PatientName = "Other^One"
    found = compared(tmp_path, first, written(ds))
    assert (found.kind, names(found), found.count) == (ConflictClass.HEADER, ["PatientName"], 1)
    [one] = found.differing
    assert (one.first, one.second) == ("CompressedSamples^CT1", "Other^One")


def test_attributes_in_sequences_private_ones_and_ones_that_came_or_went(tmp_path: Path) -> None:
    ds = pydicom.dcmread(bundled("rtplan.dcm"))
    first = written(ds, ExplicitVRLittleEndian)
    ds.BeamSequence[0].ControlPointSequence[1].NominalBeamEnergy = "7"
    ds.add_new((0x0009, 0x0010), "LO", "SOMEBODY")
    ds.add_new((0x0009, 0x1001), "LO", "private")
    del ds.StudyID
    del ds.DoseReferenceSequence[-1]
    ds.NumberOfFrames = "2"
    found = compared(tmp_path, first, written(ds, ExplicitVRLittleEndian))
    assert found.kind is ConflictClass.HEADER
    assert names(found) == [
        "(0009,0010)",
        "(0009,1001)",
        "StudyID",
        "NumberOfFrames",
        "DoseReferenceSequence",
        "BeamSequence.ControlPointSequence.NominalBeamEnergy",
    ]
    by_name = {one.name: one for one in found.differing}
    assert (by_name["(0009,1001)"].first, by_name["(0009,1001)"].second) == (None, "private")
    assert by_name["StudyID"].second is None


def test_one_pixel(tmp_path: Path) -> None:
    ds = pydicom.dcmread(bundled("CT_small.dcm"))
    first = written(ds)
    ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    assert compared(tmp_path, first, written(ds)) == Comparison(ConflictClass.PIXELS)
    ds.PatientID = "other"
    found = compared(tmp_path, first, written(ds))
    assert (found.kind, names(found)) == (ConflictClass.PIXELS, ["PatientID"])
    # ... also when the encoding is another.
    found = compared(tmp_path, first, written(ds, ImplicitVRLittleEndian))
    assert (found.kind, names(found)) == (ConflictClass.PIXELS, ["PatientID"])


def test_pixels_that_came_or_went(tmp_path: Path) -> None:
    found = compared(tmp_path, whole(data_set()), whole(data_set(PixelData=None)))
    assert found.kind is ConflictClass.PIXELS


def test_binary_values_are_not_taken_for_padding(tmp_path: Path) -> None:
    rows = struct.pack("<HHL", 0x0028, 0x0010, 2)
    first = whole(rows + b"\x20\x00", ImplicitVRLittleEndian)
    second = whole(rows + b"\x00\x00", ImplicitVRLittleEndian)
    found = compared(tmp_path, first, second)
    assert (found.kind, names(found)) == (ConflictClass.HEADER, ["Rows"])
    assert (found.differing[0].first, found.differing[0].second) == ("32", "0")


def test_many_differences_are_counted_and_some_named(tmp_path: Path) -> None:
    def private(value: bytes) -> bytes:
        return b"".join(
            struct.pack("<HH2sH", 0x0009, 0x1000 + n, b"LO", 2) + value for n in range(100)
        )

    found = compared(tmp_path, whole(private(b"a ")), whole(private(b"b ")))
    assert found.count == 100
    assert len(found.differing) == MOST_NAMED


def test_long_values_are_cut_short(tmp_path: Path) -> None:
    first = data_set(StudyDescription="a" * 1000)
    second = data_set(StudyDescription="b" * 1000)
    [one] = compared(tmp_path, whole(first), whole(second)).differing
    assert one.first is not None
    assert len(one.first) == 64


# --- what nobody should send ----------------------------------------------------------------------


def nested(depth: int, *, defined: bool = False) -> bytes:
    body = b""
    for _ in range(depth):
        if defined:
            item = struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body
            body = struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, len(item)) + item
    if defined:
        return body
    opening = struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    opening += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def deflated(body: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(body) + stream.flush()


def bomb() -> bytes:
    """Some 300 KB that inflate to 300 MB."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [stream.compress(data_set() + struct.pack("<HH2sHL", 0x7FE1, 1, b"OB", 0, 300 << 20))]
    parts += [stream.compress(bytes(1 << 20)) for _ in range(300)]
    return b"".join([*parts, stream.flush()])


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no DICOM": lambda: b"GIF89a" * 100,
    "cut": lambda: whole(data_set()[:-9]),
    "cut in a header": lambda: whole(data_set()[:80] + b"\x08\0"),
    "nested": lambda: whole(nested(10_000)),
    "nested, defined": lambda: whole(nested(1000, defined=True)),
    "bomb": lambda: whole(bomb(), DEFLATED),
    "deflated, cut": lambda: whole(deflated(data_set())[:-20], DEFLATED),
    "not deflated": lambda: whole(data_set(), DEFLATED),
    "zeros": lambda: whole(bytes(3_000_000) + b"x"),
    "flood": lambda: whole(struct.pack("<HH2sH", 9, 0x1001, b"LO", 0) * 1_100_000),
    "item alone": lambda: whole(struct.pack("<HHL", 0xFFFE, 0xE000, 8) * 100),
    "fragments, cut": lambda: whole(rle_of_three_planes()[1][:-30], RLELossless),
    "no length": lambda: whole(struct.pack("<HH2sHL", 9, 0x1001, b"UT", 0, 0xFFFFFFFF)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_unreadable_and_harmless(name: str, tmp_path: Path) -> None:
    hostile = HOSTILE[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for first, second in ((whole(data_set()), hostile), (hostile, whole(data_set()))):
        found = compared(tmp_path, first, second)
        assert found.kind is ConflictClass.UNREADABLE
        assert found.why
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, f"{grown} KB"  # 64 MB inflated, and what it took to make the file


def test_hostile_pixels_are_decoded_elsewhere(tmp_path: Path) -> None:
    """65,535 by 65,535 pixels of three samples, in a few bytes: nobody here has that memory."""
    native, rle = rle_of_three_planes()
    for tag in (0x0010, 0x0011):
        size = struct.pack("<HH2sHH", 0x0028, tag, b"US", 2, 2)
        rle = rle.replace(size, struct.pack("<HH2sHH", 0x0028, tag, b"US", 2, 65535))
    found = compared(tmp_path, whole(native), whole(rle, RLELossless))
    assert (found.kind, names(found)) == (ConflictClass.PIXELS, ["Rows", "Columns"])
    found = compared(tmp_path, whole(rle, RLELossless), whole(rle + b"\0\0", RLELossless))
    assert found.kind is ConflictClass.ENCODING


def test_elements_without_order_pair_up(tmp_path: Path) -> None:
    parts = [struct.pack("<HH2sH", 9, 0x1000 + n, b"LO", 2) + b"a " for n in (5, 3, 9, 1)]
    first = whole(b"".join(parts))
    assert compared(tmp_path, first, first + b"\0\0").kind is ConflictClass.ENCODING


def test_the_files_are_only_read(tmp_path: Path) -> None:
    compared(tmp_path, whole(data_set()), whole(data_set(PatientID="P2")))
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


# --- the walk -------------------------------------------------------------------------------------


def test_the_walk_sees_what_pydicom_sees() -> None:
    """Tags and paths of every element of pydicom's own files, nested ones too."""
    seen = 0
    for path in sorted(bundled("CT_small.dcm").parent.glob("*.dcm")):
        try:
            ds = pydicom.dcmread(path)
            found = part10.read_part10(path.read_bytes()[: part10.LONGEST_META])
            wanted = sorted(_paths(ds))
        except Exception:  # what pydicom cannot read is of no use here
            continue
        if not found.whole or path.name in _NOT_ALIKE:
            continue
        body = memoryview(path.read_bytes())[found.dataset_offset :]
        try:
            leaves = [leaf.path for leaf in DataSet(body, found.transfer_syntax)]
        except UnreadableDataSet as error:
            assert "truncated" in path.name, error  # noqa: PT017 - either may be
            continue
        assert sorted(leaf for leaf in leaves if len(leaf) % 2) == wanted, path.name
        seen += 1
    assert seen >= 40


# A private sequence in VR UN, which pydicom leaves as bytes.
_NOT_ALIKE = {"priv_SQ.dcm"}


def _paths(ds: Dataset, above: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for element in ds:
        if not element.tag & 0xFFFF or element.tag in (0x00080001, 0xFFFCFFFC):
            continue
        yield (*above, int(element.tag))
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from _paths(item, (*above, int(element.tag), number))


def test_the_decoder_does_not_look_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    native, rle = rle_of_three_planes()
    assert compared(tmp_path, whole(native), whole(rle, RLELossless)).why == ""
