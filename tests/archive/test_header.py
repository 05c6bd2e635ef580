"""Header reading, held to pydicom's own decoding: on real files, on generated and on bad data."""

from __future__ import annotations

import io
import math
import mmap
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pydicom.data
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from plainpacs.archive.dicom.attributes import BY_KEYWORD, KEPT
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import UnreadableDataSet
from tests.support.archives import PYDICOM_FILES
from tests.support.pydicom_walk import PydicomWalk

EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
BIG, DEFLATED = str(ExplicitVRBigEndian), str(DeflatedExplicitVRLittleEndian)
SYNTAXES = (EXPLICIT, IMPLICIT, BIG, DEFLATED)
LAST_TAG = 0x00400275
PADDING = " \x7f" + "".join(chr(c) for c in range(32) if c != 27)

# ---- the oracle: pydicom's data set, made into what a manifest line should hold ----


@contextmanager
def pydicom_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def expected(ds: Dataset) -> dict[str, Any]:
    with pydicom_may_warn():
        values = {kept.keyword: _expected(ds, kept.keyword) for kept in KEPT if kept.vr != "SQ"}
        values["ReferencedSOPInstanceUID"] = _references(ds)
        values["RequestAttributesSequence"] = _requests(ds)
    return {keyword: value for keyword, value in values.items() if value or value == 0}


def _element_values(ds: Dataset, keyword: str) -> list[Any] | None:
    try:
        value = ds[keyword].value
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    if value is None or isinstance(value, Sequence):
        return None
    values = list(value) if isinstance(value, pydicom.multival.MultiValue | list) else [value]
    # Text in VR OB or UN: pydicom leaves the first as bytes.
    return [each.decode("latin_1") if isinstance(each, bytes) else each for each in values]


def _expected(ds: Dataset, keyword: str) -> Any:
    kept, values = BY_KEYWORD[keyword], _element_values(ds, keyword)
    if values is None or keyword == "ReferencedSOPInstanceUID":
        return None
    if kept.vr in ("IS", "US", "DS"):
        numbers = [_number(value) for value in values]
        if kept.vr == "DS" and kept.multiple:
            return None if None in numbers else [float(n) for n in numbers]
        if len(numbers) != 1 or numbers[0] is None:
            return None
        if kept.vr == "DS":
            return float(numbers[0])
        whole = numbers[0] == int(numbers[0]) and abs(numbers[0]) < 2**53
        return int(numbers[0]) if whole else None
    texts = [_undeclared(ds, str(value)).strip(PADDING) for value in values]
    if not kept.multiple:
        return "\\".join(texts).strip(PADDING)
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _undeclared(ds: Dataset, text: str) -> str:
    """Without a character set pydicom takes Latin-1, we first try UTF-8."""
    if ds.get("SpecificCharacterSet"):
        return text
    try:
        return text.encode("latin_1").decode()
    except UnicodeError:
        return text


def _references(ds: Dataset) -> list[str]:
    items = [
        item
        for outer in _items(ds, 0x00081115)
        for tag in (0x00081140, 0x0008114A, 0x00081199)
        for item in _items(outer, tag)
    ]
    uids = [
        str(item.get("ReferencedSOPInstanceUID") or "")
        for item in [*items, *_items(ds, 0x00081140)]
    ]
    return list(dict.fromkeys(uid.strip(PADDING) for uid in uids if uid.strip(PADDING)))[:16]


def _requests(ds: Dataset) -> list[dict[str, str]]:
    wanted = ("ScheduledProcedureStepID", "RequestedProcedureID")
    items = [
        {kw: str(item[kw].value or "").strip(PADDING) for kw in wanted if kw in item}
        for item in _items(ds, 0x00400275)
    ]
    items = [{kw: value for kw, value in item.items() if value} for item in items]
    return [item for item in items if item][:16]


def _items(ds: Dataset, tag: int) -> list[Dataset]:
    try:
        value = ds[tag].value
    except KeyError:
        return []
    return list(value) if isinstance(value, Sequence) else []


def parse(data: bytes, syntax: str) -> Dataset:
    if syntax == DEFLATED:
        data = zlib.decompress(data, -zlib.MAX_WBITS)
    with pydicom_may_warn():
        return pydicom.filereader.read_dataset(io.BytesIO(data), syntax == IMPLICIT, syntax != BIG)


# ---- real files ----


@pytest.fixture(scope="module")
def real_files(real_folders: tuple[Path, ...]) -> list[Path]:
    folders = [*real_folders, PYDICOM_FILES.parent / "charset_files"]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path.name not in DIFFERENT]


def read_part10(path: Path) -> tuple[bytes, str, Dataset] | None:
    """The data set's bytes, its transfer syntax, and pydicom's reading; None for other files."""
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        return None
    pos, syntax = 132, ""
    while content[pos : pos + 2] == b"\2\0":  # File Meta is always explicit little endian
        long = content[pos + 4 : pos + 6] in (b"OB", b"UN", b"UT", b"OW", b"SQ")
        length_at, size = (pos + 8, 4) if long else (pos + 6, 2)
        value = length_at + size
        after = value + int.from_bytes(content[length_at:value], "little")
        if content[pos + 2 : pos + 4] == b"\x10\0":
            syntax = content[value:after].decode().rstrip("\0 ")
        pos = after
    return content[pos:], syntax, parse(content[pos:], syntax)


# Files in which ours is not what pydicom's is, each with the reason.
DIFFERENT = {
    "TC0405_latin1_utf8_payload.dcm": "garbage behind the pixel data looks like a PatientName",
}


def comparable(attributes: dict[str, Any]) -> dict[str, Any]:
    """PN without empty component groups at its end, which pydicom drops and we keep."""
    names = {kw: attributes[kw].rstrip("=") for kw in attributes if BY_KEYWORD[kw].vr == "PN"}
    return attributes | names


def test_real_files_are_read_as_pydicom_reads_them(real_files: list[Path]) -> None:
    read = 0
    for path in real_files:
        if part10 := read_part10(path):
            data, syntax, ds = part10
            ours = read_header(data, syntax)
            assert comparable(ours) == comparable(expected(ds)), path
            assert orjson.loads(orjson.dumps(ours)) == ours
            read += 1
    assert read > 50


def test_real_files_are_read_alike_by_both_readers_and_to_the_end(real_files: list[Path]) -> None:
    truncated = set()
    for path in real_files:
        part10 = read_part10(path)
        if part10 is None:
            continue
        data, syntax, _ = part10
        ours = read_header(data, syntax)
        if syntax not in (BIG, DEFLATED):
            implicit = not (data[4:5].isupper() and data[5:6].isupper())
            by_pydicom = PydicomWalk.read(data, implicit, True, whole=False, complete=True)
            assert ours == by_pydicom, path
        try:
            assert read_header(data, syntax, whole=True) == ours, path
        except UnreadableDataSet:
            truncated.add(path.name)
    assert truncated <= {"MR_truncated.dcm", "rtplan_truncated.dcm"}  # dcmdump refuses both


def test_a_mapped_file_and_other_buffers(tmp_path: Path) -> None:
    path = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    data, syntax, ds = read_part10(path) or (b"", "", Dataset())
    ours = read_header(data, syntax)
    assert comparable(ours) == comparable(expected(ds))
    assert read_header(bytearray(data), syntax) == ours
    assert read_header(memoryview(data), syntax) == ours
    assert read_header(memoryview(data[: len(data) // 8 * 8]).cast("Q"), syntax) == ours
    (tmp_path / "ds").write_bytes(data)
    with (
        open(tmp_path / "ds", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        view = memoryview(mapped)
        assert read_header(view, syntax, whole=True) == ours
        view.release()


def test_many_threads(real_files: list[Path]) -> None:
    paths = [path for path in real_files if path.suffix == ".dcm"]
    files = [part10 for path in paths if (part10 := read_part10(path))]
    once = [read_header(data, syntax) for data, syntax, _ in files]
    with ThreadPoolExecutor(8) as pool:
        many = pool.map(lambda part10: read_header(part10[0], part10[1]), files * 8)
        assert list(many) == once * 8


# ---- data sets made element by element ----


def element(tag: int, vr: str, raw: bytes, length: int | None = None) -> bytes:
    """One in explicit little endian; in implicit when ``vr`` is empty."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    size = len(raw) if length is None else length
    if not vr:
        return head + struct.pack("<I", size) + raw
    if vr in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"):
        return head + vr.encode() + struct.pack("<HI", 0, size) + raw
    return head + vr.encode() + struct.pack("<H", size) + raw


def item(content: bytes, *, undefined: bool = False) -> bytes:
    head = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF if undefined else len(content))
    return head + content + (struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if undefined else b"")


UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
SOP = element(0x00080018, "UI", b"1.2.3\0")
PATIENT_ID = element(0x00100020, "LO", b"P1")
PIXELS = element(0x7FE00010, "OW", bytes(64))


def one(keyword: str, raw: bytes, vr: str | None = None, *more: bytes) -> Any:
    """The value of one element read in explicit VR; None when it is left out."""
    kept = BY_KEYWORD[keyword]
    data = b"".join([*more, element(kept.tag, kept.vr if vr is None else vr, raw)])
    return read_header(data, EXPLICIT).get(keyword)


@pytest.mark.parametrize(
    ("keyword", "raw", "value"),
    [
        ("SeriesNumber", b"3 ", 3),
        ("SeriesNumber", b" -12", -12),
        ("SeriesNumber", b"+7", 7),
        ("SeriesNumber", b"0", 0),
        ("SeriesNumber", b"2.0 ", 2),
        ("SeriesNumber", b"1e2 ", 100),
        ("SeriesNumber", b"2.5 ", None),
        ("SeriesNumber", b"1_0 ", None),
        ("SeriesNumber", b"1\\2 ", None),
        ("SeriesNumber", b"x ", None),
        ("SeriesNumber", b"", None),
        ("SeriesNumber", b"9007199254740991", 2**53 - 1),
        ("SeriesNumber", b"9007199254740992", None),
        ("SeriesNumber", b"9" * 5000, None),
        ("SliceThickness", b"2 ", 2.0),
        ("SliceThickness", b".5\0\0", 0.5),
        ("SliceThickness", b"-1.5E-3 ", -0.0015),
        ("SliceThickness", b"nan ", None),
        ("SliceThickness", b"inf ", None),
        ("SliceThickness", b"1e999", None),
        ("SliceThickness", b"1_0 ", None),
        ("SliceThickness", b"1,5 ", None),
        ("SliceThickness", b"1\\2 ", None),
        ("SliceThickness", "٣".encode(), None),
        ("PixelSpacing", b"0.5\\0.25", [0.5, 0.25]),
        ("PixelSpacing", b"0.5 ", [0.5]),
        ("PixelSpacing", b"0.5\\.25\\ ", [0.5, 0.25]),
        ("PixelSpacing", b"0.5\\ \\1", None),
        ("PixelSpacing", b"0.5\\x ", None),
        ("PixelSpacing", b"", None),
        ("Rows", b"\0\2", 512),
        ("Rows", b"\0\0", 0),
        ("Rows", b"\0\2\0\2", None),
        ("Rows", b"\0", None),
        ("ImageType", b"ORIGINAL\\ PRIMARY\\\\AXIAL ", ["ORIGINAL", "PRIMARY", "", "AXIAL"]),
        ("ImageType", b"DERIVED\\\\ ", ["DERIVED"]),
        ("ImageType", b"\\ ", None),
        ("SpecificCharacterSet", b"\\ISO 2022 IR 87", ["", "ISO 2022 IR 87"]),
        ("SpecificCharacterSet", b"ISO_IR 100", ["ISO_IR 100"]),
        ("StudyDescription", b"  a \\ b\0 ", "a \\ b"),
        ("StudyDescription", b"a\0b\t", "a\0b"),
        ("PatientName", b"A^B^^^==  ", "A^B^^^=="),
        ("PatientID", b" \0 ", None),
        ("StudyDate", b"20240131", "20240131"),
        ("StudyTime", b"101112.5 ", "101112.5"),
        ("StudyInstanceUID", b"1.2.3\0", "1.2.3"),
        ("PatientName", b"M\xc3\xbcller", "Müller"),
        ("PatientName", b"M\xfcller", "Müller"),
        ("Modality", b"C\xff", "Cÿ"),
    ],
)
def test_values(keyword: str, raw: bytes, value: Any) -> None:
    ours = one(keyword, raw)
    assert ours == value
    assert type(ours) is type(value)


def test_negative_zero_is_zero() -> None:
    assert math.copysign(1, one("SliceThickness", b"-0.0")) == 1


@pytest.mark.parametrize(
    ("keyword", "vr", "raw", "value"),
    [
        ("Rows", "UL", struct.pack("<I", 70000), 70000),
        ("Rows", "SS", struct.pack("<h", -1), -1),
        ("Rows", "UV", struct.pack("<Q", 2**60), None),
        ("Rows", "IS", b"512 ", 512),
        ("Rows", "UN", b"\0\2", 512),
        ("Rows", "FL", struct.pack("<f", 2), None),
        ("SeriesNumber", "US", b"\3\0", 3),
        ("SeriesNumber", "UN", b"3 ", 3),
        ("PixelSpacing", "FD", struct.pack("<dd", 0.5, -0.0), [0.5, 0.0]),
        ("PixelSpacing", "FD", struct.pack("<dd", 0.5, math.nan), None),
        ("SliceThickness", "FD", struct.pack("<d", 0.5), 0.5),
        ("SliceThickness", "FD", struct.pack("<dd", 0.5, 1), None),
        ("PatientID", "UN", b"P1", "P1"),
        ("PatientID", "OB", b"P1", "P1"),
        ("PatientID", "UT", b"P1", "P1"),
        ("PatientID", "US", b"P1", None),
        ("PatientID", "AT", b"P1P2", None),
        ("PatientID", "SQ", b"", None),
    ],
)
def test_values_in_another_vr(keyword: str, vr: str, raw: bytes, value: Any) -> None:
    ours = one(keyword, raw, vr)
    assert ours == value
    assert type(ours) is type(value)


def test_too_long_values_are_left_out_everywhere() -> None:
    long = element(0x00100020, "UT", b"x" * 65536)
    for data in (long, long[:4] + struct.pack("<I", 65536) + long[12:]):
        ours = read_header(SOP + data if data is long else data, EXPLICIT)
        assert "PatientID" not in ours
    fits = element(0x00100020, "UT", b"x" * 65535)
    assert read_header(SOP + fits, EXPLICIT)["PatientID"] == "x" * 65535


def test_of_an_element_that_is_there_twice_the_last_counts() -> None:
    twice = SOP + PATIENT_ID + element(0x00100020, "LO", b"P2")
    assert read_header(twice, EXPLICIT)["PatientID"] == "P2"
    assert "PatientID" not in read_header(twice + element(0x00100020, "LO", b""), EXPLICIT)


def test_the_character_set_counts_wherever_it_stands() -> None:
    name = element(0x00100010, "PN", b"\xcc\xee")
    charset = element(0x00080005, "CS", b"ISO_IR 144")
    assert read_header(SOP + name + charset, EXPLICIT)["PatientName"] == "Ью"


def test_requests() -> None:
    ids = element(0x00400009, "SH", b"\xc4 ") + element(0x00401001, "SH", b"R1")
    inherited, own = item(ids), item(element(0x00080005, "CS", b"ISO_IR 126") + ids)
    charset = element(0x00080005, "CS", b"ISO_IR 100")
    sequence = element(0x00400275, "SQ", inherited + item(b"") + own)
    assert read_header(charset + sequence, EXPLICIT)["RequestAttributesSequence"] == [
        {"ScheduledProcedureStepID": "Ä", "RequestedProcedureID": "R1"},
        {"ScheduledProcedureStepID": "Δ", "RequestedProcedureID": "R1"},
    ]
    many = element(0x00400275, "SQ", inherited * 40)
    assert len(read_header(many, EXPLICIT)["RequestAttributesSequence"]) == 16


def test_references() -> None:
    def reference(uid: bytes) -> bytes:
        return item(element(0x00081155, "UI", uid))

    series = element(0x0008114A, "SQ", reference(b"1.1") + reference(b"1.2"))
    deep = element(0x00081199, "SQ", reference(b"9.9"))
    data = (
        element(0x00081110, "SQ", reference(b"0.0"))  # the study: not an instance's
        + element(0x00081115, "SQ", item(series) + item(deep))
        + element(0x00081140, "SQ", reference(b"1.2") + reference(b"1.3"))
        + element(0x00081155, "UI", b"0.1 ")  # not in a sequence
        + element(0x00082112, "SQ", item(element(0x00081140, "SQ", reference(b"0.2"))))
    )
    assert read_header(data, EXPLICIT) == {"ReferencedSOPInstanceUID": ["1.1", "1.2", "9.9", "1.3"]}
    many = b"".join(reference(b"1.%d" % number) for number in range(100))
    assert read_header(element(0x00081140, "SQ", many), EXPLICIT) == {
        "ReferencedSOPInstanceUID": [f"1.{number}" for number in range(16)]
    }


def test_un_of_undefined_length_holds_implicit_vr() -> None:
    inside = item(element(0x00081155, "", b"1.2.3\0"), undefined=True)
    nested = item(element(0x00091001, "", inside + SEQUENCE_END, UNDEFINED), undefined=True)
    data = (
        element(0x00081140, "UN", inside + SEQUENCE_END, UNDEFINED)
        + element(0x00091002, "UN", nested + SEQUENCE_END, UNDEFINED)
        + PATIENT_ID
    )
    assert read_header(data, EXPLICIT, whole=True) == {
        "ReferencedSOPInstanceUID": ["1.2.3"],
        "PatientID": "P1",
    }


@pytest.mark.parametrize(
    "odd",
    [
        element(0x00090010, "", b"implicit amid explicit"),
        element(0x00090010, "ZZ", b"a VR there is not"),
        element(0x00091001, "UN", b"no items" + SEQUENCE_END, UNDEFINED),
        element(0x00091001, "SQ", item(element(0x00091002, "", b"ab") + SOP) * 2 + SEQUENCE_END,
                UNDEFINED),
        element(0x00081140, "SQ", b"what is this?!"),
        element(0x00081140, "SQ", item(b"what is this?!")),
        element(0x00081140, "SQ", item(element(0x00081155, "UI", b"1.2", length=40))),
    ],
    ids=["implicit", "unknown", "opaque", "item", "sequence", "in item", "too long"],
)  # fmt: skip
def test_what_the_walker_hands_to_pydicom(odd: bytes) -> None:
    ours = read_header(SOP + odd + PATIENT_ID + PIXELS, EXPLICIT, whole=True)
    assert ours["SOPInstanceUID"] == "1.2.3"
    assert ours["PatientID"] == "P1"


def test_the_first_element_decides_between_explicit_and_implicit() -> None:
    implicit = element(0x00080018, "", b"1.2.3\0") + element(0x00100020, "", b"P1")
    both = {"SOPInstanceUID": "1.2.3", "PatientID": "P1"}
    for syntax in (EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.4.50", "1.2.3.private", ""):
        assert read_header(implicit, syntax) == both
        assert read_header(SOP + PATIENT_ID, syntax) == both


# ---- generated data sets ----

TEXT = {
    "ISO_IR 100": "aäß Z", "ISO_IR 144": "aЖя", "ISO_IR 126": "aΩω", "ISO_IR 192": "aä山Ж𠮷",
    "GB18030": "a乗表王", "GBK": "a乗王", "ISO_IR 13": "aﾔﾏ", "ISO_IR 166": "aน",
    "\\ISO 2022 IR 87": "a山田", "\\ISO 2022 IR 149": "a길洪",
    "ISO 2022 IR 13\\ISO 2022 IR 87": "aﾔ山", "": "abc", "ISO_IR 127": "aق", "ISO_IR 138": "aש",
    "ISO_IR 148": "aş", "ISO_IR 101": "aŁ", "ISO_IR 109": "aĦ", "ISO_IR 110": "aĶ",
}  # fmt: skip
DIGITS = st.integers(-99999, 99999)
UIDS = st.lists(st.integers(1, 999), min_size=1, max_size=6).map(lambda p: ".".join(map(str, p)))


def value_of(vr: str, alphabet: str) -> st.SearchStrategy[Any]:
    text = st.text(alphabet=alphabet, max_size=12).map(str.strip)
    return {
        "PN": st.lists(text, min_size=1, max_size=3).map("^".join),
        "LO": text,
        "SH": text,
        "CS": st.text(alphabet="ABC_ 1", max_size=16),
        "UI": UIDS,
        "IS": DIGITS.map(str),
        "DS": st.floats(-1e6, 1e6).map(lambda number: f"{number:.6g}"),
        "US": st.integers(0, 65535),
        "DA": st.just("20240131"),
        "TM": st.just("101112.123"),
        "AS": st.just("042Y"),
    }[vr]


def nested(depth: int) -> st.SearchStrategy[Dataset]:
    @st.composite
    def build(draw: st.DrawFn) -> Dataset:
        ds = Dataset()
        for tag, vr, value in draw(
            st.lists(
                st.sampled_from([
                    (0x00080100, "SH", "code"), (0x00081155, "UI", "1.2.3.4"),
                    (0x00400009, "SH", "SPS1"), (0x00401001, "SH", "RP1"),
                    (0x00091002, "OB", b"\xfe\xff\xdd\xe0\0\0\0\0"), (0x00091003, "UN", b"abcd"),
                    (0x00080018, "UI", "9.9"), (0x00100020, "LO", "not mine"),
                ]),
                max_size=4,
            )
        ):  # fmt: skip
            ds.add_new(tag, vr, value)
        if depth and draw(st.booleans()):
            _add_sequence(ds, draw(st.sampled_from(SEQUENCES)), draw, depth - 1)
        ds.is_undefined_length_sequence_item = draw(st.booleans())
        return ds

    return build()


SEQUENCES = [0x00081140, 0x00081115, 0x0008114A, 0x00081199, 0x00082112, 0x00091001, 0x00400275]


def _add_sequence(ds: Dataset, tag: int, draw: st.DrawFn, depth: int) -> None:
    ds.add_new(tag, "SQ", Sequence(draw(st.lists(nested(depth), max_size=3))))
    ds[tag].is_undefined_length = draw(st.booleans())


@st.composite
def data_sets(draw: st.DrawFn) -> Dataset:
    ds = Dataset()
    charset = draw(st.sampled_from(sorted(TEXT)))
    if charset:
        ds.SpecificCharacterSet = charset.split("\\") if "\\" in charset else charset
    scalars = [
        kept for kept in KEPT if kept.vr != "SQ" and kept.tag not in (0x00080005, 0x00081155)
    ]
    for kept in draw(st.lists(st.sampled_from(scalars), max_size=14, unique=True)):
        values = value_of(kept.vr, TEXT[charset])
        value = draw(st.lists(values, min_size=1, max_size=4) if kept.multiple else values)
        ds.add_new(kept.tag, kept.vr, value)
    for tag in draw(st.lists(st.sampled_from(SEQUENCES), max_size=3, unique=True)):
        _add_sequence(ds, tag, draw, 2)
    for number in range(draw(st.integers(0, 3))):
        vr, value = draw(st.sampled_from([("OB", bytes(90)), ("UN", b"x" * 70000), ("UT", "text")]))
        ds.add_new(0x00111000 + number, vr, value)
    if draw(st.booleans()):
        ds.add_new(0x0040A730, "SQ", Sequence([Dataset()]))
        ds.add_new(0x7FE00010, "OW", bytes(20))
    return ds


def encode(ds: Dataset, syntax: str) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR = syntax == IMPLICIT
    file.is_little_endian = syntax != BIG
    with pydicom_may_warn():
        write_dataset(file, ds, parent_encoding="iso8859")
    data: bytes = file.getvalue()
    if syntax != DEFLATED:
        return data
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


GENEROUS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("syntax", SYNTAXES)
@GENEROUS
@given(ds=data_sets())
def test_generated_data_sets_are_read_as_pydicom_reads_them(syntax: str, ds: Dataset) -> None:
    data = encode(ds, syntax)
    ours = read_header(data, syntax)
    assert comparable(ours) == comparable(expected(parse(data, syntax)))
    assert read_header(data, syntax, whole=True) == ours
    assert orjson.loads(orjson.dumps(ours)) == ours
    if syntax in (EXPLICIT, IMPLICIT) and data:
        implicit = syntax == IMPLICIT
        assert PydicomWalk.read(data, implicit, True, whole=True, complete=True) == ours


# ---- data that is cut ----


def boundaries(data: bytes, syntax: str) -> list[int]:
    """Where the elements of the top level start, and where the last ends."""
    starts = [0]
    with pydicom_may_warn():
        reader = io.BytesIO(data)
        for _ in pydicom.filereader.data_element_generator(
            reader, syntax == IMPLICIT, syntax != BIG
        ):
            starts.append(reader.tell())
    return starts


def small_data_set() -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPInstanceUID, ds.PatientName, ds.Rows = "1.2.3", "Dö^J", 5
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.4"
    _sequence(ds, "ReferencedImageSequence", reference)
    code = Dataset()
    code.CodeValue = "T"
    outer = Dataset()
    _sequence(outer, "PurposeOfReferenceCodeSequence", code)
    _sequence(ds, "SourceImageSequence", outer)
    ds.add_new(0x00090010, "LO", "MAKER")
    ds.add_new(0x00091001, "OB", b"\0\0")
    ds.add_new(0x00400275, "SQ", Sequence([Dataset()]))
    ds.add_new(0x0040A043, "SQ", Sequence([code]))
    ds.PixelData = bytes([1]) * 16
    ds["PixelData"].VR = "OW"
    return ds


def _sequence(ds: Dataset, keyword: str, inside: Dataset) -> None:
    setattr(ds, keyword, Sequence([inside]))
    ds[keyword].is_undefined_length = inside.is_undefined_length_sequence_item = True


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_cut_at_every_byte(syntax: str) -> None:
    data = encode(small_data_set(), syntax)
    starts = boundaries(data, syntax)
    after_header = next(
        start
        for start, tag in zip(starts, parse(data, syntax).keys(), strict=False)
        if tag > LAST_TAG
    )
    whole = read_header(data, syntax)
    for cut in range(len(data)):
        part = data[:cut]
        if cut in starts:  # nobody can know
            assert read_header(part, syntax).items() <= whole.items()
            assert read_header(part, syntax, whole=True).items() <= whole.items()
        else:
            with pytest.raises(UnreadableDataSet):
                read_header(part, syntax, whole=True)
        if cut >= after_header + 12:
            assert read_header(part, syntax) == whole
            assert read_header(part, syntax, complete=False) == whole
        else:
            if cut not in starts and cut < after_header:
                with pytest.raises(UnreadableDataSet):
                    read_header(part, syntax)
            if cut <= after_header:
                with pytest.raises(UnreadableDataSet):
                    read_header(part, syntax, complete=False)


def test_cut_deflated_at_every_byte() -> None:
    data = encode(small_data_set(), DEFLATED)
    whole = read_header(data, DEFLATED)
    for cut in range(len(data)):
        with pytest.raises(UnreadableDataSet):
            read_header(data[:cut], DEFLATED, whole=True)
    assert read_header(data + b"\0", DEFLATED, whole=True) == whole


def test_cut_among_fragments() -> None:
    fragments = item(b"") + item(b"\xff\xd8" + bytes(30)) + item(bytes(10)) + SEQUENCE_END
    data = SOP + element(0x7FE00010, "OB", fragments, UNDEFINED)
    assert read_header(data, "1.2.840.10008.1.2.4.50", whole=True) == {"SOPInstanceUID": "1.2.3"}
    for cut in range(len(SOP) + 1, len(data)):
        with pytest.raises(UnreadableDataSet):
            read_header(data[:cut], "1.2.840.10008.1.2.4.50", whole=True)


def test_the_words_for_a_cut_data_set() -> None:
    with pytest.raises(
        UnreadableDataSet, match=r"cut short in \(7FE0,0010\): 64 bytes declared, 60 there"
    ):
        read_header((SOP + PIXELS)[:-4], EXPLICIT, whole=True)
    with pytest.raises(
        UnreadableDataSet, match=r"cut short in \(0010,0020\): 2 bytes declared, 1 there"
    ):
        read_header((SOP + PATIENT_ID)[:-1], EXPLICIT)


@pytest.mark.parametrize("padding", [2, 4, 7, 8, 9, 2000])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_nuls_at_the_end_are_padding(syntax: str, padding: int) -> None:
    data = encode(small_data_set(), syntax)
    for part in (data, data[: boundaries(data, syntax)[3]]):
        assert read_header(part + bytes(padding), syntax, whole=True) == read_header(part, syntax)


def test_a_part_must_hold_the_whole_header() -> None:
    private = element(0x00091001, "OB", bytes(1000))
    data = SOP + private + PATIENT_ID + PIXELS
    for size in (len(SOP), len(SOP) + 500, len(SOP) + len(private), len(data) - len(PIXELS)):
        with pytest.raises(UnreadableDataSet):
            read_header(data[:size], EXPLICIT, complete=False)
    assert read_header(data[:-10], EXPLICIT, complete=False) == {
        "SOPInstanceUID": "1.2.3",
        "PatientID": "P1",
    }
    with pytest.raises(ValueError, match="part"):
        read_header(data, EXPLICIT, whole=True, complete=False)


# ---- data that is hostile ----


@GENEROUS
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.binary(max_size=40), st.binary(max_size=40)).map(
            lambda p: SOP + p[0] + SOP + p[1]
        ),
        st.text(max_size=200).map(str.encode),
    ),
    syntax=st.sampled_from(SYNTAXES),
    whole=st.booleans(),
)
def test_any_bytes_are_read_or_refused(data: bytes, syntax: str, whole: bool) -> None:
    try:
        ours = read_header(data, syntax, whole=whole)
    except UnreadableDataSet:
        return
    assert orjson.loads(orjson.dumps(ours)) == ours


@GENEROUS
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), syntax=st.sampled_from(SYNTAXES))
def test_a_changed_byte(at: int, byte: int, syntax: str) -> None:
    data = bytearray(encode(small_data_set(), syntax))
    data[at % len(data)] = byte
    for whole in (False, True):
        with suppress(UnreadableDataSet):
            orjson.dumps(read_header(data, syntax, whole=whole))


def deeply_nested(depth: int, syntax: str) -> bytes:
    vr = "" if syntax == IMPLICIT else "SQ"
    opened = element(0x00091001, vr, struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), UNDEFINED)
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + SEQUENCE_END
    return element(0x00080018, vr and "UI", b"1.2.3\0") + opened * depth + closed * depth


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_nesting(syntax: str) -> None:
    assert read_header(deeply_nested(100, syntax), syntax) == {"SOPInstanceUID": "1.2.3"}
    with pytest.raises(UnreadableDataSet, match="nested too deeply"):
        read_header(deeply_nested(100_000, syntax), syntax)


HOSTILE = {
    "tiny elements": b"".join(element(0x00091000 + n % 4096, "LO", b"") for n in range(300_000)),
    "one element": PATIENT_ID * 300_000,
    "tiny items": element(0x00081140, "SQ", item(b"") * 300_000 + SEQUENCE_END, UNDEFINED),
    "unknown VRs": SOP + element(0x00091001, "ZZ", b"") * 1_000_000,
    "implicit ones": SOP + element(0x00091001, "", b"") * 1_000_000,
    "a huge length": SOP + element(0x00091001, "OB", b"", 0xFFFFFFF0),
    "a huge item": element(0x00081140, "SQ", item(b"")[:4] + b"\xf0" * 4, UNDEFINED),
    "zeros": bytes(50_000_000),
    "one byte at the end": bytes(50_000_000) + b"x",
    "spaces": b" " * 10_000_000,
    "escapes": element(0x00100010, "PN", b"\x1b" * 65534),
    "searches": SOP
    + element(0x00081140, "SQ", item(element(0x00091001, "UN", b"no items", UNDEFINED))) * 100_000
    + bytes([1]) * 10_000_000,
    "values": element(0x00080008, "CS", b"\\" * 65534),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_hostile_data_takes_bounded_time(what: str, syntax: str) -> None:
    start = time.thread_time()
    with suppress(UnreadableDataSet):
        assert "StudyInstanceUID" not in read_header(HOSTILE[what], syntax)
    assert time.thread_time() - start < 4


def deflate(*parts: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return b"".join(map(deflater.compress, parts)) + deflater.flush()


def test_a_deflated_bomb_behind_the_header_is_not_inflated() -> None:
    million = bytes(1 << 20)
    head = SOP + PATIENT_ID + element(0x7FE00010, "OW", b"", 100 << 20)
    data = deflate(head, *[million] * 100)
    tracemalloc.start()
    ours = read_header(data, DEFLATED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ours == {"SOPInstanceUID": "1.2.3", "PatientID": "P1"}
    assert peak < 2 << 20
    assert read_header(data, DEFLATED, whole=True) == ours
    with pytest.raises(UnreadableDataSet):
        read_header(data[:-100], DEFLATED, whole=True)


def test_a_deflated_bomb_in_the_header_is_refused() -> None:
    bomb = element(0x00091001, "OB", b"", 200 << 20)
    with pytest.raises(UnreadableDataSet):
        read_header(deflate(SOP + bomb, *[bytes(1 << 20)] * 200, PATIENT_ID), DEFLATED)
    smaller = element(0x00091001, "OB", b"", 20 << 20)
    data = deflate(SOP + smaller, *[bytes(1 << 20)] * 20, PATIENT_ID)
    assert read_header(data, DEFLATED, whole=True)["PatientID"] == "P1"


def test_what_is_not_deflated() -> None:
    with pytest.raises(UnreadableDataSet):
        read_header(SOP + PATIENT_ID + PIXELS, DEFLATED)
