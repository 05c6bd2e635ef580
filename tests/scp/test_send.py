"""The command ``send``: what is sent, what is left out, what is said of the rest."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

from tests.support.archives import instances_in, part10
from tests.support.commands import Run, at, data_sets, free_port, run
from tests.support.queries import fill, index
from tests.support.receiver import Running, Start

__all__ = ["run"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:::pynetdicom", "ignore:::pydicom")


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver with a few studies, indexed."""
    one = start()
    fill(one)
    return one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three instances, and two files that are none."""
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        uid = f"1.9.1.{number}"
        raw = part10(SOPInstanceUID=uid, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1")
        (folder / "deep" / f"{number}").write_bytes(raw)
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "cut").write_bytes(part10()[:200])
    return folder


def test_files_and_studies_are_sent(run: Run, running: Running, start: Start, folder: Path) -> None:
    other = start()
    done = run("send", at(other.port), folder)
    assert done.code == 1  # the one that is cut
    assert "cut: file: " in done.err
    assert "1 skipped (not instances); 1 cannot be read; 3 sent to" in done.err
    done = run("send", at(other.port), "-a", running.root, "1.1", "1.2.1", "1.3.1.1")
    assert done.code == 0, done.err
    sent = data_sets(other.root)
    assert {uid: sent[uid] for uid in data_sets(running.root)} == data_sets(running.root)
    assert len(sent) == 8
    audit = run("audit", "-a", running.root, "--event", "send", "--format", "jsonl")
    [first, *_] = map(json.loads, audit.out.splitlines())
    assert (first["instances"], first["destination"]) == (3, at(other.port))
    done = run("send", at(other.port), "-a", running.root, "1.99")
    assert done.code == 1
    assert "1.99 here, nor is there such a file" in done.err


def test_sending_goes_on_with_the_rest(
    run: Run, start: Start, folder: Path, tmp_path: Path
) -> None:
    (folder / "cut").unlink()
    other, memory = start(), tmp_path / "sent.txt"
    assert run("send", at(other.port), folder / "deep" / "0", "--resume", memory).code == 0
    assert memory.read_text() == f"{at(other.port)}\t1.9.1.0\n"
    with memory.open("a") as file:
        file.write(f"{at(other.port)}\t1.9.1.1")  # cut short by a power loss
    done = run("send", at(other.port), folder, "--resume", memory)
    assert "1 there already; 2 sent" in done.err
    assert run("send", at(other.port), folder, "--resume", memory, "--dry-run").err.endswith(
        f"0 would be sent to {at(other.port)}\n"
    )
    elsewhere = start()
    assert "3 sent" in run("send", at(elsewhere.port), folder, "--resume", memory).err
    memory.write_text("something else\n")
    done = run("send", at(other.port), folder, "--resume", memory)
    assert (done.code, done.out) == (2, "")


def test_what_the_node_has_is_left_out(run: Run, start: Start, folder: Path) -> None:
    (folder / "cut").unlink()
    other = start()
    run("send", at(other.port), folder / "deep" / "1")
    index(other)
    done = run("send", at(other.port), folder, "--skip-existing")
    assert done.code == 0
    assert "1 there already; 2 sent" in done.err
    assert len(other.instances()) == 3


def test_what_is_refused_is_named_with_step_and_status(run: Run, folder: Path) -> None:
    def refuse(event: evt.Event) -> int:
        return 0xA700 if event.request.AffectedSOPInstanceUID.endswith(".1") else 0x0000

    entity = AE("PICKY")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", ALL_TRANSFER_SYNTAXES)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, refuse)]
    )
    assert server is not None
    try:
        mr = part10(SOPClassUID="1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID="1.9.1.9")
        (folder / "mr").write_bytes(mr)
        done = run("send", at(server.server_address[1], "PICKY"), folder)
    finally:
        server.shutdown()
    assert done.code == 1
    assert "1.9.1.1: status: A700, Refused: Out of Resources (PS3.4 B.2.3)\n" in done.err
    assert "1.9.1.9: context: the peer does not take MR Image Storage" in done.err
    assert "2 failed; 2 sent" in done.err


def test_nobody_to_send_to(run: Run, folder: Path) -> None:
    (folder / "cut").unlink()
    done = run("send", at(free_port()), folder)
    assert done.code == 3
    assert "1.9.1.0 and 2 others not sent: " in done.err
    assert "connect: Connection refused" in done.err


def test_a_node_gets_instances_without_names(
    run: Run, running: Running, start: Start, folder: Path, tmp_path: Path
) -> None:
    key, memory, other = tmp_path / "key", tmp_path / "sent.txt", start()
    without = ("--deidentify", "--key", key, "--resume", memory)
    done = run("send", at(other.port), "-a", running.root, "1.1", *without)
    assert done.code == 0, done.err
    sent = data_sets(other.root)
    assert sent
    assert not sent.keys() & data_sets(running.root).keys()
    for path in instances_in(other.root):
        raw = Path(other.root, path).read_bytes()
        assert b"DEID-" in raw
        assert b"1.1.1" not in raw
    again = run("send", at(other.port), "-a", running.root, "1.1", *without)
    assert f"{len(sent)} there already; 0 sent" in again.err
    audit = run("audit", "-a", running.root, "--event", "send", "--format", "jsonl")
    [line] = map(json.loads, audit.out.splitlines())
    assert (line["StudyInstanceUID"], line["deidentified"]) == ("1.1", "basic")
    assert not list(Path(tempfile.gettempdir()).glob("plainpacs-*"))

    (folder / "cut").unlink()
    raw = (folder / "deep" / "0").read_bytes()
    (folder / "deep" / "0").write_bytes(raw[:-1])
    done = run("send", at(other.port), folder, *without)
    assert (done.code, "1 failed; 2 sent" in done.err) == (1, True), done.err
    assert f"{folder / 'deep' / '0'}: file: it cannot be read to its end" in done.err
