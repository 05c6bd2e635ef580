"""The tree in other programs' hands: copied while stores go on, mounted read-only, owned by
somebody else, sent on, converted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import orjson
import pydicom
import pytest

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.scp.receiver.receiver import Receiver
from tests.support.archives import (
    eventually,
    instances_in,
    manifest_lines,
    new_archive,
    store,
    tree,
)
from tests.support.peer import dcmtk

PLAINPACS = [sys.executable, "-m", "plainpacs"]
READS = (
    ("ls",),
    ("ls", "--format", "csv", "doe"),
    ("show", "1.0", "-v"),
    ("path", "1.0"),
    ("path", "1.0.1"),
    ("path", "1.0.9.1"),
    ("status",),
)


def tool(name: str) -> str:
    """The path of a program; where it is not installed the test is skipped, in CI it fails."""
    path = shutil.which(name)
    if path is None:
        words = f"{name} is not installed (apt install {name})"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    return path


def run(path: str | Path, *arguments: str, wrapped: tuple[str, ...] = ()) -> str:
    """What a command on the archive at ``path`` prints; it must succeed."""
    command = [*wrapped, *PLAINPACS, arguments[0], "-a", str(path), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> str:
    """An archive of four studies with seven instances each."""
    path = new_archive(tmp_path / "a")
    with Archive.open(path) as archive:
        for study in range(4):
            for number in range(7):
                store(
                    archive,
                    StudyInstanceUID=f"1.{study}",
                    SeriesInstanceUID=f"1.{study}.{number % 2}",
                    SOPInstanceUID=f"1.{study}.9.{number}",
                    StudyDate=f"2024{1 + study % 2:02}05",
                )
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


@contextmanager
def stores_going_on(path: str) -> Iterator[None]:
    """Two senders and an indexer at work; at the end all is indexed."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def send(sender: int) -> None:
        try:
            number = 0
            while not stop.is_set() and number < 4000:
                store(
                    archive,
                    StudyInstanceUID=f"2.{sender}.{number // 50}",
                    SeriesInstanceUID=f"2.{sender}.{number // 20}",
                    SOPInstanceUID=f"2.{sender}.9.{number}",
                    PixelData=bytes(20_000),
                )
                number += 1
        except BaseException as error:
            failed.append(error)
            raise

    with Archive.open(path) as archive, Indexer.open(path) as indexer:
        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(2)]
        threads.append(threading.Thread(target=indexer.run))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            indexer.stop()
            for thread in threads:
                thread.join()
    assert not failed


@pytest.mark.parametrize("copier", [["cp", "-a"], ["rsync", "-a"]], ids=["cp", "rsync"])
def test_a_copy_made_while_stores_go_on_is_whole(
    path: str, memory: Path, copier: list[str]
) -> None:
    tool(copier[0])
    copies = [memory / f"copy{number}" for number in range(4)]
    with stores_going_on(path):
        eventually(lambda: len(instances_in(path)) > 60)
        for copy in copies:
            # Both say so when a file vanished while they were at work: unfinished ones do.
            subprocess.run([*copier, f"{path}/.", f"{copy}/"], check=False, capture_output=True)
    for copy in copies:
        copied = instances_in(copy)
        assert len(copied) > 60
        lines = {line["file"]: line for raw in manifest_lines(copy) if (line := parsed(raw))}
        for name in copied:
            raw = (copy / name).read_bytes()
            assert read_part10(raw).whole
            assert pydicom.dcmread(copy / name).SOPInstanceUID == Path(name).stem
            if line := lines.get(Path(name).name):
                assert line["blake3"] == blake3.blake3(raw).hexdigest()
        for arguments in READS:
            assert run(copy, *arguments)
    last = copies[-1]
    with Indexer.open(str(last)) as indexer:
        indexer.once()
    counted = [
        orjson.loads(line)["NumberOfStudyRelatedInstances"] for line in run(last, "ls").splitlines()
    ]
    assert sum(counted) == len(instances_in(last))


def parsed(raw: bytes) -> dict[str, str] | None:
    """A manifest's line; its last one may be cut in a copy."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    assert isinstance(line, dict)
    return line


def test_reading_writes_nothing(path: str) -> None:
    before = {name: (digest, os.stat(f"{path}/{name}").st_mtime_ns)
              for name, digest in tree(path, internal=True).items()}  # fmt: skip
    for arguments in READS:
        run(path, *arguments)
    after = {name: (digest, os.stat(f"{path}/{name}").st_mtime_ns)
             for name, digest in tree(path, internal=True).items()}  # fmt: skip
    assert after == before


@pytest.mark.parametrize(
    "lost",
    [
        (),
        (".plainpacs",),
        ("202401/studies.jsonl",),
        ("202401/studies.jsonl", "202401/1.0/study.json", ".plainpacs"),
    ],
    ids=["whole", "no-internal", "no-catalogue", "no-index"],
)
def test_reading_a_read_only_mount(path: str, tmp_path: Path, lost: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting is for root")
    for name in lost:
        subprocess.run(["rm", "-r", f"{path}/{name}"], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    script = (
        f"mount --bind '{path}' '{mounted}' && mount -o remount,bind,ro '{mounted}' && "
        f"! touch '{mounted}/x' 2>/dev/null && exec \"$@\""
    )
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mounts, not even to root")
    wrapped = ("unshare", "-m", "sh", "-c", script, "sh")
    for arguments in READS:
        assert run(mounted, *arguments, wrapped=wrapped) == run(path, *arguments).replace(
            path, str(mounted)
        )


def test_reading_what_another_user_owns(path: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away is for root")
    expected = [run(path, *arguments) for arguments in READS[:-1]]
    subprocess.run(["chown", "-R", "65534:65534", path], check=True)
    # Root without its privileges: to these files, anybody.
    wrapped = (tool("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    listing = subprocess.run([*wrapped, "ls", f"{path}/.plainpacs"], check=False)
    assert listing.returncode != 0
    for arguments, wanted in zip(READS, expected, strict=False):
        assert run(path, *arguments, wrapped=wrapped) == wanted
    assert "not known (may not be read)" in run(path, "status", wrapped=wrapped)


@pytest.mark.parametrize("client", ["storescu", "dcmsend"])
def test_a_series_folder_is_sent_whole(path: str, tmp_path: Path, client: str) -> None:
    other = new_archive(tmp_path / "other")
    receiver = Receiver(Settings(bind="127.0.0.1", port=0))
    with Archive.open(other) as archive:
        receiver.start(archive)
        try:
            folder = run(path, "path", "1.0.0").strip()
            done = dcmtk(
                client, "-aec", "DRDCM", "+sd", "+r", "127.0.0.1", str(receiver.port), folder
            )
        finally:
            receiver.stop()
    assert done.returncode == 0, done.stderr
    sent = [name for name in instances_in(path) if name.startswith("202401/1.0/1.0.0/")]
    assert instances_in(other) == sent
    assert len(sent) == 4


def test_dcm2niix_converts_a_series_folder(path: str, tmp_path: Path, shared_data: Path) -> None:
    converter = tool("dcm2niix")
    source = shared_data / "neurolabusc+dcm_qa_nih"
    subprocess.run([*PLAINPACS, "import", "-a", path, str(source)], check=True)
    out = tmp_path / "nifti"
    out.mkdir()
    converted = 0
    for folder in {str(Path(name).parent) for name in instances_in(path)}:
        if folder.split("/")[1].startswith("1.0") or folder.count(".") < 4:
            continue
        command = [converter, "-o", str(out), f"{path}/{folder}"]
        converted += subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert converted
    assert list(out.glob("*.nii"))
