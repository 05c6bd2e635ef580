"""Clearing what a dead process left in its ``incoming`` folder."""

from __future__ import annotations

import contextlib
import os

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import RefusedInstance
from plainpacs.archive.store.temporary import mapped
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey


def mark_published(writer: Writer, folder: int) -> None:
    """Clears the open ``folder``, marking each study first of which a file was published.

    That is one with a second link; the process may have died before it marked the study.
    Raises OSError.
    """
    pending = durable.open_folder(layout.PENDING, folder=writer.root)
    try:
        for name in os.listdir(folder):
            if name == "lock":
                continue
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_nlink > 1:
                with contextlib.suppress(RefusedInstance):
                    key = _read_key(name, folder)
                    durable.touch(layout.pending_name(key.month, key.study), folder=pending)
            durable.unlink(name, folder=folder)
    finally:
        os.close(pending)


def _read_key(name: str, folder: int) -> InstanceKey:
    view = mapped(folder, name)
    found = part10.read_part10(view[: part10.LONGEST_META])
    data_set = view[found.dataset_offset :]
    return InstanceKey.of_attributes(read_header(data_set, found.transfer_syntax))
