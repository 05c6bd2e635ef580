"""The indexer on real trees: rebuilding, healing, reconciling, claims, one at a time."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import InUse
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.listing import studies_in
from plainpacs.archive.tree.root import is_locked, open_root, stamp
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.index import recover_lines as heal
from plainpacs.indexer.service import indexer as service
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.indexer.service.pending import Pending
from plainpacs.indexer.service.reconcile import reconcile
from plainpacs.scp.daemon.child import document
from tests.support.archives import (
    MODALITY,
    eventually,
    instances_in,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.steps import killed_at

DERIVED = ("study.json", "studies.jsonl")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


def fill(path: str) -> None:
    with Archive.open(path) as archive:
        for study in range(5):
            for number in range(7):
                store(
                    archive,
                    StudyInstanceUID=f"1.{study}",
                    SeriesInstanceUID=f"1.{study}.{number % 2}",
                    SOPInstanceUID=f"1.{study}.9.{number}",
                    StudyDate=f"2024{1 + study % 2:02}05" if study else None,
                    PatientName=f"Doe^{study}",
                )


def once(path: str, *, full: bool = False) -> int:
    with Indexer.open(path) as indexer:
        return indexer.once(full=full)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.root, list(arguments))


def derived(path: str) -> dict[str, str]:
    """Every derived file but ``seen``, with a digest."""
    found = tree(path, internal=True)
    return {
        name: digest
        for name, digest in found.items()
        if name.endswith(DERIVED) or name.startswith(".plainpacs/instances/")
    }


def listed(path: str) -> set[str]:
    """The studies in the catalogues."""
    found: set[str] = set()
    for file in Path(path).glob("*/studies.jsonl"):
        found |= {study for study, _, _ in catalogue.live(file.read_bytes())}
    return found


def study_json(path: str, study: str = "1.2.3", month: str = "202401") -> dict[str, Any]:
    found = orjson.loads(Path(path, month, study, "study.json").read_bytes())
    assert isinstance(found, dict)
    return found


def delete_derived(path: str) -> None:
    for name in derived(path):
        Path(path, name).unlink()
    for folder in ("seen", "pending", "instances"):
        shutil.rmtree(Path(path, ".plainpacs", folder))


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


def test_what_is_stored_is_indexed(path: str) -> None:
    fill(path)
    assert once(path) == 5
    assert listed(path) == {f"1.{study}" for study in range(5)}
    assert study_json(path, "1.1", "202402")["NumberOfStudyRelatedInstances"] == 7
    assert instance_shards.find(path, "1.1.9.3") == ["202402/1.1/1.1.1/1.1.9.3.dcm"]
    assert instance_shards.find(path, "1.1.1") == ["202402/1.1/1.1.1"]
    for folder in ("pending", "indexing"):
        assert os.listdir(Path(path, ".plainpacs", folder)) == []
    settle(path)
    assert once(path) == 0, "nothing changed, nothing to do"


def test_every_index_can_be_deleted_and_made_again(path: str) -> None:
    fill(path)
    once(path)
    before = derived(path)
    assert len(before) > 10
    delete_derived(path)
    assert once(path, full=True) == 5
    assert derived(path) == before
    once(path, full=True)
    assert derived(path) == before
    delete_derived(path)
    assert once(path) == 5, "also without --full"
    assert derived(path) == before


def test_every_index_of_the_real_files_too(path: str, real_folders: tuple[Path, ...]) -> None:
    assert run("import", "-a", path, *map(str, real_folders)).exit_code == 1
    assert run("index", "--once", "-a", path).exit_code == 0
    before = derived(path)
    delete_derived(path)
    assert run("reindex", "--full", "-a", path).exit_code == 0
    assert derived(path) == before


def test_manifests_are_made_again_from_the_instances(
    path: str, real_folders: tuple[Path, ...]
) -> None:
    assert run("import", "-a", path, *map(str, real_folders)).exit_code == 1
    once(path)
    before = derived(path)
    lines = [orjson.loads(raw) for raw in manifest_lines(path)]
    for manifest in Path(path).glob("*/*/*.jsonl"):
        manifest.unlink()
    delete_derived(path)
    once(path, full=True)
    assert derived(path) == before
    again = [orjson.loads(raw) for raw in manifest_lines(path)]
    assert {line["origin"] for line in again} == {"recovered"}

    def by_file(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        own = ("origin", "calling_ae", "called_ae", "peer", "crc32")
        return {
            line["file"]: {key: value for key, value in line.items() if key not in own}
            for line in lines
        }

    assert by_file(again) == by_file(lines)


def test_catalogue_lines_come_and_go_with_the_study(path: str) -> None:
    fill(path)
    once(path)
    shutil.rmtree(Path(path, "202401/1.2"))
    os.unlink(Path(path, "202401/1.4/1.4.0/1.4.9.0.dcm"))
    once(path)
    assert "1.2" not in listed(path)
    assert instance_shards.find(path, "1.2.9.1") == []
    assert instance_shards.find(path, "1.4.9.0") == []
    assert study_json(path, "1.4")["NumberOfStudyRelatedInstances"] == 6
    before = derived(path)
    delete_derived(path)
    once(path, full=True)
    assert derived(path) == before


def test_a_study_emptied_by_hand_is_taken_out(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive)
    once(path)
    Path(path, instances_in(path)[0]).unlink()
    once(path)
    assert listed(path) == set()
    assert not Path(path, "202401/1.2.3/study.json").exists()
    before = derived(path)
    once(path, full=True)
    assert derived(path) == before


def test_a_study_copied_in_by_hand_and_moved(path: str, tmp_path: Path) -> None:
    other = new_archive(tmp_path / "other")
    fill(other)
    shutil.copytree(Path(other, "202402/1.1"), Path(path, "202402/1.1"))
    Path(path, "202402/1.1/study.json").unlink(missing_ok=True)
    once(path)
    assert listed(path) == {"1.1"}
    Path(path, "undated").mkdir()
    os.rename(Path(path, "202402/1.1"), Path(path, "undated/1.1"))
    once(path)
    assert not list(catalogue.live(Path(path, "202402/studies.jsonl").read_bytes()))
    assert len(list(catalogue.live(Path(path, "undated/studies.jsonl").read_bytes()))) == 1


@pytest.mark.parametrize("rubbish", [b"", b"{", b"\0" * 500, b'{"StudyInstanceUID":"9"}'])
def test_damaged_indexes_are_made_again(path: str, rubbish: bytes) -> None:
    fill(path)
    once(path)
    before = derived(path)
    for name in ("202401/1.2/study.json", "202402/studies.jsonl"):
        Path(path, name).write_bytes(rubbish)
    once(path)
    assert derived(path) == before


def test_a_damaged_record_of_what_was_seen_only_costs_work(path: str) -> None:
    fill(path)
    once(path)
    before = derived(path)
    seen = Path(path, ".plainpacs/seen")
    for rubbish in (b"", b"[]", b"\0", b'{"1.2":3,"1.1":{"series":7}}'):
        for month in ("202401", "202402", "undated"):
            (seen / month).write_bytes(rubbish)
        assert once(path) >= 5
        assert derived(path) == before


# --- healing ------------------------------------------------------------------------------------


def test_what_may_still_be_in_work_is_not_healed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    folder.mkdir(parents=True)
    (folder / "1.2.3.4.5.dcm").write_bytes(part10())
    os.link(folder / "1.2.3.4.5.dcm", Path(path, ".plainpacs/incoming/0"))
    once(path)
    assert list(manifest_lines(path)) == []
    assert os.listdir(Path(path, ".plainpacs/pending")) == ["202401~1.2.3"], "looked at again"
    monkeypatch.setattr(heal, "PATIENCE", -1)
    once(path)
    assert study_json(path)["NumberOfStudyRelatedInstances"] == 1


def test_an_instance_in_work_does_not_delay_the_others(path: str) -> None:
    with at_work(path), Archive.open(path) as archive:
        store(archive)
        eventually(lambda: Path(path, "202401/1.2.3/study.json").exists())
        # Linked a moment ago, its line not written yet: as a rebuild may meet it at any time.
        folder = Path(path, "202401/1.2.3/1.2.3.4")
        (folder / "1.7.dcm").write_bytes(part10(SOPInstanceUID="1.7"))
        os.link(folder / "1.7.dcm", Path(path, ".plainpacs/incoming/0"))
        for number in range(3):
            store(archive, SOPInstanceUID=f"1.9.{number}")
            eventually(
                partial(
                    lambda n: study_json(path)["NumberOfStudyRelatedInstances"] == n, number + 2
                ),
                10.0,
            )


def test_what_cannot_be_healed_is_named_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with Archive.open(path) as archive:
        store(archive)
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    (folder / "1.1.dcm").write_bytes(b"")
    (folder / "1.2.dcm").write_bytes(b"GIF89a" * 100)
    (folder / "1.3.dcm").write_bytes(part10(SOPInstanceUID="1.9", PatientName="Secret"))
    (folder / "1.4.dcm").write_bytes(part10(SOPInstanceUID="1.4")[:200])
    with Indexer.open(path) as indexer:
        for _ in range(3):
            indexer.once()
            Path(path, "202401/1.2.3/study.json").unlink()
    for name in ("1.1.dcm", "1.2.dcm", "1.3.dcm", "1.4.dcm"):
        said = [record.message for record in caplog.records if name in record.message]
        assert len(said) == 1
        assert "move it away or replace it" in said[0]
    assert "Secret" not in caplog.text
    once(path)
    assert study_json(path)["NumberOfStudyRelatedInstances"] == 1


def test_foreign_files_are_passed_over(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with Archive.open(path) as archive:
        store(archive)
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    for name in ("._1.2.dcm", ".DS_Store", ".nfs0001", "T1.nii", "IM1.dcm", "1.2.3.4.9.DCM"):
        (folder / name).write_bytes(part10())
    (folder.parent / ".DS_Store").write_bytes(b"")
    (folder.parent / "Thumbs").mkdir()
    Path(path, "lost+found").mkdir()
    Path(path, "202401", "README").write_text("hello")
    caplog.set_level(logging.WARNING)
    once(path)
    assert study_json(path)["NumberOfStudyRelatedInstances"] == 1
    assert caplog.text == ""


# --- reconciling --------------------------------------------------------------------------------


def marked(path: str) -> set[str]:
    found: list[str] = []
    root = open_root(path)
    try:
        reconcile(path, root, lambda study: found.append("/".join(study)))
    finally:
        os.close(root)
    return set(found)


def settle(path: str) -> None:
    """Lets every folder look as if nothing had happened for a while, and records that."""
    root = open_root(path)
    far = 10_000_000_000 + 2**62
    seen: dict[str, dict[str, Any]] = {}
    from plainpacs.indexer.service.reconcile import facts_of, record_seen

    for month in catalogue.months(path):
        for study in studies_in(path, month):
            facts = facts_of(path, month, study)
            assert facts
            seen.setdefault(month, {})[study] = facts
        record_seen(root, month, seen.get(month, {}), far)
    os.close(root)


def test_only_what_changed_is_marked(path: str) -> None:
    fill(path)
    once(path)
    settle(path)
    assert marked(path) == set()
    settle(path)
    Path(path, "202401/1.2/1.2.1/1.2.9.1.dcm").unlink()
    with open(next(Path(path, "202402/1.1").glob("*.jsonl")), "ab") as manifest:
        manifest.write(b"\n")
    Path(path, "202402/1.3/study.json").unlink()
    assert marked(path) == {"202401/1.2", "202402/1.1", "202402/1.3"}


def test_what_happened_just_now_is_not_recorded(path: str) -> None:
    fill(path)
    once(path)
    assert marked(path) == {"undated/1.0", "202402/1.1", "202401/1.2", "202402/1.3", "202401/1.4"}
    assert os.listdir(Path(path, ".plainpacs/seen")) == []


def test_additions_are_marked_before_removals(path: str) -> None:
    fill(path)
    once(path)
    settle(path)
    Path(path, "203001").mkdir()
    os.rename(Path(path, "202401/1.2"), Path(path, "203001/1.2"))
    order: list[str] = []
    root = open_root(path)
    reconcile(path, root, lambda study: order.append(study[0]))
    os.close(root)
    assert order == ["203001", "202401"]


def test_a_catalogue_that_lost_a_study_is_noticed(path: str) -> None:
    fill(path)
    once(path)
    settle(path)
    file = Path(path, "202401/studies.jsonl")
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    assert marked(path) == {"202401/1.4"}


# --- at work ------------------------------------------------------------------------------------


def test_derived_folders_may_be_removed_while_it_is_at_work(path: str) -> None:
    fill(path)
    with at_work(path), Archive.open(path) as archive:
        eventually(lambda: len(listed(path)) == 5)
        for folder in ("seen", "instances", "pending"):
            shutil.rmtree(Path(path, ".plainpacs", folder))
        store(archive)
        eventually(lambda: instance_shards.find(path, "1.2.3.4.5"))
        assert run("reindex", "--full", "-a", path).exit_code == 0
        assert instance_shards.find(path, "1.1.9.3") == ["202402/1.1/1.1.1/1.1.9.3.dcm"]


def test_one_indexer_at_a_time(path: str) -> None:
    with Indexer.open(path):
        with pytest.raises(InUse, match="another indexer is at work"):
            Indexer.open(path)
        tries = iter([True, True, False])
        with pytest.raises(InUse):
            Indexer.open(path, wait=lambda: next(tries))
    Indexer.open(path).__exit__()


def test_stores_are_indexed_as_they_come(path: str) -> None:
    with at_work(path), Archive.open(path) as archive:
        for number in range(300):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}")
        last = Path(path, ".plainpacs/pending")
        eventually(
            lambda: (
                not os.listdir(last)
                and Path(path, "202401/studies.jsonl").exists()
                and study_json(path)["NumberOfStudyRelatedInstances"] == 300
            )
        )


def test_changes_by_hand_are_found_without_a_command(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_RECONCILE_EVERY", 0.3)
    other = new_archive(tmp_path / "other")
    fill(other)
    with at_work(path):
        shutil.copytree(Path(other, "202401"), Path(path, "202401"))
        eventually(lambda: listed(path) == {"1.2", "1.4"})
        shutil.rmtree(Path(path, "202401/1.4"))
        eventually(lambda: listed(path) == {"1.2"})


def test_it_compacts_when_it_is_quiet(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_QUIET", 0.2)
    monkeypatch.setattr(service, "_REBUILD_AT_LEAST_EVERY", 0.0)
    monkeypatch.setattr(service, "_REBUILD_SHARE", 0)
    with at_work(path), Archive.open(path) as archive:

        def counted(count: int) -> bool:
            there = Path(path, "202401/1.9/study.json").exists()
            return there and study_json(path, "1.9")["NumberOfStudyRelatedInstances"] == count

        for number in range(3):
            store(archive, SOPInstanceUID=f"1.9.{number}", StudyInstanceUID="1.9")
            eventually(partial(counted, number + 1))
        file = Path(path, "202401/studies.jsonl")
        eventually(lambda: file.read_bytes().count(b"\n") == 1)


def test_requests_are_answered_by_the_indexer_at_work(path: str) -> None:
    fill(path)
    once(path)
    before = derived(path)
    with at_work(path):
        for name in before:
            Path(path, name).unlink()
        assert run("reindex", "--full", "-a", path).exit_code == 0
        assert derived(path) == before
        shutil.rmtree(Path(path, "202401/1.2"))
        done = run("reindex", "-a", path)
        assert "does this now" in done.stderr
        assert "1.2" not in listed(path)


@pytest.mark.parametrize("full", [(), ("--full",)], ids=["reindex", "full"])
def test_a_request_is_done_by_whoever_asked_when_the_indexer_dies(
    path: str, full: tuple[str, ...]
) -> None:
    fill(path)
    once(path)
    shutil.rmtree(Path(path, "202401/1.2"))
    root = open_root(path)
    command = [sys.executable, "-m", "plainpacs"]
    indexer = subprocess.Popen([*command, "index", path], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: is_locked(root, layout.INDEXER_LOCK))
        indexer.send_signal(signal.SIGSTOP)
        asking = subprocess.Popen(
            [*command, "reindex", *full, "-a", path], stderr=subprocess.PIPE, text=True
        )
        try:
            pending = Path(path, ".plainpacs/pending")
            asked = "rebuild" if full else "reconcile"
            eventually((pending / asked).exists)
            assert asking.poll() is None
            indexer.kill()
            _, words = asking.communicate(timeout=30)
        finally:
            asking.kill()
    finally:
        indexer.kill()
        indexer.wait()
        os.close(root)
    assert asking.returncode == 0
    assert "does this now" in words
    assert "studies indexed" in words
    assert "1.2" not in listed(path)
    assert not os.listdir(pending)


def test_a_study_that_cannot_be_read_does_not_stop_the_rest(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    real = durable.replace_file

    def fail(root: int, name: str, data: Any) -> None:
        if "/1.1/" in name:
            raise OSError(5, "Input/output error")
        real(root, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_file", fail)
        with Indexer.open(path) as indexer:
            assert indexer.once() == 4
    assert listed(path) == {"1.0", "1.2", "1.3", "1.4"}
    assert "cannot index study 202402/1.1, trying again later" in caplog.text
    assert os.listdir(Path(path, ".plainpacs/pending")) == ["202402~1.1"]
    once(path)
    assert "1.1" in listed(path)


def test_a_full_disk_is_waited_for(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    monkeypatch.setattr(service, "_RETRY_AFTER", 0.1)
    full = threading.Event()
    real = durable.create

    def create(name: str, mode: int = 0o666, *, folder: int) -> int:
        if full.is_set():
            raise OSError(28, "No space left on device")
        return real(name, mode, folder=folder)

    monkeypatch.setattr(durable, "create", create)
    with at_work(path):
        full.set()
        eventually(lambda: "No space left on device" in caplog.text)
        assert listed(path) == set()
        full.clear()
        eventually(lambda: listed(path) == {f"1.{study}" for study in range(5)})


def test_claims_of_a_dead_indexer_are_pending_again(path: str) -> None:
    fill(path)
    root = open_root(path)
    pending = Pending(root)
    assert pending.claim(("202401", "1.2"))
    assert not pending.claim(("202401", "1.2"))
    Path(path, ".plainpacs/indexing/77.1.new").write_bytes(b"half")
    pending.close()
    os.close(root)
    once(path)
    assert listed(path) == {f"1.{study}" for study in range(5)}
    assert os.listdir(Path(path, ".plainpacs/indexing")) == []


@pytest.mark.timeout(300)
def test_killed_at_every_step_it_ends_up_the_same(memory: Path) -> None:
    path = new_archive(memory / "a")
    with Archive.open(path) as archive:
        store(archive)
        store(archive, SOPInstanceUID="1.9", SeriesInstanceUID="1.8")
    fresh = memory / "fresh"
    subprocess.run(["cp", "-a", path, fresh], check=True)
    once(str(fresh))
    wanted = derived(str(fresh))
    stops = 0
    for step in range(0, 1000, 2):
        copy = memory / "copy"
        subprocess.run(["cp", "-a", path, copy], check=True)
        killed = killed_at(step, lambda: once(str(memory / "copy")))
        once(str(copy))
        assert derived(str(copy)) == wanted, f"killed at step {step}"
        assert os.listdir(copy / ".plainpacs/indexing") == []
        shutil.rmtree(copy)
        if not killed:
            break
        stops += 1
    assert stops >= 15


def test_the_command_ends_with_its_parent(path: str) -> None:
    command = [sys.executable, "-m", "plainpacs", "index", "--parent-pipe", "-a", path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(document(Settings(digest="sha256"), since=stamp(0)))
    process.stdin.flush()
    fill(path)
    eventually(lambda: listed(path) == {f"1.{study}" for study in range(5)})
    _, words = process.communicate(timeout=20)
    assert process.returncode == 0, words
    assert not list(Path(path, ".plainpacs").glob("dirty.*"))


def test_the_command_does_nothing_when_its_parent_is_gone_before(path: str) -> None:
    command = [sys.executable, "-m", "plainpacs", "index", "--parent-pipe", "-a", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_by_signal(path: str, number: int) -> None:
    command = [sys.executable, "-m", "plainpacs", "index", "-a", path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    fill(path)
    eventually(lambda: listed(path) == {f"1.{study}" for study in range(5)})
    process.send_signal(number)
    _, words = process.communicate(timeout=20)
    assert (process.returncode, words) == (0, b"")


def test_many_nodes_are_merged(path: str) -> None:
    with Archive.open(path, node="n1") as one, Archive.open(path, node="n2") as two:
        store(one)
        store(two, MODALITY, SOPInstanceUID="1.9")
    once(path)
    names = sorted(p.name for p in Path(path, "202401/1.2.3").glob("*.jsonl"))
    assert names == ["1.2.3.4.n1.jsonl", "1.2.3.4.n2.jsonl"]
    assert study_json(path)["NumberOfStudyRelatedInstances"] == 2
