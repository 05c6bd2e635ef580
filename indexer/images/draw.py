"""The confined process in which an image is decoded and drawn: see ``render``.

Run as ``python -m plainpacs.indexer.images.draw``. An uncompressed grey frame is read and drawn
here by way of a table; everything else is decoded by pydicom and its plugins.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections import OrderedDict
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.pixels.utils import pixel_array

from plainpacs.archive.conflicts.pixels import confine
from plainpacs.indexer.images.presentation import (
    Array,
    NotShown,
    Shown,
    has_window,
    of_frame,
    pixel_aspect,
    shown,
    window_of,
)
from plainpacs.indexer.images.render import BOUNDS, Picture, Wanted

_LARGEST = 1 << 27
"""Samples of a frame: those of a scanned slide or a digital mammogram are fewer."""
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_PIXEL_DATA = b"\xe0\x7f\x10\0"
_TABLES = 16
_HEADER = (
    *("SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("PlanarConfiguration", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "PixelAspectRatio", "RescaleSlope", "RescaleIntercept"),
    *("RescaleType", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("VOILUTSequence", "MaximumFractionalValue", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "PresentationLUTShape"),
    *(
        f"{what}{colour}PaletteColorLookupTable{part}"
        for what, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue", "Alpha")
    ),
)
_tables: OrderedDict[tuple[Any, ...], Shown] = OrderedDict()


def draw(path: str, wanted: Wanted) -> Picture:
    """What ``Renderer.make`` does, in this process. Raises whatever a decoder raises."""
    # The pixel data is left where it is, and only one frame of it read.
    with open(path, "rb") as file:
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
        if "Rows" not in header or "Columns" not in header:
            return Picture(why="it is no image")
        rows, columns = int(header.Rows), int(header.Columns)
        samples = rows * columns * int(header.get("SamplesPerPixel") or 1)
        if not 0 < samples <= _LARGEST:
            return Picture(why=f"{columns} x {rows} pixels are not decoded here")
        count = int(header.get("NumberOfFrames") or 1)
        index = count // 2 if wanted.frame is None else wanted.frame
        if not 0 <= index < count:
            return Picture(why=f"it has {count} frames", frames=count)
        frame = _plain_frame(file, header, index)
    if frame is None:
        source = dcmread(path) if header.file_meta.TransferSyntaxUID.is_deflated else path
        frame = pixel_array(source, index=index, raw=wanted.kind == "raw")
    if wanted.kind == "raw":
        return Picture(columns, rows, _little_endian(frame), frames=count)
    attributes = of_frame(header, index)
    if wanted.window is not None:
        centre, width, function = wanted.window
        attributes.WindowCenter, attributes.WindowWidth = centre, width
        attributes.VOILUTFunction = function
        attributes.pop("VOILUTSequence", None)
    try:
        pixels = _by_table(frame, attributes) if has_window(attributes) else None
        pixels = shown(frame, attributes) if pixels is None else pixels
    except NotShown as error:
        return Picture(why=str(error), frames=count)
    picture = _finished(pixels, pixel_aspect(attributes), wanted, count)
    return replace(picture, window=window_of(frame, attributes)) if wanted.tells else picture


def _plain_frame(file: BinaryIO, header: FileDataset, index: int) -> Array | None:
    """A grey frame of the one or two bytes a pixel that most images have; None for any other."""
    bits = header.get("BitsAllocated")
    if header.file_meta.TransferSyntaxUID not in _PLAIN or bits not in (8, 16):
        return None
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return None
    implicit = header.file_meta.TransferSyntaxUID == _PLAIN[0]
    start = file.tell()
    head = file.read(12)
    value = 8 if implicit else 12
    length = int.from_bytes(head[value - 4 : value], "little")
    rows, columns = int(header.Rows), int(header.Columns)
    size = rows * columns * bits // 8
    if head[:4] != _PIXEL_DATA or (index + 1) * size > length:
        return None
    file.seek(start + value + index * size)
    data = file.read(size)
    if len(data) < size:
        return None
    kind = ("<i" if header.get("PixelRepresentation") else "<u") + str(bits // 8)
    frame = np.frombuffer(data, kind).reshape(rows, columns)
    return _without_overlay(frame, header, bits)


def _without_overlay(frame: Array, header: FileDataset, bits: int) -> Array:
    """Without what lies in the bits that are not stored (PS3.5 8.1.1)."""
    stored = int(header.get("BitsStored") or bits)
    if not 0 < stored < bits:
        return frame
    unused = bits - stored
    return np.left_shift(frame, unused) >> unused


def _little_endian(frame: Array) -> bytes:
    return frame.astype(frame.dtype.newbyteorder("<")).tobytes()


def _by_table(frame: Array, attributes: Any) -> Shown | None:
    """Grey by a table of what each value is shown as, which images of a series share."""
    if frame.ndim != 2 or frame.dtype.itemsize > 2 or frame.dtype.kind not in "iu":
        return None
    if frame.size < 1 << 14 or attributes.get("PhotometricInterpretation") == "PALETTE COLOR":
        return None
    names = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
             "PhotometricInterpretation", "BitsStored")  # fmt: skip
    several = any(name in attributes for name in ("ModalityLUTSequence", "VOILUTSequence"))
    key = (frame.dtype.str, *(str(attributes.get(name)) for name in names))
    table = None if several else _tables.get(key)
    if table is None:
        whole = np.iinfo(frame.dtype)
        values = np.arange(whole.min, whole.max + 1, dtype=np.int64).astype(frame.dtype)
        table = shown(values.reshape(1, -1), attributes)[0]
        # As they lie in memory, so that a negative value is the place from the end.
        table = np.roll(table, whole.min)
        if not several:
            _tables[key] = table
            while len(_tables) > _TABLES:
                _tables.popitem(last=False)
    return table[frame]


def _finished(pixels: Shown, aspect: float, wanted: Wanted, count: int) -> Picture:
    """Cut, scaled and encoded."""
    image = Image.fromarray(pixels)
    if wanted.region is not None:
        image = _cut(image, wanted.region)
    height, width = image.height * aspect, float(image.width)
    if wanted.box is None:
        scale = min(1.0, 1 / aspect)  # never upwards: pixels that are not square become fewer
    else:
        scale = min(wanted.box[0] / width, wanted.box[1] / height)
        scale = scale if wanted.fill else min(1.0, scale)
    to = max(1, round(width * scale)), max(1, round(height * scale))
    if wanted.box is not None:
        to = min(to[0], wanted.box[0]), min(to[1], wanted.box[1])
    if to != image.size:
        how = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
        image = image.resize(to, how, reducing_gap=3.0)
    if wanted.kind == "rgb":
        return Picture(*to, image.convert("RGB").tobytes(), frames=count)
    file = io.BytesIO()
    if wanted.kind == "png":
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, "JPEG", quality=wanted.quality)
    return Picture(*to, file.getvalue(), frames=count)


def _cut(image: Image.Image, region: tuple[float, float, float, float]) -> Image.Image:
    x, y, wide, high = region
    left, top = max(0, round(x)), max(0, round(y))
    right = min(image.width, round(x + abs(wide)))
    bottom = min(image.height, round(y + abs(high)))
    if right <= left or bottom <= top:
        raise NotShown("the region asked for lies outside of the image")
    image = image.crop((left, top, right, bottom))
    if wide < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if high < 0 else image


def _why(error: BaseException) -> str:
    """What to say of what a decoder raised; its own words may have values of the file in them."""
    words = str(error)
    if isinstance(error, NotShown):
        return words
    if isinstance(error, (MemoryError, RecursionError)):
        return BOUNDS
    if "missing dependencies" in words:
        return "its compression needs more decoders: install the extra [pixels]"
    if isinstance(error, NotImplementedError) or "not a transfer syntax" in words:
        return "there is no decoder for its transfer syntax"
    if isinstance(error, AttributeError) and "pixel data" in words.lower():
        return "it has no pixel data"
    if isinstance(error, ValueError) and ("reshape" in words or "length" in words):
        return "its pixel data is not as long as its header says"
    if isinstance(error, RuntimeError) and "all available plugins" in words:
        return "its compressed pixel data is damaged, or of a kind that no decoder here knows"
    return f"it cannot be decoded ({type(error).__name__})"


def _main() -> None:
    # Decoders may print: that is not to be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line)
        confine()
        try:
            picture = draw(request.pop("path"), Wanted(**request))
        except Exception as error:  # whatever a decoder raises on what was sent is the answer
            picture = Picture(why=_why(error))
        facts = {
            "width": picture.width,
            "height": picture.height,
            "why": picture.why,
            "frames": picture.frames,
            "bytes": len(picture.data),
            "window": picture.window,
        }
        answers.write(json.dumps(facts).encode() + b"\n" + picture.data)
        answers.flush()


if __name__ == "__main__":
    _main()
