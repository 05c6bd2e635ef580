"""What is sent: CT-like Part 10 files with headers of 120 elements, each instance its own UIDs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from tests.benchmarks.header import ct_slice, encoded

QUARTERS = 4
SERIES_IN_A_QUARTER = 2
_ROOT = "1.2.826.0.1.3680043.8.498"
_PRIVATE_HEADER = 0x00291010
# Stand-ins of the length of what takes their place, so that one encoded header serves all.
_STUDY, _SERIES, _INSTANCE = (f"{_ROOT}.{letter * 20}" for letter in "678")
_NUMBER = "90009"


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of instance: square frames of 16 bits, with 120 elements (2.3 KB) before them."""

    name: str
    side: int
    frames: int = 1
    sop_class: str = "1.2.840.10008.5.1.4.1.1.2"


CT = Kind("526 KB", 512)
SMALL = Kind("36 KB", 130)
TINY = Kind("2 KB", 4)
MULTIFRAME = Kind("210 MB", 512, 400, "1.2.840.10008.5.1.4.1.1.2.1")


@dataclass(frozen=True, slots=True)
class Sent:
    """Files of one kind in ``folder``: in four quarters, each a study of two series.

    ``sizes`` has the length of each file by its SOP Instance UID, ``files`` are the same in the
    order in which they were made; all that are in the folder if ``whole``.
    """

    kind: Kind
    folder: Path
    files: tuple[Path, ...]
    sizes: dict[str, int]
    whole: bool = True

    @property
    def quarters(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    @property
    def series(self) -> list[Path]:
        return sorted(self.folder.glob("*/*"))

    def first(self, count: int) -> Sent:
        """The first ``count`` of them."""
        files = self.files[:count]
        sizes = {file.name: self.sizes[file.name] for file in files}
        return Sent(self.kind, self.folder, files, sizes, whole=False)


def make(folder: Path, kind: Kind, count: int) -> Sent:
    """Writes ``count`` instances, with UIDs that no other call's have, evenly into the quarters."""
    chance = random.Random(str(folder))
    run = str(chance.randrange(10**9, 10**10))
    header, pixels = _header(kind), 2 * kind.frames * kind.side**2
    # Noise, each instance another part of it: nothing on the way may gain by sameness or zeros.
    noise = chance.randbytes(min(pixels, 1 << 22) + count)
    files, sizes = [], {}
    for number in range(count):
        quarter = number * QUARTERS // count
        series = number * QUARTERS * SERIES_IN_A_QUARTER // count
        instance = _uid(3, run, number)
        place = folder / f"quarter{quarter}" / f"series{series}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / instance
        own = header
        for stand_in, value in (
            (_STUDY, _uid(1, run, quarter)),
            (_SERIES, _uid(2, run, series)),
            (_INSTANCE, instance),
            (_NUMBER, str(10000 + number)),
        ):
            assert len(stand_in) == len(value)
            own = own.replace(stand_in.encode(), value.encode())
        with path.open("wb") as file:
            file.write(own)
            left = pixels
            while left:
                left -= file.write(noise[number : number + min(left, len(noise) - count)])
            sizes[instance] = file.tell()
        files.append(path)
    return Sent(kind, folder, tuple(files), sizes)


def _uid(level: int, run: str, number: int) -> str:
    return f"{_ROOT}.{level}{run}{100000000 + number}"


def _header(kind: Kind) -> bytes:
    """A Part 10 file as far as its pixels."""
    ds = ct_slice()
    del ds[_PRIVATE_HEADER]  # 9 KB, more than a tiny instance has in all
    ds.SOPClassUID = kind.sop_class
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = _STUDY, _SERIES, _INSTANCE
    ds.InstanceNumber = _NUMBER
    ds.Rows = ds.Columns = kind.side
    if kind.frames > 1:
        ds.NumberOfFrames = kind.frames
    length = 2 * kind.frames * kind.side**2
    ds.PixelData = bytes(2)
    part10, _ = encoded(ds, ExplicitVRLittleEndian)
    assert part10.endswith(b"OW\0\0\2\0\0\0\0\0")
    return part10[:-6] + length.to_bytes(4, "little")
