"""The audit log: what is in it, what is not, and that it stays small and out of the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.store import audit
from plainpacs.archive.store.audit import AuditLog
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import open_root
from plainpacs.scp.receiver import audit_trail as trail
from plainpacs.scp.receiver.audit_trail import AuditTrail, Visit
from plainpacs.scp.receiver.statistics import Caller, Refusal, Refused
from tests.support.archives import new_archive, part10, store, tree
from tests.support.peer import STUDY, Peer, command, data_set, message
from tests.support.receiver import Running, Start, wait_until

CALLER = {"peer": "127.0.0.1", "calling_ae": "TESTER", "called_ae": "DRDCM"}


def lines(root: str | Path, event: str = "") -> list[dict[str, Any]]:
    """The audit log's lines, without their time, which is checked."""
    found = []
    for path in sorted(Path(root, ".plainpacs/audit").glob("*")):
        month = path.name.partition(".")[0]
        for line in path.read_bytes().splitlines():
            entry = json.loads(line)
            stamp = entry.pop("time")
            assert stamp.replace("-", "").startswith(month)
            assert stamp.endswith("Z")
            if not event or entry["event"] == event:
                found.append(entry)
    return found


def stored(study: str = STUDY, **counts: int) -> dict[str, Any]:
    return {"event": "stored", **CALLER, "StudyInstanceUID": study, **counts}


def ended(running: Running) -> bool:
    return running.receiver.associations() == 0


# --- what the service writes ----------------------------------------------------------------------


def test_one_line_for_a_study_of_an_association(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        for number in range(3):
            assert peer.store(data_set(f"1.2.{number}"), sop=f"1.2.{number}") == 0
        assert peer.store(data_set("1.2.1"), sop="1.2.1") == 0
        assert peer.store(data_set("1.2.1", size=99), sop="1.2.1") == 0
        assert peer.store(data_set("1.3", study="1.9"), sop="1.3") == 0
        assert lines(running.root) == [], "nothing while it is short"
        peer.release()
    wait_until(lambda: len(lines(running.root)) == 2)
    assert lines(running.root) == [
        stored(stored=3, duplicates=1, conflicts=1),
        stored("1.9", stored=1),
    ]


def test_an_association_that_breaks_off_is_in_it_too(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0
    wait_until(lambda: lines(running.root) == [stored(stored=1)])


def test_a_long_association_is_written_now_and_then(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "_AT_LEAST_EVERY", 0.0)
    running = start()
    with Peer(running.port) as peer:
        assert peer.store(data_set("1.1"), sop="1.1") == 0
        wait_until(lambda: lines(running.root) == [stored(stored=1)])
        assert peer.store(data_set("1.2"), sop="1.2") == 0
        wait_until(lambda: lines(running.root) == [stored(stored=1), stored(stored=1)])
        peer.release()
    wait_until(lambda: ended(running))
    assert len(lines(running.root)) == 2, "nothing is counted twice"


def test_an_echo_is_no_event(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        assert peer.echo() == 0
        peer.release()
    running.stop()
    assert lines(running.root) == []
    assert not Path(running.root, ".plainpacs/audit").exists()


def test_a_refused_association_and_a_refused_instance(start: Start) -> None:
    running = start()
    with Peer(running.port, called="OTHER") as peer:
        assert peer.answer[0] == 3
    with Peer(running.port) as peer:
        assert peer.store(data_set(study="")) == 0xC000
        assert peer.store(data_set("1.5", sop_class="1.2.3"), sop="1.5") == 0xA900
        assert peer.store(data_set(sop="SECRET^NAME"), sop="SECRET^NAME") == 0xC000
        assert peer.store(data_set(sop="SECRET^NAME"), sop="SECRET^NAME") == 0xC000
        peer.release()
    running.stop()
    found = lines(running.root)
    assert [(e["event"], e["what"], e["status"]) for e in found] == [
        ("refused", "association", "1/1/7"),
        ("refused", "instance", "C000"),
        ("refused", "instance", "A900"),
        ("refused", "instance", "C000"),
        ("refused", "instance", "C000"),
    ]
    assert found[0]["called_ae"] == "OTHER"
    assert found[2]["SOPInstanceUID"] == "1.5"
    assert "SOPInstanceUID" not in found[3], "what is no UID may be a name"
    assert found[4].pop("more") == 1
    assert found[4] == found[3]
    assert all(e["why"] and e["peer"] == "127.0.0.1" for e in found)


def test_several_receivers_write_one_log(tmp_path: Path) -> None:
    """Two processes, each with many associations: no line is torn or lost."""
    root = new_archive(tmp_path / "a")

    def visit(number: int, to: AuditTrail) -> None:
        one = Visit(to, Caller("10.0.0.1", f"CT{number}", "DRDCM"))
        with Archive.open(root, sync=False) as archive:
            one.stored(store(archive, SOPInstanceUID=f"1.{number}"))
        one.ended()

    with Archive.open(root, sync=False) as one, Archive.open(root, sync=False) as two:
        trails = [AuditTrail(one.audit), AuditTrail(two.audit)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: visit(n, trails[n % 2]), range(40)))
    assert sorted(e["calling_ae"] for e in lines(root)) == sorted(f"CT{n}" for n in range(40))
    assert len(os.listdir(Path(root, ".plainpacs/audit"))) == 1


# --- bounds ---------------------------------------------------------------------------------------


def refusal(number: int = 0, why: str = "the called AE title is none of ours") -> Refusal:
    return Refusal(Refused.ASSOCIATION, "1/1/7", why, Caller(f"10.0.0.{number}", "X", "Y"))


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    with Archive.open(new_archive(tmp_path / "a"), sync=False) as archive:
        yield archive


def test_refusals_that_are_alike_take_two_lines(opened: Archive) -> None:
    to = AuditTrail(opened.audit)
    for _ in range(10_000):
        to.refused(refusal())
    assert len(lines(opened.root)) == 1, "the first at once"
    to.flush()
    assert len(lines(opened.root)) == 1, "the rest after a minute"
    to.close()
    assert [e.get("more") for e in lines(opened.root)] == [None, 9_999]


def test_a_flood_of_different_refusals_is_bounded(opened: Archive) -> None:
    to = AuditTrail(opened.audit)
    for number in range(5_000):
        to.refused(refusal(number % 250, f"why {number // 250}"))
    to.close()
    found = lines(opened.root)
    assert len(found) == trail._MOST_REFUSALS + 1
    counted = sum(e.get("more", 0) for e in found) + trail._MOST_REFUSALS
    assert counted == 5_000, "and none is uncounted"
    to.refused(refusal())
    assert len(lines(opened.root)) == len(found) + 1, "then each is a line again"


def test_the_minute_ends_by_itself(opened: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    to = AuditTrail(opened.audit)
    to.refused(refusal())
    to.refused(refusal())
    monkeypatch.setattr(trail, "_REFUSALS_TOGETHER", 0.0)
    to.flush()
    assert [e.get("more") for e in lines(opened.root)] == [None, 1]


def test_a_peer_that_knocks_and_knocks_fills_no_disk(start: Start) -> None:
    running = start()
    for number in range(60):
        with Peer(running.port, called=f"X{number}"):
            pass
    running.stop()
    assert len(lines(running.root)) == trail._MOST_REFUSALS + 1


# --- what commands write --------------------------------------------------------------------------


def test_a_command_is_recorded_with_its_user(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        audit.record(archive._writer, "rm", StudyInstanceUID="1.2", instances=3, why=None)
        audit.record(archive.audit, "restore", StudyInstanceUID="1.2")
    one, two = lines(root)
    assert one.pop("user")
    assert one == {"event": "rm", "uid": os.getuid(), "StudyInstanceUID": "1.2", "instances": 3}
    assert two["event"] == "restore"


def test_import_is_recorded_by_study_and_names_no_path(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    folder = tmp_path / "SECRET^NAME"
    folder.mkdir()
    for number in range(3):
        (folder / f"SECRET{number}").write_bytes(part10(SOPInstanceUID=f"1.{number}"))
    (folder / "again").write_bytes(part10(SOPInstanceUID="1.0"))
    (folder / "other").write_bytes(part10(SOPInstanceUID="1.7", StudyInstanceUID="1.8"))
    (folder / "none").write_bytes(b"no DICOM")
    (folder / "bad").write_bytes(part10(StudyInstanceUID="SECRET^NAME"))
    importing = [sys.executable, "-m", "plainpacs", "import", "-a", root]
    done = subprocess.run([*importing, str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = sorted(lines(root), key=str)
    who = {"user": found[0]["user"], "uid": os.getuid()}
    assert found == sorted(
        (
            {"event": "import", **who, "StudyInstanceUID": "1.2.3", "stored": 3, "duplicates": 1},
            {"event": "import", **who, "StudyInstanceUID": "1.8", "stored": 1},
            {"event": "import", **who, "refused": 1},
        ),
        key=str,
    )
    assert "SECRET" not in str(found)


def test_a_copy_is_never_written(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        store(archive)
        shutil.copytree(root, tmp_path / "copy")
    before = tree(tmp_path / "copy", internal=True)
    fd = open_root(str(tmp_path / "copy"))
    audit.record(fd, "export", StudyInstanceUID="1.2.3")
    os.close(fd)
    assert tree(tmp_path / "copy", internal=True) == before
    assert lines(tmp_path / "copy") == []


def test_what_is_read_from_a_served_archive_is_recorded(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root):
        fd = open_root(root)
        audit.record(fd, "export", StudyInstanceUID="1.2.3")
        os.close(fd)
    assert [e["event"] for e in lines(root)] == ["export"]


def test_a_name_that_is_no_text_is_written_all_the_same(opened: Archive) -> None:
    opened.audit.write("rm", user="j\udcffrg")
    assert lines(opened.root) == [{"event": "rm", "user": "j?rg"}]


# --- trouble --------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_changes_no_answer(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    Path(running.root, ".plainpacs/audit").write_text("in the way")
    with Peer(running.port) as peer, caplog.at_level(logging.WARNING):
        assert peer.store(data_set()) == 0
        assert peer.store(data_set(study="")) == 0xC000
        peer.release()
        wait_until(lambda: ended(running))
    running.stop()
    assert len(running.instances()) == 1
    lost = [r.getMessage() for r in caplog.records if "audit log" in r.getMessage()]
    assert len(lost) == 2, "each line that is missing is in the log"
    assert '"stored":1' in lost[1]


def test_a_folder_taken_away_is_made_again(opened: Archive) -> None:
    opened.audit.write("one")
    shutil.rmtree(Path(opened.root, ".plainpacs/audit"))
    opened.audit.write("two")
    opened.audit.flush()
    assert [e["event"] for e in lines(opened.root)] == ["two"]


def test_a_torn_line_costs_no_other(opened: Archive) -> None:
    opened.audit.write("one")
    [path] = Path(opened.root, ".plainpacs/audit").iterdir()
    with path.open("ab") as file:
        file.write(b'{"time":"20')
    again = AuditLog(opened._writer.root, opened.node)
    again.write("two")
    again.close()
    one, torn, two = path.read_bytes().splitlines()
    assert json.loads(one)["event"] == "one"
    assert torn == b'{"time":"20'
    assert json.loads(two)["event"] == "two"


def test_storing_writes_nothing_to_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance costs no system call for the audit log: only the association's end does."""
    running = start()
    written: list[str] = []
    real = AuditLog.write

    def watched(self: AuditLog, event: str, **facts: object) -> None:
        written.append(threading.current_thread().name)
        real(self, event, **facts)

    monkeypatch.setattr(AuditLog, "write", watched)
    with Peer(running.port) as peer:
        for number in range(50):
            uid = f"1.2.{number}"
            peer.send(message(1, command(sop=uid.encode()), data_set(uid)))
            assert peer.status() == 0
        assert written == []
        peer.release()
    wait_until(lambda: len(written) == 1)


def test_time_is_that_of_writing(opened: Archive) -> None:
    before = time.time()
    opened.audit.write("one")
    [path] = Path(opened.root, ".plainpacs/audit").iterdir()
    entry = json.loads(path.read_bytes())
    seconds = time.mktime(time.strptime(entry["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert before - 2 <= seconds <= time.time() + 1
    assert path.name.startswith(entry["time"][:7].replace("-", "") + f".{opened.node}.")


# --- reading it -----------------------------------------------------------------------------------


def shown(root: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plainpacs", "audit", "-a", root, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def logged(tmp_path: Path) -> str:
    """An archive with a log of two nodes and two months, and a torn line."""
    root = new_archive(tmp_path / "a")
    folder = Path(root, ".plainpacs/audit")
    folder.mkdir()
    (folder / "202401.aaaa.jsonl").write_text(
        '{"time":"2024-01-01T00:00:00.000Z","event":"stored","StudyInstanceUID":"1.2"}\n'
        '{"time":"2024-01-03T00:00:00.000Z","event":"rm","uids":["1.3"],"user":"ann"}\n'
        '{"time":"20\n"no object"\n'
    )
    (folder / "202401.bbbb.jsonl").write_text(
        '{"time":"2024-01-02T00:00:00.000Z","event":"refused","peer":"10.0.0.1"}\n'
    )
    with Archive.open(root) as archive:
        archive.audit.write("purge", targets=["202401/1.2/1.2.9"], user="=ann\x1b[2J")
    (folder / "notes.txt").write_text("mine")
    return root


def test_it_is_shown_in_order_of_time(logged: str) -> None:
    done = shown(logged, "--format", "json")
    assert done.returncode == 0
    assert [e["event"] for e in json.loads(done.stdout)] == ["stored", "refused", "rm", "purge"]
    table = shown(logged, "--format", "table").stdout
    assert table.splitlines()[0].split() == ["Time", "Event", "Who", "What"]
    assert "somebody at 10.0.0.1" in table
    assert "\x1b" not in table


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        (("--event", "rm"), ["rm"]),
        (("--event", "rm", "--event", "stored"), ["stored", "rm"]),
        (("1.2",), ["stored", "purge"]),
        (("1.3", "1.2.9"), ["rm", "purge"]),
        (("--since", "20240102"), ["refused", "rm", "purge"]),
        (("--since", "1h"), ["purge"]),
    ],
)
def test_what_is_asked_for_is_shown(
    logged: str, arguments: tuple[str, ...], events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    done = shown(logged, *arguments)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == events


def test_nothing_found_and_wrong_words_are_said(logged: str, tmp_path: Path) -> None:
    assert shown(logged, "9.9").returncode == 1
    assert shown(new_archive(tmp_path / "new")).returncode == 1
    done = shown(logged, "--since", "teatime")
    assert done.returncode == 2
    assert "--since teatime" in done.stderr
