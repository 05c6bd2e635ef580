"""What is forbidden does not come back: by the network, by import, by restoring."""

from __future__ import annotations

import os
import time
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result
from pynetdicom import AE

from plainpacs.archive.app import cli
from plainpacs.archive.errors import ForbiddenInstance, StorageUnavailable
from plainpacs.archive.store.forbidden import Forbidden, allow, forbid
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.scp.network.answers import answer_for, comment_for
from tests.support.archives import (
    MODALITY,
    data_set,
    instances_in,
    left_behind,
    new_archive,
    part10,
    store,
)
from tests.support.receiver import Start

KEY = InstanceKey("202401", "1.2.3", "1.2.3.4", "1.2.3.4.5")


@pytest.fixture
def path(memory: Path) -> str:
    path = new_archive(memory / "a")
    with Archive.open(path) as archive:
        store(archive)
        store(archive, SOPInstanceUID="1.2.3.4.6")
        store(archive, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", SOPInstanceUID="1.9")
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


def run(path: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli.root, [*arguments, "-a", path])


def change(path: str, *uids: str, lift: bool = False) -> None:
    root = open_root(path)
    (allow if lift else forbid)(root, uids)
    os.close(root)


def load(path: str) -> Forbidden:
    root = open_root(path)
    try:
        return Forbidden.load(root)
    finally:
        os.close(root)


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.3.4", "1.2.3.4.5"])
def test_a_study_series_or_instance(path: str, uid: str) -> None:
    assert not load(path).covers("1.2.3", "1.2.3.4", "1.2.3.4.5")
    change(path, uid)
    assert load(path).covers("1.2.3", "1.2.3.4", "1.2.3.4.5")
    assert not load(path).covers("1.2.9", "1.2.9.1", "1.9")
    assert load(path).covers("1.2.3", "1.2.3.4", "1.2.3.4.6") is (uid != "1.2.3.4.5")
    with pytest.raises(ForbiddenInstance):
        load(path).check(KEY)
    change(path, uid, lift=True)
    assert not load(path).covers("1.2.3", "1.2.3.4", "1.2.3.4.5")
    change(path, uid)
    assert load(path).covers("1.2.3", "1.2.3.4", "1.2.3.4.5")


def test_damaged_lines_are_passed_over(path: str) -> None:
    change(path, "1.1")
    file = Path(path, layout.FORBIDDEN)
    file.write_bytes(b'{"uid":"1.\n\0\0\n[]\n{"uid":3}\n' + file.read_bytes() + b'{"uid":"1.5"')
    change(path, "1.2")
    assert set(load(path).since) == {"1.1", "1.2"}


def test_a_list_that_cannot_be_read_refuses_everything(path: str) -> None:
    Path(path, layout.FORBIDDEN).mkdir()
    with pytest.raises(StorageUnavailable, match="cannot read"):
        Archive.open(path)
    os.rmdir(Path(path, layout.FORBIDDEN))


def test_it_is_durable_before_anything_is_removed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def spy(name: str) -> None:
        real = getattr(durable, name)

        def called(*args: object, **kwargs: object) -> object:
            fd = kwargs.get("folder", args[0])
            calls.append(f"{name} {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
            return real(*args, **kwargs)

        monkeypatch.setattr(durable, name, called)

    for name in ("sync_file", "sync_folder", "rename"):
        spy(name)
    found = removal.find(path, ["1.2.3"], lambda _: None)
    removal.remove(path, found, forbid=["1.2.3"])
    at = calls.index("sync_file forbidden")
    assert calls[at + 1] == "sync_folder .plainpacs"
    assert at < calls.index("rename 1.2.3.4")


def test_a_receiver_at_work_notices_within_a_second(path: str) -> None:
    with Archive.open(path) as archive:
        assert store(archive).outcome is StoreOutcome.DUPLICATE
        done = run(path, "rm", "--forbid", "--yes", "1.2.3")
        assert done.exit_code == 0
        assert "blocked from now on" in done.stderr
        for changes in ({}, {"PatientName": "Other^One"}, {"SOPInstanceUID": "1.2.3.4.99"}):
            with pytest.raises(ForbiddenInstance):
                store(archive, **changes)
        assert os.listdir(Path(path, ".plainpacs/incoming", left_behind(path)[0])) == ["lock"]
        store(archive, StudyInstanceUID="1.5", SOPInstanceUID="1.5.1", SeriesInstanceUID="1.5.2")
        assert run(path, "forbidden", "--lift", "1.2.3").exit_code == 0
        deadline = time.monotonic() + 10
        while True:
            try:
                assert store(archive).outcome is StoreOutcome.STORED
                break
            except ForbiddenInstance:
                assert time.monotonic() < deadline
    assert len(instances_in(path)) == 3


def test_a_spool_and_a_file_are_refused_too(path: str, memory: Path) -> None:
    change(path, "1.2.3")
    (memory / "file").write_bytes(part10(SOPInstanceUID="1.2.3.4.99"))
    (memory / "bare").write_bytes(data_set(SOPInstanceUID="1.2.3.4.98"))
    before = instances_in(path)
    with (
        Archive.open(path) as archive,
        archive.spool(
            "1.2.840.10008.1.2.1",
            MODALITY,
            sop_class="1.2.840.10008.5.1.4.1.1.2",
            sop_instance="1.2.3.4.97",
        ) as spool,
    ):
        spool.write(data_set(SOPInstanceUID="1.2.3.4.97"))
        with pytest.raises(ForbiddenInstance):
            spool.store()
    done = run(path, "import", str(memory / "file"), str(memory / "bare"))
    assert done.exit_code == 1
    assert done.stderr.count("removed and forbidden to come back") == 2
    assert instances_in(path) == before
    assert left_behind(path) == []


def test_it_is_not_restored(path: str) -> None:
    run(path, "rm", "--forbid", "--yes", "1.2.3.4.5")
    done = run(path, "restore", "1.2.3.4.5")
    assert done.exit_code == 1
    assert "forbidden to come back" in done.stderr
    assert len(instances_in(path)) == 2
    assert run(path, "forbidden", "--lift", "1.2.3.4.5").exit_code == 0
    assert run(path, "restore", "1.2.3.4.5").exit_code == 0
    assert len(instances_in(path)) == 3


def test_what_is_not_here_may_be_forbidden(path: str) -> None:
    done = run(path, "rm", "--forbid", "--yes", "7.7")
    assert done.exit_code == 0
    [line] = run(path, "forbidden").stdout.splitlines()
    assert orjson.loads(line)["uid"] == "7.7"
    assert "7.7" in run(path, "forbidden", "--format", "table").stdout
    assert run(path, "forbidden", "--format", "csv").stdout.startswith("uid,forbidden")
    assert orjson.loads(run(path, "forbidden", "--format", "json").stdout)[0]["forbidden"] > "2026"


def test_nothing_is_forbidden(path: str) -> None:
    assert run(path, "forbidden").exit_code == 1
    done = run(path, "forbidden", "--lift", "7.7")
    assert done.exit_code == 1


def test_the_answer() -> None:
    error = ForbiddenInstance("the instance was removed and forbidden to come back")
    assert answer_for(error).status == 0xC000
    assert "removed" in comment_for(error)


def test_over_the_network(start: Start) -> None:
    from io import BytesIO

    import pydicom

    running = start()
    sent = pydicom.dcmread(BytesIO(part10()))
    ae = AE()
    ae.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    to = ae.associate("127.0.0.1", running.port, ae_title="DRDCM")
    try:
        assert to.send_c_store(sent).Status == 0
        change(str(running.root), "1.2.3.4")
        deadline = time.monotonic() + 10
        while (answer := to.send_c_store(sent)).Status == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # pynetdicom loses an answer in some thousand without a pause
        assert answer.Status == 0xC000
        assert "forbidden" in answer.ErrorComment
    finally:
        to.release()
