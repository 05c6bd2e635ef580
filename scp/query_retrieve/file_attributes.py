"""Attributes that no index has, read from an instance's file for those who ask for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.deflate import Inflated
from plainpacs.archive.dicom.header import DEFLATED
from plainpacs.archive.dicom.identifier import DataSet, read_until
from plainpacs.archive.dicom.part10 import EXPLICIT_BIG_ENDIAN, read_part10
from plainpacs.archive.errors import RefusedInstance
from plainpacs.archive.tree import layout

_FIRST_READ = 64 << 10
MOST_READ = 4 << 20
"""Bytes from the beginning of a file in which the attributes have to lie."""


def file_of(root: str, record: Mapping[str, Any]) -> str:
    """The file of an instance's record; of a study or series, that of the first instance. Of one
    that has none left, a path where nothing is."""
    for folder in record.get("paths", ()):
        for at, folders, names in os.walk(os.path.join(root, folder)):
            folders.sort()
            if instances := [name for name in names if layout.instance_of(name)]:
                return os.path.join(at, min(instances))
    return os.path.join(root, str(record.get("path")))


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
