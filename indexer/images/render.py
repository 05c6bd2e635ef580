"""Small pictures of images that anybody may have sent, made in a process of its own.

Decoders are large programs in other languages. ``Renderer`` feeds them in a child, with bounds on
its memory and time, and starts another when it dies: what becomes of one image is an answer, too.
A request is a line of JSON; the answer is one, and then the bytes of the picture.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

from plainpacs.archive.child_process import python_command
from plainpacs.archive.conflicts.pixels import confine

_PATIENCE_SECONDS = 60.0
_PATIENCE_IN_ALL = 900.0
_LARGEST = 1 << 27
"""Samples of a frame: those of a scanned slide or a digital mammogram are fewer."""
_BOUNDS = "it could not be decoded within bounds"


@dataclass(frozen=True, slots=True)
class Picture:
    """``rgb``: width times height times three bytes, row by row; empty when there is no picture,
    and then ``why`` says why, in words without anything from the file."""

    width: int = 0
    height: int = 0
    rgb: bytes = b""
    why: str = ""


class Renderer:
    """Makes pictures, one after the other. A context manager.

    ``patience``: seconds after which no more are made.
    """

    def __init__(self, patience: float = _PATIENCE_IN_ALL) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._end_of_patience = time.monotonic() + patience

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def picture(self, path: str, box: int) -> Picture:
        """The middle frame of the Part 10 file at ``path``, at most ``box`` pixels high and wide,
        in its true proportions, as a screen shows it. Raises nothing because of the file."""
        if time.monotonic() > self._end_of_patience:
            return Picture(why="the images before it took all the time there is")
        child = self._child = self._child or _started()
        assert child.stdin
        assert child.stdout
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            request = json.dumps({"path": os.path.abspath(path), "box": box}).encode() + b"\n"
            child.stdin.write(request)
            child.stdin.flush()
            line = b""
            while not line.endswith(b"\n"):
                line += _read(child.stdout.fileno(), 1, deadline)
            answer = json.loads(line)
            width, height = int(answer["width"]), int(answer["height"])
            if not (0 <= width <= box and 0 <= height <= box):
                raise ValueError("a size that was not asked for")
            rgb = _read(child.stdout.fileno(), width * height * 3, deadline)
            return Picture(width, height, rgb, str(answer["why"]))
        except (OSError, ValueError, LookupError, TypeError):
            self._end()
            return Picture(why=_BOUNDS)

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _started() -> subprocess.Popen[bytes]:
    # Threads of numerical libraries would each take their share of the memory allowed.
    alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        python_command(__name__),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | alone,
    )


def _read(fd: int, size: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises TimeoutError when they do not come, or the child died."""
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < size:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        part = os.read(fd, min(size - len(data), 1 << 16)) if ready else b""
        if not part:
            raise TimeoutError("no answer")
        data += part
    return bytes(data)


# --- the child ------------------------------------------------------------------------------------


def render(path: str, box: int) -> Picture:
    """What ``Renderer.picture`` does, in this process. Raises whatever a decoder raises."""
    # All of these are slow to load, and are in the child alone.
    from PIL import Image  # noqa: PLC0415
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415

    from plainpacs.indexer.images.presentation import (  # noqa: PLC0415
        NotShown,
        of_frame,
        pixel_aspect,
        shown,
    )

    # The pixel data is left where it is, and only one frame of it read.
    header = dcmread(path, stop_before_pixels=True, defer_size=1 << 16)
    if "Rows" not in header or "Columns" not in header:
        return Picture(why="it is no image")
    rows, columns = int(header.Rows), int(header.Columns)
    samples = rows * columns * int(header.get("SamplesPerPixel", 1))
    if not 0 < samples <= _LARGEST:
        return Picture(why=f"{columns} x {rows} pixels are not decoded here")
    index = int(header.get("NumberOfFrames") or 1) // 2
    if header.file_meta.TransferSyntaxUID.is_deflated:
        frame = pixel_array(dcmread(path), index=index)
    else:
        frame = pixel_array(path, index=index)
    attributes = of_frame(header, index)
    try:
        pixels = shown(frame, attributes)
    except NotShown as error:
        return Picture(why=str(error))
    height, width = rows * pixel_aspect(attributes), float(columns)
    scale = box / max(height, width)
    to = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    picture = Image.fromarray(pixels).convert("RGB").resize(to, how)
    return Picture(*to, picture.tobytes())


def _why(error: BaseException) -> str:
    """What to say of what a decoder raised; its own words may have values of the file in them."""
    words = str(error)
    if isinstance(error, (MemoryError, RecursionError)):
        return _BOUNDS
    if "missing dependencies" in words:
        return "its compression needs more decoders: pip install 'plainpacs[pixels]'"
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
        request: Any = json.loads(line)
        confine()
        try:
            picture = render(request["path"], request["box"])
        except Exception as error:  # whatever a decoder raises on what was sent is the answer
            picture = Picture(why=_why(error))
        facts = {"width": picture.width, "height": picture.height, "why": picture.why}
        answers.write(json.dumps(facts).encode() + b"\n" + picture.rgb)
        answers.flush()


if __name__ == "__main__":
    _main()
