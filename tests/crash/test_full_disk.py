"""A small file system that really fills up beneath a service, and is given room again."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from tests.archive.test_root_check import indexed
from tests.support.archives import eventually, part10
from tests.support.mounts import tmpfs
from tests.support.peer import Peer, data_set
from tests.support.promises import check, check_tree, digest_of, in_tree, recover
from tests.support.serve import Serve

MIB = 1 << 20
STATUSES = {0x0000, 0xA700}


class Senders:
    """Several senders at once, of instances of every size; what was answered to each."""

    def __init__(self, port: int, small: int, large: int) -> None:
        self._port = port
        self._small, self._large = small, large
        self._lock = threading.Lock()
        self._number = 0
        self.sent: set[str] = set()
        self.stored: set[str] = set()

    def send(self, how_many: int, refused: int = 0) -> int:
        """Each of three senders sends ``how_many``, or until ``refused`` were; returns how many
        were refused in all."""
        with ThreadPoolExecutor(3) as pool:
            return sum(pool.map(self._send, [how_many] * 3, [refused] * 3))

    def _send(self, how_many: int, refused: int) -> int:
        count = 0
        with Peer(self._port) as peer:
            for _ in range(how_many):
                with self._lock:
                    self._number += 1
                    number = self._number
                # Small ones, and now and then one that is written as it comes.
                size = self._large if number % 10 == 0 else self._small
                uid = f"1.2.3.5.{number}"
                data = data_set(uid, size=size)
                with self._lock:
                    self.sent.add(digest_of(data))
                status = peer.store(data, sop=uid)
                assert status in STATUSES
                if status == 0:
                    with self._lock:
                        self.stored.add(digest_of(data))
                else:
                    count += 1
                if refused and count >= refused:
                    break
        return count


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("reserve", "options"),
    [("3M", "size=24m"), ("0", "size=24m"), ("3M", "size=200m,nr_inodes=2000"),
     ("0", "size=200m,nr_inodes=2000")],
    ids=["reserve", "no-reserve", "files-reserve", "files-no-reserve"],
)  # fmt: skip
@pytest.mark.parametrize("receivers", ["1", "2"])
def test_a_disk_that_fills_up(
    reserve: str, options: str, receivers: str, tmp_path: Path, serve: Serve
) -> None:
    with tmpfs(tmp_path / "disk", options) as disk:
        root = disk / "a"
        _take_room(disk, files="nr_inodes" in options)
        service = serve("--receivers", receivers, "--reserve", reserve, root=root)
        files = "nr_inodes" in options
        senders = Senders(service.port, *((2000, 2000) if files else (40_000, 1_500_000)))
        eventually(lambda: senders.send(500, refused=8) and is_full(disk, files), 60)
        check_tree(root, acknowledged=senders.stored, known=senders.sent, why="full")
        assert senders.stored
        if reserve != "0":
            facts = os.statvfs(disk)
            assert facts.f_bavail * facts.f_frsize > MIB, "there is room left"
            assert facts.f_favail > 30
            # For the indexer there is: what is stored is listed, full or not.
            eventually(lambda: indexed(root) == len(in_tree(root)), 60)
            if not files:
                shown = CliRunner().invoke(cli.root, ["status", "-a", str(root)])
                assert "\nreserve    " in shown.output
        _give_room(disk)
        # Small ones have room again, within a second of there being some.
        eventually(lambda: senders.send(1) == 0, 20)
        eventually(lambda: indexed(root) == len(in_tree(root)), 90)
        assert service.stop() == 0
        assert "Traceback" not in service.said
        check_tree(root, acknowledged=senders.stored, known=senders.sent, why="room again")
        recover(root)
        check(root, acknowledged=senders.stored, known=senders.sent, why="after the end")


def is_full(disk: Path, files: bool) -> bool:
    """But for a reserve of 3 MiB or 300 files, and the last one that did not fit."""
    facts = os.statvfs(disk)
    return facts.f_favail < 330 if files else facts.f_bavail * facts.f_frsize < 5 * MIB


def _take_room(disk: Path, *, files: bool) -> None:
    ballast = disk / "ballast"
    ballast.mkdir()
    if files:
        for number in range(700):
            (ballast / str(number)).touch()
    else:
        (ballast / "bytes").write_bytes(bytes(8 * MIB))


def _give_room(disk: Path) -> None:
    for one in (disk / "ballast").iterdir():
        one.unlink()


def test_import_into_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        raw = part10(SOPInstanceUID=f"1.2.3.4.{number}", PixelData=bytes(100_000))
        (source / str(number)).write_bytes(raw)
    with tmpfs(tmp_path / "disk", "size=4m") as disk:
        root = str(disk / "a")
        cli.root(["init", root], standalone_mode=False)
        for reserve, words in (("2M", "than the reserve"), ("0", "No space left on device")):
            command = ["import", "-a", root, "--reserve", reserve, str(source)]
            with pytest.raises(SystemExit) as ended:
                cli.main(command)
            assert ended.value.code == 3
            assert words in capsys.readouterr().err.splitlines()[-1]
            known = {digest_of(data) for data in _imported(source)}
            check_tree(root, acknowledged=(), known=known, why=words)
            assert in_tree(root)
        subprocess_free = ["mount", "-o", "remount,size=40m", str(disk)]
        assert os.spawnvp(os.P_WAIT, subprocess_free[0], subprocess_free) == 0
        recover(root)
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        assert ended.value.code == 0
        recover(root)
        check(root, acknowledged=known, known=known, why="imported after all")


def _imported(source: Path) -> list[bytes]:
    from tests.support.promises import data_set_of

    return [data_set_of(one.read_bytes()) for one in source.iterdir()]
