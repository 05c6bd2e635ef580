"""Counts that are true: what was asked for and not sent is a failed sub-operation, with its UID."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scp.test_retrieve import Answer, arrived, get, getter, keys, move, mover
from tests.support.commands import Run, at, run
from tests.support.peer import Peer, data_set, element
from tests.support.queries import index
from tests.support.receiver import Running, Start

__all__ = ["run"]  # the fixture

STUDY = "1.2.3.1"
SOPS = [f"1.2.3.1.1.{number}" for number in range(1, 5)]


@pytest.fixture
def source(start: Start) -> tuple[Running, Running]:
    """An archive with a study of four instances, and another that is a destination of it."""
    destination = start(called_ae="any")
    source = start(nodes=(f"STORE@127.0.0.1:{destination.port}",))
    with Peer(source.port) as peer:
        for uid in SOPS:
            assert peer.store(data_set(uid), sop=uid) == 0
        peer.release()
    return source, destination


def got(running: Running) -> tuple[Answer, list[str]]:
    with getter(running.port) as peer:
        last, came = get(peer, keys("STUDY", StudyInstanceUID=STUDY))
        peer.release()
    return last, sorted(came)


def moved(running: Running) -> Answer:
    with mover(running.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID=STUDY))[-1]
        peer.release()
    return last


def file_of(running: Running, uid: str) -> Path:
    return next(running.root.glob(f"[0-9]*/*/*/{uid}.dcm"))


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def without_element(data: bytes, tag: bytes) -> bytes:
    """``data`` without the short element with this tag."""
    at = data.index(tag)
    return data[:at] + data[at + 8 + int.from_bytes(data[at + 6 : at + 8], "little") :]


# --- what cannot be read --------------------------------------------------------------------------

DAMAGE = {
    "cut to its first bytes": lambda raw: raw[:20],
    "empty": lambda raw: b"",
    "other bytes": lambda raw: b"not DICOM " * 40,
    "cut within its header": lambda raw: raw[: raw.index(b"\x20\0\x0e\0UI") + 4],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_an_instance_that_cannot_be_read_has_failed(
    source: tuple[Running, Running], damage, run: Run, start: Start
) -> None:
    running, destination = source
    path = file_of(running, SOPS[1])
    rewrite(path, damage(path.read_bytes()))
    last, came = got(running)
    others = [uid for uid in SOPS if uid != SOPS[1]]
    assert (last.status, last.counts, last.failed) == (0xB000, (None, 3, 1, 0), [SOPS[1]])
    assert came == others
    last = moved(running)
    assert (last.status, last.counts, last.failed) == (0xB000, (None, 3, 1, 0), [SOPS[1]])
    assert arrived(destination) == others
    other = start()
    done = run("send", at(other.port), "-a", running.root, STUDY)
    assert done.code == 1
    assert f"{SOPS[1]}: file: its file cannot be read: " in done.err
    assert "1 failed; 3 sent" in done.err
    done = run("send", at(other.port), "-a", running.root, STUDY, "--dry-run")
    assert "1 failed; 3 would be sent" in done.err


def test_when_nothing_can_be_read_nothing_is_a_success(source: tuple[Running, Running]) -> None:
    running, _ = source
    for uid in SOPS:
        rewrite(file_of(running, uid), b"")
    for last in (got(running)[0], moved(running)):
        assert (last.status, last.counts, last.failed) == (0xA702, (None, 0, 4, 0), SOPS)


# --- without a SOP Class in the data set ----------------------------------------------------------

SOP_CLASS = {
    "missing": lambda raw: without_element(raw, b"\x08\0\x16\0UI"),
    "empty": lambda raw: raw.replace(
        element(0x0008, 0x0016, b"UI", b"1.2.840.10008.5.1.4.1.1.2"), b"\x08\0\x16\0UI\0\0"
    ),
    "blank": lambda raw: raw.replace(
        element(0x0008, 0x0016, b"UI", b"1.2.840.10008.5.1.4.1.1.2"), b"\x08\0\x16\0UI\2\0\0\0"
    ),
}


@pytest.mark.parametrize("change", SOP_CLASS.values(), ids=SOP_CLASS)
def test_the_sop_class_is_that_of_the_file_meta(
    source: tuple[Running, Running], change, run: Run, start: Start, tmp_path: Path
) -> None:
    running, destination = source
    uid = "1.2.3.1.1.9"
    raw = change(data_set(uid))
    assert raw != data_set(uid)
    with Peer(running.port) as peer:
        assert peer.store(raw, sop=uid) == 0
        peer.release()
    last, came = got(running)
    assert (last.status, last.counts, came) == (0, (None, 5, 0, 0), [*SOPS, uid])
    assert moved(running).counts == (None, 5, 0, 0)
    assert arrived(destination) == [*SOPS, uid]
    other = start()
    assert run("send", at(other.port), file_of(running, uid)).code == 0
    assert arrived(other) == [uid]


def test_a_file_whose_meta_calls_it_an_instance_is_not_skipped(
    source: tuple[Running, Running], run: Run, tmp_path: Path
) -> None:
    running, _ = source
    raw = file_of(running, SOPS[0]).read_bytes()
    meta, body = raw[:132], raw[132:]
    without = tmp_path / "without.dcm"
    without.write_bytes(meta + without_element(body, b"\x08\0\x18\0UI"))
    done = run("send", at(running.port), file_of(running, SOPS[1]), without)
    assert done.code == 1
    assert "without.dcm: file: it has no SOP Instance UID" in done.err
    assert "1 cannot be read; 1 sent" in done.err


# --- one SOP Instance UID more than once ----------------------------------------------------------

TWICE = {
    "in two series": data_set(SOPS[0], "1.2.3.1.2", STUDY),
    "in two months": data_set(SOPS[0]).replace(b"20240131", b"20230131"),
    "in two series of two months": data_set(SOPS[0], "1.2.3.1.2").replace(b"20240131", b"20230131"),
}


@pytest.mark.parametrize("twin", TWICE.values(), ids=TWICE)
def test_both_of_one_uid_are_handed_out(
    source: tuple[Running, Running], twin: bytes, run: Run, start: Start, tmp_path: Path
) -> None:
    running, destination = source
    with Peer(running.port) as peer:
        assert peer.store(twin, sop=SOPS[0]) == 0
        peer.release()
    assert len(running.instances()) == 5
    last, _ = got(running)
    assert (last.status, last.counts) == (0, (None, 5, 0, 0))
    assert moved(running).counts == (None, 5, 0, 0)
    assert arrived(destination) == sorted([SOPS[0], *SOPS])
    other, memory = start(), tmp_path / "sent"
    memory.write_text(f"{at(other.port)}\t{SOPS[0]}\n")  # interrupted after one of the two
    sending = ("send", at(other.port), "-a", running.root, STUDY)
    done = run(*sending, "--resume", memory)
    assert (done.code, "1 there already; 4 sent" in done.err) == (0, True)
    done = run(*sending, "--resume", memory)
    assert (done.code, "5 there already; 0 sent" in done.err) == (0, True)


def test_what_a_node_has_of_another_series_is_not_there(
    source: tuple[Running, Running], run: Run, start: Start
) -> None:
    running, _ = source
    with Peer(running.port) as peer:
        assert peer.store(TWICE["in two series"], sop=SOPS[0]) == 0
        peer.release()
    other = start()
    run("send", at(other.port), file_of(running, SOPS[1]))
    run("send", at(other.port), running.root / "202401" / STUDY / "1.2.3.1.2")
    index(other)
    done = run("send", at(other.port), "-a", running.root, STUDY, "--skip-existing")
    assert (done.code, "2 there already; 3 sent" in done.err) == (0, True)
    index(running)
    os.rename(other.root / "202401" / STUDY / "1.2.3.1.1", other.root.parent / "aside")
    done = run("pull", at(running.port), STUDY, "-a", other.root)
    assert done.code == 0, done.err
    assert sorted(path.parent.name for path in other.instances()) == [
        *["1.2.3.1.1"] * 4,
        "1.2.3.1.2",
    ]
