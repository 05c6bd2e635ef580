"""No patient in what is said: logs, audit log, service note, answers. And no root is needed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from plainpacs.archive.app import logs
from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import create_archive
from tests.support.archives import PYDICOM_FILES, eventually, new_archive, part10, store
from tests.support.peer import (
    CT,
    EVRLE,
    IVRLE,
    Peer,
    associate_rq,
    command,
    context_item,
    data_set,
    element,
    item,
    message,
)
from tests.support.receiver import Start, wait_until
from tests.support.serve import COMMAND, Serve, Service

DEFLATED = "1.2.840.10008.1.2.1.99"
PLANTED = "SECRET"
NAME = "SECRET^NAME"


def said_of(root: Path) -> str:
    """What the archive holds about what was done: the audit log and the notes."""
    internal = root / ".plainpacs"
    paths = [*internal.glob("audit/*"), *internal.glob("service.*")]
    assert paths
    return "\n".join(path.read_text() for path in paths)


def odd_data_sets() -> Iterator[tuple[str, str, bytes]]:
    """SOP Class and Instance UID of the command, and a data set with a name where none belongs."""
    yield CT, NAME, data_set(NAME)
    yield CT, "1.2.3", data_set(NAME)
    yield CT, "1.2.3", data_set("1.2.3", series=NAME)
    yield CT, "1.2.3", data_set("1.2.3", study=NAME)
    yield CT, "1.2.3", data_set("1.2.3", study="")
    yield CT, "1.2.3", data_set("1.2.3", sop_class=NAME)
    yield NAME, "1.2.3", data_set("1.2.3", sop_class=NAME)
    yield NAME, NAME, data_set("1.2.3")
    yield CT, f"../{NAME}", data_set(f"../{NAME}")
    yield CT, f"1.2\n2024 INFO {NAME}", data_set("1.2.3")
    whole = data_set("1.2.3")
    yield CT, "1.2.3", whole[: whole.index(b"SECRETID") + 3]
    yield CT, "1.2.3", b"PN" + NAME.encode() * 9
    yield CT, "1.2.3", element(0x0010, 0x0010, b"SE", NAME.encode()) + whole
    yield CT, "1.2.3", element(0x0008, 0x0005, b"CS", NAME.encode(), b" ") + whole
    yield CT, "1.2.4", whole.replace(b"20240131", b"SECRETDA").replace(b"1.2.3\0", b"1.2.4\0")
    yield CT, "1.2.5", data_set("1.2.5")
    yield CT, "1.2.5", data_set("1.2.5", size=99)
    yield CT, "1.2.6", b""


def provoke(port: int) -> list[str]:
    """Does all that a peer can do wrong, with a name in it; the Error Comments that came."""
    comments = []
    for sop_class, sop, data in odd_data_sets():
        with Peer(port) as peer:
            told = command(1, sop_class.encode(), sop.encode())
            peer.send(message(1, told, data))
            answer = peer.response()
            comments.append(b" ".join(v for k, v in answer.items() if k > 0x0800).decode("latin-1"))
            peer.release()
    contexts = context_item(1, CT, [DEFLATED]) + context_item(3, NAME, [NAME])
    with Peer(port, associate_rq(contexts + context_item(5, CT, [NAME, IVRLE]))) as peer:
        assert peer.results()[1] == (0, DEFLATED)
        peer.send(message(1, command(), NAME.encode() * 20))
        comments.append(peer.response()[0x0902].decode())
        peer.send(message(1, command(0x20, NAME.encode(), None), data_set()))
        assert peer.status() == 0x0211
        peer.send(message(99, command(), data_set()))  # no such context
        peer.receive()
    contexts = context_item(1, CT, [EVRLE])
    name = item(0x52, NAME.encode()) + item(0x55, NAME.encode()) + item(0x58, NAME.encode())
    for request in (
        associate_rq(contexts, application=NAME),
        associate_rq(contexts, user=name),
        associate_rq(contexts)[:-5] + NAME.encode(),
        b"\1\0\0\0\0\7" + NAME.encode(),
        NAME.encode() * 10,
    ):
        with Peer(port, request) as peer:
            comments.append(str(peer.answer))
    return comments


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_is_said_has_a_name(serve: Serve, form: str) -> None:
    service = serve("--log-format", form, "--receivers", "2")
    comments = provoke(service.port)
    assert len(comments) > 20
    eventually(lambda: list(service.root.glob("[0-9u]*/*/study.json")))
    assert service.stop() == 0
    for what in (service.said, said_of(service.root), *comments):
        assert PLANTED not in what
    assert service.said.count("refused") > 15
    assert "malformed UID" in service.said
    assert "conflict: TESTER" in service.said
    assert "Traceback" not in service.said
    shown = subprocess.run(
        [sys.executable, "-m", "plainpacs", "status", "-a", str(service.root)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert PLANTED not in shown.stdout + shown.stderr


def test_an_error_nobody_foresaw_keeps_its_words_to_itself(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()

    def broken(*_: object, **__: object) -> None:
        raise ValueError(f"invalid literal for int() with base 10: {NAME!r}")

    monkeypatch.setattr(Archive, "store", broken)
    caplog.set_level(logging.INFO, "plainpacs")
    with Peer(running.port) as peer:
        peer.send(message(1, command(), data_set()))
        answer = peer.response()
        peer.release()
    assert answer[0x0900] == b"\x10\1"
    assert PLANTED.encode() not in answer[0x0902]
    wait_until(lambda: "association ended" in caplog.text)
    running.stop()
    for formatter in (logs.TextLines, logs.JSONLines):
        quiet = [formatter(words=False).format(record) for record in caplog.records]
        assert PLANTED not in "\n".join(quiet)
        assert "ValueError" in "\n".join(quiet)
        assert "in broken" in "\n".join(quiet), "where it was raised"
        loud = [formatter(words=True).format(record) for record in caplog.records]
        assert PLANTED in "\n".join(loud), "at debug level"
    assert PLANTED not in said_of(running.root)


def test_no_name_of_real_files_is_said(serve: Serve) -> None:
    service = serve()
    names: set[str] = set()
    sent = 0
    for path in sorted(PYDICOM_FILES.rglob("*")):
        if path.is_dir() or path.stat().st_size > 1 << 20:
            continue
        try:
            data = path.read_bytes()
            part = read_part10(memoryview(data))
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            found = [str(header.get("PatientName", "")), str(header.get("PatientID", ""))]
            sop_class, sop = str(header.SOPClassUID), str(header.SOPInstanceUID)
        except Exception:  # what pydicom cannot read is another test's
            continue
        request = associate_rq(context_item(1, sop_class, [part.transfer_syntax]))
        with Peer(service.port, request) as peer:
            if peer.results()[1][0] == 0:
                peer.store(data[part.dataset_offset :], sop_class=sop_class, sop=sop)
                names.update(name for name in found if len(name) > 4)
                sent += 1
                peer.release()
    assert service.stop() == 0
    assert sent > 30
    assert len(names) > 10
    for name in names:
        whole = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.])")
        assert not whole.search(service.said), name
        assert not whole.search(said_of(service.root)), name


def test_import_and_index_say_no_names(tmp_path: Path) -> None:
    """Paths are said to who gave them; what the files hold is not."""
    root = new_archive(tmp_path / "a")
    folder = tmp_path / "in"
    folder.mkdir()
    for number, (_, sop, data) in enumerate(odd_data_sets()):
        (folder / f"{number}.dcm").write_bytes(part10(SOPInstanceUID="1.2") + data)
        (folder / f"{number}.bare").write_bytes(data)
        (folder / f"{number}.own").write_bytes(
            part10(PatientName=NAME, PatientID=PLANTED, SOPInstanceUID=sop)
        )
    for command_line in (["import", str(folder)], ["index", "--once"], ["reindex", "--full"]):
        done = subprocess.run(
            [sys.executable, "-m", "plainpacs", *command_line, "-a", root],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        assert PLANTED not in done.stdout + done.stderr
    assert PLANTED not in "".join(p.read_text() for p in Path(root).glob(".plainpacs/audit/*"))


# --- who may look ---------------------------------------------------------------------------------


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_the_internal_folder_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        root = new_archive(tmp_path / "a")
        with Archive.open(root) as archive:
            store(archive)
    finally:
        os.umask(before)
    assert mode(Path(root, ".plainpacs")) == 0o700


def test_one_that_others_could_look_into_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "a"
    (root / ".plainpacs").mkdir(parents=True)
    os.chmod(root / ".plainpacs", 0o777)
    create_archive(str(root))
    assert mode(root / ".plainpacs") == 0o700
    os.chmod(root / ".plainpacs", 0o755)
    with Archive.open(str(root)):
        assert mode(root / ".plainpacs") == 0o700


# --- no root --------------------------------------------------------------------------------------

NOBODY = 65534


def as_nobody(*arguments: str) -> list[str]:
    """``arguments`` as a user who may do nothing special. Skips where that cannot be had."""
    if os.getuid() != 0:
        return list(arguments)
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is not installed")
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    # Where our Python lies below root's own folder, they may read whatever there is; not write.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for more in ([], reading):
        probe = ["setpriv", *ids, *more, sys.executable, "-c", again]
        if subprocess.run(probe, check=False, capture_output=True, cwd="/").returncode == 0:
            return ["setpriv", *ids, *more, *arguments]
    pytest.skip("our Python lies where only root can read it")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """pytest's own temporary folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="plainpacs-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_the_service_needs_no_root(open_folder: Path) -> None:
    root, log = open_folder / "archive", open_folder / "log"
    if os.getuid() == 0:
        os.chown(open_folder, NOBODY, NOBODY)
    line = as_nobody(*COMMAND, "--create", "--port", "0", "--receivers", "2", str(root))
    with log.open("wb") as file:
        process = subprocess.Popen(line, stderr=file, stdout=file, cwd=open_folder)
    service = Service(root, process, log)
    try:
        with Peer(service.port) as peer:
            facts = Path(f"/proc/{process.pid}/status").read_text()
            if os.getuid() == 0:
                assert re.search(rf"^Uid:(\t{NOBODY}){{4}}$", facts, re.M)
                assert re.search(r"^CapEff:\t0+4?$", facts, re.M), "none, or that of reading"
            assert peer.store(data_set()) == 0
            peer.release()
        eventually(lambda: list(root.glob("202401/*/study.json")))
        assert service.stop(signal.SIGTERM) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in service.said
    assert "started again" not in service.said
    assert mode(root / ".plainpacs") == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_who_cannot_close_the_folder_says_so(open_folder: Path) -> None:
    root = Path(new_archive(open_folder / "a"))
    os.chmod(open_folder, 0o755)
    for folder, _, names in os.walk(root):
        os.chown(folder, 0, NOBODY)
        os.chmod(folder, 0o770)
        for name in names:
            os.chown(Path(folder, name), 0, NOBODY)
            os.chmod(Path(folder, name), 0o660)
    line = as_nobody(sys.executable, "-m", "plainpacs", "index", "--once", str(root))
    done: Any = subprocess.run(line, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "others may read" in done.stderr
    assert "chmod 700" in done.stderr
    os.chmod(root / ".plainpacs", 0o700)
