"""ROOT goes away beneath a running service, or something else takes its place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from plainpacs.archive.store.store import Archive
from tests.support.archives import eventually, new_archive, store, tree
from tests.support.mounts import may_mount, mounted, tmpfs
from tests.support.peer import Peer, data_set
from tests.support.promises import digest_of, in_tree
from tests.support.serve import Serve

LATEST = 2.5
"""Within a second says the contract; the rest is for a machine that is busy with other tests."""

REPLACED = "no longer the archive that was opened"


class Sender:
    """Sends one new instance after the other, and remembers which were stored."""

    def __init__(self, port: int, first: int = 0) -> None:
        self._peer = Peer(port)
        self._number = first
        self.stored: set[str] = set()

    def close(self) -> None:
        self._peer.socket.close()

    def send(self) -> int:
        self._number += 1
        uid = f"1.2.3.7.{self._number}"
        data = data_set(uid)
        status = self._peer.store(data, sop=uid)
        if status == 0:
            self.stored.add(digest_of(data))
        return status

    def until(self, wanted: int) -> float:
        """Sends until it is answered so; the seconds that took."""
        began = time.monotonic()
        while self.send() != wanted:
            assert time.monotonic() - began < 20
        return time.monotonic() - began


@pytest.fixture
def senders() -> Iterator[Callable[..., Sender]]:
    made: list[Sender] = []

    def make(port: int, first: int = 0) -> Sender:
        made.append(Sender(port, first))
        return made[-1]

    yield make
    for one in made:
        one.close()


def indexed(root: Path) -> int:
    """How many instances ``study.json`` counts."""
    found = list(root.glob("202401/*/study.json"))
    return sum(orjson.loads(one.read_bytes())["NumberOfStudyRelatedInstances"] for one in found)


@pytest.fixture(params=["1", "2"], ids=["one-receiver", "two-receivers"])
def receivers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_another_folder_in_its_place(
    tmp_path: Path, receivers: str, serve: Serve, senders: Callable[..., Sender]
) -> None:
    root, away = tmp_path / "a", tmp_path / "away"
    service = serve("--receivers", receivers, root=root)
    sender = senders(service.port)
    sender.until(0)
    root.rename(away)
    root.mkdir()
    assert sender.until(0xA700) < LATEST
    eventually(lambda: "the indexer ended" in service.said)
    assert sender.send() == 0xA700
    assert list(root.iterdir()) == [], "nothing lands in it"
    assert sender.stored == set(in_tree(away).values())
    root.rmdir()
    away.rename(root)
    assert sender.until(0) < LATEST, "it goes on by itself"
    eventually(lambda: indexed(root) == len(sender.stored), 60)
    assert service.stop() == 0
    assert sender.stored == set(in_tree(root).values())


def test_another_archive_in_its_place(
    tmp_path: Path, receivers: str, serve: Serve, senders: Callable[..., Sender]
) -> None:
    root, away, other = tmp_path / "a", tmp_path / "away", tmp_path / "other"
    with Archive.open(new_archive(other)) as archive:
        store(archive)
    before = tree(other, internal=True)
    service = serve("--receivers", receivers, root=root)
    sender = senders(service.port)
    sender.until(0)
    root.rename(away)
    other.rename(root)
    assert sender.until(0xA700) < LATEST
    # Started again, indexer and receivers do not take it for the one that is served.
    eventually(lambda: service.said.count(REPLACED) >= 3)
    for child in service.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    eventually(lambda: service.said.count(REPLACED) >= 5)
    assert tree(root, internal=True) == before
    root.rename(other)
    away.rename(root)
    again = senders(service.port, first=1000) if receivers == "2" else sender
    assert again.until(0) < LATEST
    eventually(lambda: indexed(root) == len(in_tree(root)), 60)
    assert service.stop() == 0
    assert sender.stored | again.stored == set(in_tree(root).values())


def test_unmounted_and_mounted_again(
    tmp_path: Path, receivers: str, serve: Serve, senders: Callable[..., Sender]
) -> None:
    disk, root = tmp_path / "disk", tmp_path / "a"
    may_mount(root)
    disk.mkdir()
    with mounted("--bind", disk, at=root):
        service = serve("--receivers", receivers, root=root)
        sender = senders(service.port)
        sender.until(0)
        subprocess.run(["umount", "-l", root], check=True)
        assert sender.until(0xA700) < LATEST
        eventually(lambda: "the indexer ended" in service.said)
        assert sender.send() == 0xA700
        assert list(root.iterdir()) == [], "nothing lands beneath the mount point"
        assert sender.stored == set(in_tree(disk).values())
        subprocess.run(["mount", "--bind", disk, root], check=True)
        assert sender.until(0) < LATEST, "it goes on by itself"
        eventually(lambda: indexed(root) == len(sender.stored), 60)
        assert service.stop() == 0
        assert sender.stored == set(in_tree(root).values())


def test_another_disk_mounted_in_its_place(
    tmp_path: Path, serve: Serve, senders: Callable[..., Sender]
) -> None:
    root = tmp_path / "a"
    may_mount(tmp_path / "beneath")
    service = serve("--receivers", "1", root=root)
    sender = senders(service.port)
    sender.until(0)
    with tmpfs(root, "size=10m"):
        assert sender.until(0xA700) < LATEST
        assert list(root.iterdir()) == []
    assert sender.until(0) < LATEST
    assert service.stop() == 0
    assert sender.stored == set(in_tree(root).values())
