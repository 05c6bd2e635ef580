"""Attributes that no index has, read from an instance's file for those who ask for them."""

from __future__ import annotations

from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.deflate import Inflated
from plainpacs.archive.dicom.header import DEFLATED
from plainpacs.archive.dicom.identifier import DataSet, read_until
from plainpacs.archive.dicom.part10 import EXPLICIT_BIG_ENDIAN, read_part10
from plainpacs.archive.errors import RefusedInstance

_FIRST_READ = 64 << 10
MOST_READ = 4 << 20
"""Bytes from the beginning of a file in which the attributes have to lie."""


def attributes_in(path: str, last: int) -> DataSet:
    """What lies in the file at ``path`` up to the tag ``last``, as far as that can be read.

    Nothing of a file that is gone, cannot be read, or is in big endian.
    """
    nothing = DataSet({})
    for size in (_FIRST_READ, MOST_READ):
        try:
            with open(path, "rb") as file:
                data = file.read(size)
            found = read_part10(data)
            body: bytes | bytearray = data[found.dataset_offset :]
            if found.transfer_syntax == EXPLICIT_BIG_ENDIAN:
                return nothing
            if found.transfer_syntax in DEFLATED:
                inflated = Inflated(body)
                inflated.grow(size)
                body = inflated.bytes
        except (OSError, RefusedInstance):
            return nothing
        read, complete = read_until(
            body, found.transfer_syntax, last, default_for(found.calling_ae)
        )
        if complete or len(data) < size:
            return read
    return read
