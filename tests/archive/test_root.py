"""The archive's folder: marker, node, dirty flag, sweep."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from plainpacs.archive.errors import InUse, NotAnArchive, StorageUnavailable, UnsuitableFileSystem
from plainpacs.archive.store import writer
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.archive.tree import durable, layout, machines
from plainpacs.archive.tree.root import create_archive, find_archive, read_marker, stamp
from tests.support.archives import data_set, instances_in, left_behind, new_archive, store


@pytest.mark.parametrize("there", [False, True])
def test_create_makes_a_new_folder_or_takes_an_empty_one(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "a"
    if there:
        (root / "lost+found").mkdir(parents=True)  # as in a new file system
        (root / ".plainpacs").mkdir()  # as an interrupted one leaves
    create_archive(str(root))
    marker = orjson.loads((root / "plainpacs.json").read_bytes())
    assert marker["format"] == 1
    assert read_marker(str(root)).node == marker["node"]
    assert (root / ".plainpacs").stat().st_mode & 0o777 == 0o700
    before = (root / "plainpacs.json").read_bytes()
    (root / "old.txt").write_text("x")
    create_archive(str(root), "other")
    assert (root / "plainpacs.json").read_bytes() == before, "one that is there stays"


@pytest.mark.parametrize("name", ["old.txt", ".git", "1.2.3.dcm", "20240", "202401.zip"])
def test_a_folder_with_anything_in_it_wants_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(NotAnArchive, match=f"is not empty .{name}.*--force"):
        create_archive(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    create_archive(str(tmp_path), force=True)
    assert (tmp_path / name).read_text() == "x"
    assert read_marker(str(tmp_path))


def test_months_without_a_marker_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        store(archive)
        store(archive, SOPInstanceUID="1.9", StudyInstanceUID="1.8", StudyDate="")
    (tmp_path / "a/plainpacs.json").unlink()
    create_archive(path)
    assert "holds the months of an archive (202401 to undated)" in caplog.text
    with Archive.open(path) as archive:
        assert store(archive).outcome is StoreOutcome.DUPLICATE


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("where", ["", "archive", "archive/tree", "new", "tests/x/y", "link"])
def test_no_root_in_a_source_tree(tmp_path: Path, where: str, force: bool) -> None:
    source = tmp_path / "clone"
    for room in ("archive/tree", "indexer", "scp"):
        (source / room).mkdir(parents=True)
    (source / "pyproject.toml").write_text('[project]\nname = "plainpacs"\n')
    (source / "link").symlink_to(source / "scp")
    before = sorted(source.rglob("*"))
    with pytest.raises(NotAnArchive, match="lies in the source tree of plainpacs"):
        create_archive(str(source / where), force=force)
    assert sorted(source.rglob("*")) == before


def test_no_root_in_this_source_tree() -> None:
    clone = Path(__file__).resolve().parents[2]
    with pytest.raises(NotAnArchive, match="the source tree"):
        create_archive(str(clone / "archive"), force=True)
    with pytest.raises(NotAnArchive, match="the source tree"):
        create_archive(str(clone / "new"))
    assert not (clone / "new").exists()


@pytest.mark.parametrize(
    "pyproject", ["", "[project]\nname = 'other'\n", "name = plainpacs", "project = 1", "\xff"]
)
def test_other_source_trees_are_folders_like_others(tmp_path: Path, pyproject: str) -> None:
    for room in ("archive", "indexer", "scp"):
        (tmp_path / room).mkdir()
    (tmp_path / "pyproject.toml").write_bytes(pyproject.encode("latin-1"))
    create_archive(str(tmp_path / "archive"))
    assert read_marker(str(tmp_path / "archive"))


def test_no_root_that_is_a_package(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    with pytest.raises(NotAnArchive, match="is a Python package"):
        create_archive(str(tmp_path), force=True)


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (None, "not a plainpacs archive .no plainpacs.json.: is its disk mounted"),
        (b"", "cannot be read; restore it"),
        (b"{", "cannot be read; restore it"),
        (b"[]", "cannot be read; restore it"),
        (b'{"format": 2, "node": "ab"}', "format 2; this plainpacs knows format 1"),
        (b'{"format": 1, "node": "../x"}', "knows format 1"),
    ],
)
def test_a_root_without_a_good_marker_is_refused(
    tmp_path: Path, marker: bytes | None, words: str
) -> None:
    if marker is not None:
        (tmp_path / "plainpacs.json").write_bytes(marker)
    with pytest.raises(NotAnArchive, match=words):
        Archive.open(str(tmp_path))
    assert not (tmp_path / ".plainpacs").exists()


def test_a_missing_root_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotAnArchive, match="does not exist; make it with `plainpacs init"):
        Archive.open(str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


def test_find_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = new_archive(tmp_path / "one"), new_archive(tmp_path / "two")
    inside = Path(one, "202401", "1.2")
    inside.mkdir(parents=True)
    monkeypatch.delenv("PLAINPACS_ARCHIVE", raising=False)
    monkeypatch.chdir(inside)
    assert find_archive() == one
    monkeypatch.setenv("PLAINPACS_ARCHIVE", two)
    assert find_archive() == two
    assert find_archive(one) == one
    monkeypatch.delenv("PLAINPACS_ARCHIVE")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAnArchive, match="name it with -a"):
        find_archive()


def test_two_writers_of_one_machine_share_a_node(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as one, Archive.open(path) as two:
        assert one.node == two.node
        assert len(left_behind(path)) == 2
        store(one)
        one.close()
        assert (tmp_path / "a/.plainpacs" / f"dirty.{two.node}").exists()
        store(two, SOPInstanceUID="1.9")
        two.close()
        assert not (tmp_path / "a/.plainpacs" / f"dirty.{two.node}").exists()
        assert left_behind(path) == []
        one.close = two.close = lambda: None  # type: ignore[method-assign]  # closed above


def test_a_node_of_another_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_archive(tmp_path / "a")
    monkeypatch.setattr(writer, "_CLAIM_SECONDS", 0.1)
    with Archive.open(path):
        monkeypatch.setattr(writer.socket, "gethostname", lambda: "another")
        with pytest.raises(InUse, match="--node NAME"):
            Archive.open(path)
        with Archive.open(path, node="b2") as other:
            assert other.node == "b2"
            store(other)
    assert list(Path(path).glob("202401/1.2.3/1.2.3.4.b2.jsonl"))


@pytest.mark.parametrize("primitive", ["link", "sync_folder"])
def test_a_file_system_that_cannot_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primitive: str
) -> None:
    path = new_archive(tmp_path / "a")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable, primitive, fail)
    with pytest.raises(UnsuitableFileSystem, match="reading still works"):
        Archive.open(path)
    assert left_behind(path) == []


def test_on_a_network_file_system_a_writer_is_called_as_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_archive(tmp_path / "a")
    monkeypatch.setattr(machines, "network_type", lambda fd: "nfs4")
    monkeypatch.setattr(socket, "gethostname", lambda: "CT-1.example.org")
    with Archive.open(path) as archive:
        store(archive)
    Archive.open(path, node="n1").close()
    nodes = {one.name for one in (tmp_path / "a/.plainpacs").glob("node.*")}
    assert nodes == {"node.ct1", "node.n1"}
    assert [one.name.split(".")[-2] for one in (tmp_path / "a").glob("*/*/*.jsonl")] == ["ct1"]


@pytest.mark.parametrize(
    "kind",
    ["fuse", "fuse.mfs", "fuse.ceph-fuse", "ceph", "virtiofs", "lustre", "fuse.rclone", "nfs"],
)
def test_what_other_machines_may_have_is_a_network_file_system(kind: str) -> None:
    assert machines.is_network_type(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "overlay", "fuseblk", "fuse.mergerfs"])
def test_what_is_of_this_machine_alone_is_none(kind: str) -> None:
    assert not machines.is_network_type(kind)


@pytest.mark.parametrize("name", ["", "-", "x" * 64, "röntgen", "A.b", "a-b-c-d-e-f-g-h-i-j"])
def test_every_name_of_a_machine_gives_a_node(name: str) -> None:
    assert layout.is_node(machines.host_node(name))


def test_a_root_that_goes_away_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_archive(tmp_path / "a")
    monkeypatch.setattr(writer, "_CHECK_SECONDS", 0.0)
    with Archive.open(path) as archive:
        store(archive)
        os.rename(path, tmp_path / "away")
        with pytest.raises(StorageUnavailable, match="no longer the archive"):
            store(archive, SOPInstanceUID="1.9")
        new_archive(tmp_path / "a")
        with pytest.raises(StorageUnavailable, match="no longer the archive"):
            store(archive, SOPInstanceUID="1.9")
        assert instances_in(path) == []
        os.rename(path, tmp_path / "new")
        os.rename(tmp_path / "away", path)
        store(archive, SOPInstanceUID="1.9")
    assert len(instances_in(path)) == 2


KILLED = """
import os, sys
from plainpacs.archive.store import store as archive
from plainpacs.archive.tree import durable, layout
from tests.support.archives import store

real = durable.touch
def die(name, *, folder):
    os.kill(os.getpid(), 9)
durable.touch = die
store(archive.Archive.open(sys.argv[1]), SOPInstanceUID=sys.argv[2])
"""


def killed_after_link(path: str, uid: str = "1.2.3.4.5") -> None:
    """A writer that dies after it published an instance, before it marked the study."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, path, uid], env=env, check=False)
    assert done.returncode == -9


def test_after_a_crash_the_rest_is_swept_and_the_study_marked(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    killed_after_link(path)
    assert len(left_behind(path)) == 1
    internal = tmp_path / "a/.plainpacs"
    assert list(internal.glob("dirty.*"))
    assert list((internal / "pending").iterdir()) == []
    (internal / "incoming" / left_behind(path)[0] / "7").write_bytes(data_set())
    with Archive.open(path):
        assert len(left_behind(path)) == 1
        assert [p.name for p in (internal / "pending").iterdir()] == ["202401~1.2.3"]
    assert left_behind(path) == []
    assert not list(internal.glob("dirty.*"))
    assert len(instances_in(path)) == 1


def test_another_writer_at_work_is_not_swept(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    with Archive.open(path):
        killed_after_link(path)
        with Archive.open(path):
            assert len(left_behind(path)) == 3


def test_after_a_reboot_everything_is_looked_at_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_archive(tmp_path / "a")
    seen = tmp_path / "a/.plainpacs/seen/202401"
    seen.write_bytes(b"{}")
    killed_after_link(path)
    Archive.open(path).close()
    assert seen.exists(), "the machine stayed up: what was seen still holds"
    killed_after_link(path, "1.9")
    monkeypatch.setattr(machines, "boot_id", lambda: "another boot")
    Archive.open(path).close()
    assert not seen.exists()


def test_stamp_cuts_below_milliseconds() -> None:
    assert stamp(1_709_087_890_123_999_999) == "2024-02-28T02:38:10.123Z"
