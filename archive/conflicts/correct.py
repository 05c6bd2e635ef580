"""Correcting what instances say of their patient and study.

A corrected instance is published in place of the one that was stored, under the same UIDs, as one
that is sent again with ``on_conflict = replace``: what was there is kept aside first, and
``conflicts --keep second`` publishes it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.amend import Modification, amended
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.store import set_aside
from plainpacs.archive.store.manifest import ORIGIN_CORRECTED, Provenance, best_line
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.targets import Present


def correct(
    archive: Archive,
    root: int,
    instance: Present,
    values: Mapping[str, str],
    by: Modification,
    *,
    patient: str | None = None,
) -> bool:
    """Gives an instance of the ``archive``, which is open with ``on_conflict`` "replace" and as
    ``root``, other ``values`` by keyword; whether it had others. With ``patient``, only if that is
    its PatientID.

    When this returns the corrected instance is durable. Raises UnreadableDataSet, CannotAmend,
    ForbiddenInstance and StorageUnavailable; then what was stored is published still.
    """
    key = instance.key
    path = layout.instance_path(key)
    try:
        with open(_open(path, root), "rb") as file:
            whole = memoryview(file.read())
        folder = layout.study_folder(key.month, key.study)
        name = layout.instance_name(key.instance)
        lines = set_aside.lines_of_file(root, folder, key.series, name)
    except OSError as error:
        raise StorageUnavailable(f"cannot read {path}: {error.strerror}") from None
    found = part10.read_part10(whole[: part10.LONGEST_META])
    data_set = whole[found.dataset_offset :]
    header = read_header(data_set, found.transfer_syntax)
    if patient is not None and str(header.get("PatientID", "")).strip() != patient:
        return False
    pieces = amended(data_set, found.transfer_syntax, values, by)
    if pieces is None:
        return False
    line = best_line(lines, instance.size, instance.mtime) or {}
    calling_ae, called_ae, peer = (
        str(line.get(one) or "") for one in ("calling_ae", "called_ae", "peer")
    )
    provenance = Provenance(calling_ae, called_ae, peer, ORIGIN_CORRECTED)
    with archive.spool(
        found.transfer_syntax,
        provenance,
        sop_class=str(header.get("SOPClassUID") or found.sop_class),
        sop_instance=key.instance,
    ) as spool:
        for piece in pieces:
            spool.write(piece)
        spool.store()
    return True


def _open(path: str, root: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
