"""Clearing what a dead process left in its ``incoming`` folder."""

from __future__ import annotations

import contextlib
import os
import time

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import RefusedInstance
from plainpacs.archive.store.temporary import mapped
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey

_NEW_SECONDS = 10.0


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


def sweep_dead(writer: Writer) -> None:
    """Clears what processes of the node that died since left, while ``writer`` is at work. What
    cannot be cleared now is tried again the next time."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        for name in writer.left():
            path = f"{layout.INCOMING}/{name}"
            with contextlib.suppress(OSError):
                changed = os.stat(path, dir_fd=writer.root, follow_symlinks=False).st_ctime_ns
                # One that is new may be about to be locked.
                if now - changed > _NEW_SECONDS * 1_000_000_000:
                    writer.sweep_folder(path, mark_published)


def _read_key(name: str, folder: int) -> InstanceKey:
    view = mapped(folder, name)
    found = part10.read_part10(view[: part10.LONGEST_META])
    data_set = view[found.dataset_offset :]
    return InstanceKey.of_attributes(read_header(data_set, found.transfer_syntax))
