"""Storing: the three outcomes, what is on disk afterwards, and every failure on the way."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blake3
import orjson
import pydicom
import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import (
    DataSetMismatch,
    InvalidUID,
    RefusedInstance,
    StorageUnavailable,
    UnreadableDataSet,
)
from plainpacs.archive.store.store import Archive, Provenance, StoreOutcome
from plainpacs.archive.tree import durable
from tests.support.archives import (
    CT_IMAGE_STORAGE,
    MODALITY,
    data_set,
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    store,
    tree,
)

PATH = "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


@pytest.fixture
def archive(path: str) -> Iterator[Archive]:
    with Archive.open(path) as archive:
        yield archive
    assert left_behind(path) == []


def pending(path: str) -> list[str]:
    return sorted(os.listdir(Path(path, ".plainpacs/pending")))


def test_stored(archive: Archive, path: str) -> None:
    stored = store(archive)
    assert (stored.outcome, stored.path) == (StoreOutcome.STORED, PATH)
    file = Path(path, PATH)
    assert file.stat().st_mode & 0o777 == 0o444
    assert file.stat().st_nlink == 1
    assert pending(path) == ["202401~1.2.3"]
    [line] = [orjson.loads(raw) for raw in manifest_lines(path)]
    whole = file.read_bytes()
    assert whole[line["dataset_offset"] :] == data_set()
    assert line["bytes"] == len(whole)
    assert line["blake3"] == blake3.blake3(whole).hexdigest()
    assert line["stored"] == stamp_of(file)
    assert line["file"] == "1.2.3.4.5.dcm"
    assert line["transfer_syntax"] == EXPLICIT_LITTLE_ENDIAN
    assert (line["calling_ae"], line["called_ae"], line["peer"]) == ("CT1", "DRDCM", "10.0.0.5")
    assert (line["origin"], line["PatientName"]) == ("c-store", "Doe^Jane")


def stamp_of(file: Path) -> str:
    from plainpacs.archive.tree.root import stamp

    assert file.stat().st_mtime_ns % 1_000_000 == 0
    return stamp(file.stat().st_mtime_ns)


def test_the_file_is_good_part_10(archive: Archive, path: str) -> None:
    store(archive)
    found = pydicom.dcmread(Path(path, PATH))
    meta = found.file_meta
    assert meta.MediaStorageSOPClassUID == CT_IMAGE_STORAGE
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.4.5"
    assert meta.TransferSyntaxUID == EXPLICIT_LITTLE_ENDIAN
    assert meta.ImplementationClassUID.is_valid
    assert meta.SourceApplicationEntityTitle == "CT1"
    assert meta.SendingApplicationEntityTitle == "CT1"
    assert meta.ReceivingApplicationEntityTitle == "DRDCM"
    assert found.PatientName == "Doe^Jane"


def test_the_same_instance_again_changes_nothing(archive: Archive, path: str) -> None:
    store(archive)
    before = tree(path, internal=True)
    for sender in (MODALITY, Provenance("MR9", "OTHER", "10.9.9.9")):
        stored = store(archive, sender)
        assert (stored.outcome, stored.path) == (StoreOutcome.DUPLICATE, PATH)
    assert tree(path, internal=True) == before


def test_other_bytes_are_kept_aside_once(archive: Archive, path: str) -> None:
    store(archive)
    before = tree(path)
    for sender in (MODALITY, Provenance("MR9", "OTHER", "10.9.9.9")):
        stored = store(archive, sender, PatientName="Other^One")
        assert stored.outcome is StoreOutcome.CONFLICT
    assert tree(path) == before
    folder = Path(path, ".plainpacs/conflicts/202401/1.2.3/1.2.3.4")
    [kept] = folder.iterdir()
    assert kept.name.startswith("1.2.3.4.5~")
    assert str(kept.relative_to(path)) == stored.path
    assert pydicom.dcmread(kept).PatientName == "Other^One"
    [manifest] = folder.parent.glob("*.jsonl")
    [line] = [orjson.loads(raw) for raw in manifest.read_bytes().splitlines()]
    assert (line["file"], line["calling_ae"]) == (kept.name, "CT1")
    store(archive, PatientName="Third^One")
    assert len(list(folder.iterdir())) == 2


def test_another_transfer_syntax_is_another_instance(archive: Archive) -> None:
    store(archive)
    private = "1.2.826.0.1.3680043.9.1"
    assert archive.store(data_set(), private, MODALITY).outcome is StoreOutcome.CONFLICT


def test_by_sha256_and_without_sync(path: str) -> None:
    with Archive.open(path, digest="sha256", sync=False) as archive:
        store(archive)
    import hashlib

    [line] = [orjson.loads(raw) for raw in manifest_lines(path)]
    assert line["sha256"] == hashlib.sha256(Path(path, PATH).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"StudyInstanceUID": None}, UnreadableDataSet),
        ({"SeriesInstanceUID": ""}, UnreadableDataSet),
        ({"SOPInstanceUID": None}, UnreadableDataSet),
        ({"StudyInstanceUID": "../../x"}, InvalidUID),
        ({"StudyInstanceUID": "/etc/x"}, InvalidUID),
        ({"SeriesInstanceUID": "study.json"}, InvalidUID),
        ({"SeriesInstanceUID": "1.2\x003"}, InvalidUID),
        ({"SOPInstanceUID": "9" * 300}, InvalidUID),
        ({"SOPInstanceUID": "."}, RefusedInstance),
        ({"SOPInstanceUID": "CON"}, InvalidUID),
        ({"SOPInstanceUID": "ABC"}, InvalidUID),
        ({"SOPInstanceUID": "é"}, InvalidUID),
    ],
)
def test_a_refused_instance_leaves_nothing(
    archive: Archive, path: str, changes: dict[str, str], error: type[Exception]
) -> None:
    before = tree(path, internal=True)
    with pytest.raises(error):
        store(archive, **changes)
    assert tree(path, internal=True) == before


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 500, b"GIF89a" * 40, data_set()[:100]])
def test_rubbish_is_refused(archive: Archive, path: str, rubbish: bytes) -> None:
    with pytest.raises(UnreadableDataSet):
        archive.store(rubbish, EXPLICIT_LITTLE_ENDIAN, MODALITY)
    assert instances_in(path) == []


def test_the_command_must_agree(archive: Archive, path: str) -> None:
    for command in ({"sop_class": "1.2"}, {"sop_instance": "1.2"}):
        with pytest.raises(DataSetMismatch):
            archive.store(data_set(), EXPLICIT_LITTLE_ENDIAN, MODALITY, **command)
    assert instances_in(path) == []
    archive.store(
        data_set(),
        EXPLICIT_LITTLE_ENDIAN,
        MODALITY,
        sop_class=CT_IMAGE_STORAGE + "\0",
        sop_instance="1.2.3.4.5\0",
    )
    assert instances_in(path) == [PATH]


def test_eight_at_once_are_one_file_and_one_line(archive: Archive, path: str) -> None:
    ready = threading.Barrier(8)

    def send(_: int) -> StoreOutcome:
        ready.wait()
        return store(archive).outcome

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(send, range(8)))
    assert sorted(outcome.name for outcome in outcomes) == ["DUPLICATE"] * 7 + ["STORED"]
    assert len(list(manifest_lines(path))) == 1
    assert instances_in(path) == [PATH]


PRIMITIVES = ["create", "write", "set_time", "sync_file", "make_folder", "sync_folder", "link"]
AFTER_LINK = ["touch"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_failure_before_the_link_leaves_nothing(
    archive: Archive, path: str, primitive: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(durable, primitive, fail)
        with pytest.raises(StorageUnavailable, match=os.strerror(number)):
            store(archive)
    assert instances_in(path) == []
    assert list(manifest_lines(path)) == []
    assert pending(path) == []
    [own] = left_behind(path)
    assert os.listdir(Path(path, ".plainpacs/incoming", own)) == ["lock"]
    if primitive != "sync_folder":  # whose failure holds until a restart
        assert store(archive).outcome is StoreOutcome.STORED


def test_a_short_write_before_the_disk_is_full_leaves_nothing(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write
    left = [50]

    def fill(fd: int, buffers: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(fd, [memoryview(buffers[0])[: left[0]]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(durable, "write", fill)
    with pytest.raises(StorageUnavailable, match="No space left"):
        store(archive)
    assert instances_in(path) == []


def test_after_the_link_a_retry_finds_it(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "touch", fail)
        with pytest.raises(StorageUnavailable):
            store(archive)
    assert instances_in(path) == [PATH]
    assert store(archive).outcome is StoreOutcome.DUPLICATE


def test_a_manifest_failure_does_not_change_success(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "open_to_append", fail)
    assert store(archive).outcome is StoreOutcome.STORED
    assert "cannot append to manifest" in caplog.text
    assert "Doe" not in caplog.text


def test_a_folder_where_the_instance_belongs(archive: Archive, path: str) -> None:
    Path(path, PATH).mkdir(parents=True)
    with pytest.raises(StorageUnavailable, match="a folder lies where"):
        store(archive)
    os.rmdir(Path(path, PATH))
    assert store(archive).outcome is StoreOutcome.STORED


def test_a_file_where_a_folder_belongs(archive: Archive, path: str) -> None:
    Path(path, "202401").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        store(archive)


def test_a_damaged_file_under_the_name_is_a_conflict(archive: Archive, path: str) -> None:
    store(archive)
    file = Path(path, PATH)
    whole = file.read_bytes()
    for damage in (whole[:-2], whole[:50], b"", whole[:-2] + b"xx"):
        file.chmod(0o644)
        file.write_bytes(damage)
        assert store(archive).outcome is StoreOutcome.CONFLICT
        assert file.read_bytes() == damage


def test_the_duplicate_is_made_durable_too(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(archive)
    synced: list[str] = []
    real_file, real_folder = durable.sync_file, durable.sync_folder

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def file(fd: int) -> None:
        synced.append(name_of(fd))
        real_file(fd)

    def folder(fd: int) -> None:
        synced.append(name_of(fd))
        real_folder(fd)

    monkeypatch.setattr(durable, "sync_file", file)
    monkeypatch.setattr(durable, "sync_folder", folder)
    store(archive)
    assert synced[-2:] == ["1.2.3.4", "1.2.3.4.5.dcm"]


def test_a_duplicate_that_cannot_be_made_durable_is_never_answered_with_success(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(archive)
    real = durable.sync_file

    def fail_once(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".dcm"):
            monkeypatch.setattr(durable, "sync_file", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(durable, "sync_file", fail_once)
    for _ in range(3):  # the kernel tells of the failure once only
        with pytest.raises(StorageUnavailable):
            store(archive)
    with Archive.open(path) as restarted:
        assert store(restarted).outcome is StoreOutcome.DUPLICATE


def test_pending_may_be_removed_meanwhile(archive: Archive, path: str) -> None:
    os.rmdir(Path(path, ".plainpacs/pending"))
    store(archive)
    assert pending(path) == ["202401~1.2.3"]


def test_imported_part_10_is_kept_whole(archive: Archive, path: str, tmp_path: Path) -> None:
    ds = pydicom.dcmread(io.BytesIO(_part10_of_others()))
    source = tmp_path / "x"
    source.write_bytes(_part10_of_others())
    with open(source, "rb") as file:
        stored = archive.import_file(file.fileno(), Provenance(origin="import"))
    assert Path(path, stored.path).read_bytes() == source.read_bytes()
    assert pydicom.dcmread(Path(path, stored.path)) == ds
    assert store(archive).outcome is StoreOutcome.DUPLICATE, "File Meta does not count"


def _part10_of_others() -> bytes:
    buffer = io.BytesIO()
    ds = pydicom.dcmread(io.BytesIO(bytes(128) + b"DICM" + data_set()), force=True)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
    ds.file_meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    ds.file_meta.ImplementationVersionName = "SOMEBODY_ELSE"
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# --- large objects, written as they come ----------------------------------------------------------


def spooled(archive: Archive, raw: bytes, uid: str = "1.2.3.4.5") -> Any:
    """What ``store`` gives for ``raw``, written in pieces of 100 bytes."""
    spool = archive.spool(
        EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance=uid
    )
    for start in range(0, len(raw), 100):
        spool.write(memoryview(raw)[start : start + 100])
    return spool.store()


def test_a_spooled_instance_is_stored_as_any_other(archive: Archive, path: str) -> None:
    assert spooled(archive, data_set()).outcome is StoreOutcome.STORED
    with Archive.open(new_archive(Path(path).parent / "b")) as other:
        store(other)
        assert Path(path, PATH).read_bytes() == Path(other.root, PATH).read_bytes()
    [line] = [orjson.loads(raw) for raw in manifest_lines(path)]
    assert line["blake3"] == blake3.blake3(Path(path, PATH).read_bytes()).hexdigest()
    assert Path(path, PATH).read_bytes()[line["dataset_offset"] :] == data_set()
    assert spooled(archive, data_set()).outcome is StoreOutcome.DUPLICATE
    assert spooled(archive, data_set(PatientID="P2")).outcome is StoreOutcome.CONFLICT


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (data_set(SOPInstanceUID="1.9"), DataSetMismatch),
        (data_set(SOPClassUID="1.9"), DataSetMismatch),
        (data_set(StudyInstanceUID=None), UnreadableDataSet),
        (data_set(StudyInstanceUID="../x"), InvalidUID),
        (b"rubbish" * 100, UnreadableDataSet),
        (b"", UnreadableDataSet),
    ],
)
def test_a_refused_spool_leaves_nothing(
    archive: Archive, path: str, raw: bytes, error: type[Exception]
) -> None:
    before = tree(path, internal=True)
    with pytest.raises(error):
        spooled(archive, raw)
    with pytest.raises(InvalidUID):
        spooled(archive, data_set(), uid="../x")
    assert tree(path, internal=True) == before


def test_a_discarded_spool_leaves_nothing(archive: Archive, path: str) -> None:
    before = tree(path, internal=True)
    with archive.spool(
        EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance="1.9"
    ) as spool:
        spool.write(b"half")
    spool.discard()
    assert tree(path, internal=True) == before


def test_a_full_disk_under_a_spool(
    archive: Archive, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        archive.spool(
            EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance="1.9"
        ) as spool,
        monkeypatch.context() as patch,
    ):
        patch.setattr(durable, "write", fail)
        with pytest.raises(StorageUnavailable, match="No space left"):
            spool.write(b"more")
        with pytest.raises(StorageUnavailable, match="No space left"):
            spooled(archive, data_set())
    assert instances_in(path) == []


def test_a_header_beyond_the_first_bytes_of_a_spool(archive: Archive, path: str) -> None:
    raw = data_set()
    place = raw.index(b"\x10\0\x10\0PN")
    private = b"\x09\0\x01\x10UN\0\0" + (100_000).to_bytes(4, "little") + bytes(100_000)
    raw = raw[:place] + private + raw[place:]
    assert spooled(archive, raw).path == PATH
    [line] = [orjson.loads(one) for one in manifest_lines(path)]
    assert line["PatientName"] == "Doe^Jane"
    assert archive.store(raw, EXPLICIT_LITTLE_ENDIAN, MODALITY).outcome is StoreOutcome.DUPLICATE


@pytest.mark.parametrize("published", [False, True])
def test_what_a_dead_process_left_is_cleared_by_those_at_work(
    path: str, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Its lock was not free yet when we started. The living keep theirs."""
    monkeypatch.setattr("plainpacs.archive.store.incoming_cleanup._NEW_SECONDS", 0.0)
    with Archive.open(path) as archive, Archive.open(path) as other:
        stored = store(archive)
        folder = Path(path, ".plainpacs/incoming", f"{archive.node}.0123456789ab")
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "0").write_bytes(b"half")
        if published:
            os.link(Path(path, stored.path), folder / "1")
            Path(path, ".plainpacs/pending/202401~1.2.3").unlink()
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            archive.sweep()
            assert folder.exists()
        archive.sweep()
        assert not folder.exists()
        assert Path(path, ".plainpacs/pending/202401~1.2.3").exists()
        for one in (archive, other):
            assert store(one, SOPInstanceUID="1.9").outcome is not StoreOutcome.CONFLICT
    assert left_behind(path) == []
