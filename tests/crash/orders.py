"""The orders that change a tree, each as a function of a recorded disk. Add one here, and every
moment of it is a power loss (``test_power_loss``) and each of its syncs is tried without
(``test_mutation_gate``).

An order is ``(disk)``: it works on ``disk.root`` and says what it promised with ``disk.stored``,
``disk.promise``. With ``after=``, what another function did comes first and is safe on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive, Provenance, Stored, StoreOutcome
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import create_archive
from plainpacs.indexer.index import instance_shards as instances
from plainpacs.indexer.service import rebuild_all as full
from plainpacs.indexer.service import reconcile
from plainpacs.indexer.service.indexer import Indexer
from tests.crash.power import Recorder
from tests.crash.recovery import ARCHIVE, Checker, booted, has_line, kept
from tests.support.archives import data_set, part10

FROM_CT = Provenance("CT1", "DRDCM", "10.0.0.5")
FIRST_BOOT = "boot-1"


@dataclass(slots=True)
class Disk:
    """``top`` stands for the disk; ``others`` lies outside of it."""

    top: str
    others: str
    recorder: Recorder | None = None
    offered: set[bytes] = field(default_factory=set)
    """Every data set that may lie under a final name."""
    careful: bool = True
    """Not so where the tree is damaged before, or ``--sync off`` was used."""
    compacted: bool = True
    """Not so where the indexes may keep lines that count no more, or lead nowhere."""

    @property
    def root(self) -> str:
        return f"{self.top}/{ARCHIVE}"

    def checker(self) -> Checker:
        return Checker(self.offered, careful=self.careful, compacted=self.compacted)

    def promise(self, words: str, holds: Callable[[Mapping[str, bytes]], bool]) -> None:
        if self.recorder:
            self.recorder.promise(words, holds)

    def stored(self, stored: Stored, body: bytes) -> None:
        """The sender was told that ``body`` is stored."""
        self.promise(f"{stored.outcome.value} {stored.path}", kept(stored.path, body))

    def store(self, archive: Archive, outcome: StoreOutcome, **changes: str | bytes | None) -> None:
        body = data_set(**changes)
        self.offered.add(body)
        stored = archive.store(body, EXPLICIT_LITTLE_ENDIAN, FROM_CT)
        assert stored.outcome is outcome
        self.stored(stored, body)

    def lines(self, *instances: str) -> None:
        """The manifests were synced: the lines of series 1.2.3.4 outlive a power loss too."""
        for instance in instances:
            name = layout.instance_name(instance)
            words = b'"calling_ae":"CT1"'
            self.promise(f"line of {name}", has_line("202401/1.2.3", "1.2.3.4", name, words))


Order = Callable[[Disk], None]
ORDERS: dict[str, tuple[Order, Order | None]] = {}


def order(*, after: Order | None = None) -> Callable[[Order], Order]:
    def add(function: Order) -> Order:
        ORDERS[function.__name__] = (function, after)
        return function

    return add


def recorded(name: str, top: str) -> tuple[Recorder, Disk]:
    """Runs the order ``name`` on a new disk in the folder ``top``."""
    run, before = ORDERS[name]
    disk = Disk(f"{top}/disk", f"{top}/others")
    os.mkdir(disk.top)
    os.mkdir(disk.others)
    with booted(FIRST_BOOT):
        if before:
            before(disk)
        recorder = Recorder(disk.top)
        disk.recorder = recorder
        with recorder:
            run(disk)
    return recorder, disk


# --- what comes before ---------------------------------------------------------------------------


def new(disk: Disk) -> None:
    create_archive(disk.root, "n1")


def one_stored(disk: Disk) -> None:
    new(disk)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED)


def one_indexed(disk: Disk) -> None:
    one_stored(disk)
    _index(disk)


def _index(disk: Disk, *, rebuild: bool = False) -> None:
    with Indexer.open(disk.root) as indexer:
        indexer.once(full=rebuild)


@contextlib.contextmanager
def _seconds_later() -> Iterator[None]:
    """By the file system's clock: reconciliation records only what is some seconds old."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (reconcile, full):
            now = module.file_system_now
            patch.setattr(module, "file_system_now", lambda root, now=now: now(root) + 10**10)
        yield


def _reconcile(indexer: Indexer) -> None:
    mark, known = indexer._pending.mark, indexer._is_indexed
    reconcile.reconcile(indexer.path, indexer._writer.root, mark, known)


def _index_and_remember(disk: Disk, *, rebuild: bool = False) -> None:
    """As ``Indexer.run`` does: what was asked for, reconciliation meanwhile, compaction last."""
    with _seconds_later(), Indexer.open(disk.root) as indexer:
        if rebuild:
            full.rebuild_everything(indexer._rebuilder)
        for _ in range(2):
            studies, _ = indexer._pending.waiting()
            for study in sorted(studies):
                indexer._index(study)
            _reconcile(indexer)
        indexer._rebuilder.compact(everything=True)


# --- storing -------------------------------------------------------------------------------------


@order()
def make_and_store(disk: Disk) -> None:
    create_archive(disk.root, "n1")
    disk.promise("an archive", lambda files: f"{ARCHIVE}/{layout.MARKER}" in files)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED)
    disk.lines("1.2.3.4.5")


@order(after=new)
def store_three(disk: Disk) -> None:
    """A new study, another instance, a new series; flushed in between, closed cleanly."""
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED)
        disk.store(archive, StoreOutcome.STORED, SOPInstanceUID="1.2.3.4.6")
        archive.flush()
        disk.lines("1.2.3.4.5", "1.2.3.4.6")
        disk.store(archive, StoreOutcome.STORED, SOPInstanceUID="1.2.3.4.7")
        disk.store(
            archive,
            StoreOutcome.STORED,
            SeriesInstanceUID="1.2.3.9",
            SOPInstanceUID="1.2.3.9.1",
        )
    disk.lines("1.2.3.4.7")


@order(after=one_stored)
def store_again_and_other_bytes(disk: Disk) -> None:
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.DUPLICATE)
        disk.store(archive, StoreOutcome.CONFLICT, PatientName="Other^One")
        disk.store(archive, StoreOutcome.CONFLICT, PatientName="Other^One")
        disk.store(archive, StoreOutcome.CONFLICT, PatientName="Third^One")


@order(after=new)
def store_again_what_was_not_synced(disk: Disk) -> None:
    """What another process stored with ``--sync off`` is relied on only once it is synced."""
    body, other = data_set(), data_set(PatientName="Other^One")
    disk.offered |= {body, other}
    disk.careful = False
    with Archive.open(disk.root, sync=False) as careless:
        careless.store(body, EXPLICIT_LITTLE_ENDIAN, FROM_CT)
        careless.store(other, EXPLICIT_LITTLE_ENDIAN, FROM_CT)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.DUPLICATE)
        disk.store(archive, StoreOutcome.CONFLICT, PatientName="Other^One")


@order(after=new)
def spool_large(disk: Disk) -> None:
    body = data_set(PixelData=bytes(range(256)) * 400)
    disk.offered.add(body)
    with Archive.open(disk.root) as archive:
        command = {"sop_class": "1.2.840.10008.5.1.4.1.1.2", "sop_instance": "1.2.3.4.5"}
        with archive.spool(EXPLICIT_LITTLE_ENDIAN, FROM_CT, **command) as spool:
            for at in range(0, len(body), 40_000):
                spool.write(body[at : at + 40_000])
            disk.stored(spool.store(), body)


@order(after=new)
def import_folder(disk: Disk) -> None:
    for number, name in enumerate(("Doe^Jane", "Doe^Jane", "Other^One")):
        uid = f"1.2.3.4.{min(number, 1)}"
        body = data_set(SOPInstanceUID=uid, PatientName=name)
        disk.offered.add(body)
        with open(f"{disk.others}/{number}", "wb") as file:
            file.write(part10(SOPInstanceUID=uid, PatientName=name) if number else body)
    with Archive.open(disk.root) as archive:
        # One by one: which of two variants comes first is else a matter of luck.
        for number in range(3):
            for result in import_all(archive, sources([f"{disk.others}/{number}"])):
                assert result.stored, result.error
                uid = f"1.2.3.4.{min(number, 1)}"
                name = "Other^One" if number == 2 else "Doe^Jane"
                disk.stored(result.stored, data_set(SOPInstanceUID=uid, PatientName=name))


# --- indexing ------------------------------------------------------------------------------------


@order(after=one_stored)
def index_first(disk: Disk) -> None:
    """All files of the index are new."""
    _index_and_remember(disk)


@order(after=one_indexed)
def index_more(disk: Disk) -> None:
    """None is new: lines are added to the catalogue and the shards, which are compacted."""
    shard = instances.shard_of("1.2.3.4.5")
    uids = (f"1.2.3.4.{number}" for number in range(6, 10_000))
    uid = next(uid for uid in uids if instances.shard_of(uid) == shard)
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED, SOPInstanceUID=uid, PatientName="Doe^J")
    _index_and_remember(disk)


@order(after=one_indexed)
def reindex_full(disk: Disk) -> None:
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.STORED, SOPInstanceUID="1.2.3.4.6")
    _index(disk, rebuild=True)


def one_remembered(disk: Disk) -> None:
    one_stored(disk)
    _index_and_remember(disk)


@order(after=one_remembered)
def last_instance_gone(disk: Disk) -> None:
    """Somebody removed the study: its lines go, a shard with them. (A crash before the shards are
    compacted leaves lines in them that lead nowhere: nobody knows of the study any more.)"""
    disk.compacted = False
    shutil.rmtree(f"{disk.root}/202401/1.2.3")
    assert disk.recorder
    disk.recorder.look_again()
    _index_and_remember(disk)


@order(after=one_remembered)
def index_second_month(disk: Disk) -> None:
    """A part of the study in another month, which is written down apart."""
    with Archive.open(disk.root) as archive:
        second = {"StudyDate": "20240229", "SOPInstanceUID": "1.2.3.4.6"}
        disk.store(archive, StoreOutcome.STORED, **second)
    _index_and_remember(disk)


def _indexes_deleted(disk: Disk) -> None:
    one_remembered(disk)
    index_second_month(disk)
    os.unlink(f"{disk.root}/{layout.SEVERAL}")
    shutil.rmtree(f"{disk.root}/{layout.INSTANCES}")
    for month in ("202401", "202402"):
        os.unlink(f"{disk.root}/{month}/{layout.CATALOGUE}")
        os.unlink(f"{disk.root}/{month}/1.2.3/{layout.STUDY_INDEX}")


@order(after=_indexes_deleted)
def reindex_what_was_deleted(disk: Disk) -> None:
    _index_and_remember(disk, rebuild=True)


@order(after=_indexes_deleted)
def index_what_was_deleted(disk: Disk) -> None:
    _index_and_remember(disk)


@order(after=_indexes_deleted)
def find_and_stop(disk: Disk) -> None:
    """What reconciliation found is not indexed yet when the indexer is stopped."""
    with _seconds_later(), Indexer.open(disk.root) as indexer:
        _reconcile(indexer)


# --- starting after a crash ----------------------------------------------------------------------


def _crashed(disk: Disk) -> None:
    """A process was killed between the link of a file and its answer, and in the next one."""
    one_indexed(disk)
    archive = Archive.open(disk.root)
    writer = archive._writer
    disk.store(archive, StoreOutcome.STORED, SOPInstanceUID="1.2.3.4.6")
    incoming = f"{disk.root}/{writer._incoming_name}"
    os.link(f"{disk.root}/202401/1.2.3/1.2.3.4/1.2.3.4.6.dcm", f"{incoming}/7")
    with open(f"{incoming}/8", "wb") as file:
        file.write(b"unfinished")
    os.unlink(f"{disk.root}/.plainpacs/pending/202401~1.2.3")
    for fd in (writer._incoming_lock, writer.incoming, writer._lock, writer.root):
        os.close(fd)


def _lost_its_index(disk: Disk) -> None:
    """The power failed: what was appended to a shard is lost, what was seen is not."""
    one_remembered(disk)
    with Archive.open(disk.root) as archive:
        archive._writer.dirty.clear = lambda: None  # type: ignore[method-assign]  # as if killed
    shards = f"{disk.root}/{layout.INSTANCES}"
    os.truncate(f"{shards}/{sorted(os.listdir(shards))[0]}", 0)


@order(after=_lost_its_index)
def receive_nothing_in_a_new_boot(disk: Disk) -> None:
    """The receiver alone starts and stops; no indexer has looked yet."""
    with booted("boot-1b"), Archive.open(disk.root):
        pass


@order(after=_crashed)
def sweep_and_index(disk: Disk) -> None:
    with Archive.open(disk.root) as archive:
        disk.store(archive, StoreOutcome.DUPLICATE)
    _index(disk)


@order(after=_crashed)
def start_in_a_new_boot(disk: Disk) -> None:
    with booted("boot-1b"):
        sweep_and_index(disk)
