"""The publishing order, on a real file system, with failures put in."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.tree import durable
from plainpacs.archive.tree import publisher as publisher_module
from plainpacs.archive.tree.publisher import Publisher

PATH = "202401/1.2/1.2.3/1.2.3.4.dcm"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = durable.open_folder(str(tmp_path))
    yield fd
    os.close(fd)


@pytest.fixture
def temporary(root: int, tmp_path: Path) -> Iterator[tuple[str, int]]:
    (tmp_path / "incoming").mkdir()
    folder = durable.open_folder("incoming", folder=root)
    os.close(durable.create("0", folder=folder))
    yield "0", folder
    os.close(folder)


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The primitives called from now on, with the folder each was called on."""
    calls: list[str] = []

    def spy(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            fd = kwargs.get("to_folder", kwargs.get("folder", args[0]))
            where = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
            calls.append(f"{name} {where}")
            return real(*args, **kwargs)

        return called

    for name in ("link", "make_folder", "sync_folder"):
        monkeypatch.setattr(durable, name, spy(name, getattr(durable, name)))
    return calls


def test_order_of_publishing(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record(monkeypatch)
    publisher = Publisher(root)
    assert publisher.publish(*temporary, PATH)
    top = tmp_path.name
    assert calls == [
        *(f"make_folder {top}", f"sync_folder {top}"),
        *("make_folder 202401", "sync_folder 202401"),
        *("make_folder 1.2", "sync_folder 1.2"),
        *("link 1.2.3", "sync_folder 1.2.3"),
    ]
    assert (tmp_path / PATH).stat().st_nlink == 2
    calls.clear()
    assert publisher.publish(*temporary, PATH.replace("4.dcm", "5.dcm"))
    assert calls == ["link 1.2.3", "sync_folder 1.2.3"]


def test_folders_that_are_there_are_synced_all_the_same(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PATH).parent.mkdir(parents=True)
    calls = record(monkeypatch)
    Publisher(root).publish(*temporary, PATH)
    synced = [call for call in calls if call.startswith("sync")]
    names = (tmp_path.name, "202401", "1.2", "1.2.3")
    assert synced == [f"sync_folder {name}" for name in names]


def test_sync_off_leaves_out_every_sync(
    root: int, temporary: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record(monkeypatch)
    assert Publisher(root, sync=False).publish(*temporary, PATH)
    assert not [call for call in calls if call.startswith("sync")]


def test_a_taken_name_is_left_alone(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(b"first")
    calls = record(monkeypatch)
    assert not Publisher(root).publish(*temporary, PATH)
    assert (tmp_path / PATH).read_bytes() == b"first"
    assert calls[-1] == "sync_folder 1.2.3"


def test_an_error_of_a_link_that_was_made_is_no_error(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.link

    def made_but_lost(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(durable, "link", made_but_lost)
    assert Publisher(root).publish(*temporary, PATH)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EXDEV])
def test_a_failed_link_leaves_nothing(
    number: int,
    root: int,
    temporary: tuple[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "link", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        Publisher(root).publish(*temporary, PATH)
    assert not (tmp_path / PATH).exists()


def test_a_folder_removed_meanwhile_is_made_again(
    root: int, temporary: tuple[str, int], tmp_path: Path
) -> None:
    publisher = Publisher(root)
    assert publisher.publish(*temporary, PATH)
    shutil.rmtree(tmp_path / "202401")
    assert publisher.publish(*temporary, PATH)
    assert (tmp_path / PATH).exists()


@pytest.mark.parametrize("moved", ["202401", "202401/1.2", "202401/1.2/1.2.3"])
def test_a_folder_moved_away_meanwhile_is_made_again(
    moved: str, root: int, temporary: tuple[str, int], tmp_path: Path
) -> None:
    publisher = Publisher(root)
    assert publisher.publish(*temporary, PATH)
    (tmp_path / moved).rename(tmp_path / "elsewhere")
    # The name is free in the tree, though it is taken in the folder that was moved.
    assert publisher.publish(*temporary, PATH)
    assert (tmp_path / PATH).exists()
    assert publisher.publish(*temporary, PATH.replace("4.dcm", "5.dcm"))
    assert (tmp_path / PATH.replace("4.dcm", "5.dcm")).exists()


def test_a_link_in_the_tree_is_not_followed(
    root: int, temporary: tuple[str, int], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "202401").symlink_to(outside)
    with pytest.raises(OSError, match="202401"):
        Publisher(root).publish(*temporary, PATH)
    assert list(outside.iterdir()) == []


def test_a_failed_sync_is_never_tried_into_success(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(root)
    real = durable.sync_folder

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("1.2.3"):
            raise OSError(errno.EIO, "bad disk")
        real(fd)

    monkeypatch.setattr(durable, "sync_folder", fail)
    with pytest.raises(StorageUnavailable, match="bad disk"):
        publisher.publish(*temporary, PATH)
    monkeypatch.setattr(durable, "sync_folder", real)
    with pytest.raises(StorageUnavailable, match="failed to sync before"):
        publisher.publish(*temporary, PATH)
    with pytest.raises(StorageUnavailable, match="restart"):
        publisher.publish(*temporary, PATH.replace("4.dcm", "5.dcm"))
    assert publisher.publish(*temporary, "202401/1.2/1.2.9/1.dcm")
    assert Publisher(root).publish(*temporary, PATH), "another process, after a restart"


def test_more_folders_than_are_kept_open(
    root: int, temporary: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_OPEN_FOLDERS", 4)
    publisher = Publisher(root)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        assert publisher.publish(*temporary, f"202401/1.{number}/2/3.dcm")
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert len(list(tmp_path.glob("202401/*/2/3.dcm"))) == 40
