from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
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
    assert "\n0 stored" in again.stderr
    after = tree(path, internal=True)
    for archive in (before, after):
        for name in [name for name in archive if "/node." in name or "/audit/" in name]:
            del archive[name]
    assert after == before


def test_what_a_dicomdir_names(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    shutil.copytree(PYDICOM_FILES / "dicomdirtests", disc)
    done = run(path, disc / "DICOMDIR")
    assert done.exit_code == 0
    assert "31 stored; 0 there already" in done.stderr
    # As a disc looks where the system shows its names in lower case; and half of it.
    for folder in (disc / "77654033", disc / "98892001"):
        folder.rename(folder.with_name("x" + folder.name))
    (disc / "98892003").rename(disc / "aside")
    (disc / "aside/MR1").rename(disc / "aside/mr1")
    (disc / "aside").rename(disc / "98892003")
    again = run(path, disc / "DICOMDIR")
    assert again.exit_code == 1
    assert "missing, though named" in again.stderr
    assert f"{disc}/DICOMDIR: it names 77654033\\CR1\\6154, which is not there" in again.stderr
    assert "DICOMDIR: it names 98892003" not in again.stderr
    hostile = disc / "hostile"
    hostile.write_bytes((disc / "DICOMDIR").read_bytes()[:2000])
    assert run(path, hostile).exit_code == 1
    skipped = run(path, disc)
    assert skipped.exit_code == 0
    assert f"{disc}/DICOMDIR: it is a DICOMDIR, not an instance (skipped)" in skipped.stderr


def test_a_zip_file(path: str, tmp_path: Path) -> None:
    packed = tmp_path / "study.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.dcm", part10())
        archive.writestr("a/2", part10(SOPInstanceUID="1.9"))
        archive.writestr("a/", b"")
        archive.writestr("../../x", part10(SOPInstanceUID="1.10"))
        archive.writestr("README.txt", b"hello")
    done = run(path, packed)
    assert done.exit_code == 0
    assert "3 stored; 0 there already; 0 kept aside" in done.stderr
    assert "1 skipped" in done.stderr
    assert len(instances_in(path)) == 3
    assert left_behind(path) == []
    out = tmp_path / "out.zip"
    exported = ["export", "-a", path, "1.2.3", str(out), "--zip"]
    assert CliRunner().invoke(cli.root, exported).exit_code == 0
    other = new_archive(tmp_path / "other")
    assert run(other, out).exit_code == 0
    assert instances_in(other) == instances_in(path)


def test_a_damaged_zip_file(path: str, tmp_path: Path) -> None:
    packed = tmp_path / "study.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1", part10())
        archive.writestr("2", part10(SOPInstanceUID="1.9"))
    data = bytearray(packed.read_bytes())
    data[400] ^= 1
    packed.write_bytes(data)
    done = run(path, packed)
    assert done.exit_code == 1
    assert f"{packed}/1: it cannot be unpacked: Bad CRC-32" in done.stderr
    assert len(instances_in(path)) == 1
    packed.write_bytes(b"PK" + data[2:300])
    assert f"{packed}: nothing was imported from it" in run(path, packed).stderr


def test_half_an_archive(path: str, tmp_path: Path) -> None:
    other = new_archive(tmp_path / "other")
    with Archive.open(other) as archive:
        for number in range(6):
            store(archive, SOPInstanceUID=f"1.{number}")
    folder = Path(other, "202401/1.2.3/1.2.3.4")
    (folder / "1.0.dcm").unlink()
    (folder / "1.1.dcm").rename(folder / "1.1.DCM")  # by way of a file system that shouts
    removed = ["rm", "-a", other, "1.2", "--yes", "--level", "instance"]
    assert CliRunner().invoke(cli.root, removed).exit_code == 0
    done = run(path, other)
    assert done.exit_code == 1
    assert f"{folder}/1.0.dcm: its manifest names it, and it is not there" in done.stderr
    assert "4 stored; " in done.stderr
    assert "1 missing, though named" in done.stderr
    assert len(list(manifest_lines(path))) == 4
    assert {orjson.loads(line)["origin"] for line in manifest_lines(path)} == {"c-store"}
    shutil.rmtree(folder)
    nothing = run(path, other)
    assert nothing.exit_code == 1
    assert f"{other}: nothing was imported from it" in nothing.stderr


def test_what_gave_nothing_is_said(path: str, tmp_path: Path) -> None:
    text, empty = tmp_path / "text.txt", tmp_path / "empty"
    text.write_text("hello")
    empty.mkdir()
    (tmp_path / "1.dcm").write_bytes(part10())
    done = run(path, text, tmp_path / "1.dcm", empty)
    assert done.exit_code == 1
    assert f"{text}: nothing was imported from it (1 file there, no instance)" in done.stderr
    assert f"{empty}: nothing was imported from it (0 files there, no instance)" in done.stderr
    assert "1.dcm: nothing" not in done.stderr


def test_what_is_skipped_is_named_when_it_looks_like_dicom(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    (disc / "prefixed").write_bytes(bytes(128) + b"DICM" + b"nothing of the kind")
    (disc / "named.DCM").write_bytes(b"nothing of the kind")
    (disc / "autorun.inf").write_bytes(b"[autorun]")
    (disc / "good").write_bytes(part10())
    done = run(path, disc)
    assert done.exit_code == 0
    named = [line for line in done.stderr.splitlines() if line.endswith("(skipped)")]
    assert [line.split(":")[0] for line in named] == [f"{disc}/named.DCM", f"{disc}/prefixed"]
    assert f"{disc}/autorun.inf: " in run(path, disc, "--list-skipped").stderr


def test_the_first_in_order_is_the_one_that_is_published(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    for uid in range(30):
        for variant in range(4):  # the first is the largest, and takes longest
            size = 1 << 20 if variant == 0 else 64
            data = part10(SOPInstanceUID=f"1.{uid + 1}", PixelData=bytes([variant]) * size)
            (disc / f"{uid:03}.{variant}").write_bytes(data)
    done = run(path, disc)
    assert "30 stored; 0 there already; 90 kept aside" in done.stderr
    for uid in range(30):
        published = Path(path, f"202401/1.2.3/1.2.3.4/1.{uid + 1}.dcm")
        assert published.read_bytes() == (disc / f"{uid:03}.0").read_bytes()


def test_what_was_imported_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(part10())
    arguments = ["import", "--create", tmp_path / "new", tmp_path / "1.dcm"]
    done = CliRunner().invoke(cli.root, list(map(str, arguments)))
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("\n") == 1
    at = ["-a", str(tmp_path / "new")]
    listed = CliRunner().invoke(cli.root, ["ls", *at])
    assert orjson.loads(listed.stdout)["StudyInstanceUID"] == "1.2.3"
    assert listed.stderr == ""
    assert CliRunner().invoke(cli.root, ["verify", *at]).exit_code == 0
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    refused = CliRunner().invoke(cli.root, ["import", "--create", str(full), str(tmp_path)])
    assert "is not empty" in str(refused.exception)


def test_what_a_message_says_to_do_is_done_to_the_same_archive(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "an archive")
    (tmp_path / "1.dcm").write_bytes(part10())
    assert run(path, tmp_path / "1.dcm").exit_code == 0
    removed = CliRunner().invoke(cli.root, ["rm", "-a", path, "1.2.3", "--yes"])
    again = re.search("`plainpacs (restore .*)`", removed.stderr)
    assert again
    words = shlex.split(again[1])
    assert words == ["restore", "1.2.3", "-a", path]
    assert CliRunner().invoke(cli.root, words).exit_code == 0


def test_counts_of_interrupted_imports_agree(path: str, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    for index in range(1000):
        (disc / f"{index:05}").write_bytes(part10(SOPInstanceUID=f"1.2.{index + 1}"))
    command = [sys.executable, "-m", "plainpacs", "import", "-a", path, str(disc)]
    folder = Path(path, "202401/1.2.3/1.2.3.4")
    said = 0
    for more in (1, 17, 40, 5):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        eventually(lambda: folder.is_dir() and len(os.listdir(folder)) >= said + more)  # noqa: B023
        process.send_signal(signal.SIGINT)
        _, words = process.communicate()
        assert process.returncode == 130, words
        stored, there = re.search(r"^(\d+) stored; (\d+) there", words, re.M).groups()  # type: ignore[union-attr]
        assert int(there) <= said
        said += int(stored)
        assert len(os.listdir(folder)) == said
        lines = [
            orjson.loads(line)
            for log in Path(path, ".plainpacs/audit").iterdir()
            for line in log.read_bytes().splitlines()
        ]
        assert sum(line.get("stored", 0) for line in lines if line["event"] == "import") == said
        listed = CliRunner().invoke(cli.root, ["ls", "-a", path])
        assert orjson.loads(listed.stdout)["NumberOfStudyRelatedInstances"] == said


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
