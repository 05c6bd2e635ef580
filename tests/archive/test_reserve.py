"""The room that stays free: what it is, that nothing is stored into it, and what is said then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import OutOfSpace
from plainpacs.archive.store import writer
from plainpacs.archive.store.free_space import NO_RESERVE, UNBOUNDED, Reserve
from plainpacs.archive.store.store import Archive, StoreOutcome
from tests.support.archives import (
    CT_IMAGE_STORAGE,
    MODALITY,
    data_set,
    instances_in,
    left_behind,
    new_archive,
    part10,
    store,
)
from tests.support.peer import Peer, command, message
from tests.support.peer import data_set as sent_data_set
from tests.support.receiver import Start

GIB = 1 << 30
BLOCK = 4096


def disk(
    free: int, total: int = 100 * GIB, files: int = 0, free_files: int = 0
) -> os.statvfs_result:
    """What the system says of a disk with ``free`` bytes for us, and as much again for root."""
    blocks = (total // BLOCK, 2 * free // BLOCK, free // BLOCK)
    return os.statvfs_result((BLOCK, BLOCK, *blocks, files, 2 * free_files, free_files, 0, 255))


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("0", GIB, 0),
        ("123", GIB, 123),
        ("1k", GIB, 1024),
        ("500M", GIB, 500 << 20),
        ("1.5G", 4 * GIB, 3 * GIB // 2),
        ("1GiB", GIB, GIB),
        ("1gb", GIB, GIB),
        ("1T", GIB, 1 << 40),
        ("2%", 100 * GIB, 2 * GIB),
        ("0.5%", 100 * GIB, GIB // 2),
        ("1G,2%", 100 * GIB, GIB),
        ("1G, 2%", 10 * GIB, GIB // 5),
        ("2%,1G", 10 * GIB, GIB // 5),
        ("1G,0", 10 * GIB, 0),
        ("1G", 0, 0),
    ],
)
def test_sizes(text: str, total: int, expected: int) -> None:
    assert abs(Reserve.parse(text).bytes_of(disk(0, total)) - expected) <= 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1X", "101%", "1G;2%", "1G,", "%", "1e9", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="500M, 1G, 2%"):
        Reserve.parse(text)


def test_room() -> None:
    reserve = Reserve.parse("1G,2%")
    assert reserve.room(disk(5 * GIB)).bytes == 4 * GIB
    assert reserve.room(disk(0)).bytes == -GIB
    assert reserve.room(disk(GIB, 10 * GIB)).bytes == pytest.approx(0.8 * GIB, abs=BLOCK)
    assert reserve.room(disk(GIB)).files == UNBOUNDED.files
    assert reserve.room(disk(GIB, files=10**6, free_files=5000)).files == 4000
    assert reserve.room(disk(GIB, files=10000, free_files=600)).files == 100
    assert reserve.room(disk(GIB, files=1000, free_files=400)).files == 100
    room = Reserve.parse("1G").room(disk(2 * GIB, files=10**6, free_files=2000))
    assert (room.bytes, room.files) == (GIB, 1000)
    assert room.less(GIB, 1000).is_used_up is False
    assert room.less(GIB + 1, 0).is_used_up
    assert room.less(0, 1001).is_used_up
    assert NO_RESERVE.room(disk(0, files=10, free_files=0)) is UNBOUNDED
    assert reserve.room(disk(0, total=0)) is UNBOUNDED, "a file system that does not tell"


class Disk:
    """A disk whose free space a test sets; how often it was looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says = disk(5 * GIB)
        self.looks = 0
        monkeypatch.setattr(writer.os, "fstatvfs", self._fstatvfs)

    def _fstatvfs(self, _: int) -> os.statvfs_result:
        self.looks += 1
        return self.says


@pytest.fixture
def a_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


ONE_GIB = Reserve.parse("1G")


def test_below_the_reserve_nothing_is_stored(
    path: str, a_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_CHECK_SECONDS", 0.0)
    with Archive.open(path, reserve=ONE_GIB) as archive:
        store(archive)
        for full in (disk(GIB - BLOCK), disk(9 * GIB, files=10**6, free_files=1005)):
            a_disk.says = full
            with pytest.raises(OutOfSpace, match="than the reserve; make room, or"):
                store(archive, SOPInstanceUID="1.9")
            with pytest.raises(OutOfSpace):
                _spooled(archive, "1.9")
            assert len(instances_in(path)) == 1
            [own] = left_behind(path)
            assert os.listdir(Path(path, ".plainpacs/incoming", own)) == ["lock"]
        a_disk.says = disk(2 * GIB, files=10**6, free_files=1006)
        assert store(archive, SOPInstanceUID="1.9").outcome is StoreOutcome.STORED


def _spooled(archive: Archive, uid: str, *, before_last: object = None) -> None:
    raw = data_set(SOPInstanceUID=uid)
    with archive.spool(
        EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance=uid
    ) as spool:
        spool.write(raw[:100])
        if callable(before_last):
            before_last()
        spool.write(raw[100:])
        spool.store()


def test_a_spool_looks_again_as_it_grows(
    path: str, a_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_CHECK_SECONDS", 0.0)
    with Archive.open(path, reserve=ONE_GIB) as archive:
        with pytest.raises(OutOfSpace):
            _spooled(archive, "1.9", before_last=lambda: setattr(a_disk, "says", disk(0)))
        assert instances_in(path) == []
        [own] = left_behind(path)
        assert os.listdir(Path(path, ".plainpacs/incoming", own)) == ["lock"]


def test_it_looks_once_a_second_where_there_is_much_room_else_each_time(
    path: str, a_disk: Disk
) -> None:
    a_disk.says = disk(50 * GIB)
    with Archive.open(path, reserve=ONE_GIB) as archive:
        for number in range(5):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}")
        assert a_disk.looks == 1
    a_disk.says = disk(2 * GIB)
    with Archive.open(path, reserve=ONE_GIB) as archive:
        store(archive, SOPInstanceUID="1.8")
        a_disk.says = disk(GIB)  # another receiver was quicker
        with pytest.raises(OutOfSpace):
            store(archive, SOPInstanceUID="1.9")


def test_what_is_stored_already_needs_no_room(path: str, a_disk: Disk, tmp_path: Path) -> None:
    """A study that did not fit is sent again: those that are here are answered as such."""
    large = {"SOPInstanceUID": "1.9", "PixelData": bytes(1 << 20)}
    with Archive.open(path, reserve=ONE_GIB) as archive:
        store(archive)
        store(archive, **large)
        a_disk.says = disk(GIB - BLOCK)
        assert store(archive).outcome is StoreOutcome.DUPLICATE
        with archive.spool(
            EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance="1.9"
        ) as spool:
            raw = data_set(**large)
            for start_ in range(0, len(raw), 300_000):
                spool.write(raw[start_ : start_ + 300_000])
            assert spool.store().outcome is StoreOutcome.DUPLICATE
        (tmp_path / "one").write_bytes(part10())
        with (tmp_path / "one").open("rb") as file:
            assert archive.import_file(file.fileno(), MODALITY).outcome is StoreOutcome.DUPLICATE
        with pytest.raises(OutOfSpace):  # other bytes would be kept aside
            store(archive, PatientName="Another")
        with pytest.raises(OutOfSpace):
            store(archive, SOPInstanceUID="1.10")
    assert len(instances_in(path)) == 2


def test_what_is_too_large_leaves_its_room_to_others(path: str, a_disk: Disk) -> None:
    a_disk.says = disk(GIB + BLOCK)
    with Archive.open(path, reserve=ONE_GIB) as archive:
        with pytest.raises(OutOfSpace):
            store(archive, PixelData=bytes(2 * BLOCK))
        assert store(archive).outcome is StoreOutcome.STORED


def test_without_a_reserve_nobody_looks(path: str, a_disk: Disk) -> None:
    a_disk.says = disk(0)
    with Archive.open(path) as archive:
        assert store(archive).outcome is StoreOutcome.STORED


def test_the_peer_is_told(
    path: str,
    a_disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    start: Start,
) -> None:
    monkeypatch.setattr(writer, "_CHECK_SECONDS", 0.0)
    running = start(reserve="1G")
    a_disk.says = disk(0)
    with Peer(running.port) as peer:
        sent = sent_data_set()
        peer.send(message(1, command(), sent))
        answer = peer.response()
        assert int.from_bytes(answer[0x0900], "little") == 0xA700
        assert answer[0x0902].strip() == b"Out of space"
        assert "make room, or flag: --reserve with less" in caplog.text
        assert running.instances() == []
        a_disk.says = disk(5 * GIB)
        assert peer.store(sent) == 0x0000


def test_import_ends_with_words(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").write_bytes(part10())
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "-a", path, "--reserve", "1000T", str(tmp_path / "one")])
    assert ended.value.code == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "less is free in" in said
    assert "--reserve" in said
    assert instances_in(path) == []
    done = CliRunner().invoke(cli.root, ["import", "-a", path, str(tmp_path / "one")])
    assert done.exit_code == 0, done.output


def test_status_shows_it(start: Start) -> None:
    running = start(reserve="1M")
    status = ["status", "-a", str(running.root)]
    shown = CliRunner().invoke(cli.root, [*status, "--format", "json"])
    assert json.loads(shown.output)["reserve"] == 1 << 20
    assert (
        "is stored until no more than that is free" in CliRunner().invoke(cli.root, status).output
    )
    running.stop()
    full = start(reserve="1000T")
    shown = CliRunner().invoke(cli.root, ["status", "-a", str(full.root)])
    assert "NOTHING IS STORED" in shown.output
    full.stop()
    after = CliRunner().invoke(cli.root, ["status", "-a", str(full.root), "--format", "json"])
    assert json.loads(after.output)["reserve"] is None
