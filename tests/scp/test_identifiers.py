"""Identifiers: what is written is read again, here and by pydicom; what is malformed is named."""

from __future__ import annotations

import doctest
import struct
from io import BytesIO
from typing import Any

import pydicom.datadict
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.filereader import read_dataset

from plainpacs.archive.dicom import charset, dictionary
from plainpacs.archive.dicom import identifier as identifiers
from plainpacs.archive.dicom.identifier import (
    EXPLICIT,
    IMPLICIT,
    BadIdentifier,
    DataSet,
    Element,
    read,
    read_until,
)
from plainpacs.archive.dicom.identifier_writing import encode, written_anew
from plainpacs.archive.dicom.text_encoding import UTF8, TextEncoding
from tests.support.peer import element

SYNTAXES = pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
NAMES = (
    "Doe^Jane",
    "Müller^Jörg",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "Hong^Gildong=洪^吉洞=홍^길동",
    "Zhang^XiaoDong=张^小东",
    "Щукин^Юлия",
    "Διονυσιος",
)
SETS = (
    (),
    ("ISO_IR 100",),
    ("ISO_IR 144",),
    ("ISO_IR 126",),
    ("GB18030",),
    ("ISO_IR 192",),
    ("", "ISO 2022 IR 87"),
    ("ISO 2022 IR 13", "ISO 2022 IR 87"),
    ("", "ISO 2022 IR 149"),
    ("ISO 2022 IR 100", "ISO 2022 IR 144", "ISO 2022 IR 126"),
    ("no such set",),
)
VALUES: dict[str, Any] = {
    "QueryRetrieveLevel": "STUDY",
    "StudyInstanceUID": ["1.2", "1.2.345"],
    "PatientID": "P1",
    "Rows": 512,
    "NumberOfFrames": 3,
    "PixelSpacing": [0.5, 1 / 3],
    "StudyDescription": "",
    "ReferencedSOPSequence": [
        {"ReferencedSOPClassUID": "1.2.3", "ReferencedSOPInstanceUID": "1.2.3.4"},
        {},
    ],
}


@pytest.mark.parametrize("module", [identifiers, charset, dictionary])
def test_what_the_module_shows(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@SYNTAXES
@pytest.mark.parametrize("terms", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_names_survive_in_every_character_set(name: str, terms: tuple[str, ...], syntax: str):
    encoded = encode({"PatientName": name, "PatientID": "ä"}, syntax, TextEncoding(terms))
    found = read(encoded, syntax)
    assert found.text("PatientName") == name
    assert found.text("PatientID") == "ä"


@pytest.mark.parametrize(
    ("name", "terms", "used"),
    [
        ("Doe", (), []),
        ("Doe", ("ISO_IR 100",), ["ISO_IR 100"]),
        ("Müller", (), ["ISO_IR 192"]),
        ("Müller", ("ISO_IR 100",), ["ISO_IR 100"]),
        ("Müller", ("ISO_IR 144",), ["ISO_IR 192"]),
        ("山田", ("", "ISO 2022 IR 87"), ["ISO 2022 IR 87"]),
        ("山田", ("ISO_IR 100",), ["ISO_IR 192"]),
    ],
)
def test_the_character_set_asked_for_is_used_when_it_carries_all(
    name: str, terms: tuple[str, ...], used: list[str]
):
    found = read(encode({"PatientName": name}, EXPLICIT, TextEncoding(terms)), EXPLICIT)
    assert found.texts("SpecificCharacterSet") == used


@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize("terms", [("ISO_IR 100",), ("", "ISO 2022 IR 87"), ("ISO_IR 192",)])
@SYNTAXES
def test_pydicom_reads_what_we_write(syntax: str, terms: tuple[str, ...]):
    values = VALUES | {"PatientName": "Müller" if "100" in terms[0] else NAMES[2]}
    encoded = encode(values, syntax, TextEncoding(terms))
    dataset = read_dataset(BytesIO(encoded), syntax == IMPLICIT, True)
    dataset.decode()
    assert dataset.PatientName == values["PatientName"]
    assert [str(uid) for uid in dataset.StudyInstanceUID] == ["1.2", "1.2.345"]
    assert dataset.Rows == 512
    assert dataset.NumberOfFrames == 3
    assert [float(one) for one in dataset.PixelSpacing] == pytest.approx([0.5, 1 / 3])
    items = dataset.ReferencedSOPSequence
    assert [item.get("ReferencedSOPInstanceUID") for item in items] == ["1.2.3.4", None]
    tags = [int(one.tag) for one in dataset]
    assert tags == sorted(tags)


@SYNTAXES
def test_everything_is_read_back(syntax: str):
    found = read(encode(VALUES, syntax), syntax)
    assert found.texts("StudyInstanceUID") == ["1.2", "1.2.345"]
    assert found.text("Rows") == "512"
    assert found.text("NumberOfFrames") == "3"
    assert found.text("PatientName") == ""
    items = found.items("ReferencedSOPSequence")
    assert [item.text("ReferencedSOPInstanceUID") for item in items] == ["1.2.3.4", ""]


def undefined(tag: bytes, *items: bytes, end: bytes = b"\xfe\xff\xdd\xe0\0\0\0\0") -> bytes:
    return tag + b"SQ\0\0\xff\xff\xff\xff" + b"".join(items) + end


def open_item(body: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + body + b"\xfe\xff\x0d\xe0\0\0\0\0"


REFERENCES = b"\x08\0\x99\x11"
UID = element(0x0008, 0x1155, b"UI", b"1.2")


def test_sequences_of_undefined_length_are_read_as_the_others():
    data = undefined(REFERENCES, open_item(UID), open_item(b"")) + element(
        0x0010, 0x0020, b"LO", b"P1", b" "
    )
    found = read(data, EXPLICIT)
    texts = [item.text("ReferencedSOPInstanceUID") for item in found.items("ReferencedSOPSequence")]
    assert texts == ["1.2", ""]
    assert found.text("PatientID") == "P1"


def test_an_item_has_the_character_set_of_what_it_lies_in():
    name = element(0x0010, 0x0010, b"PN", "ü".encode("latin1"), b" ")
    data = element(0x0008, 0x0005, b"CS", b"ISO_IR 100", b" ")
    [item] = read(data + undefined(REFERENCES, open_item(name)), EXPLICIT).items(
        "ReferencedSOPSequence"
    )
    assert item.text("PatientName") == "ü"


def test_what_belongs_to_commands_and_files_is_passed_over():
    meta = element(0x0002, 0x0003, b"UI", b"1.2.3") + element(0x0008, 0, b"UL", bytes(4))
    found = read(element(0x0000, 0x0002, b"UI", b"1") + meta + UID, EXPLICIT)
    assert list(found.elements) == [0x00081155]


def deep(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = undefined(REFERENCES, open_item(data))
    return data


@pytest.mark.parametrize(
    ("data", "tag", "words"),
    [
        (b"\x10\0", 0, "ends within an element"),
        (UID[:-1], 0x00081155, "longer than"),
        (b"\x08\0\x55\x11??\x02\x001 ", 0x00081155, "no valid VR"),
        (b"\x08\0\x99\x11SQ\0\0", 0x00081199, "ends within an element"),
        (b"\xfe\xff\x0d\xe0\0\0\0\0", 0xFFFEE00D, "delimits nothing"),
        (undefined(REFERENCES, open_item(UID), end=b""), 0x00081199, "has no end"),
        (undefined(REFERENCES, UID), 0x00081199, "other than items"),
        (undefined(REFERENCES, open_item(UID)[:-8], end=b""), 0, "item has no end"),
        (undefined(REFERENCES, b"\xfe\xff\x00\xe0\x99\0\0\0"), 0x00081199, "longer than"),
        (REFERENCES + b"SQ\0\0\x99\0\0\0", 0x00081199, "longer than"),
        (undefined(REFERENCES, b"\xfe\xff"), 0x00081199, "something other than items"),
        (deep(17), 0x00081199, "within one another"),
        (deep(3000), 0x00081199, "within one another"),
    ],
)
def test_what_is_malformed_is_named(data: bytes, tag: int, words: str):
    with pytest.raises(BadIdentifier, match=words) as caught:
        read(data, EXPLICIT)
    assert caught.value.tag == tag
    assert len(str(caught.value)) <= 64


@given(st.binary(max_size=200), st.sampled_from([EXPLICIT, IMPLICIT]))
@example(b"", EXPLICIT)
def test_whatever_comes_is_read_or_refused(data: bytes, syntax: str):
    try:
        found = read(data, syntax)
    except BadIdentifier:
        return
    for tag in found.elements:
        found.text_at(tag)


@given(st.data(), st.sampled_from([EXPLICIT, IMPLICIT]))
def test_a_damaged_identifier_is_read_or_refused(drawn: st.DataObject, syntax: str):
    data = bytearray(encode(VALUES | {"PatientName": NAMES[2]}, syntax))
    for _ in range(drawn.draw(st.integers(1, 4))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    try:
        found = read(bytes(data), syntax)
    except BadIdentifier:
        return
    for tag in found.elements:
        found.text_at(tag)


@pytest.mark.parametrize("number", [0.1, 1 / 3, -1.2345678901234567e-300, 1e22, 12345678.123456789])
def test_a_decimal_string_has_sixteen_characters(number: float):
    text = read(encode({"SliceThickness": number}, EXPLICIT), EXPLICIT).text("SliceThickness")
    assert len(text) <= 16
    assert float(text) == pytest.approx(number, rel=1e-8)


def test_a_value_that_is_too_long_or_no_number_is_left_out():
    values = {"PatientID": "x" * 70_000, "Rows": "many", "Columns": 70_000}
    found = read(encode(values, EXPLICIT), EXPLICIT)
    assert [found.text(keyword) for keyword in values] == ["", "", ""]


@SYNTAXES
def test_an_element_is_written_anew_for_another_syntax_and_set(syntax: str):
    inner = element(0x0010, 0x0010, b"PN", "ü".encode("latin1"), b" ")
    inner += element(0x0028, 0x0010, b"US", struct.pack("<H", 7))
    data = element(0x0008, 0x0005, b"CS", b"ISO_IR 100", b" ") + undefined(
        REFERENCES, open_item(inner), open_item(element(0x0008, 0x0005, b"CS", b"ISO_IR 144", b" "))
    )
    found = read(data, EXPLICIT)
    sequence = found.elements[0x00081199]
    explicit = syntax == EXPLICIT
    assert written_anew(0x00081199, sequence, found, TextEncoding(), explicit=explicit) is None
    encoded = written_anew(0x00081199, sequence, found, UTF8, explicit=explicit)
    assert encoded is not None
    utf8 = encode({"SpecificCharacterSet": ""}, syntax, UTF8)
    first, second = read(utf8 + encoded, syntax).items("ReferencedSOPSequence")
    assert first.text("PatientName") == "ü"
    assert first.text("Rows") == "7"
    assert not second.elements


def test_the_beginning_of_a_data_set_is_read_as_far_as_asked():
    data = UID + element(0x0010, 0x0020, b"LO", b"P1", b" ") + element(0x0020, 0x000D, b"UI", b"1")
    found, complete = read_until(data, EXPLICIT, 0x00100020)
    assert (found.text("PatientID"), complete) == ("P1", True)
    found, complete = read_until(data[:-6], EXPLICIT, 0x0020000D)
    assert (found.text("PatientID"), complete) == ("P1", False)
    assert read_until(b"", EXPLICIT, 0x0020000D) == (DataSet({}), True)


def test_the_elements_at_hand_are_those_of_dicom():
    for keyword, tag, vr in dictionary._OURS:
        entry = pydicom.datadict.get_entry(tag)
        assert (entry[0], entry[4]) == (vr, keyword)


def test_all_other_elements_are_looked_up():
    assert dictionary.tag_of("KVP") == 0x00180060
    assert dictionary.keyword_of(0x00180060) == "KVP"
    assert dictionary.vr_of(0x00180060) == "DS"
    assert dictionary.vr_of(0x00280106) == "US"  # US or SS
    assert dictionary.vr_of(0x00180000) == "UL"
    assert (dictionary.keyword_of(0x00180001), dictionary.vr_of(0x00180001)) == ("", "UN")
    assert (dictionary.keyword_of(0x00090010), dictionary.vr_of(0x00090010)) == ("", "LO")
    assert dictionary.vr_of(0x00091001) == "UN"
    with pytest.raises(KeyError):
        dictionary.tag_of("Nonsense")


def test_text_of_binary_and_of_odd_bytes():
    found = DataSet({0x00280010: Element("US", b"\1\0\2\0\3"), 0x00081155: Element("UI", b"\xff")})
    assert found.text("Rows") == "1\\2"
    assert found.text("ReferencedSOPInstanceUID") == "\ufffd"
