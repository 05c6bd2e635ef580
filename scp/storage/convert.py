"""Instances in another transfer syntax than that of their file, where that can be.

Uncompressed and deflated ones are converted here, on their way; compressed ones are decompressed by
a process of its own (``decoder``), which is started when it is needed first. Whatever is given here
may be made up: what cannot be converted raises CannotConvert before a byte of it is sent.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator

from plainpacs.archive.child_process import python_command
from plainpacs.archive.dicom.deflate import Inflated
from plainpacs.archive.dicom.header import MOST_INFLATED
from plainpacs.archive.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.scp.storage.instance_file import File
from plainpacs.scp.storage.reencode import CannotConvert, Memory, reencoded

__all__ = ["CannotConvert", "Converter", "can_become"]

DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
_UNCOMPRESSED = frozenset(
    (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
)
_LITTLE_ENDIAN = frozenset((EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN))
# Those of images that pydicom has decoders for, as far as what they need is installed.
_DECODED = frozenset(
    "1.2.840.10008.1.2." + tail
    for tail in (
        *("4.50", "4.51", "4.57", "4.70"),  # JPEG
        *("4.80", "4.81", "4.90", "4.91"),  # JPEG-LS, JPEG 2000
        *("4.201", "4.202", "4.203"),  # HTJ2K
        "5",  # RLE
    )
)
_DECODING_SECONDS = 120.0
_PIECE = 1 << 18


def can_become(syntax: str, target: str) -> bool:
    """Whether an instance in ``syntax`` may be converted to ``target``: one it can fail for."""
    if target not in _LITTLE_ENDIAN:
        return False
    known = syntax in _UNCOMPRESSED or syntax in _DECODED
    return known or syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN


class Converter:
    """Converts one instance at a time; a context manager, which ends its decoder."""

    def __init__(self) -> None:
        self._decoder: _Decoder | None = None

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._decoder is not None:
            self._decoder.end()

    def convert(self, file: File, target: str) -> Iterator[bytes]:
        """The data set of ``file`` in ``target``, which it ``can_become``, piece by piece.

        Raises CannotConvert, and OSError when the file cannot be read; later only the latter.
        """
        explicit = target == EXPLICIT_VR_LITTLE_ENDIAN
        syntax = file.transfer_syntax
        if syntax in _UNCOMPRESSED:
            little_endian = syntax != EXPLICIT_VR_BIG_ENDIAN
            return reencoded(file, little_endian=little_endian, explicit=explicit)
        if syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            return reencoded(Memory(_inflated(file)), little_endian=True, explicit=explicit)
        if self._decoder is None or self._decoder.is_broken:
            self._decoder = _Decoder()
        return self._decoder.decode(file.path, target)


def _inflated(file: File) -> bytearray:
    """As a whole: what it inflates to is bounded."""
    inflated = Inflated(b"".join(file.between(file.offset, file.size)))
    try:
        inflated.grow(MOST_INFLATED)
    except UnreadableDataSet as error:
        raise CannotConvert(str(error)) from None
    if not inflated.finished:
        raise CannotConvert("the deflated data set is cut short, or too large")
    return inflated.bytes


class _Decoder:
    """The process that decompresses. It is killed when it takes too long, or is left amid a data
    set, and is broken then."""

    def __init__(self) -> None:
        self.is_broken = False
        # Threads of a numerical library would take memory that is limited there.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            python_command("plainpacs.scp.storage.decompress"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked = self._process.stdin
        self._answers = self._process.stdout.fileno()
        self._left = b""

    def end(self) -> None:
        """Ends the process."""
        self.is_broken = True
        self._process.kill()
        self._process.communicate()

    def decode(self, path: str, target: str) -> Iterator[bytes]:
        """See ``Converter.convert``."""
        try:
            deadline = time.monotonic() + _DECODING_SECONDS
            asked = {"path": os.path.abspath(path), "transfer_syntax": target}
            self._asked.write(json.dumps(asked).encode() + b"\n")
            while b"\n" not in self._left:
                self._left += self._read(deadline)
            line, _, self._left = self._left.partition(b"\n")
            answer = json.loads(line)
        except (OSError, ValueError):  # it died: of this instance, most likely
            self.end()
            raise CannotConvert("it cannot be decompressed") from None
        if "why" in answer:
            raise CannotConvert(answer["why"])
        return self._data(answer["bytes"])

    def _data(self, length: int) -> Iterator[bytes]:
        whole = False
        try:
            while length:
                piece = self._left or self._read(time.monotonic() + _DECODING_SECONDS)
                self._left = b""
                length -= len(piece)
                yield piece
            whole = True
        finally:
            if not whole:  # nobody wants the rest
                self.end()

    def _read(self, deadline: float) -> bytes:
        """Raises OSError when nothing comes until ``deadline``, or the process has died."""
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the decoder takes too long")
        piece = os.read(self._answers, _PIECE)
        if not piece:
            raise OSError("the decoder died")
        return piece
