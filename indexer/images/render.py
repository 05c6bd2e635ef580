"""Pictures of images that anybody may have sent, made in processes of their own.

Decoders are large programs in other languages. ``Renderer`` feeds them in a child (``draw``), with
bounds on its memory and time, and starts another when it dies: what becomes of one image is an
answer, too. A request is a line of JSON; the answer is one, and then the bytes of the picture.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any

from plainpacs.archive.child_process import python_command

_PATIENCE_SECONDS = 60.0
_PATIENCE_IN_ALL = 900.0
_LONGEST_ANSWER = 1 << 30
BOUNDS = "it could not be decoded within bounds"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a picture is to be.

    ``frame``: from 0 on; the middle one when None. ``kind``: ``rgb`` (three bytes a pixel),
    ``jpeg``, ``png``, or ``raw``: the frame decoded and not made for a screen. ``box``: at most so
    wide and high, in true proportions; ``fill``: and no less. ``region`` (x, y, width,
    height; a negative one is mirrored) of the frame alone. ``window``: centre, width and function
    in place of the image's own (PS3.3 C.11.2.1.2). ``tells``: whether the picture is to say by
    which window it is shown.
    """

    frame: int | None = None
    kind: str = "rgb"
    box: tuple[int, int] | None = None
    fill: bool = False
    region: tuple[float, float, float, float] | None = None
    window: tuple[float, float, str] | None = None
    quality: int = 85
    tells: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """``data``: row by row, or the file that it is; empty when there is no picture, and then
    ``why`` says why, in words without anything from the image. ``frames``: of the image.
    ``window``: centre and width, of what is grey, when that was asked for."""

    width: int = 0
    height: int = 0
    data: bytes = b""
    why: str = ""
    frames: int = 1
    window: tuple[float, float] | None = None


class Renderer:
    """Makes pictures, one after the other. A context manager.

    ``patience``: seconds after which no more are made; None: never.
    """

    def __init__(self, patience: float | None = _PATIENCE_IN_ALL) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._end_of_patience = None if patience is None else time.monotonic() + patience

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def picture(self, path: str, box: int) -> Picture:
        """The middle frame of the Part 10 file at ``path``, at most ``box`` pixels high and wide,
        in its true proportions, as a screen shows it. Raises nothing because of the file."""
        return self.make(path, Wanted(box=(box, box), fill=True))

    def make(self, path: str, wanted: Wanted) -> Picture:
        """The picture that is ``wanted`` of the file at ``path``. Raises nothing because of it."""
        if self._end_of_patience is not None and time.monotonic() > self._end_of_patience:
            return Picture(why="the images before it took all the time there is")
        child = self._child = self._child or _started()
        assert child.stdin
        assert child.stdout
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            request = json.dumps({"path": os.path.abspath(path), **asdict(wanted)})
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
            line, rest = _line(child.stdout.fileno(), deadline)
            answer: dict[str, Any] = json.loads(line)
            width, height, length = (int(answer[name]) for name in ("width", "height", "bytes"))
            if wanted.box and not (0 <= width <= wanted.box[0] and 0 <= height <= wanted.box[1]):
                raise ValueError("a size that was not asked for")
            if not 0 <= length <= _LONGEST_ANSWER:
                raise ValueError("a length that no picture has")
            data = rest + _read(child.stdout.fileno(), length - len(rest), deadline)
            centre, across = answer["window"] or (0, 0)
            window = (float(centre), float(across)) if across else None
            return Picture(width, height, data, str(answer["why"]), int(answer["frames"]), window)
        except (OSError, ValueError, LookupError, TypeError):
            self.end()
            return Picture(why=BOUNDS)

    def end(self) -> None:
        """Ends the process; another is started when a picture is asked for again."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


class Renderers:
    """Several renderers, each for one thread at a time. Thread-safe; ``end`` it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: queue.LifoQueue[Renderer] = queue.LifoQueue()
        self._all = [Renderer(patience=None) for _ in range(count)]
        for one in reversed(self._all):
            self._idle.put(one)

    def make(self, path: str, wanted: Wanted) -> Picture:
        """As ``Renderer.make``; waits for one that is idle."""
        renderer = self._idle.get()
        try:
            return renderer.make(path, wanted)
        finally:
            self._idle.put(renderer)

    def end(self) -> None:
        """Ends their processes. What is being made is given up."""
        for one in self._all:
            one.end()


def _started() -> subprocess.Popen[bytes]:
    # Threads of numerical libraries would each take their share of the memory allowed.
    alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        python_command("plainpacs.indexer.images.draw"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | alone,
    )


def _line(fd: int, deadline: float) -> tuple[bytes, bytes]:
    """The first line of an answer, and what came with it."""
    data = b""
    while b"\n" not in data:
        data += _some(fd, 1 << 16, deadline)
    line, _, rest = data.partition(b"\n")
    return line, rest


def _read(fd: int, size: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises TimeoutError when they do not come, or the child died."""
    data = bytearray()
    while len(data) < size:
        data += _some(fd, min(size - len(data), 1 << 20), deadline)
    return bytes(data)


def _some(fd: int, most: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    part = os.read(fd, most) if ready else b""
    if not part:
        raise TimeoutError("no answer")
    return part
