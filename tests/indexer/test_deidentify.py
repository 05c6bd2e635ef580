"""Instances without names: PS3.15 Annex E, on made-up data sets and on the real ones."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import BadSettings, UnreadableDataSet
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.deidentify import action_table
from plainpacs.indexer.deidentify.instance import Deidentifier, LeftOut
from plainpacs.indexer.deidentify.pixels import DOCUMENTS, PIXELS
from plainpacs.indexer.deidentify.profile import OPTIONS, Action, Profile
from plainpacs.indexer.deidentify.pseudonyms import Pseudonyms
from tests.support.archives import instances_in, new_archive
from tests.support.commands import Run, run

__all__ = ["run"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

CT = "1.2.840.10008.5.1.4.1.1.2"
KEY = bytes(range(32))
EVERYTHING = frozenset((PIXELS, DOCUMENTS))


def deidentifier(profile: str = "basic", key: bytes = KEY) -> Deidentifier:
    return Deidentifier(Profile.parse(profile), Pseudonyms(key), EVERYTHING)


def instance(**values: Any) -> Dataset:
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = CT, "1.2.3.9.1"
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.2.3.7", "1.2.3.8"
    found.PatientName, found.PatientID = "Muster^Maria", "P-4711"
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def encoded(data_set: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
    meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    data_set.file_meta = meta
    file = io.BytesIO()
    data_set.save_as(file, enforce_file_format=True)
    return file.getvalue()


def cleaned(data_set: Dataset, profile: str = "basic") -> Dataset:
    pieces = deidentifier(profile).deidentified(encoded(data_set)).pieces
    return pydicom.dcmread(io.BytesIO(b"".join(pieces)))


# --- the table ------------------------------------------------------------------------------------


def table() -> dict[int, str]:
    return {int(t, 16): action for action, tags in action_table.BASIC.items() for t in tags.split()}


def test_the_table_is_of_attributes_that_there_are() -> None:
    known = {tag for tag in table() if dictionary_has_tag(tag)}
    assert len(table()) > 640
    assert len(known) > 610, "the others are newer than the dictionary"
    for tag in known:
        assert (table()[tag] == "U") <= (dictionary_VR(tag) in ("UI", "SQ")), hex(tag)
    for option, vrs in (
        (action_table.DATES, {"DA", "DT", "TM", "SH", "OB"}),
        (action_table.UIDS, {"UI", "SQ"}),
    ):
        tags = {int(tag, 16) for tag in option.split()}
        assert tags <= table().keys()
        assert {dictionary_VR(tag) for tag in tags & known} <= vrs


VALUES: dict[str, Any] = {
    "DA": "20200102",
    "TM": "101112.5",
    "DT": "20200102101112",
    "AS": "044Y",
    "UI": "1.2.3.4.5.4711",
    "PN": "Secret^Person",
    "IS": "4711",
    "DS": "47.11",
    "CS": "SECRETCODE",
    "AE": "SECRETAE",
    "UR": "http://secret.example",
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC"), "Secret text"),
    **dict.fromkeys(("OB", "OW", "UN", "OF", "OD", "OL", "OV"), b"SECRETBY"),
    **dict.fromkeys(("FL", "FD"), 47.5),
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV"), 4711),
    "AT": 0x00100010,
}


def everything() -> Dataset:
    """A data set with every attribute of the table, all sequences with an item."""
    found = instance()
    for tag in table():
        if dictionary_has_tag(tag):
            vr = dictionary_VR(tag).split(" or ")[0]
            if vr == "SQ":
                item = Dataset()
                item.add_new(0x0040A123, "PN", "Secret^Person")
                item.add_new(0x00080104, "LO", "Secret^Person was here")
                found.add_new(tag, vr, Sequence([item]))
            elif tag not in found:
                found.add_new(tag, vr, VALUES[vr])
    return found


def test_of_every_attribute_of_the_table_no_value_is_left() -> None:
    before = everything()
    after = cleaned(before)
    for tag, action in table().items():
        if tag in before:
            assert tag not in after or after[tag].value != before[tag].value, hex(tag)
        if action == "X":
            assert tag not in after, hex(tag)
    raw = b"".join(deidentifier().deidentified(encoded(before)).pieces)
    for value in (b"Secret", b"SECRET", b"secret", b"4711", b"20200102", b"101112", b"Muster"):
        assert value not in raw, value


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_keeps_what_it_says_and_nothing_else(option: str) -> None:
    profile, basic = Profile.parse(option), Profile.parse("basic")
    named = {
        "dates": action_table.DATES,
        "uids": action_table.UIDS,
        "device": action_table.DEVICE,
        "patient": action_table.PATIENT,
        "descriptors": "",
    }[option]
    tags = {int(tag, 16) for tag in named.split()}
    for tag in table():
        if profile.action(tag) is not basic.action(tag):
            assert tag in tags
            assert profile.action(tag) in (Action.KEEP, Action.SHIFT, Action.AGE)
    assert str(profile) == f"basic,{option}"


def test_a_profile_that_is_none_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"no profile 'date'.*basic,dates"):
        Profile.parse("basic,date")


# --- values ---------------------------------------------------------------------------------------


def test_pseudonyms_are_those_of_the_key() -> None:
    one, other = cleaned(instance()), cleaned(instance(SOPInstanceUID="1.2.3.9.2"))
    assert one.PatientID == other.PatientID == str(one.PatientName)
    assert one.StudyInstanceUID == other.StudyInstanceUID != "1.2.3.7"
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
    pieces = deidentifier(key=bytes(32)).deidentified(encoded(instance())).pieces
    elsewhere = pydicom.dcmread(io.BytesIO(b"".join(pieces)))
    assert elsewhere.PatientID != one.PatientID
    assert elsewhere.StudyInstanceUID != one.StudyInstanceUID
    assert cleaned(instance(PatientID="P-4712")).PatientID != one.PatientID
    assert one.PatientIdentityRemoved == "YES"
    assert one.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_dates_keep_their_distances() -> None:
    before = instance(
        StudyDate="20200301",
        SeriesDate="20200229",
        AcquisitionDateTime="20200301101112.5+0100",
        StudyTime="1011",
        PatientBirthDate="19300101",
        PatientAge="090Y",
    )
    after = cleaned(before, "dates,patient")
    assert after.StudyTime == "1011"
    shifted = pydicom.valuerep.DA(after.StudyDate) - pydicom.valuerep.DA(after.SeriesDate)
    assert shifted.days == 1
    assert after.StudyDate < "20200301"
    assert after.AcquisitionDateTime == f"{after.StudyDate}101112.5"
    assert after.PatientBirthDate == ""
    assert after.PatientAge == "090Y"
    assert cleaned(instance(PatientAge="104Y"), "patient").PatientAge == "090Y"
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "StudyTime" not in cleaned(before) or not cleaned(before).StudyTime


def test_names_are_found_in_texts_that_are_kept() -> None:
    item = Dataset()
    item.CodeMeaning = "as Maria MUSTER said"
    after = cleaned(
        instance(
            WindowCenterWidthExplanation="For Muster",
            ConvolutionKernel="musterhaft",
            ImageType=["ORIGINAL", "PRIMARY", "MUSTER"],
            ViewCodeSequence=[item],
            PrivateCreator="",
        )
    )
    assert after.WindowCenterWidthExplanation == "REMOVED"
    assert after.ConvolutionKernel == "musterhaft"
    assert after.ViewCodeSequence[0].CodeMeaning == "REMOVED"
    # A code that is like a part of the name says nothing of the name.
    assert list(after.ImageType) == ["ORIGINAL", "PRIMARY", "MUSTER"]


def test_private_attributes_curves_and_overlays_are_removed() -> None:
    before = instance()
    before.private_block(0x0029, "SOMEONE", create=True).add_new(1, "LO", "Muster")
    before.add_new(0x50003000, "OW", b"SECRETBY")
    before.add_new(0x60004000, "LT", "Muster")
    before.add_new(0x60003000, "OB", b"SECRETBY")
    assert not [hex(e.tag) for e in cleaned(before) if e.tag.group in (0x29, 0x5000, 0x6000)]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES; --uncleaned pixels"),
        ({"Modality": "US"}, "modality US often show names"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SOP Class"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "ImageType"),
        ({"EncapsulatedDocument": b"%PDF", "MIMETypeOfEncapsulatedDocument": "x/y"}, "documents"),
        ({"PixelDataProviderURL": "http://x.example"}, "elsewhere"),
    ],
)
def test_what_cannot_be_cleaned_is_left_out(values: dict[str, Any], why: str) -> None:
    before = instance(PixelData=b"\1\2", **values)
    before["PixelData"].VR = "OB"
    strict = Deidentifier(Profile.parse("basic"), Pseudonyms(KEY))
    with pytest.raises(LeftOut, match=why):
        strict.deidentified(encoded(before))
    strict.deidentified(encoded(instance(Modality="US", BurnedInAnnotation="NO")))


def test_a_file_that_cannot_be_followed_is_left_out() -> None:
    whole = encoded(instance(PatientComments="x" * 100))
    with pytest.raises(LeftOut, match="cannot be read to its end"):
        deidentifier().deidentified(whole[:-4])
    with pytest.raises(UnreadableDataSet):
        deidentifier().deidentified(b"no DICOM at all, but long enough to be looked at")


# --- real files -----------------------------------------------------------------------------------

DIRECT = frozenset(
    (
        *("PatientID", "OtherPatientIDs", "PatientBirthDate", "PatientAddress", "AccessionNumber"),
        *("PatientTelephoneNumbers", "MedicalRecordLocator", "AdmissionID", "InstitutionName"),
        *("InstitutionAddress", "ReferringPhysicianAddress", "StudyInstanceUID"),
        *("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "DeviceSerialNumber"),
        *("StationName", "ClinicalTrialSubjectID"),
    )
)


def identifiers(data_set: Dataset) -> Iterator[str]:
    """Every name, ID and UID, read with another program than ours."""
    for element in data_set:
        try:
            if element.VR == "SQ":
                for item in element.value:
                    yield from identifiers(item)
            elif element.VR == "PN" or element.keyword in DIRECT:
                value = element.value
                many = isinstance(value, list | pydicom.multival.MultiValue)
                yield from (str(one).strip(" \0^=") for one in (value if many else [value]))
        except Exception:
            continue


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, real_folders: tuple[Path, ...]) -> str:
    """An archive of every real file."""
    path = new_archive(tmp_path_factory.mktemp("real") / "archive")
    with Archive.open(path, sync=False) as archive:
        for _ in import_all(archive, sources([str(folder) for folder in real_folders])):
            pass
    return path


@pytest.mark.parametrize("profile", ["basic", "dates,patient"])
def test_no_identifier_of_a_real_file_is_in_what_becomes_of_it(real: str, profile: str) -> None:
    by_profile, seen, left_out = deidentifier(profile), 0, 0
    for path in instances_in(real):
        raw = Path(real, path).read_bytes()
        try:
            found = by_profile.deidentified(raw)
        except LeftOut:
            left_out += 1
            continue
        whole = b"".join(found.pieces)
        assert len(whole) == found.size
        seen += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = pydicom.dcmread(io.BytesIO(raw), force=True, stop_before_pixels=True)
            pydicom.dcmread(io.BytesIO(whole))
        for value in identifiers(before):
            if value.upper() in ("REMOVED", "19000101"):
                continue  # our own words
            if len(value) < (5 if value.isdecimal() else 4):
                continue  # what stands in anything by chance: 0001 is a SeriesNumber, too
            for codec in ("utf-8", "latin-1"):
                # Short ones are met within others: 0001 in 19000101.
                one = re.escape(value.encode(codec, "ignore"))
                pattern = one if len(one) > 6 else rb"(?<![0-9A-Za-z])%b(?![0-9A-Za-z])" % one
                assert not one or not re.search(pattern, whole), f"{path}: {value!r}"
    assert left_out < 5
    assert seen > 60


def test_pixels_stay_as_they_are(real: str) -> None:
    compared = 0
    for path in instances_in(real):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = pydicom.dcmread(Path(real, path), force=True)
            try:
                pieces = deidentifier().deidentified(Path(real, path).read_bytes()).pieces
                pixels, after = (
                    before.get("PixelData"),
                    pydicom.dcmread(io.BytesIO(b"".join(pieces))),
                )
            except (LeftOut, NotImplementedError):
                continue
        syntax = before.file_meta.get("TransferSyntaxUID", "")
        if pixels and syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"):
            compared += 1
            assert after.PixelData.rstrip(b"\0") == pixels.rstrip(b"\0"), path
    assert compared > 20


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An archive of a study with two images and an ultrasound image, and another with a PDF."""
    path = new_archive(tmp_path / "archive")
    files = tmp_path / "files"
    files.mkdir()
    for number, values in enumerate(
        (
            {"SOPInstanceUID": "1.2.3.9.1", "Modality": "CT", "StudyDate": "20200102"},
            {"SOPInstanceUID": "1.2.3.9.2", "Modality": "CT", "StudyDate": "20200102"},
            {"SOPInstanceUID": "1.2.3.9.3", "Modality": "US", "StudyDate": "20200102"},
            {
                "StudyInstanceUID": "1.2.4.7",
                "SOPInstanceUID": "1.2.4.9.1",
                "EncapsulatedDocument": b"%PDF",
            },
        )
    ):
        one = instance(Rows=1, Columns=1, BitsAllocated=8, **values)
        if "EncapsulatedDocument" not in values:
            one.add_new(0x7FE00010, "OB", b"\1\2")
        (files / str(number)).write_bytes(encoded(one))
    with Archive.open(path) as archive:
        assert len(list(import_all(archive, sources([str(files)])))) == 4
    return path


def test_an_export_says_what_it_leaves_out(run: Run, root: str, tmp_path: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    study = ("-a", root, "export", "1.2.3.7")
    done = run(*study, out, "--deidentify", "--key", key)
    assert done.code == 1
    assert f"a new key is in {key}" in done.err
    assert "1.2.3.9.3.dcm: left out: images of modality US often show names" in done.err
    assert "2 instances exported" in done.err
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    fileset = pydicom.dcmread(out / "DICOMDIR")
    [patient] = [r for r in fileset.DirectoryRecordSequence if r.DirectoryRecordType == "PATIENT"]
    assert patient.PatientID.startswith("DEID-")
    done = run(*study, tmp_path / "out.zip", "--zip", "--deidentify", "--key", key)
    assert "new key" not in done.err
    with zipfile.ZipFile(tmp_path / "out.zip") as zipped:
        for name in zipped.namelist():
            if name != "DICOMDIR":
                assert zipped.read(name) == (out / name).read_bytes(), (
                    "the same key, the same bytes"
                )
            for value in (b"Muster", b"4711", b"1.2.3.", b"20200102"):
                assert value not in zipped.read(name)
    done = run(*study, tmp_path / "all", "--deidentify", "--key", key, "--uncleaned", "pixels")
    assert (done.code, "3 instances exported" in done.err) == (0, True)
    other = run(*study, tmp_path / "other", "--deidentify", "--key", tmp_path / "key2")
    assert other.code == 1
    assert {p.name for p in out.rglob("*")} == {p.name for p in (tmp_path / "other").rglob("*")}
    [one, *_] = sorted(p for p in out.rglob("IM*"))
    assert one.read_bytes() != (tmp_path / "other" / one.relative_to(out)).read_bytes()


def test_when_nothing_can_be_cleaned_nothing_is_exported(
    run: Run, root: str, tmp_path: Path
) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    done = run("-a", root, "export", "1.2.4.7", out, "--deidentify", "--key", key)
    assert (done.code, out.exists()) == (1, False)
    assert "nothing was exported" in done.err
    assert "--uncleaned documents" in done.err


def test_wrong_uses_are_said(run: Run, root: str, tmp_path: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    done = run("-a", root, "export", "--deidentify", "1.2.3.7", out, out)
    assert (done.code, "write --deidentify=basic" in done.err) == (2, True)
    done = run("-a", root, "export", "1.2.3.7", out, "--key", key)
    assert (done.code, "need --deidentify" in done.err) == (2, True)
    key.write_text("0" * 64)
    key.chmod(0o644)
    done = run("-a", root, "export", "1.2.3.7", out, "--deidentify", "--key", key)
    assert (done.code, f"chmod 600 {key}" in done.err) == (2, True)
    key.chmod(0o600)
    key.write_text("secret")
    done = run("-a", root, "export", "1.2.3.7", out, "--deidentify", "--key", key)
    assert (done.code, "is not a key of plainpacs" in done.err) == (2, True)
    assert not out.exists()
    assert not os.path.exists(tmp_path / ".key")
