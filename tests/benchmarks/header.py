"""How long reading a header in memory takes, beside pydicom on the same bytes.

    python -m tests.benchmarks.header

The target is 60 microseconds (median) for a CT header of 120 elements in explicit VR little endian.
As in the CT slices of real makers, a sixth of the elements lies behind (0040,0275), where reading
stops; three are sequences, one of undefined length; one kept text is not ASCII. In a series, what
was learned of one slice helps with the next (``header_alike``).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from io import BytesIO

from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.dicom.header_cache import HeaderReader

ELEMENTS = 120
BEHIND = 20
ROUNDS = 41
CALLS = 40

UID = "1.2.826.0.1.3680043.8.498.4242"
TEXTS = {
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "InstanceCreationDate": "20240131",
    "InstanceCreationTime": "101112",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
    "SOPInstanceUID": UID + ".3.17",
    "StudyDate": "20240131",
    "SeriesDate": "20240131",
    "AcquisitionDate": "20240131",
    "ContentDate": "20240131",
    "StudyTime": "101010.123",
    "SeriesTime": "101011",
    "AcquisitionTime": "101012",
    "ContentTime": "101013",
    "AccessionNumber": "A2024-0815",
    "Modality": "CT",
    "Manufacturer": "Maker of Scanners",
    "InstitutionName": "Krankenhaus am Ring",
    "InstitutionAddress": "Ring 1",
    "ReferringPhysicianName": "Meier^Ina^^Dr.",
    "StationName": "CT1",
    "StudyDescription": "Schädel nativ",
    "SeriesDescription": "1.0 Weichteil",
    "PhysiciansOfRecord": "A^B",
    "OperatorsName": "C^D",
    "ManufacturerModelName": "Scanner 64",
    "PatientName": "Doe^Jane",
    "PatientID": "P000815",
    "IssuerOfPatientID": "HIS",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "PatientAge": "054Y",
    "PatientWeight": "70.5",
    "PatientComments": "",
    "BodyPartExamined": "HEAD",
    "ScanOptions": "HELICAL MODE",
    "SliceThickness": "1.0",
    "KVP": "120",
    "SpacingBetweenSlices": "0.8",
    "DataCollectionDiameter": "500",
    "DeviceSerialNumber": "12345",
    "SoftwareVersions": ["v1", "v2"],
    "ProtocolName": "Head routine",
    "ReconstructionDiameter": "250",
    "DistanceSourceToDetector": "1085.6",
    "DistanceSourceToPatient": "595",
    "GantryDetectorTilt": "0",
    "TableHeight": "160",
    "RotationDirection": "CW",
    "ExposureTime": "1000",
    "XRayTubeCurrent": "300",
    "Exposure": "300",
    "FilterType": "FLAT",
    "GeneratorPower": "36",
    "FocalSpots": "1.2",
    "ConvolutionKernel": "H30s",
    "PatientPosition": "HFS",
    "StudyInstanceUID": UID + ".1",
    "SeriesInstanceUID": UID + ".2",
    "StudyID": "4711",
    "SeriesNumber": "3",
    "AcquisitionNumber": "1",
    "InstanceNumber": "17",
    "ImagePositionPatient": ["-125.244140625", "-282.244140625", "-91.5"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "FrameOfReferenceUID": UID + ".4",
    "PositionReferenceIndicator": "SN",
    "SliceLocation": "-91.5",
    "ImageComments": "",
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["0.48828125", "0.48828125"],
    "BurnedInAnnotation": "NO",
    "WindowCenter": ["40", "400"],
    "WindowWidth": ["80", "2000"],
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "RescaleType": "HU",
    "LossyImageCompression": "00",
    "RequestingPhysician": "Who^Asks",
    "RequestedProcedureDescription": "CT Schädel",
    "PerformedProcedureStepStartDate": "20240131",
    "PerformedProcedureStepStartTime": "101010",
    "PerformedProcedureStepID": "4711",
    "PerformedProcedureStepDescription": "CT Schädel",
}
NUMBERS = {
    "SamplesPerPixel": 1,
    "Rows": 512,
    "Columns": 512,
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
}


def ct_slice() -> Dataset:
    """A CT slice: ELEMENTS elements, BEHIND of them behind (0040,0275), then pixel data."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    for keyword, value in {**TEXTS, **NUMBERS}.items():
        setattr(ds, keyword, value)
    reference = Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    reference.ReferencedSOPInstanceUID = UID + ".3.1"
    ds.ReferencedImageSequence = Sequence([reference])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-A0100", "SRT", "Brain"
    ds.ProcedureCodeSequence = Sequence([code])
    ds["ProcedureCodeSequence"].is_undefined_length = True
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    ds.RequestAttributesSequence = Sequence([request])
    ds.add_new(0x00190010, "LO", "MAKER CT")
    ds.add_new(0x00290010, "LO", "MAKER HEADER")
    ds.add_new(0x00291010, "OB", bytes(9000))
    for number in range(BEHIND):
        ds.add_new(0x00431010 + number, ("DS", "IS", "FD", "SL")[number % 4], number)
    for number in range(ELEMENTS - len(ds)):
        ds.add_new(0x00191010 + number, ("DS", "IS", "FD", "SL")[number % 4], number)
    assert len(ds) == ELEMENTS
    ds.PixelData = bytes(512 * 512 * 2)
    return ds


def encoded(ds: Dataset, syntax: str) -> tuple[bytes, int]:
    """A Part 10 file, and where its data set starts."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    implicit = syntax == ImplicitVRLittleEndian
    ds["PixelData"].VR = "OW"
    file = BytesIO()
    dcmwrite(
        file,
        ds,
        implicit_vr=implicit,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    part10 = file.getvalue()
    group_length = int.from_bytes(part10[140:144], "little")
    return part10, 144 + group_length


def microseconds(call: Callable[[], object], calls: int) -> list[float]:
    """The mean of some calls, ROUNDS times."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return rounds


def reading(data: bytes | memoryview, syntax: str, whole: bool) -> Callable[[], object]:
    return lambda: read_header(data, syntax, whole=whole)


def reading_a_series(syntax: str) -> Callable[[], object]:
    """Each call reads the next slice, in which five values are others."""
    slices = []
    for number in range(10, 30):
        ds = ct_slice()
        ds.SOPInstanceUID, ds.InstanceNumber = f"{UID}.3.{number}", number
        ds.ContentTime, ds.SliceLocation = f"1010{number}", f"-{number}.5"
        ds.ImagePositionPatient = ["-125.244140625", "-282.244140625", f"-{number}.5"]
        part10, start = encoded(ds, syntax)
        slices.append(part10[start:])
    reader = HeaderReader()
    following = itertools.cycle(slices)
    return lambda: reader.read(next(following), syntax)


def main() -> None:
    print(f"A CT header of {ELEMENTS} elements, microseconds (median of {ROUNDS} rounds; best)")
    columns = ("read_header", "whole=True", "next in a series", "pydicom.dcmread")
    print(f"{'':<31}" + "".join(f"{column:>17}" for column in columns) + f"{'ratio':>8}")
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        part10, start = encoded(ct_slice(), syntax)
        view = memoryview(part10)[start:]
        for data in (bytes(view), view):
            name = f"{syntax.name}, {type(data).__name__}"
            name = name.replace(" VR", "").replace(" Endian", "")
            ours = microseconds(reading(data, syntax, False), CALLS)
            whole = microseconds(reading(data, syntax, True), CALLS)
            series = microseconds(reading_a_series(syntax), CALLS)
            theirs = microseconds(
                lambda file=part10: dcmread(BytesIO(file), stop_before_pixels=True),  # type: ignore[misc]
                CALLS // 10,
            )
            times = (ours, whole, series, theirs)
            cells = "".join(f"{statistics.median(t):.1f}; {min(t):.1f}".rjust(17) for t in times)
            ratio = statistics.median(theirs) / statistics.median(ours)
            print(f"{name:<31}{cells}{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
