"""Whether two files hold the same pixels when one of them, or both, are compressed.

Decoders are large programs in other languages, fed here with whatever a peer has sent. They run in
a process of their own, with bounds on its memory and time: what becomes of it is an answer, too.
Only what pydicom can decode here is compared (RLE always, more where its plugins are installed).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from plainpacs.archive.child_process import python_command
from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.elements import PIXEL_DATA, swapped
from plainpacs.archive.dicom.flatten import DataSet, Leaf
from plainpacs.archive.store.temporary import mapped
from plainpacs.archive.tree import durable

_MEMORY = 3 << 30
_CPU_SECONDS = 60
_PATIENCE_SECONDS = 300

# The elements that describe the pixels, as pydicom's decoders call them (PS3.3 C.7.6.3).
_NUMBERS = {
    0x00280002: "samples_per_pixel",
    0x00280006: "planar_configuration",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
    0x00280101: "bits_stored",
    0x00280103: "pixel_representation",
}
_PHOTOMETRIC = 0x00280004
_FRAMES = 0x00280008


def same_pixels(root: str, first: str, second: str) -> tuple[bool | None, str]:
    """Whether the decoded pixels of two files, relative to ``root``, are equal, frame by frame.

    None when that cannot be found out; the words say how it was found out, or why not.
    """
    try:
        done = subprocess.run(
            python_command(__name__, root, first, second),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
        return answer["same"], str(answer["why"])
    except (subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return None, "the pixel data could not be decoded within bounds"


class _Image:
    """The pixels of one file."""

    def __init__(self, root: int, path: str) -> None:
        view = mapped(root, path)
        found = part10.read_part10(view[: part10.LONGEST_META])
        self.data_set = DataSet(view[found.dataset_offset :], found.transfer_syntax)
        self.options: dict[str, Any] = {"pixel_keyword": "PixelData", "number_of_frames": 1}
        self.leaf: Leaf | None = None
        order = "little" if self.data_set.little_endian else "big"
        for leaf in self.data_set:
            tag = leaf.path[0]
            value = self.data_set.data[leaf.start : leaf.end]
            if len(leaf.path) > 1:
                continue
            if tag in _NUMBERS and len(value) == 2:
                self.options[_NUMBERS[tag]] = int.from_bytes(value, order)  # type: ignore[arg-type]  # one of two words
            elif tag == _PHOTOMETRIC:
                self.options["photometric_interpretation"] = (
                    bytes(value).decode("ascii").strip(" \0")
                )
            elif tag == _FRAMES:
                self.options["number_of_frames"] = int(bytes(value))
            elif tag == PIXEL_DATA:
                self.leaf = leaf

    def frames(self) -> Iterator[bytes]:
        """Decoded, little endian, samples of a pixel side by side. Raises what pydicom raises."""
        # pydicom is loaded in the child alone.
        from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - as just said
        from pydicom.uid import UID  # noqa: PLC0415 - as just said

        leaf = self.leaf
        if leaf is None:
            return
        options = self.options | {"pixel_vr": leaf.vr or "OW"}
        source = bytes(self.data_set.data[leaf.start : leaf.end])
        if not self.data_set.little_endian and options["pixel_vr"] == "OW":
            source = swapped(source, 2)
        # Byte order is seen to, and the rest of a native encoding is as in any other.
        native = not leaf.encapsulated
        syntax = UID(part10.EXPLICIT_LITTLE_ENDIAN if native else self.data_set.transfer_syntax)
        for frame, facts in get_decoder(syntax).iter_buffer(source, raw=True, **options):
            samples = int(facts["samples_per_pixel"])
            bits = int(facts["bits_allocated"])
            planes = samples > 1 and facts.get("planar_configuration")
            yield _by_pixel(bytes(frame), samples, bits // 8) if planes else bytes(frame)


def _by_pixel(frame: bytes, samples: int, width: int) -> bytes:
    """A frame of one plane for each sample, as one of pixels."""
    plane = len(frame) // samples
    pixels = bytearray(len(frame))
    for sample in range(samples):
        for byte in range(width):
            start = sample * plane + byte
            pixels[sample * width + byte :: samples * width] = frame[
                start : (sample + 1) * plane : width
            ]
    return bytes(pixels)


def _compare(root: str, first: str, second: str) -> tuple[bool | None, str]:
    folder = durable.open_folder(root)
    try:
        one, other = _Image(folder, first), _Image(folder, second)
        pairs = zip_longest(one.frames(), other.frames())
        return all(frame == counterpart for frame, counterpart in pairs), "decoded"
    finally:
        os.close(folder)


def confine() -> None:
    """Bounds the memory of this process, and its time from now on. Raises ValueError, OSError."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + _CPU_SECONDS
    for kind, wanted in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(
            kind, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
        )


def _main() -> None:
    confine()
    try:
        same, why = _compare(*sys.argv[1:4])
    except Exception as error:  # whatever a decoder raises on what a peer has sent is the answer
        same, why = None, f"the pixel data cannot be decoded here ({type(error).__name__})"
    print(json.dumps({"same": same, "why": why}))


if __name__ == "__main__":
    _main()
