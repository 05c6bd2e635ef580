"""The receiver over real sockets, spoken to by a peer that can say anything, byte by byte."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import InUse
from plainpacs.scp.network.dimse import ProtocolError, read_command
from plainpacs.scp.receiver.receiver import Receiver
from tests.support.peer import (
    ABORT,
    ACCEPT,
    CT,
    DATA,
    EVRLE,
    HANGING_PROTOCOL,
    IVRLE,
    MR,
    REJECT,
    RELEASE_RQ,
    SERIES,
    SOP,
    STUDY,
    WORKLIST,
    Peer,
    associate_rq,
    command,
    command_element,
    context_item,
    data_set,
    item,
    message,
    pdu,
    pdv,
    us,
)
from tests.support.receiver import Start, wait_until

HOSTILE = [
    "../../x",
    "/etc/x",
    "1.2\0.3",
    "1." * 150 + "1",
    "",
    ".",
    "..",
    "study.json",
    "CON",
    "con",
    "ABC",
    "1.2.\N{LATIN SMALL LETTER E WITH ACUTE}",
    "1.2/3",
    "1.2\\3",
    "1.2\n3",
]


# --- storing --------------------------------------------------------------------------------------


def test_an_echo_is_answered(start: Start) -> None:
    with Peer(start().port) as peer:
        assert peer.echo() == 0x0000
        peer.release()


@pytest.mark.parametrize("longest", [16, 128, 1024, 16384, 1 << 20])
def test_a_stored_data_set_has_the_bytes_that_were_sent(start: Start, longest: int) -> None:
    running = start()
    data = data_set(size=2000 if longest == 16 else 30000)
    with Peer(running.port) as peer:
        assert peer.store(data, longest=longest) == 0x0000
        peer.release()
    [path] = running.instances()
    assert path.relative_to(running.root).as_posix() == f"202401/{STUDY}/{SERIES}/{SOP}.dcm"
    [line] = running.lines()
    offset = line["dataset_offset"]
    assert isinstance(offset, int)
    assert path.read_bytes()[offset:] == data
    assert (line["calling_ae"], line["called_ae"], line["peer"], line["origin"]) == (
        "TESTER",
        "DRDCM",
        "127.0.0.1",
        "c-store",
    )


def test_command_and_data_set_may_share_a_pdu_and_be_in_pieces(start: Start) -> None:
    running = start()
    data, told = data_set(), command()
    first = pdv(1, 1, told[:20]) + pdv(1, 1, b"") + pdv(1, 3, told[20:]) + pdv(1, 0, data[:9])
    with Peer(running.port) as peer:
        peer.send(pdu(DATA, first))
        peer.send(pdu(DATA, pdv(1, 0, b"") + pdv(1, 2, data[9:])))
        assert peer.status() == 0x0000
    assert len(running.instances()) == 1


def test_a_response_repeats_what_it_answers(start: Start) -> None:
    with Peer(start().port) as peer:
        peer.send(message(1, command(message_id=4711), data_set()))
        response = peer.response()
    assert response[0x0100] == us(0x8001)
    assert response[0x0120] == us(4711)
    assert response[0x0800] == us(0x0101)
    assert response[0x0002].rstrip(b"\0") == CT.encode()
    assert response[0x1000].rstrip(b"\0") == SOP.encode()
    assert 0x0902 not in response


def test_many_messages_sent_without_awaiting_answers_are_all_answered(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        sops = [f"{SOP}.{n}" for n in range(1, 101)]
        sender = threading.Thread(
            target=lambda: peer.send(
                b"".join(message(1, command(sop=s.encode()), data_set(s, size=4000)) for s in sops)
            )
        )
        sender.start()
        assert [peer.status() for _ in sops] == [0] * len(sops)
        sender.join()
    assert len(running.instances()) == len(sops)


def test_one_instance_from_eight_senders_at_once_is_one_file_and_one_line(
    start: Start,
) -> None:
    running = start()
    data = data_set(size=200_000)
    barrier = threading.Barrier(8)

    def send(number: int) -> int:
        with Peer(running.port, calling=f"AE{number}") as peer:
            barrier.wait()
            status = peer.store(data)
            peer.release()
            return status

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [0] * 8
    running.stop()
    assert len(running.instances()) == 1
    assert len(running.lines()) == 1
    assert not list((running.root / ".plainpacs/conflicts").rglob("*~*"))


def test_other_bytes_under_the_same_uid_are_both_kept_and_said(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    first, other = data_set(size=64), data_set(size=66)
    with Peer(running.port) as peer:
        assert [peer.store(d) for d in (first, other, other, first)] == [0] * 4
    running.stop()
    [kept] = running.instances()
    assert kept.read_bytes().endswith(first)
    [aside] = (running.root / ".plainpacs/conflicts").rglob(f"{SOP}~*")
    assert aside.read_bytes().endswith(other)
    warnings = [r for r in caplog.records if r.message.startswith("conflict:")]
    assert len(warnings) == 2
    assert all(r.levelno == logging.WARNING for r in warnings)
    note = json.loads(next(running.root.glob(".plainpacs/service.*.json")).read_bytes())
    assert (note["stored"], note["duplicates"], note["conflicts"], note["refused"]) == (1, 1, 2, 0)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["study", "series", "sop", "command"])
@pytest.mark.parametrize("uid", HOSTILE)
def test_hostile_uids_get_c000_and_touch_nothing(start: Start, where: str, uid: str) -> None:
    running = start()
    before = running.tree()
    outside = set(running.root.parent.rglob("*"))
    told = uid if where in ("command", "sop") else SOP
    hostile = {
        "study": data_set(study=uid),
        "series": data_set(series=uid),
        "sop": data_set(sop=uid),
        "command": data_set(),
    }
    with Peer(running.port) as peer:
        peer.send(message(1, command(sop=told.encode()), hostile[where]))
        assert peer.status() == 0xC000
        assert running.tree() == before
        assert peer.store(data_set()) == 0x0000, "the association goes on"
    assert {p.name for p in set(running.root.parent.rglob("*")) - outside} <= {
        *("202401", STUDY, SERIES, f"{SOP}.dcm"),
        *(p.name for p in running.root.glob("202401/*/*.jsonl")),
        *(p.name for p in running.root.glob(".plainpacs/pending/*")),
        *("audit", *(p.name for p in running.root.glob(".plainpacs/audit/*.jsonl"))),
    }


def cut(data: bytes, tag: tuple[int, int]) -> bytes:
    """``data`` without the element ``tag``, which has a short VR."""
    at = data.index(struct.pack("<HH", *tag))
    return data[:at] + data[at + 8 + int.from_bytes(data[at + 6 : at + 8], "little") :]


@pytest.mark.parametrize(
    ("data", "told", "expected"),
    [
        pytest.param(None, {}, 0xC000, id="no data set"),
        pytest.param(b"", {}, 0xC000, id="empty data set"),
        pytest.param(b"\0" * 3, {}, 0xC000, id="three bytes"),
        pytest.param(b"\xff" * 5000, {}, 0xC000, id="garbage"),
        pytest.param(data_set()[:40], {}, 0xC000, id="cut short in the header"),
        pytest.param(cut(data_set(), (0x0020, 0x000D)), {}, 0xC000, id="no StudyInstanceUID"),
        pytest.param(cut(data_set(), (0x0020, 0x000E)), {}, 0xC000, id="no SeriesInstanceUID"),
        pytest.param(cut(data_set(), (0x0008, 0x0018)), {}, 0xC000, id="no SOPInstanceUID"),
        pytest.param(data_set(), {"sop": None}, 0xC000, id="command without instance"),
        pytest.param(data_set(), {"sop_class": None}, 0xC000, id="command without class"),
        pytest.param(data_set(), {"sop_class": b"\xff\xfe"}, 0xC000, id="class of garbage"),
        pytest.param(data_set(), {"sop": b"1.2.3.9"}, 0xA900, id="another instance"),
        pytest.param(data_set(sop_class=MR), {}, 0xA900, id="another class"),
        pytest.param(data_set(), {"sop_class": WORKLIST.encode()}, 0x0122, id="class of a query"),
        pytest.param(
            data_set(sop_class=HANGING_PROTOCOL),
            {"sop_class": HANGING_PROTOCOL.encode()},
            0x0122,
            id="hanging protocol on a CT's context",
        ),
    ],
)
def test_a_bad_store_gets_its_answer_and_leaves_nothing(
    start: Start,
    caplog: pytest.LogCaptureFixture,
    data: bytes | None,
    told: dict[str, bytes | None],
    expected: int,
) -> None:
    running = start()
    before = running.tree()
    with Peer(running.port) as peer:
        peer.send(message(1, command(data=data is not None, **told), data))  # type: ignore[arg-type]  # the arguments of ``command``
        response = peer.response()
        assert int.from_bytes(response[0x0900], "little") == expected
        assert 0 < len(response[0x0902]) <= 64
        assert b"SECRET" not in b"".join(response.values())
        assert running.tree() == before
        assert peer.echo() == 0x0000, "the association goes on"
    [refusal] = [r.message for r in caplog.records if r.message.startswith("refused:")]
    assert f"{expected:04X}" in refusal
    assert "TESTER at 127.0.0.1 to DRDCM" in refusal
    assert "flag" in refusal


def test_a_sop_class_refused_by_configuration_gets_0122(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(refuse_sop_class=(CT,))
    with Peer(running.port) as peer:
        assert peer.results()[1][0] == 0, "it is negotiated all the same"
        assert peer.store(data_set()) == 0x0122
        mr = data_set(sop_class=MR)
        assert peer.store(mr, context_id=7, sop_class=MR) == 0x0000
    assert "--refuse-sop-class" in caplog.text
    assert len(running.instances()) == 1


def test_a_specialised_class_may_come_on_the_context_of_its_general_one(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        mr = data_set(sop_class=MR)
        assert peer.store(mr, context_id=1, sop_class=MR) == 0x0000


@pytest.mark.parametrize("code", [0x20, 0x21, 0x10, 0x100, 0x120, 0x4242])
def test_other_operations_are_unrecognized(start: Start, code: int) -> None:
    with Peer(start().port) as peer:
        peer.send(message(1, command(code), data_set()))
        response = peer.response()
        assert response[0x0900] == us(0x0211)
        assert response[0x0100] == us(code | 0x8000)
        assert peer.echo() == 0x0000


@pytest.mark.parametrize("code", [0x8001, 0x8030, 0x0FFF])
def test_responses_and_cancels_are_not_answered(start: Start, code: int) -> None:
    with Peer(start().port) as peer:
        told = command(code, data=False, message_id=None) + command_element(0x0120, us(1))
        peer.send(message(1, told, None))
        assert peer.echo() == 0x0000


def test_a_root_that_went_away_gets_a700_and_is_found_when_it_is_back(start: Start) -> None:
    running = start()
    away = running.root.with_name("away")
    running.root.rename(away)
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0xA700
        assert not running.root.exists()
        away.rename(running.root)
        assert peer.store(data_set()) == 0x0000


def test_nothing_of_the_patient_is_logged_or_noted(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running = start()
    with Peer(running.port) as peer:
        peer.store(data_set())
        peer.store(data_set(size=66))
        peer.store(data_set(study="../x"))
        peer.store(data_set(sop_class=MR))
        peer.release()
    running.stop()
    assert "refused: TESTER" in caplog.text
    assert "SECRET" not in caplog.text
    assert b"SECRET" not in next(running.root.glob(".plainpacs/service.*.json")).read_bytes()


# --- associations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        ({}, {}, None),
        ({}, {"called": "drdcm"}, (1, 1, 7)),
        ({}, {"called": "OTHER"}, (1, 1, 7)),
        ({}, {"called": "ANY-SCP"}, None),
        ({"called_ae": "any"}, {"called": "OTHER"}, None),
        ({"aet": ("A", "B")}, {"called": "B"}, None),
        ({"aet": ("A", "B")}, {"called": "DRDCM"}, (1, 1, 7)),
        ({"calling_ae": ("CT1", "CT2")}, {"calling": "CT2"}, None),
        ({"calling_ae": ("CT1", "CT2")}, {"calling": "CT3"}, (1, 1, 3)),
        ({}, {"application": "1.2.840.10008.3.1.1.2"}, (1, 1, 2)),
        ({}, {"application": "1.2.840.10008.3.1.1.1\0"}, None),
    ],
)
def test_who_may_associate(
    start: Start,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, object],
    changes: dict[str, str],
    expected: tuple[int, int, int] | None,
) -> None:
    running = start(**settings)
    with Peer(running.port, None, **changes) as peer:
        kind, body = peer.answer
        if expected is None:
            assert kind == ACCEPT
            return
        assert kind == REJECT
        assert tuple(body[1:4]) == expected
        wait_until(lambda: "refused association" in caplog.text)
    [line] = [r.message for r in caplog.records if r.message.startswith("refused association")]
    code = "/".join(map(str, expected))
    assert code in line
    assert changes.get("called", "DRDCM") in line
    assert changes.get("calling", "TESTER") in line
    assert "flag" in line
    assert ("--" in line) == (expected != (1, 1, 2))
    running.stop()
    note = json.loads(next(running.root.glob(".plainpacs/service.*.json")).read_bytes())
    assert note["last_refusals"][0]["status"] == code
    assert note["last_refusals"][0]["peer"] == "127.0.0.1"


def test_beyond_the_limit_associations_are_rejected_until_one_ends(start: Start) -> None:
    running = start(max_associations=2, max_associations_per_peer=2)
    first, second = Peer(running.port), Peer(running.port)
    with Peer(running.port) as third:
        assert third.answer[0] == REJECT
        assert tuple(third.answer[1][1:4]) == (2, 3, 2)
    first.release()
    with contextlib.ExitStack() as stack:

        def accepted() -> bool:
            return stack.enter_context(Peer(running.port)).answer[0] == ACCEPT

        wait_until(accepted)
    assert second.echo() == 0
    second.release()


def test_each_context_is_judged_by_itself(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with Peer(start().port) as peer:
        assert peer.results() == {1: (0, EVRLE), 3: (0, IVRLE), 5: (3, IVRLE), 7: (0, EVRLE)}
    assert "Modality Worklist Information Model - FIND" in caplog.text


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        pytest.param(b"", {}, id="none"),
        pytest.param(context_item(1, CT, []), {1: 4}, id="no transfer syntax"),
        pytest.param(context_item(1, None, [EVRLE]), {1: 3}, id="no abstract syntax"),
        pytest.param(
            context_item(1, CT, [EVRLE]) + context_item(1, WORKLIST, [IVRLE]), {1: 0}, id="id twice"
        ),
        pytest.param(
            b"".join(context_item(n % 256 | 1, CT, [EVRLE]) for n in range(0, 600, 2)),
            dict.fromkeys(range(1, 256, 2), 0),
            id="three hundred",
        ),
        pytest.param(context_item(1, CT + "\0", [EVRLE + "\0"]), {1: 0}, id="padded"),
    ],
)
def test_strange_proposals_are_answered(
    start: Start, contexts: bytes, expected: dict[int, int]
) -> None:
    running = start()
    with Peer(running.port, associate_rq(contexts)) as peer:
        assert {n: result for n, (result, _) in peer.results().items()} == expected
    with Peer(running.port) as peer:
        assert peer.echo() == 0


def test_roles_and_declared_services_are_heeded(start: Start) -> None:
    unknown = "1.2.840.10008.5.1.4.999"
    role = struct.pack(">H", len(CT)) + CT.encode() + b"\1\1"
    service = b"1.2.840.10008.4.2"
    declared = struct.pack(">H", len(unknown)) + unknown.encode()
    declared += struct.pack(">H", len(service)) + service + struct.pack(">H", 0)
    user = item(0x51, struct.pack(">L", 0)) + item(0x52, b"1.2.3.4") + item(0x54, role)
    contexts = context_item(1, CT, [EVRLE]) + context_item(3, unknown, [EVRLE])
    running = start()
    with Peer(running.port, associate_rq(contexts, user=user + item(0x57, declared))) as peer:
        assert peer.results() == {1: (0, EVRLE), 3: (0, EVRLE)}
        assert struct.pack(">H", len(CT)) + CT.encode() + b"\1\0" in peer.answer[1]
        assert peer.store(data_set()) == 0
    with Peer(running.port, associate_rq(contexts)) as peer:
        assert peer.results() == {1: (0, EVRLE), 3: (3, EVRLE)}


GARBAGE = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00" + b"\x01" * 512,
    "a huge length": struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"\0" * 100,
    "data before association": pdu(DATA, pdv(1, 3, command())),
    "release before association": pdu(RELEASE_RQ),
    "abort": pdu(ABORT),
    "an accept": pdu(ACCEPT, bytes(80)),
    "an association of nothing": pdu(1, b""),
    "items that overrun": pdu(1, bytes(68) + b"\x20\0\xff\xff\0"),
    "protocol version 2": associate_rq(b"", version=2),
    "an even context id": associate_rq(context_item(2, CT, [EVRLE])),
    "context id 0": associate_rq(context_item(0, CT, [EVRLE])),
    "an abstract syntax too long": associate_rq(context_item(1, "1." * 60, [EVRLE])),
    "AE titles of spaces": associate_rq(b"", called=" ", calling=" "),
    "half an association": associate_rq(context_item(1, CT, [EVRLE]))[:60],
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_ends_its_own_connection_only(start: Start, name: str) -> None:
    running = start()
    with Peer(running.port) as other, Peer(running.port, b"") as peer:
        peer.send(GARBAGE[name])
        peer.socket.shutdown(socket.SHUT_WR)
        while peer.receive()[0]:
            pass
        assert other.echo() == 0
        assert other.store(data_set()) == 0


BREACHES = {
    "a context that was refused": message(5, command(0x20, WORKLIST.encode()), data_set()),
    "a context never proposed": message(99, command(), data_set()),
    "a data set without command": pdu(DATA, pdv(1, 2, data_set())),
    "a data set on another context": pdu(DATA, pdv(1, 3, command()) + pdv(7, 2, data_set())),
    "two commands for one data set": pdu(DATA, pdv(1, 3, command()) * 2),
    "a command without id": message(1, command(message_id=None), data_set()),
    "a command of garbage": pdu(DATA, pdv(1, 3, b"\xff" * 77)),
    "an endless command": pdu(DATA, pdv(1, 1, bytes(60000))) * 2,
    "a value longer than its PDU": pdu(DATA, struct.pack(">LBB", 5000, 1, 3) + b"x"),
    "a value without header": pdu(DATA, struct.pack(">LB", 1, 1)),
    "half a value": pdu(DATA, b"\0\0"),
    "a PDU longer than announced": struct.pack(">BBL", DATA, 0, 1 << 30),
    "an unknown PDU": pdu(9, bytes(20)),
    "a second association": associate_rq(context_item(1, CT, [EVRLE])),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_protocol_is_aborted_and_said(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    running = start()
    before = running.tree()
    with Peer(running.port) as other, Peer(running.port) as peer:
        peer.send(BREACHES[name])
        assert peer.receive()[0] == ABORT
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.receive() == (0, b"")
        assert other.echo() == 0
        assert running.tree() == before
        wait_until(lambda: "association ended" in caplog.text)
    ends = [r.message for r in caplog.records if r.message.startswith("association ended")]
    assert "aborted by us" in ends[0]


@given(st.binary(max_size=120))
def test_no_bytes_break_the_reading_of_commands(encoded: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read_command(command() + encoded)
    with contextlib.suppress(ProtocolError):
        read_command(encoded)


def test_connections_far_beyond_the_limit_are_closed_unheard(start: Start) -> None:
    running = start(max_associations=1)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(running.port, b"")) for _ in range(80)]
        assert peers[-1].receive() == (0, b"")
        for peer in peers:
            peer.socket.close()

        def served() -> bool:
            return stack.enter_context(Peer(running.port)).answer[0] == ACCEPT

        wait_until(served)


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [associate_rq(b"")[:30], b"\1"])
def test_a_peer_that_stalls_in_its_request_is_cut_off(start: Start, sent: bytes) -> None:
    with Peer(start(pdu_timeout=0.3).port, b"") as peer:
        peer.send(sent)
        while peer.receive()[0]:
            pass


def test_a_peer_that_stalls_within_a_pdu_is_aborted(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running = start(pdu_timeout=0.3)
    with Peer(running.port) as peer:
        peer.send(message(1, command(), data_set(size=5000))[:-100])
        assert peer.receive()[0] == ABORT
        wait_until(lambda: "--pdu-timeout" in caplog.text)
    assert not running.instances()


def test_a_silent_peer_is_aborted(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Peer(start(idle_timeout=0.3).port) as peer:
        assert peer.receive()[0] == ABORT
        wait_until(lambda: "--idle-timeout" in caplog.text)


def test_an_answer_does_not_wait_for_a_clock(start: Start) -> None:
    with Peer(start().port) as peer:
        times = []
        for _ in range(50):
            began = time.perf_counter()
            peer.echo()
            times.append(time.perf_counter() - began)
    assert sorted(times)[25] < 0.01


def test_an_idle_association_costs_nothing(start: Start) -> None:
    running = start()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(running.port)) for _ in range(20)]
        before = time.process_time()
        peers[0].socket.settimeout(1.0)
        with pytest.raises(TimeoutError):
            peers[0].socket.recv(1)
        assert time.process_time() - before < 0.2


# --- the end --------------------------------------------------------------------------------------


def test_what_was_answered_before_a_stop_is_there_and_nothing_else_is_left(start: Start) -> None:
    running = start()
    answered: list[str] = []
    enough = threading.Event()

    def send(number: int) -> None:
        with Peer(running.port) as peer:
            for count in range(100_000):
                sop = f"{SOP}.{number}.{count}"
                data = data_set(sop, size=20_000)
                try:
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
        assert enough.wait(20)
        began = time.monotonic()
        running.stop()
        assert time.monotonic() - began < 5
        for one in sent:
            one.result()
    stored = {path.stem for path in running.instances()}
    assert set(answered) <= stored
    assert len(stored) <= len(answered) + 4
    assert not any((running.root / ".plainpacs/incoming").iterdir())
    assert not list((running.root / ".plainpacs").glob("dirty.*"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=5)


def test_a_stop_does_not_wait_for_peers_that_say_nothing(start: Start) -> None:
    running = start()
    with Peer(running.port), Peer(running.port, b""), Peer(running.port, b"") as half:
        half.send(associate_rq(b"")[:20])
        wait_until(lambda: sum("association" in t.name for t in threading.enumerate()) == 3)
        began = time.monotonic()
        running.stop()
        assert time.monotonic() - began < 5


def test_an_association_that_ended_is_one_line(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running = start()
    with Peer(running.port) as peer:
        for data in (data_set(), data_set(), data_set(size=66), data_set(study="")):
            peer.store(data)
        peer.release()
    running.stop()
    [line] = [r.message for r in caplog.records if r.message.startswith("association ended")]
    assert "TESTER at 127.0.0.1 to DRDCM: released; " in line
    assert "1 stored, 1 duplicates, 1 conflicts, 1 refused" in line


def test_a_port_in_use_is_said(start: Start) -> None:
    running = start()
    with pytest.raises(InUse, match=r"in use.*--port"):
        Receiver(Settings(port=running.port, bind="127.0.0.1"))


@pytest.mark.parametrize("bind", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_here_is_said(bind: str) -> None:
    with pytest.raises(InUse, match="--bind"):
        Receiver(Settings(port=0, bind=bind))


def test_more_descriptors_than_select_can_take(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1100:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        running = start()
        with Peer(running.port) as peer:
            assert peer.store(data_set()) == 0
        running.stop()
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
