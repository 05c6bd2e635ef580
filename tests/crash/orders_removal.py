"""More orders for ``orders.py``: those that take out of the tree, bring back, replace and mend."""

from __future__ import annotations

import os

from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.publish import REPLACE
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.archive.tree import layout
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.indexer import Indexer
from tests.crash.orders import FROM_CT, ORDERS, Disk, new, order
from tests.crash.recovery import Files, Holds, gone, has_line, kept, kept_somewhere
from tests.support.archives import data_set

__all__ = ["ORDERS"]

FIRST, SECOND = "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm", "202401/1.2.3/1.2.3.4/1.2.3.4.6.dcm"
DOE, OTHER = data_set(), data_set(PatientName="Roe^Jane")
"""Of one length: only their lines tell which of them is published."""
DOE_TOO = data_set(SOPInstanceUID="1.2.3.4.6")


def two_indexed(disk: Disk) -> None:
    new(disk)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED)
        disk.store(archive, StoreOutcome.STORED, SOPInstanceUID="1.2.3.4.6")
    with Indexer.open(disk.root) as indexer:
        indexer.once()


def _nothing_is_lost(disk: Disk, *bodies: bytes) -> None:
    for number, body in enumerate(bodies):
        disk.promise(f"instance {number} is somewhere", kept_somewhere(body))


def _audited(disk: Disk, event: str) -> None:
    """The audit log tells of it."""
    said = f'"event":"{event}"'.encode()
    disk.promise(
        f"audited: {event}",
        lambda files: any(said in data for path, data in files.items() if "/audit/" in path),
    )


def _line(disk: Disk, folder: str, name: str, words: bytes) -> None:
    disk.promise(f"line of {name} in {folder}", has_line(folder, "1.2.3.4", name, words))


def _remove(disk: Disk, uid: str, *, erase: bool = False) -> None:
    found = removal.find(disk.root, [uid], lambda _: None)
    assert removal.remove(disk.root, found, erase=erase)


@order(after=two_indexed)
def remove_one(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, DOE_TOO)
    disk.promise("the other stays", kept(SECOND, DOE_TOO))
    _remove(disk, "1.2.3.4.5")
    disk.promise("removed", gone(FIRST))
    _line(disk, "202401/1.2.3", "1.2.3.4.5.dcm", b'"removed":')
    _line(disk, f"{layout.TRASH}/202401/1.2.3", "1.2.3.4.5~", b'"calling_ae":"CT1"')
    _audited(disk, "rm")


@order(after=two_indexed)
def remove_study(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, DOE_TOO)
    _remove(disk, "1.2.3")
    disk.promise("removed", lambda files: gone(FIRST)(files) and gone(SECOND)(files))


def study_removed(disk: Disk) -> None:
    two_indexed(disk)
    _remove(disk, "1.2.3")


@order(after=study_removed)
def restore_study(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, DOE_TOO)
    removal.restore(disk.root, ["1.2.3"])
    disk.promise("restored", kept(FIRST, DOE))
    disk.promise("restored too", kept(SECOND, DOE_TOO))
    _line(disk, "202401/1.2.3", "1.2.3.4.5.dcm", b'"restored":')
    disk.promise("nothing is in the trash", _no_trash)
    _audited(disk, "restore")


def _no_trash(files: Files) -> bool:
    return not any("~2" in path or path.endswith(".jsonl") for path in files if "/trash/" in path)


def conflicting(disk: Disk) -> None:
    two_indexed(disk)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.CONFLICT, PatientName="Roe^Jane")


@order(after=study_removed)
def purge_one_of_the_trash(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE_TOO)
    _remove(disk, "1.2.3.4.5", erase=True)
    disk.promise("erased", _erased(DOE))


@order(after=conflicting)
def purge_one(disk: Disk) -> None:
    """With a variant kept aside. (A purge rewrites the manifest that the other instance is in.)"""
    disk.promise("the other stays", kept(SECOND, DOE_TOO))
    _remove(disk, "1.2.3.4.5", erase=True)
    disk.promise("erased", _erased(DOE, OTHER, b"Roe^Jane"))
    _line(disk, "202401/1.2.3", "1.2.3.4.5.dcm", b'"purged":')
    _audited(disk, "purge")


@order(after=conflicting)
def purge_study(disk: Disk) -> None:
    _remove(disk, "1.2.3", erase=True)
    disk.promise("erased", _erased(DOE, OTHER, b"Roe^Jane", b"Doe^Jane"))


def _erased(*bytes_: bytes) -> Holds:
    def holds(files: Files) -> bool:
        return not any(one in file for file in files.values() for one in bytes_)

    return holds


@order(after=two_indexed)
def replace(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, DOE_TOO)
    disk.offered.add(OTHER)
    with Archive.open(disk.root, on_conflict=REPLACE) as archive:
        stored = archive.store(OTHER, EXPLICIT_LITTLE_ENDIAN, FROM_CT)
        assert (stored.outcome, stored.path) == (StoreOutcome.CONFLICT, FIRST)
        disk.stored(stored, OTHER)
        _line(disk, "202401/1.2.3", "1.2.3.4.5.dcm", b'"PatientName":"Roe^Jane"')
    _line(disk, f"{layout.CONFLICTS}/202401/1.2.3", "1.2.3.4.5~", b'"PatientName":"Doe^Jane"')


@order(after=conflicting)
def keep_second(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, OTHER)
    _run("conflicts", "--keep", "second", "1.2.3", root=disk.root)
    disk.promise("decided", kept(FIRST, OTHER))
    _line(disk, "202401/1.2.3", "1.2.3.4.5.dcm", b'"PatientName":"Roe^Jane"')
    _line(disk, f"{layout.TRASH}/202401/1.2.3", "1.2.3.4.5~", b'"PatientName":"Doe^Jane"')
    disk.promise("no conflict is left", _no_conflict)
    _audited(disk, "conflicts")


@order(after=conflicting)
def keep_first(disk: Disk) -> None:
    _nothing_is_lost(disk, DOE, OTHER)
    _run("conflicts", "--keep", "first", "1.2.3", root=disk.root)
    disk.promise("decided", kept(FIRST, DOE))
    _line(disk, f"{layout.TRASH}/202401/1.2.3", "1.2.3.4.5~", b'"PatientName":"Roe^Jane"')
    disk.promise("no conflict is left", _no_conflict)
    _audited(disk, "conflicts")


def _no_conflict(files: Files) -> bool:
    return not any("~" in path for path in files if "/conflicts/" in path)


def _store_carelessly(disk: Disk, *bodies: bytes) -> None:
    disk.careful = False
    with Archive.open(disk.root, sync=False) as archive:
        for body in bodies:
            archive.store(body, EXPLICIT_LITTLE_ENDIAN, FROM_CT)


@order(after=new)
def replace_what_was_not_synced(disk: Disk) -> None:
    """Stored with ``--sync off``; once it is kept aside it must not be lost either."""
    _store_carelessly(disk, DOE)
    with Archive.open(disk.root, on_conflict=REPLACE) as archive:
        disk.stored(archive.store(OTHER, EXPLICIT_LITTLE_ENDIAN, FROM_CT), OTHER)
        disk.promise("the first is kept aside", kept_somewhere(DOE))


@order(after=two_indexed)
def keep_second_that_was_not_synced(disk: Disk) -> None:
    _store_carelessly(disk, OTHER)
    whole = [kept(FIRST, one) for one in (DOE, OTHER)]
    disk.promise("one of them, whole", lambda files: any(holds(files) for holds in whole))
    _run("conflicts", "--keep", "second", "1.2.3", root=disk.root)
    disk.promise("decided", kept(FIRST, OTHER))
    disk.promise("the first is in the trash", kept_somewhere(DOE))


def damaged(disk: Disk) -> None:
    """One instance has other bytes than its line says, one lies in the wrong series."""
    two_indexed(disk)
    os.chmod(f"{disk.root}/{FIRST}", 0o644)
    with open(f"{disk.root}/{FIRST}", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.mkdir(f"{disk.root}/202401/1.2.3/1.2.3.8")
    os.rename(f"{disk.root}/{SECOND}", f"{disk.root}/202401/1.2.3/1.2.3.8/1.2.3.4.6.dcm")


@order(after=damaged)
def repair(disk: Disk) -> None:
    disk.careful = False
    _nothing_is_lost(disk, DOE[:-1] + b"\xff", DOE_TOO)
    _run("repair", "--apply", root=disk.root)
    disk.promise("mended", kept(SECOND, DOE_TOO))
    disk.promise("out of the way", gone(FIRST))
    _line(disk, "202401/1.2.3", "1.2.3.4.6.dcm", b'"file"')
    _line(disk, f"{layout.CONFLICTS}/202401/1.2.3", "1.2.3.4.5~", b'"file"')
    _audited(disk, "repair")


def _run(*arguments: str, root: str) -> None:
    result = CliRunner().invoke(cli.root, ["-a", root, *arguments])
    assert result.exit_code in (0, 1), result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
