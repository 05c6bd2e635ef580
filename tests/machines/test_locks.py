"""Locks that a file system of several machines drops, keeps for the dead, or does not share."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plainpacs.archive.errors import InUse, StorageUnavailable
from plainpacs.archive.store import writer as writer_module
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout, machines
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.verify.checks import rubbish as rubbish_in
from plainpacs.indexer.service.index_lock import has_index_lock, lock_index
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import instances_in, new_archive, store
from tests.support.receiver import wait_until


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system may be another machine's, too; a writer looks at each store."""
    monkeypatch.setattr(machines, "network_type", lambda fd: "fuse")
    monkeypatch.setattr(writer_module, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "_CLAIM_SECONDS", 0.1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


@contextmanager
def on_machine(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: name)
        patch.setattr(machines, "boot_id", lambda: f"boot of {name}")
        yield


def drop_locks(archive: Archive) -> None:
    """As a server does with those of a client that it has not heard of."""
    for fd in (archive._writer._lock, archive._writer._incoming_lock):
        fcntl.flock(fd, fcntl.LOCK_UN)


def make_silent(path: str, name: str, seconds: float = 61) -> None:
    file = Path(path, name)
    then = file.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(file, ns=(then, then))


def rubbish(path: str) -> list[object]:
    root = open_root(path)
    try:
        return list(rubbish_in(root))
    finally:
        os.close(root)


def test_who_lost_its_locks_is_not_cleared_away(path: str) -> None:
    with Archive.open(path, node="a") as archive:
        store(archive)
        drop_locks(archive)
        assert rubbish(path) == []
        with Archive.open(path, node="a") as another:
            store(another, SOPInstanceUID="1.8")
        store(archive, SOPInstanceUID="1.9")
    assert len(instances_in(path)) == 3


def test_a_second_machine_of_one_name_is_refused_while_the_first_lives(path: str) -> None:
    with on_machine("a"), Archive.open(path, node="ct") as archive:
        drop_locks(archive)  # flock is of one machine alone
        with on_machine("b"), pytest.raises(InUse, match="less than a minute ago"):
            Archive.open(path, node="ct")
        store(archive)
        make_silent(path, f"{layout.INTERNAL}/node.ct")
        drop_locks(archive)
        with on_machine("b"), Archive.open(path, node="ct") as other:
            store(other, SOPInstanceUID="1.9")
            with on_machine("a"), pytest.raises(StorageUnavailable, match="by another machine"):
                store(archive, SOPInstanceUID="1.10")
        with on_machine("a"):
            store(archive, SOPInstanceUID="1.11")
    assert len(instances_in(path)) == 3


def test_after_a_clean_stop_the_name_is_free_at_once(path: str) -> None:
    for machine in ("a", "b"):
        with on_machine(machine), Archive.open(path, node="ct") as archive:
            store(archive, SOPInstanceUID=f"1.{ord(machine)}")


def test_files_of_a_machine_not_heard_of_for_long_are_rubbish(path: str, tmp_path: Path) -> None:
    with on_machine("a"):
        archive = Archive.open(path, node="a")
        name = archive._writer._incoming_name
        archive._writer._heartbeat.stop()  # type: ignore[union-attr]  # it has one here
        drop_locks(archive)
    with on_machine("b"):
        assert rubbish(path) == []
        make_silent(path, f"{name}/lock", 601)
        make_silent(path, f"{layout.INTERNAL}/node.a", 601)
        assert len(rubbish(path)) == 1
        Archive.open(path, node="a").close()
    assert not Path(path, name).exists()
    archive._writer._heartbeat = None
    archive.close()


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("what", ["its folder", "incoming", "the lock"])
def test_a_folder_for_unfinished_files_that_went_is_made_anew(
    path: str, monkeypatch: pytest.MonkeyPatch, what: str, network: bool
) -> None:
    monkeypatch.setattr(machines, "network_type", lambda fd: "nfs4" if network else None)
    with Archive.open(path, node="a") as archive:
        store(archive)
        mine = Path(path, archive._writer._incoming_name)
        (mine / "lock").unlink()
        if what != "the lock":
            mine.rmdir()
        if what == "incoming":
            Path(path, layout.INCOMING).rmdir()
        store(archive, SOPInstanceUID="1.9")
        assert Path(path, archive._writer._incoming_name, "lock").exists()
    assert len(instances_in(path)) == 2


def test_what_is_stale_is_opened_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Archive.open(path, node="a") as archive:
        real, stale = machines.signature, [True]

        def signature(fd: int) -> str:
            if stale.pop() if stale else False:
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(fd)

        monkeypatch.setattr(machines, "signature", signature)
        store(archive)
        assert not stale
    assert len(instances_in(path)) == 1


def test_another_archive_is_not_taken_for_what_is_stale(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_archive(tmp_path / "b")
    with Archive.open(path, node="a") as archive:
        real = writer_module.open_root

        def signature(fd: int) -> str:
            raise OSError(errno.ESTALE, "Stale file handle")

        with monkeypatch.context() as patch:
            patch.setattr(machines, "signature", signature)
            patch.setattr(writer_module, "open_root", lambda path: real(other))
            with pytest.raises(StorageUnavailable, match="no longer the archive"):
                store(archive)
        store(archive)
    assert (len(instances_in(path)), len(instances_in(other))) == (1, 0)


def test_the_living_are_heard_of(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "BEAT_SECONDS", 0.01)
    with Archive.open(path, node="a"):
        lock = f"{layout.INTERNAL}/node.a"
        make_silent(path, lock, 1000)
        old = Path(path, lock).stat().st_mtime
        wait_until(lambda: Path(path, lock).stat().st_mtime > old + 900)


# --- the one indexer ------------------------------------------------------------------------------


@pytest.fixture
def root(path: str) -> Iterator[int]:
    fd = open_root(path)
    yield fd
    os.close(fd)


def test_the_place_of_an_indexer_not_heard_of_is_taken(path: str, root: int) -> None:
    with on_machine("a"):
        dead = lock_index(root, path)
    with on_machine("b"):
        with pytest.raises(InUse):
            lock_index(root, path)
        make_silent(path, layout.INDEXER_LOCK)
        mine = lock_index(root, path)  # though the lock of the dead one is kept
    assert has_index_lock(root, mine)
    assert not has_index_lock(root, dead)
    os.close(dead)
    os.close(mine)


def test_a_lock_that_other_machines_do_not_see_counts_while_its_holder_lives(
    path: str, root: int
) -> None:
    with on_machine("a"):
        theirs = lock_index(root, path)
    fcntl.flock(theirs, fcntl.LOCK_UN)
    with on_machine("b"):
        with pytest.raises(InUse):
            lock_index(root, path)
        make_silent(path, layout.INDEXER_LOCK)
        os.close(lock_index(root, path))
    os.close(theirs)


def test_an_indexer_whose_place_was_taken_ends(path: str, root: int) -> None:
    with on_machine("a"), Indexer.open(path, node="a") as indexer:
        make_silent(path, layout.INDEXER_LOCK)
        with (
            on_machine("b"),
            Indexer.open(path, node="b"),
            on_machine("a"),
            pytest.raises(StorageUnavailable, match="has taken its place"),
        ):
            indexer.run()


def test_an_indexer_that_ends_gives_its_place_at_once(path: str) -> None:
    for machine in ("a", "b"):
        with on_machine(machine), Indexer.open(path, node=machine) as indexer:
            indexer.once()


def test_a_writer_of_this_file_system_needs_no_heartbeat(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "network_type", lambda fd: None)
    with Archive.open(path) as archive:
        assert archive._writer._heartbeat is None
