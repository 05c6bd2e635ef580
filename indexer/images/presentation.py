"""From decoded pixels to what a screen shows: 8-bit grey or RGB (PS3.3 C.7.6.3, C.11; PS3.4 N.2).

The order for grey is that of the standard: Modality LUT or rescale, VOI LUT or window, and for
MONOCHROME1 the inverse. Rows and columns stay as they are stored, which is how they are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

Array = NDArray[Any]
Shown = NDArray[np.uint8]
"""(rows, columns) of grey or (rows, columns, 3) of RGB."""

_FLATTEST = 20.0
"""No pixel is taken for more than so many times as high as wide, or the other way round."""


class NotShown(Exception):
    """The pixels cannot be shown; the words are ours."""


def shown(frame: Array, header: Dataset) -> Shown:
    """The frame as a screen shows it.

    ``frame``: (rows, columns) or, in RGB, (rows, columns, 3), as decoded. ``header``: the
    attributes that hold for this frame (see ``of_frame``). Raises NotShown, and what pydicom raises
    on attributes that cannot be.
    """
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        return _eight_bits(apply_color_lut(frame, header), 16)
    if frame.ndim == 3 and frame.shape[2] == 3:
        return _eight_bits(frame, int(header.get("BitsStored", 8)))
    if frame.ndim != 2:
        raise NotShown(f"{photometric or 'no photometric interpretation'} cannot be shown")
    grey = _windowed(frame, header)
    return 255 - grey if photometric == "MONOCHROME1" else grey


def has_window(header: Dataset) -> bool:
    """Whether the header says how grey is shown, so that the content of a frame does not matter."""
    if header.get("VOILUTSequence"):
        return True
    return _first(header.get("WindowCenter")) is not None and (
        (_first(header.get("WindowWidth")) or 0) >= 1
    )


def of_frame(header: Dataset, frame: int) -> Dataset:
    """The attributes that hold for one frame of an enhanced multi-frame image, at the top level
    (PS3.3 C.7.6.16); those of the image where there are no functional groups."""
    found = Dataset()
    found.update(header)
    found.file_meta = header.file_meta  # tables are read in the byte order of the file
    for groups, item in (
        (header.get("SharedFunctionalGroupsSequence"), 0),
        (header.get("PerFrameFunctionalGroupsSequence"), frame),
    ):
        if not groups or item >= len(groups):
            continue
        for macro in _MACROS:
            for values in groups[item].get(macro) or ():
                found.update(values)
    return found


_MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")


def pixel_aspect(header: Dataset) -> float:
    """How many times as high as wide a pixel is; 1 when nothing (sensible) says."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
                    "PixelAspectRatio"):  # fmt: skip
        value = header.get(keyword)
        try:
            high, wide = (float(part) for part in value)
        except (TypeError, ValueError):
            continue
        if high > 0 and wide > 0 and 1 / _FLATTEST <= high / wide <= _FLATTEST:
            return high / wide
    return 1.0


# --- grey -----------------------------------------------------------------------------------------


def _windowed(frame: Array, header: Dataset) -> Shown:
    values = apply_modality_lut(frame, header)
    chosen = _by_voi_lut(values, header)
    if chosen is None:
        chosen = _by_window(values, header)
    if chosen is None:
        chosen = _by_content(values, frame, header)
    return (np.nan_to_num(chosen) * 255 + 0.5).astype(np.uint8)


def _by_voi_lut(values: Array, header: Dataset) -> Array | None:
    """Grey from 0 to 1 by the first VOI LUT (PS3.3 C.11.2.1.1)."""
    for item in header.get("VOILUTSequence") or ():
        entries, first, bits = (int(part) for part in item.LUTDescriptor)
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.asarray(_words(item.LUTData, order), dtype=np.float64)[: entries or 1 << 16]
        if not len(table):
            return None
        # Values outside of the table are shown as its ends are.
        at = np.clip(values.astype(np.int64) - first, 0, len(table) - 1)
        # A table that says 16 bits and uses 12 is meant to be white at its end.
        most = (1 << int(table.max()).bit_length()) - 1
        return table[at] / max(1, min(most, (1 << bits) - 1))
    return None


def window_of(frame: Array, header: Dataset) -> tuple[float, float] | None:
    """Centre and width of the window by which a grey frame is shown, or of one much like it; None
    for one in colours."""
    if str(header.get("PhotometricInterpretation", "")) not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    centre, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        return centre, width
    low, high = _limits(apply_modality_lut(frame, header), frame, header)
    return (low + high) / 2, max(1.0, high - low)


def _words(data: Any, order: str) -> list[int]:
    if isinstance(data, bytes):
        return list(np.frombuffer(data, dtype=f"{order}u2"))
    return [data] if isinstance(data, int) else list(data)


def _by_window(values: Array, header: Dataset) -> Array | None:
    """Grey from 0 to 1 by the first window (PS3.3 C.11.2.1.2)."""
    centre, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    function = str(header.get("VOILUTFunction", "") or "LINEAR")
    x = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((x - centre) / width + 0.5, 0, 1)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < 1:
        return None
    if width == 1:
        return (x > centre - 0.5).astype(np.float64)
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        return float(value[0] if hasattr(value, "__getitem__") else value)
    except (TypeError, ValueError, IndexError):
        return None


def _by_content(values: Array, frame: Array, header: Dataset) -> Array:
    """Grey from 0 to 1 where nothing says how: 8 bits as they are, others by what is there."""
    if header.get("Modality") == "SEG":  # labels from 0, or parts of a whole
        most = header.get("MaximumFractionalValue") or max(1, int(values.max()))
        return np.clip(values / most, 0, 1)
    if frame.dtype == np.uint8 and int(header.get("BitsStored", 8)) == 8:
        return frame / 255
    low, high = _limits(values, frame, header)
    return np.clip((values.astype(np.float64) - low) / ((high - low) or 1), 0, 1)


def _limits(values: Array, frame: Array, header: Dataset) -> tuple[float, float]:
    """From where to where the values go that matter."""
    seen = values[np.isfinite(values)]
    padding = header.get("PixelPaddingValue")
    if isinstance(padding, int) and (real := values[frame != padding]).size:
        seen = real[np.isfinite(real)]
    if not seen.size:
        return 0.0, 0.0
    # A few odd pixels of a large image do not decide.
    part = (0.1, 99.9) if seen.size >= 10_000 else (0, 100)
    low, high = (float(value) for value in np.percentile(seen, part))
    if low == high:
        low, high = float(seen.min()), float(seen.max())
    return low, high


# --- colour ---------------------------------------------------------------------------------------


def _eight_bits(pixels: Array, bits: int) -> Shown:
    """Unsigned samples of so many bits as 8."""
    if pixels.dtype == np.uint8:
        return pixels[..., :3]
    if not np.issubdtype(pixels.dtype, np.unsignedinteger):
        raise NotShown("colours that are not unsigned numbers cannot be shown")
    # Tables that say 16 bits and use 8 are common.
    shift = max(0, min(bits, int(pixels.max()).bit_length()) - 8)
    return np.asarray(pixels[..., :3] >> shift, dtype=np.uint8)
