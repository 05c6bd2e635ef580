"""What several tests need: small data sets, real files, and looking at a tree."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom.data
import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.store import Archive, Provenance, Stored
from plainpacs.archive.tree.root import create_archive

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MODALITY = Provenance("CT1", "DRDCM", "10.0.0.5")

_LONG = {"OB", "OW", "SQ", "UN", "UT"}
_TAGS = {
    "SpecificCharacterSet": (0x0008, 0x0005, "CS"),
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "SOPInstanceUID": (0x0008, 0x0018, "UI"),
    "StudyDate": (0x0008, 0x0020, "DA"),
    "Modality": (0x0008, 0x0060, "CS"),
    "AccessionNumber": (0x0008, 0x0050, "SH"),
    "StudyDescription": (0x0008, 0x1030, "LO"),
    "PatientName": (0x0010, 0x0010, "PN"),
    "PatientID": (0x0010, 0x0020, "LO"),
    "PatientBirthDate": (0x0010, 0x0030, "DA"),
    "StudyInstanceUID": (0x0020, 0x000D, "UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
    "SeriesNumber": (0x0020, 0x0011, "IS"),
    "InstanceNumber": (0x0020, 0x0013, "IS"),
    "NumberOfFrames": (0x0028, 0x0008, "IS"),
    "PixelData": (0x7FE0, 0x0010, "OW"),
}


def data_set(**changes: str | bytes | None) -> bytes:
    """A small CT data set in Explicit VR Little Endian; None leaves an attribute out."""
    values: dict[str, str | bytes | None] = {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyDate": "20240131",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "P1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "PixelData": b"\1\2" * 64,
    } | changes
    parts = []
    for keyword, (group, element, vr) in sorted(_TAGS.items(), key=lambda item: item[1]):
        value = values.get(keyword)
        if value is None:
            continue
        raw = value.encode() if isinstance(value, str) else value
        if len(raw) % 2:
            raw += b"\0" if vr == "UI" else b" "
        if vr in _LONG:
            head = struct.pack("<HH2sHL", group, element, vr.encode(), 0, len(raw))
        else:
            head = struct.pack("<HH2sH", group, element, vr.encode(), len(raw))
        parts.append(head + raw)
    return b"".join(parts)


def store(archive: Archive, provenance: Provenance = MODALITY, **changes: Any) -> Stored:
    """Stores ``data_set(**changes)``."""
    return archive.store(data_set(**changes), EXPLICIT_LITTLE_ENDIAN, provenance)


def new_archive(path: Path) -> str:
    """The path of a new archive."""
    create_archive(str(path))
    return str(path)


def part10(**changes: Any) -> bytes:
    """A Part 10 file holding ``data_set(**changes)``."""
    from plainpacs.archive.dicom.part10 import file_meta

    body = data_set(**changes)
    uid = changes.get("SOPInstanceUID", "1.2.3.4.5") or ""
    return file_meta(CT_IMAGE_STORAGE, uid, EXPLICIT_LITTLE_ENDIAN) + body


PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
"""DICOM files that are installed with pydicom."""


def folders_of_real_files() -> tuple[Path, ...]:
    """$PLAINPACS_TEST_DATA (by default ../shared/data) where it exists, and pydicom's files.

    Tests have these from the fixture ``real_folders``, which marks them ``real_data``.
    """
    named = os.environ.get("PLAINPACS_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    return (folder, PYDICOM_FILES) if folder.is_dir() else (PYDICOM_FILES,)


def tree(root: str | Path, *, internal: bool = False) -> dict[str, str]:
    """Every file below ``root`` by its relative path, with a digest of its bytes."""
    found = {}
    for folder, folders, names in os.walk(root):
        if not internal and ".plainpacs" in folders:
            folders.remove(".plainpacs")
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def instances_in(root: str | Path) -> list[str]:
    """The relative paths of the ``.dcm`` files of an archive."""
    return sorted(path for path in tree(root) if path.endswith(".dcm"))


def left_behind(root: str | Path) -> list[str]:
    """What lies in ``incoming``."""
    return sorted(os.listdir(Path(root, ".plainpacs", "incoming")))


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of ``condition()``; fails when it stays false for ``seconds``."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if value := condition():
            return value
        pause.wait(0.05)
    pytest.fail(f"still not so after {seconds} s")


def manifest_lines(root: str | Path) -> Iterator[bytes]:
    """Every line of every manifest of the archive's series."""
    for path in sorted(Path(root).glob("[0-9u]*/*/*.jsonl")):
        yield from path.read_bytes().splitlines()
