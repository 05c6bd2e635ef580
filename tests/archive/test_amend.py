"""Other values of a few attributes: everything else stays byte for byte."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from plainpacs.archive.dicom.amend import CannotAmend, Modification, amended, checked
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.errors import UnreadableDataSet

BY = Modification("20240102030405.000000+0000", "plainpacs test")
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
VALUES = {"PatientName": "Doe^Jane", "AccessionNumber": "", "StudyDescription": "head"}

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


def encoded(data_set: Dataset, syntax: str) -> bytes:
    file = io.BytesIO()
    little = syntax != SYNTAXES[2]
    data_set.save_as(file, implicit_vr=syntax == SYNTAXES[0], little_endian=little)
    return file.getvalue()


def decoded(raw: bytes, syntax: str) -> Dataset:
    file = io.BytesIO(raw)
    found = pydicom.filereader.read_dataset(
        file, is_implicit_VR=syntax == SYNTAXES[0], is_little_endian=syntax != SYNTAXES[2]
    )
    found.walk(lambda _, element: element.value)
    return found


def example(**values: object) -> Dataset:
    found = Dataset()
    found.PatientName, found.PatientID, found.Modality = "Old^Name", "P1", "CT"
    found.Rows = 2
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def amend(data_set: Dataset, syntax: str, **values: str) -> Dataset:
    pieces = amended(encoded(data_set, syntax), syntax, values, BY)
    assert pieces is not None
    return decoded(b"".join(map(bytes, pieces)), syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_are_changed_added_and_emptied(syntax: str) -> None:
    before = example(AccessionNumber="A1")
    after = amend(before, syntax, **VALUES)
    assert (after.PatientName, after.StudyDescription) == ("Doe^Jane", "head")
    assert after.AccessionNumber == ""
    assert (after.PatientID, after.Rows) == ("P1", 2)
    [said] = after.OriginalAttributesSequence
    assert said.AttributeModificationDateTime == BY.moment
    assert said.ModifyingSystem == BY.system
    assert said.ReasonForTheAttributeModification == "CORRECT"
    [old] = said.ModifiedAttributesSequence
    assert (old.PatientName, old.AccessionNumber, old.StudyDescription) == ("Old^Name", "A1", "")
    assert list(after) == sorted(after, key=lambda element: element.tag)
    # once more: another item, after the first
    again = amend(after, syntax, PatientName="Doe^John")
    first, second = again.OriginalAttributesSequence
    assert first == said
    assert second.ModifiedAttributesSequence[0].PatientName == "Doe^Jane"
    assert amended(encoded(again, syntax), syntax, {"PatientName": "Doe^John"}, BY) is None


def test_an_open_sequence_and_padding_are_understood() -> None:
    item = Dataset()
    item.ModifyingSystem = "other"
    before = example(OriginalAttributesSequence=Sequence([item]))
    before["OriginalAttributesSequence"].is_undefined_length = True
    raw = encoded(before, SYNTAXES[1]) + bytes(32)
    pieces = amended(raw, SYNTAXES[1], {"PatientID": "P2"}, BY)
    assert pieces is not None
    whole = b"".join(map(bytes, pieces))
    assert whole.endswith(bytes(32))
    after = decoded(whole[:-32], SYNTAXES[1])
    assert [one.ModifyingSystem for one in after.OriginalAttributesSequence] == ["other", BY.system]


def test_group_lengths_that_would_be_wrong_are_left_out() -> None:
    raw = encoded(example(), SYNTAXES[1])

    def length(group: int) -> bytes:
        return struct.pack("<HH2sHL", group, 0, b"UL", 4, 10)

    at, after = raw.index(b"\x10\0\x10\0PN"), raw.index(b"\x28\0\x10\0US")
    whole = length(8) + raw[:at] + length(16) + raw[at:after] + length(40) + raw[after:]
    pieces = amended(whole, SYNTAXES[1], {"PatientID": "P2"}, BY)
    assert pieces is not None
    amended_ = b"".join(map(bytes, pieces))
    assert [length(group) in amended_ for group in (8, 16, 40)] == [True, False, True]
    assert decoded(amended_, SYNTAXES[1]).PatientID == "P2"


def test_the_character_set_carries_the_values_or_they_are_refused() -> None:
    latin = amend(example(SpecificCharacterSet="ISO_IR 100"), SYNTAXES[1], PatientName="Müller")
    assert (latin.PatientName, latin.SpecificCharacterSet) == ("Müller", "ISO_IR 100")
    utf8 = amend(example(), SYNTAXES[1], PatientName="山田")
    assert (utf8.PatientName, utf8.SpecificCharacterSet) == ("山田", "ISO_IR 192")
    undeclared = encoded(example(StudyDescription="Munchen"), SYNTAXES[1])
    for raw in (
        encoded(example(SpecificCharacterSet="ISO_IR 100"), SYNTAXES[1]),
        undeclared.replace(b"Munchen", b"M\xfcnchen"),  # not ASCII, without a character set
    ):
        with pytest.raises(CannotAmend, match="cannot carry"):
            amended(raw, SYNTAXES[1], {"PatientName": "山田"}, BY)


def test_values_are_checked() -> None:
    for keyword, text in (
        ("PatientBirthDate", "1970"),
        ("PatientSex", "W"),
        ("PatientID", "x" * 65),
        ("AccessionNumber", "x" * 17),
        ("PatientName", "a\\b"),
        ("PatientName", "a=b=c=d"),
    ):
        with pytest.raises(ValueError, match=r"use|longer|backslash|three"):
            checked(keyword, text)
    assert checked("PatientBirthDate", "") == ""
    assert checked("PatientName", "Doe^Jane=山田") == "Doe^Jane=山田"


def test_of_real_files_nothing_else_changes(real_folders: tuple[Path, ...]) -> None:
    """All elements but those that are changed: the bytes of their values, in the same order."""
    values = {"PatientName": "Doe^Jane", "PatientID": "ID-1", "StudyDescription": "x"}
    tags = {0x00100010, 0x00100020, 0x00081030, 0x04000561, 0x00080005}
    seen = 0
    for path in (path for folder in real_folders for path in sorted(folder.rglob("*"))):
        if not path.is_file() or path.stat().st_size > 2 << 20:
            continue
        raw = path.read_bytes()
        try:
            read = read_part10(raw[: 1 << 20])
            pieces = amended(raw[read.dataset_offset :], read.transfer_syntax, values, BY)
        except UnreadableDataSet:
            continue
        if pieces is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = DataSet(raw[read.dataset_offset :], read.transfer_syntax)
            after = DataSet(b"".join(map(bytes, pieces)), read.transfer_syntax)
            old = [(p.path, bytes(before.data[p.start : p.end])) for p in before]
            new = [(p.path, bytes(after.data[p.start : p.end])) for p in after]
        assert [one for one in new if one[0][0] not in tags] == [
            one for one in old if one[0][0] not in tags
        ], path
        said = {p: value for p, value in new if len(p) == 1 and p[0] in tags}
        assert said[0x00100010,].strip() == b"Doe^Jane", path
        seen += 1
    assert seen > 60
