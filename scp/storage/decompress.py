"""A process of its own that decompresses instances: ``python -m plainpacs.scp.storage.decompress``.

Decoders are other people's C code, and what they are given may be made up: a crash or a bomb ends
this process and not the receiver, and pydicom (26 MB) is loaded here and not there. Asked on
standard input, one JSON line each, ``{"path", "transfer_syntax"}``; answers on standard output with
a line, ``{"bytes": length}`` and the data set after it, or ``{"why": words}``.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, BinaryIO

import pydicom
from pydicom import config
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from plainpacs.scp.storage.reencode import CannotConvert, Memory, reencoded

MOST_DECODED = 1 << 29
"""Bytes of pixel data; what would be more is left compressed."""
_MOST_MEMORY = 3 << 30


def main() -> None:
    """Answers until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            data = decoded(asked["path"])
            if asked["transfer_syntax"] != EXPLICIT_VR_LITTLE_ENDIAN:
                source = Memory(data)
                data = b"".join(reencoded(source, little_endian=True, explicit=False))
        except CannotConvert as error:
            _say(answers, {"why": str(error)})
        except MemoryError:
            _say(answers, {"why": "it takes too much memory"})
        except Exception as error:  # whatever a decoder raises: its words may quote the data set
            _say(answers, {"why": f"it cannot be decompressed ({type(error).__name__})"})
        else:
            _say(answers, {"bytes": len(data)})
            answers.write(data)
            answers.flush()


def _say(answers: BinaryIO, words: dict[str, Any]) -> None:
    answers.write(json.dumps(words).encode() + b"\n")
    answers.flush()


def decoded(path: str) -> bytes:
    """The data set of the compressed instance at ``path``, in Explicit VR Little Endian.

    Raises CannotConvert, MemoryError, and whatever pydicom and its decoders raise.
    """
    instance = pydicom.dcmread(path)
    if "PixelData" in instance:
        _check_size(instance)
        # The same instance in another transfer syntax has the same UID (PS3.4 B.4.1.3).
        instance.decompress(generate_instance_uid=False)
    output = DicomBytesIO()
    output.is_little_endian, output.is_implicit_VR = True, False
    write_dataset(output, instance)
    return output.getvalue()


def _check_size(instance: pydicom.Dataset) -> None:
    bits = int(instance.BitsAllocated) * int(instance.get("SamplesPerPixel", 1))
    frames = int(instance.get("NumberOfFrames") or 1)
    if int(instance.Rows) * int(instance.Columns) * frames * bits > 8 * MOST_DECODED:
        raise CannotConvert("it would be too large uncompressed")


if __name__ == "__main__":
    main()
