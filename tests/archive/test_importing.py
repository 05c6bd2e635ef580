from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.identity import is_name
from tests.support.archives import (
    MODALITY,
    PYDICOM_FILES,
    eventually,
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "archive")


def run(path: str, *paths: object) -> Result:
    return CliRunner().invoke(cli.root, ["import", "-a", path, *map(str, paths)])


def test_files_and_folders(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    (disc / "deep/er").mkdir(parents=True)
    (disc / "deep/er/IM1").write_bytes(part10())
    (disc / "IM2").write_bytes(part10(SOPInstanceUID="1.9"))
    (disc / "autorun.inf").write_text("[autorun]")
    (disc / "empty").write_bytes(b"")
    single = tmp_path / "one.dcm"
    single.write_bytes(part10(SOPInstanceUID="1.10"))
    done = run(path, disc, single)
    assert done.exit_code == 0
    assert "3 stored" in done.stderr
    assert "2 skipped" in done.stderr
    assert len(instances_in(path)) == 3
    assert (disc / "IM2").exists()
    lines = [orjson.loads(raw) for raw in manifest_lines(path)]
    assert {line["origin"] for line in lines} == {"import"}
    again = run(path, disc, single)
    assert again.exit_code == 0
    assert "0 stored; 3 there already" in again.stderr
    assert len(list(manifest_lines(path))) == 3


def test_the_whole_of_the_real_files(path: str, real_folders: tuple[Path, ...]) -> None:
    done = run(path, *real_folders)
    assert done.exit_code == 1, "some are damaged, or no patient's"
    refused = [line for line in done.stderr.splitlines() if ": the data set" in line]
    assert all("no StudyInstanceUID" in line or "cut short" in line for line in refused)
    assert len(instances_in(path)) > 80
    assert left_behind(path) == []
    before = tree(path, internal=True)
    again = run(path, *real_folders)
    assert "\n0 stored" in "\n" + again.stderr.splitlines()[-2]
    after = tree(path, internal=True)
    for archive in (before, after):
        for name in [name for name in archive if "/node." in name or "/audit/" in name]:
            del archive[name]
    assert after == before


def test_dicomdir_is_skipped(path: str) -> None:
    folder = PYDICOM_FILES / "dicomdirtests"
    done = run(path, folder / "DICOMDIR")
    assert done.exit_code == 0
    assert "1 skipped" in done.stderr


def test_damaged_files_are_named_and_the_rest_goes_on(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    (disc / "a.dcm").write_bytes(part10()[:-50])
    (disc / "b.dcm").write_bytes(part10()[:420])
    (disc / "c.dcm").write_bytes(part10(SOPInstanceUID="1.9"))
    (disc / "d\x1b[31m.dcm").write_bytes(part10(SOPInstanceUID="../x"))
    (disc / "e.dcm").symlink_to("nowhere")
    os.mkfifo(disc / "f.dcm")
    (disc / "g.dcm").symlink_to("/proc/self/mem")  # a bad disk: opens, and fails to be read
    done = run(path, disc)
    assert done.exit_code == 1
    assert "1 stored" in done.stderr
    assert "5 refused" in done.stderr
    assert f"{disc}/g.dcm: it cannot be read: Input/output error" in done.stderr
    assert f"{disc}/a.dcm: the data set is cut short" in done.stderr
    assert f"{disc}/b.dcm: " in done.stderr
    assert f"{disc}/e.dcm: No such file" in done.stderr
    assert "\x1b" not in done.stderr
    assert len(instances_in(path)) == 1


def test_another_archive_brings_its_provenance(path: str, tmp_path: Path) -> None:
    other = new_archive(tmp_path / "other")
    with Archive.open(other) as archive:
        store(archive)
        store(archive, SOPInstanceUID="1.9", StudyDate="20230101")
        store(archive, PatientName="Other^One")
    before = sorted(manifest_lines(other))
    foreign = Path(other, "202401/1.2.3/1.2.3.4/._1.2.3.4.5.dcm")
    foreign.write_bytes(b"finder")
    done = run(path, other)
    foreign.unlink()
    assert done.exit_code == 0
    assert "2 stored; 0 there already; 1 kept aside" in done.stderr
    assert instances_in(path) == instances_in(other)
    assert sorted(manifest_lines(path)) == before
    for name in instances_in(path):
        assert Path(path, name).stat().st_mtime_ns == Path(other, name).stat().st_mtime_ns
    again = run(path, other)
    assert "0 stored; 2 there already; 1 kept aside" in again.stderr
    assert len(list(Path(path, ".plainpacs/conflicts").rglob("*~*"))) == 1, "but not twice"


def test_the_archive_itself_is_refused(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive)
    for folder in (path, f"{path}/202401"):
        done = CliRunner().invoke(cli.root, ["import", "-a", path, folder])
        assert "lies in the archive itself" in str(done.exception)


def test_a_missing_path_is_named(path: str) -> None:
    done = run(path, "/nowhere/at/all")
    assert "/nowhere/at/all does not exist" in str(done.exception)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_repeated(path: str, tmp_path: Path, number: int) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    for index in range(1500):
        (disc / f"{index:05}").write_bytes(part10(SOPInstanceUID=f"1.2.{index + 1}"))
    command = [sys.executable, "-m", "plainpacs", "import", "-a", path, str(disc)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    eventually(lambda: folder.is_dir() and len(os.listdir(folder)) > 50)
    process.send_signal(number)
    _, words = process.communicate()
    there = len(os.listdir(folder))
    assert there < 1500
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert b"again goes on" in words
        assert left_behind(path) == []
    done = run(path, disc)
    assert done.exit_code == 0
    assert f"{1500 - there} stored; {there} there already" in done.stderr
    assert left_behind(path) == []
    assert len(os.listdir(folder)) == 1500
    for name in os.listdir(folder):
        assert is_name(name.removesuffix(".dcm"))


def test_a_copy_of_a_copy_is_equal(path: str, tmp_path: Path) -> None:
    with Archive.open(path) as archive:
        store(archive, MODALITY)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    other = new_archive(tmp_path / "other")
    assert run(other, copy).exit_code == 0
    assert instances_in(other) == instances_in(path)
