"""ext4 as the machine would find it, had the power failed at the moment of the 0000.

The file system lies in a file that is mounted by loop. When the answer arrives the file is copied
as it is, without unmounting: the copy has what reached the device, not what waits in the cache.
Mounting the copy replays the journal, as after a power loss.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plainpacs.archive.tree import machines
from tests.support.mounts import may_mount, mounted
from tests.support.peer import Peer, data_set
from tests.support.promises import check, check_tree, digest_of, in_tree, recover
from tests.support.serve import Serve, Service

SIZE = 48 << 20
TIMES = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 in the file ``image`` of a folder beside it."""
    may_mount(tmp_path / "ext4")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (apt install e2fsprogs)")
    # In memory: to copy it is quick, and a copy is what is in the file at that moment.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="plainpacs.ext4.", dir=memory))
    image = folder / "image"
    try:
        with image.open("wb") as file:
            file.truncate(SIZE)
        # No lazy work in the background: what is written is written by us.
        eager = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
        subprocess.run(["mkfs.ext4", "-q", "-F", *eager, str(image)], check=True)
        tried = subprocess.run(
            ["mount", "-o", "loop", str(image), str(tmp_path / "ext4")],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            pytest.skip(f"this system mounts no file: {tried.stderr.strip()}")
        try:
            yield image
        finally:
            subprocess.run(["umount", "-l", str(tmp_path / "ext4")], check=True)
    finally:
        shutil.rmtree(folder)


def images(disk: Path, service: Service, send: list[tuple[str, str, str]]) -> Iterator[Path]:
    """After each instance that is answered 0000, the copy of the disk at that moment."""
    copy = disk.with_name("copy")
    with Peer(service.port) as peer:
        for sop, series, study in send:
            data = data_set(sop, series, study, size=20_000)
            assert peer.store(data, sop=sop) == 0
            shutil.copyfile(disk, copy)
            yield copy


def to_send(number: int) -> list[tuple[str, str, str]]:
    """Instances of the same series, of a new one, and of new studies."""
    return [(f"1.2.3.4.{n}", f"1.2.3.{n // 4}", f"1.2.{n // 8}") for n in range(number)]


def digests(send: list[tuple[str, str, str]]) -> list[str]:
    return [digest_of(data_set(*one, size=20_000)) for one in send]


@pytest.mark.timeout(300)
def test_what_was_answered_is_on_the_disk(
    disk: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve("--receivers", "1", "--reserve", "0", root=tmp_path / "ext4" / "a")
    send = to_send(TIMES)
    all_of_them = digests(send)
    monkeypatch.setattr(machines, "boot_id", lambda: "the boot after")
    copies = 0
    for number, copy in enumerate(images(disk, service, send), 1):
        why = f"the power failed after answer {number}"
        answered = all_of_them[:number]
        with mounted("-o", "loop", copy, at=tmp_path / "after") as after:
            check_tree(after / "a", acknowledged=answered, known=all_of_them, why=why)
            assert len(in_tree(after / "a")) == number
            recover(after / "a")
            check(after / "a", acknowledged=answered, known=all_of_them, why=why)
            assert len(in_tree(after / "a")) == number, why
        copies += 1
    assert copies == TIMES
    assert service.stop() == 0


@pytest.mark.timeout(300)
def test_without_syncing_it_is_not(disk: Path, tmp_path: Path, serve: Serve) -> None:
    """That the test above can fail."""
    arguments = ("--receivers", "1", "--reserve", "0", "--sync", "off")
    service = serve(*arguments, root=tmp_path / "ext4" / "a")
    send = to_send(8)
    lost = 0
    for number, copy in enumerate(images(disk, service, send), 1):
        with mounted("-o", "loop", copy, at=tmp_path / "after") as after:
            found = set(in_tree(after / "a").values()) if (after / "a").exists() else set()
            lost += len(set(digests(send[:number])) - found)
    assert lost
    assert service.stop() == 0
