"""Erasing: nothing of the patient stays, nobody else's is touched, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.archive.removal import purge
from plainpacs.archive.removal.purge import Purged
from plainpacs.archive.store.manifest import removal_in_force
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.archive.tree import durable
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import (
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.promises import delete_derived, derived
from tests.support.steps import at_step, killed_at

STUDY, SERIES = "1.2.3", "1.2.3.4"
SECRET = {"PatientName": "Planted^Name", "PatientID": "PLANTED-ID-7"}
OTHER = {"PatientName": "Other^Person", "PatientID": "OTHER-ID-8"}
PLANTED = (b"Planted", b"PLANTED")


@pytest.fixture
def path(memory: Path) -> str:
    """Study 1.2.3 is the planted patient's but for one instance, 1.2.9 another's; with variants
    kept aside, trash, and catalogue lines that were superseded."""
    path = new_archive(memory / "a")
    with Archive.open(path) as archive:
        for series in (SERIES, "1.2.3.6"):
            for number in (5, 6):
                store(
                    archive, **SECRET, SeriesInstanceUID=series, SOPInstanceUID=f"{series}.{number}"
                )
                once(path)
        store(archive, **OTHER, SOPInstanceUID="1.2.3.4.7")
        store(archive, **SECRET, PixelData=b"\7\7")
        store(archive, **OTHER, SOPInstanceUID="1.2.3.4.7", PixelData=b"\7\7")
        store(archive, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", SOPInstanceUID="1.9")
    once(path)
    remove(path, "1.2.3.6.5")
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything happens in one thread, no line is on its way."""
    monkeypatch.setattr(purge, "_SETTLE", 0.0)


def once(path: str) -> None:
    with Indexer.open(path) as indexer:
        indexer.once()


def remove(path: str, *uids: str, **how: Any) -> removal.Removed:
    return removal.remove(path, removal.find(path, uids, lambda _: None), **how)


def erase(path: str, *uids: str) -> Purged:
    purged = remove(path, *uids, erase=True).purged
    assert purged
    return purged


def holding(root: str | Path, needles: tuple[bytes, ...] = PLANTED) -> list[str]:
    """Every file of the archive, of whatever kind, that has one of the needles in it."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            data = Path(folder, name).read_bytes()
            if any(needle in data or needle.decode() in name for needle in needles):
                found.append(os.path.join(folder, name))
    return found


def check_indexes(path: str) -> None:
    assert os.listdir(Path(path, ".plainpacs/pending")) == []
    before = derived(path)
    delete_derived(path)
    with Indexer.open(path) as indexer:
        indexer.once(full=True)
    assert derived(path) == before
    assert not list(Path(path, ".plainpacs").glob("dirty.*"))
    assert left_behind(path) == []


def lines_for(path: str, name: str) -> list[dict[str, Any]]:
    lines = [orjson.loads(raw) for raw in manifest_lines(path)]
    return [line for line in lines if line["file"] == name]


@contextmanager
def at_work(path: str) -> Iterator[Indexer]:
    with Indexer.open(path) as indexer:
        thread = threading.Thread(target=indexer.run)
        thread.start()
        try:
            yield indexer
        finally:
            indexer.stop()
            thread.join()


def test_the_planted_patient_is_everywhere_before(path: str) -> None:
    """Or the other tests would prove nothing."""
    parts = {os.path.relpath(name, path).partition("/")[0] for name in holding(path)}
    assert parts == {"202401", ".plainpacs"}
    kinds = {name.removeprefix(path).split("/")[2] for name in holding(path)}
    assert {"conflicts", "trash", "studies.jsonl", STUDY} <= kinds


def test_nothing_of_a_study_stays(path: str) -> None:
    purged = erase(path, STUDY)
    assert (purged.instances, purged.variants, purged.linked) == (5, 2, 0)
    assert holding(path) == []
    assert holding(path, (b"Other^Person",)) == []
    assert instances_in(path) == ["202401/1.2.9/1.2.9.1/1.9.dcm"]
    for folder in ("trash", "conflicts"):
        assert os.listdir(Path(path, ".plainpacs", folder)) == []
    lines = [orjson.loads(raw) for p in Path(path).glob(f"*/{STUDY}/*") for raw in _lines(p)]
    assert {frozenset(line) for line in lines} == {
        frozenset({"file", "removed", "purged", "crc32"})
    }
    assert len(lines) == 5
    assert all(removal_in_force([line]) for line in lines)
    assert instance_shards.find(path, SERIES) == instance_shards.find(path, "1.2.3.4.5") == []
    assert list(manifest_lines(path)), "the other study has its lines still"
    check_indexes(path)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


@pytest.mark.parametrize("serving", [False, True])
def test_nothing_of_an_instance_stays(path: str, serving: bool) -> None:
    """Its names go out of what is about the others, too: study.json, the catalogue."""
    others = {name: Path(path, name).read_bytes() for name in instances_in(path)}
    if serving:
        with at_work(path):
            erase(path, "1.2.3.4.7")
    else:
        erase(path, "1.2.3.4.7")
    assert holding(path, (b"Other^Person", b"OTHER-ID")) == []
    del others[f"202401/{STUDY}/{SERIES}/1.2.3.4.7.dcm"]
    assert {name: Path(path, name).read_bytes() for name in instances_in(path)} == others
    for name in others:
        [line] = [line for line in lines_for(path, Path(name).name) if "bytes" in line]
        assert line["origin"] == "c-store"
    assert list(lines_for(path, "1.2.3.4.7.dcm")[0]) == ["file", "removed", "purged", "crc32"]
    assert [p.name for p in Path(path, ".plainpacs/conflicts").rglob("*~*")] != []
    assert [p.name for p in Path(path, ".plainpacs/trash").rglob("*~*")] != []
    check_indexes(path)


def test_a_series(path: str) -> None:
    assert erase(path, "1.2.3.6").instances == 2
    assert sorted(map(os.path.basename, instances_in(path))) == [
        *(f"1.2.3.4.{number}.dcm" for number in (5, 6, 7)),
        "1.9.dcm",
    ]
    check_indexes(path)


def test_what_is_in_the_trash_already(path: str) -> None:
    remove(path, STUDY)
    once(path)
    assert holding(path)
    assert erase(path, STUDY).instances == 5
    assert holding(path) == []
    check_indexes(path)


def test_what_only_conflicts_have(path: str) -> None:
    shutil.rmtree(Path(path, "202401", STUDY))
    shutil.rmtree(Path(path, ".plainpacs/trash"))
    once(path)
    assert erase(path, "1.2.3.4.5").variants == 1
    assert erase(path, STUDY).variants == 1
    assert holding(path) == []
    check_indexes(path)


def test_what_was_taken_away_by_hand(path: str) -> None:
    """Its lines are patient data, too."""
    shutil.rmtree(Path(path, "202401", STUDY, SERIES))
    once(path)
    erase(path, STUDY)
    assert holding(path) == []
    assert all(line["purged"] for line in lines_for(path, "1.2.3.4.5.dcm"))


def test_torn_lines_go_too(path: str) -> None:
    [manifest] = Path(path, "202401", STUDY).glob(f"{SERIES}.*.jsonl")
    whole = manifest.read_bytes()
    manifest.write_bytes(b'{"file":"1.2.3.4.5.dcm","PatientName":"Planted\n' + whole + whole[:300])
    erase(path, STUDY)
    assert holding(path) == []


def test_all_nodes_and_months(path: str) -> None:
    with Archive.open(path, node="n2") as archive:
        store(archive, **SECRET, SOPInstanceUID="1.2.3.4.8")
        store(archive, **SECRET, SOPInstanceUID="1.7", StudyDate="20230505")
        store(archive, **SECRET, SOPInstanceUID="1.7", StudyDate="20230505", PixelData=b"xx")
    once(path)
    assert erase(path, STUDY).instances == 7
    assert holding(path) == []
    check_indexes(path)


def test_what_is_stored_afterwards_is_an_instance_like_any(path: str) -> None:
    erase(path, STUDY)
    with Archive.open(path) as archive:
        assert store(archive).outcome is StoreOutcome.STORED
    once(path)
    assert removal_in_force(lines_for(path, "1.2.3.4.5.dcm")) is None
    check_indexes(path)
    erase(path, "1.2.3.4.5")
    assert len(lines_for(path, "1.2.3.4.5.dcm")) == 1, "one tombstone"


def test_again_changes_nothing(path: str) -> None:
    erase(path, STUDY)
    before = {name: d for name, d in tree(path, internal=True).items() if "audit" not in name}
    assert erase(path, STUDY) == Purged(0, 0, 0)
    after = {name: d for name, d in tree(path, internal=True).items() if "audit" not in name}
    assert {k: v for k, v in after.items() if "/seen/" not in k} == {
        k: v for k, v in before.items() if "/seen/" not in k
    }


def test_an_indexer_at_work_is_waited_for(path: str) -> None:
    with at_work(path):
        erase(path, STUDY)
        data = Path(path, "202401/studies.jsonl").read_bytes()
        assert {study for study, _, _ in catalogue.live(data)} == {"1.2.9"}
        assert holding(path) == []
    check_indexes(path)


def test_an_indexer_that_ends_meanwhile_is_not_waited_for(path: str) -> None:
    """It took the lock and never answers: when it is gone, the purge does it itself."""
    with Indexer.open(path):
        thread = threading.Thread(target=erase, args=(path, STUDY))
        thread.start()
        pause = threading.Event()
        while not Path(path, ".plainpacs/pending/compact~202401").exists():
            pause.wait(0.02)
    thread.join()
    assert holding(path) == []
    once(path)
    check_indexes(path)


def test_other_links_are_counted(path: str, memory: Path) -> None:
    os.link(Path(path, f"202401/{STUDY}/{SERIES}/1.2.3.4.5.dcm"), memory / "mine")
    assert erase(path, STUDY).linked == 1
    assert holding(path) == []


def test_what_a_dead_receiver_left_goes(path: str) -> None:
    incoming = Path(path, ".plainpacs/incoming")
    dead = incoming / "zz.dead"
    dead.mkdir()
    (dead / "lock").touch()
    os.link(Path(path, f"202401/{STUDY}/{SERIES}/1.2.3.4.5.dcm"), dead / "3")
    with Archive.open(path):
        assert erase(path, STUDY).linked == 0
        assert os.listdir(dead) == ["lock"]
    shutil.rmtree(dead)
    assert holding(path) == []


def test_a_receiver_not_done_yet_is_waited_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has linked its instance and not written its line: that comes before the manifest is
    replaced, so the name is gone from it."""
    linked, go_on = threading.Event(), threading.Event()
    real_open, real_list = durable.open_to_append, purge._clear_incoming

    def late(name: str, *, folder: int) -> int:
        if name.endswith(".late.jsonl") and not linked.is_set():
            linked.set()
            assert go_on.wait(20)
        return real_open(name, folder=folder)

    def seen(root: int, files: Any) -> bool:
        found = real_list(root, files)
        go_on.set()
        return found

    monkeypatch.setattr(durable, "open_to_append", late)
    monkeypatch.setattr(purge, "_clear_incoming", seen)
    with Archive.open(path, node="late") as archive:
        sender = threading.Thread(
            target=partial(store, archive, **SECRET, SOPInstanceUID="1.2.3.4.9")
        )
        sender.start()
        assert linked.wait(20)
        assert erase(path, STUDY).linked == 0
        sender.join()
    assert holding(path) == []
    once(path)
    check_indexes(path)


def test_a_line_on_its_way_while_the_manifest_is_replaced(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver has looked whether the manifest is the one, and stops before it writes: the
    line is lost, the instance is not, and gets another."""
    real = durable.write
    erased: list[Purged] = []

    def late(fd: int, buffers: Any) -> int:
        if not erased and b'"1.2.3.4.8.dcm"' in bytes(buffers[0])[:40]:
            erased.append(Purged(0, 0, 0))
            erased[0] = erase(path, "1.2.3.4.5")
        return real(fd, buffers)

    with Archive.open(path) as archive:
        store(archive, **OTHER, SOPInstanceUID="1.2.3.4.10")
        monkeypatch.setattr(durable, "write", late)
        assert store(archive, **OTHER, SOPInstanceUID="1.2.3.4.8").outcome is StoreOutcome.STORED
        assert erased[0].instances == 1
        assert lines_for(path, "1.2.3.4.8.dcm") == []
        store(archive, **OTHER, SOPInstanceUID="1.2.3.4.11")
        assert lines_for(path, "1.2.3.4.11.dcm"), "it has noticed"
    once(path)
    assert lines_for(path, "1.2.3.4.8.dcm")[0]["origin"] == "recovered"
    check_indexes(path)


def test_a_receiver_lets_go_of_what_was_replaced(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it holds the old manifest open, its blocks are on the disk."""
    monkeypatch.setattr("plainpacs.archive.store.manifest_writer._LOOK_EVERY", 0.0)
    with Archive.open(path) as archive:
        store(archive, **SECRET, SOPInstanceUID="1.2.3.4.8")
        erase(path, STUDY)
        assert _open_but_gone(path)
        archive.flush()
        assert _open_but_gone(path) == []


def _open_but_gone(path: str) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(path) and target.endswith(".jsonl (deleted)"):
            found.append(target)
    return found


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "changes",
    [
        {"SOPInstanceUID": "1.2.3.4.20"},
        {"SOPInstanceUID": "1.2.3.4.5"},
        {"SOPInstanceUID": "1.2.3.4.7", "PixelData": b"zz"},
    ],
    ids=["a new one", "the same again", "other bytes"],
)
def test_a_receiver_at_every_step(path: str, memory: Path, changes: dict[str, Any]) -> None:
    """What it stores of another patient meanwhile, in the same series, is there with its line."""
    uid = changes["SOPInstanceUID"]
    steps = 0
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        outcomes: list[StoreOutcome] = []
        with Archive.open(copy) as archive:
            store(archive, **OTHER, SOPInstanceUID="1.2.3.4.21")  # the manifest is open

            def meanwhile(_: str, archive: Archive = archive, done: Any = outcomes) -> None:
                done.append(store(archive, **{**OTHER, **changes}).outcome)

            with at_step(step, meanwhile):
                erase(copy, STUDY)
        once(copy)
        if not outcomes:
            assert holding(copy, (*PLANTED, b"Other^Person")) == []
            shutil.rmtree(copy)
            break
        steps += 1
        # It came before the instances were listed, or after: then it is not in what is erased.
        assert holding(copy) == [], f"at step {step}"
        here = [p for p in instances_in(copy) if p.endswith(f"/{uid}.dcm")]
        tombstones = [line for line in lines_for(copy, f"{uid}.dcm") if "purged" in line]
        if outcomes == [StoreOutcome.STORED]:
            assert here or tombstones, f"lost at step {step}"
        if here:
            [line] = [line for line in lines_for(copy, f"{uid}.dcm") if "bytes" in line]
            assert line["PatientName"] == OTHER["PatientName"]
            assert line["origin"] == "c-store", f"at step {step}"
            assert removal_in_force(lines_for(copy, f"{uid}.dcm")) is None
        if step % 4 == 0:
            check_indexes(copy)
        shutil.rmtree(copy)
    assert steps > 40


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("uid", [STUDY, "1.2.3.4.5"])
def test_killed_at_every_step(path: str, memory: Path, uid: str) -> None:
    """Nothing is half; the same command again finishes."""
    if uid != STUDY:
        for other in ("1.2.3.4.6", "1.2.3.6"):
            erase(path, other)
    stops = 0
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        action: Callable[[], object] = partial(erase, copy, uid)
        killed = killed_at(step, action)
        if killed:
            stops += 1
            for name in instances_in(copy):
                assert Path(copy, name).read_bytes() == Path(path, name).read_bytes()
            erase(copy, uid)
            once(copy)
        assert holding(copy) == [], f"after a kill at step {step}"
        assert any(name.endswith("1.9.dcm") for name in instances_in(copy))
        if killed and step % 4 == 0:
            check_indexes(copy)
        shutil.rmtree(copy)
        if not killed:
            break
    assert stops > 60


def test_the_command(path: str) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.root, [*arguments, "-a", path])

    done = run("rm", "--purge", STUDY)
    assert done.exit_code == 2
    done = run("rm", "--purge", STUDY, "--yes")
    assert done.exit_code == 0
    assert "erased: 5 instances, 2 variants kept aside" in done.stderr
    assert not any(needle.decode() in done.output for needle in PLANTED)
    assert holding(path) == []
    assert run("restore", STUDY).exit_code == 1
    done = run("rm", "--purge", "1.2.3.4.5", "--yes")
    assert done.exit_code == 1
    assert "no study, series or instance 1.2.3.4.5 here" in done.stderr


def test_a_purged_archive_can_be_imported(path: str, memory: Path) -> None:
    """Nothing of what was purged comes along."""
    erase(path, STUDY)
    (memory / "file").write_bytes(part10(SOPInstanceUID="1.2.3.4.5"))
    other = new_archive(memory / "other")
    done = CliRunner().invoke(cli.root, ["import", "-a", other, path, str(memory / "file")])
    assert done.exit_code == 0
    assert len(instances_in(other)) == 2
    assert holding(other) == []
