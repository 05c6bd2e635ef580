"""An instance's file while it is exported: opened once, so that what is described is what is
copied, whatever comes to lie under its name meanwhile."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Container, Iterator

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.element_tree import Elements, read_elements
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.dicom.part10 import Part10
from plainpacs.archive.errors import StorageUnavailable, UnreadableDataSet
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey

_CHUNK = 1 << 20


class Source:
    """The file of the instance ``key`` beneath the open ``root``. A context manager.

    Everything raises StorageUnavailable, with the words to say, when it cannot be read.
    """

    def __init__(self, root: int, key: InstanceKey) -> None:
        self.path = layout.instance_path(key)
        try:
            self._fd = durable.open_file(self.path, folder=root)
            facts = os.fstat(self._fd)
        except OSError as error:
            raise self._unreadable(error) from None
        self.size = facts.st_size
        self.mtime = facts.st_mtime_ns
        """In nanoseconds."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def header(self, wanted: Container[int] | None = None) -> tuple[Part10, Elements]:
        """What the File Meta Information says, and the elements, as ``read_elements`` has them.

        Raises UnreadableDataSet.
        """
        view = self.mapped()
        found = part10.read_part10(view[: part10.LONGEST_META])
        data_set = DataSet(view[found.dataset_offset :], found.transfer_syntax)
        return found, read_elements(data_set, wanted)

    def mapped(self) -> memoryview:
        """All bytes. Raises UnreadableDataSet when there are none."""
        if not self.size:
            raise UnreadableDataSet("the file is empty")
        try:
            return memoryview(mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise self._unreadable(error) from None

    def copy_to(self, to: int) -> None:
        """Appends all bytes to an open file. Raises OSError when that cannot be written."""
        offset = 0
        # Where the kernel cannot, or will not, the plain way finds out why, or that it can.
        with contextlib.suppress(OSError):
            while taken := durable.copy_range(self._fd, to, 1 << 30, offset):
                offset += taken
        for chunk in self._chunks(offset):
            durable.write_all(to, [chunk])

    def chunks(self) -> Iterator[bytes]:
        """All bytes."""
        return self._chunks(0)

    def _chunks(self, offset: int) -> Iterator[bytes]:
        while True:
            try:
                chunk = os.pread(self._fd, _CHUNK, offset)
            except OSError as error:
                raise self._unreadable(error) from None
            if not chunk:
                break
            offset += len(chunk)
            yield chunk
        if offset != self.size:
            raise StorageUnavailable(f"{self.path} changed while it was read; export again")

    def _unreadable(self, error: OSError) -> StorageUnavailable:
        if error.errno == errno.ENOENT:
            return StorageUnavailable(f"{self.path} went away meanwhile; export again")
        return StorageUnavailable(
            f"cannot read {self.path} ({error.strerror}), so nothing was exported; "
            "`plainpacs verify` says more"
        )
