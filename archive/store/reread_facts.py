"""What a manifest line says of an instance, read from its file again."""

from __future__ import annotations

import os
from io import RawIOBase

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.header import Attributes, read_header
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.manifest import FileFacts
from plainpacs.archive.store.temporary import new_digest
from plainpacs.archive.tree.root import stamp

_MOST_HEADERS = 64 << 10
_HEAD = 64 << 20  # bytes read at once; the header lies in them


def read_attributes(file: RawIOBase) -> Attributes:
    """The attributes alone, from the header of the unbuffered ``file``. Raises as
    ``read_facts``."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_MOST_HEADERS) or b""
    try:
        return _attributes(head, part10.read_part10(head), complete=len(head) == size)
    except UnreadableDataSet:
        if len(head) == size:
            raise
    head += file.read(_HEAD) or b""
    found = part10.read_part10(head[: part10.LONGEST_META])
    return _attributes(head, found, complete=len(head) == size)


def _attributes(head: bytes, found: part10.Part10, *, complete: bool) -> Attributes:
    above = default_for(found.calling_ae)
    data_set = memoryview(head)[found.dataset_offset :]
    return read_header(data_set, found.transfer_syntax, above, complete=complete)


def read_facts(file: RawIOBase, name: str, digest: str) -> tuple[FileFacts, Attributes]:
    """The facts of the whole unbuffered ``file``, as ``name``, with its digest; its attributes.

    Raises RefusedInstance when it cannot be read as an instance, OSError.
    """
    facts = os.fstat(file.fileno())
    if facts.st_size == 0:
        raise UnreadableDataSet("the file is empty")
    head = file.read(_HEAD) or b""
    found = part10.read_part10(head[: part10.LONGEST_META])
    hashed = new_digest(digest)
    hashed.update(head)
    while chunk := file.read(1 << 20):
        hashed.update(chunk)
    attributes = _attributes(head, found, complete=len(head) == facts.st_size)
    return (
        FileFacts(
            name,
            facts.st_size,
            found.dataset_offset,
            digest,
            hashed.hexdigest(),
            stamp(facts.st_mtime_ns),
            found.transfer_syntax,
        ),
        attributes,
    )
