"""``plainpacs serve`` as people run it: a process that is started, used, stopped and killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.app.settings import Settings
from plainpacs.scp.receiver.greeting import greeting
from tests.support.archives import eventually, instances_in, left_behind, new_archive, part10
from tests.support.peer import ABORT, DATA, SOP, STUDY, Peer, command, data_set, dcmtk, message, us
from tests.support.serve import COMMAND, Serve, is_alive


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``serve`` where it is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


# --- first contact --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "send", "query"),
    [
        (
            {},
            "any application (restrict it: --calling-ae, --allow-peers)",
            "this machine only (allow others: --nodes AET@HOST:PORT)",
        ),
        (
            {
                "calling_ae": ("CT1", "MR1"),
                "allow_peers": ("10.0.0.0/8",),
                "ae_addresses": ("CT1=10.1.0.0/16", "CT1=10.2.0.0/16"),
                "nodes": tuple(f"N{number}@10.0.0.{number}:104" for number in range(1, 8)),
            },
            "AE title CT1, MR1 at 10.0.0.0/8; CT1 from the addresses of --ae-addresses alone",
            "this machine and the nodes N1, N2, N3, N4, N5 and 2 more",
        ),
        (
            {"tls_verify": "on", "query_retrieve": "any"},
            "any application with a trusted certificate",
            "whoever may send (--query-retrieve any)",
        ),
        (
            {"ae_addresses": ("CT1=10.1.0.0/16",), "query_retrieve": "off"},
            "any application; CT1 from the addresses of --ae-addresses alone",
            "nobody (--query-retrieve off)",
        ),
    ],
)
def test_it_says_who_may_send_and_who_may_query(
    settings: dict[str, Any], send: str, query: str
) -> None:
    said = greeting("/srv/dicom", Settings(**settings), 11112).splitlines()
    assert f"may send: {send}" in said
    assert f"may query and retrieve: {query}" in said


def test_the_line_it_prints_works(serve: Serve, tmp_path: Path) -> None:
    one, two = tmp_path / "one.dcm", tmp_path / "two.dcm"
    one.write_bytes(part10())
    two.write_bytes(part10(SOPInstanceUID="1.9"))
    service = serve()
    assert service.port
    line = next(x for x in service.said.splitlines() if x.startswith("try: "))
    tool, *arguments = shlex.split(line.removeprefix("try: "))
    assert tool == "storescu"
    assert arguments[-1] == "FILE"
    # pynetdicom's comes first on the path of who has our environment active.
    command = [sys.executable, "-m", "pynetdicom", tool, *arguments[:-1], str(one)]
    subprocess.run(command, check=True)
    done = dcmtk(tool, *arguments[:-1], str(two))
    assert done.returncode == 0, done.stderr
    names = ["1.2.3.4.5.dcm", "1.9.dcm"]
    assert instances_in(service.root) == [f"202401/1.2.3/1.2.3.4/{name}" for name in names]
    assert str(service.root) in service.said
    assert "DRDCM" in service.said
    eventually((service.root / "202401/1.2.3/study.json").exists)
    assert service.stop() == 0


def test_it_makes_the_archive_only_when_told_to(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = run("--port", "0", str(missing))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "plainpacs init" in done.stderr
    assert not missing.exists()


def test_a_folder_with_other_things_in_it_wants_force(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    for create in ([], ["--create"]):
        done = run("--port", "0", *create, str(folder))
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    assert "--force" in done.stderr
    service = serve("--force")
    assert service.port
    assert service.stop() == 0
    assert (folder / "letter.txt").read_text() == "mine"
    assert (folder / "plainpacs.json").exists()


def test_an_archive_in_a_source_tree_is_not_served(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "src/archive/deep")
    for room in ("archive", "indexer", "scp"):
        (tmp_path / "src" / room).mkdir(exist_ok=True)
    (tmp_path / "src/pyproject.toml").write_text('[project]\nname = "plainpacs"\n')
    for more in ((), ("--create",), ("--create", "--force")):
        done = run("--port", "0", *more, root)
        assert done.returncode == 3
        assert f"lies in the source tree of plainpacs ({tmp_path}/src)" in done.stderr


def test_a_port_in_use_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("--create", "--bind", "127.0.0.1", "--port", port, str(tmp_path / "new"))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "--port" in done.stderr
    assert port in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("--port", "eleven"), {}, "--port"),
        (("--aet", "A" * 17), {}, "--aet"),
        (("--prot", "1"), {}, "--port"),
        ((), {"PLAINPACS_PROT": "1"}, "port"),
        ((), {"PLAINPACS_MAX_PDU": "1"}, "MAX_PDU"),
        (("--create",), {"PLAINPACS_ARCHIVE": ""}, "ROOT"),
    ],
)
def test_bad_settings_are_wrong_usage(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    root = () if arguments == ("--create",) else (new_archive(tmp_path / "archive"),)
    done = run(*arguments, *root, **environment)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_second_service_gets_the_archive_too_but_not_the_port(serve: Serve) -> None:
    first = serve("--bind", "127.0.0.1")
    done = run("--bind", "127.0.0.1", "--port", str(first.port), str(first.root))
    assert done.returncode == 3
    with Peer(first.port) as peer:
        assert peer.echo() == 0


def test_settings_from_variables_and_file_are_heeded(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plainpacs.toml").write_text('aet = ["FILE1", "FILE2"]\nmax-associations = 1\n')
    monkeypatch.setenv("PLAINPACS_CALLING_AE", "CT1")
    service = serve("--config", str(tmp_path / "plainpacs.toml"))
    with Peer(service.port, called="FILE2", calling="CT1") as peer:
        assert peer.echo() == 0
        for called, calling, expected in (
            ("DRDCM", "CT1", b"\1\1\7"),
            ("FILE1", "CT2", b"\1\1\3"),
            ("FILE1", "CT1", b"\2\3\2"),
        ):
            with Peer(service.port, called=called, calling=calling) as other:
                assert other.answer[1][1:4] == expected
    assert "storescu -aet CT1 -aec FILE1" in service.said
    assert service.stop() == 0


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_behind(serve: Serve, number: int) -> None:
    service = serve()
    indexer = service.indexer()
    with Peer(service.port) as peer:
        assert peer.store(data_set()) == 0
        eventually((service.root / f"202401/{STUDY}/study.json").exists)
        assert service.stop(number) == 0
        assert peer.receive()[0] == ABORT
    assert left_behind(service.root) == []
    assert not list((service.root / ".plainpacs").glob("dirty.*"))
    assert not is_alive(indexer)
    assert signal.Signals(number).name in service.said
    assert "Traceback" not in service.said
    note = json.loads(next(service.root.glob(".plainpacs/service.*.json")).read_bytes())
    assert note["pid"] == service.process.pid
    assert note["stored"] == 1
    assert note["last_stored"][0]["calling_ae"] == "TESTER"


def test_a_stop_while_four_send_keeps_all_that_was_answered(serve: Serve) -> None:
    service = serve()
    port = service.port
    answered: list[str] = []
    enough = threading.Event()

    def send(number: int) -> None:
        with Peer(port) as peer:
            for count in range(100_000):
                sop = f"{SOP}.{number}.{count}"
                try:
                    data = data_set(sop, size=50_000)
                    peer.send(message(1, command(sop=sop.encode()), data))
                    kind, body = peer.receive()
                except ConnectionError:
                    return
                if kind != DATA:
                    assert kind in (ABORT, 0)
                    return
                assert struct.pack("<HHL", 0, 0x0900, 2) + us(0) in body
                answered.append(sop)
                if len(answered) >= 40:
                    enough.set()

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, number) for number in range(4)]
        assert enough.wait(30)
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGINT)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
        for one in sent:
            one.result()
    stored = {Path(path).stem for path in instances_in(service.root)}
    assert set(answered) <= stored
    assert len(stored) <= len(answered) + 4
    assert left_behind(service.root) == []
    assert not list((service.root / ".plainpacs").glob("dirty.*"))


def test_what_was_answered_outlives_a_kill_and_the_next_start_tidies_up(serve: Serve) -> None:
    service = serve()
    service.indexer()
    with Peer(service.port) as peer:
        children = service.children()
        assert peer.store(data_set()) == 0
        # A store that is under way when it dies.
        peer.send(message(1, command(sop=b"1.2.3.9"), data_set("1.2.3.9", size=90_000))[:-10])
        service.process.kill()
        service.process.wait()
    # By themselves, as they have no parent any more.
    eventually(lambda: not any(map(is_alive, children)))
    assert len(instances_in(service.root)) == 1
    again = serve(root=service.root)
    with Peer(again.port) as peer:
        assert peer.store(data_set("1.2.3.9"), sop="1.2.3.9") == 0
    assert again.stop() == 0
    assert len(instances_in(service.root)) == 2
    assert left_behind(service.root) == []


# --- the indexer ----------------------------------------------------------------------------------


def test_an_indexer_that_dies_is_started_again(serve: Serve) -> None:
    service = serve()
    first = service.indexer()
    with Peer(service.port) as peer:
        os.kill(first, signal.SIGKILL)
        assert peer.store(data_set()) == 0, "the receiver waits for no indexer"
        eventually((service.root / f"202401/{STUDY}/study.json").exists)
    assert service.indexer() != first
    assert re.search(
        r"WARNING the indexer ended \(signal 9\); started again in 0\.\d s", service.said
    )
    assert service.stop() == 0


# --- several receivers ----------------------------------------------------------------------------


def test_several_receivers_are_one_service(serve: Serve) -> None:
    limits = "--max-associations", "4", "--max-associations-per-peer", "4"
    service = serve("--receivers", "3", *limits)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(service.port)) for _ in range(4)]
        for number, peer in enumerate(peers):
            sop = f"{SOP}.{number}"
            assert peer.store(data_set(sop), sop=sop) == 0
        beyond = stack.enter_context(Peer(service.port))
        assert tuple(beyond.answer[1][1:4]) == (2, 3, 2), "the limit is of them all together"
        assert peers[0].store(data_set(study=""), sop=SOP) == 0xC000
        [note_path] = service.root.glob(".plainpacs/service.*.json")
        note = eventually(
            lambda: (found := json.loads(note_path.read_bytes()))["stored"] == 4 and found
        )
    assert note["pid"] == service.process.pid
    assert note["port"] == service.port
    assert [one["calling_ae"] for one in note["last_stored"]] == ["TESTER"]
    assert service.said.count("try: storescu") == 1
    assert service.stop() == 0
    note = json.loads(note_path.read_bytes())
    assert (note["stored"], note["refused"]) == (4, 1)
    assert {one["status"] for one in note["last_refusals"]} >= {"C000", "2/3/2"}
    assert left_behind(service.root) == []
    assert not list((service.root / ".plainpacs").glob("dirty.*"))


def test_a_receiver_that_dies_is_started_again_and_the_others_go_on(serve: Serve) -> None:
    service = serve("--receivers", "2")
    port = service.port
    first = eventually(lambda: len(found := service.receivers()) == 2 and found)
    # Once it accepts, each has four threads.
    eventually(lambda: all(len(os.listdir(f"/proc/{pid}/task")) >= 4 for pid in first))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(port)) for _ in range(6)]
        assert all(peer.echo() == 0 for peer in peers)
        [note_path] = service.root.glob(".plainpacs/service.*.json")
        assert peers[0].store(data_set()) == 0
        eventually(lambda: json.loads(note_path.read_bytes())["stored"] == 1)
        os.kill(first[0], signal.SIGKILL)
        alive = 0
        for peer in peers:
            with contextlib.suppress(AssertionError, OSError):
                alive += peer.echo() == 0
        assert 0 < alive < 6, "each had some"
    with Peer(port) as peer:
        assert peer.store(data_set("1.9"), sop="1.9") == 0
    eventually(lambda: len(set(service.receivers()) - set(first)) == 1)
    assert re.search(r"WARNING the receiver \d ended \(signal 9\); started again", service.said)
    assert service.stop() == 0
    assert json.loads(note_path.read_bytes())["stored"] == 2, "counts outlive the process"


# --- the log --------------------------------------------------------------------------------------


def test_the_log_has_time_level_and_one_line_per_event_without_the_patient(serve: Serve) -> None:
    service = serve()
    with Peer(service.port) as peer:
        assert peer.store(data_set()) == 0
        assert peer.store(data_set(sop_class="1.2.3")) == 0xA900
        peer.release()
    with Peer(service.port, called="OTHER"):
        pass
    eventually(lambda: "association ended" in service.said)
    assert service.stop() == 0
    lines = [line for line in service.said.splitlines() if re.match(r"\d{4}-", line)]
    shape = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING) \S.*")
    assert all(shape.fullmatch(line) for line in lines), lines
    for words in ("refused contexts:", "refused: TESTER", "refused association:", "1 stored"):
        assert sum(words in line for line in lines) == 1, words
    assert "SECRET" not in service.said
    assert "Traceback" not in service.said
    assert "Warning:" not in service.said


def test_a_higher_log_level_says_less(serve: Serve) -> None:
    service = serve("--log-level", "error")
    with Peer(service.port) as peer:
        assert peer.store(data_set(study="")) == 0xC000
        peer.release()
    assert service.stop() == 0
    assert "refused" not in service.said
