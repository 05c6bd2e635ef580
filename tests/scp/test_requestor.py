"""Associations that we ask for: with our own receiver, with peers that refuse, stall and vanish."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from pynetdicom.presentation import build_context

from plainpacs.scp.network.dimse import CommandField
from plainpacs.scp.network.reader import (
    ABORT_BY_USER,
    HEADER,
    PDU,
    ConnectionLost,
    Limits,
    PeerTimeout,
)
from plainpacs.scp.network.requestor import NoAssociation, Node, Requestor
from tests.support.dimse import Element, request
from tests.support.peer import CT, EVRLE, IVRLE, RELEASE_RP, VERIFICATION, data_set, item, pdu
from tests.support.receiver import Running, Start

RELEASE_RP_PDU = pdu(RELEASE_RP)
LIMITS = Limits(pdu_timeout=1.0, idle_timeout=1.0, announced_pdu=1 << 16)
CONTEXTS = (
    build_context(VERIFICATION, IVRLE),
    build_context(CT, [EVRLE, IVRLE]),
    build_context("1.2.840.10008.5.1.4.1.2.1.9", EVRLE),
)


def store(message_id: int, sop: str) -> bytes:
    elements: dict[Element, int | str] = {
        Element.AFFECTED_SOP_CLASS_UID: CT,
        Element.PRIORITY: 0,
        Element.AFFECTED_SOP_INSTANCE_UID: sop,
    }
    return request(CommandField.C_STORE_RQ, message_id, elements, has_data_set=True)


def opened(port: int, called: str = "DRDCM") -> Requestor:
    return Requestor.open(Node(called, "127.0.0.1", port), "TESTER", CONTEXTS, limits=LIMITS)


@pytest.fixture
def running(start: Start) -> Running:
    return start()


@pytest.mark.parametrize("cut", [0, 1, 5000, 300_000])
def test_an_instance_arrives_in_whatever_pieces_it_is_sent(running: Running, cut: int):
    data = data_set(size=600_000)
    sop = "1.2.3.1.1.1"
    with opened(running.port) as association:
        assert set(association.contexts) == {1, 3}
        context = association.context_for(CT, EVRLE)
        assert context is not None
        view = memoryview(data)
        association.send_message(context.context_id, store(7, sop), [view[:cut], b"", view[cut:]])
        assert association.await_answer(7).status == 0
        assert association.send_c_echo(8).Status == 0
    (stored,) = running.root.glob("*/*/*/*.dcm")
    assert stored.read_bytes().endswith(data)


def test_a_rejection_says_which_title_is_wrong(running: Running):
    with pytest.raises(NoAssociation, match=r"association: .*called AE title.*\(1/1/7\)") as caught:
        opened(running.port, "OTHER")
    assert caught.value.step == "association"
    assert not caught.value.transient


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NoAssociation, match="connect: Connection refused") as caught:
        opened(port)
    assert caught.value.transient


@pytest.fixture
def scripted() -> Iterator[object]:
    """A listener that says what it is told to after a request, then waits for the peer to close."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def begin(*said: bytes | None) -> int:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                for words in said:
                    connection.recv(1 << 16)
                    if words is None:
                        return
                    connection.sendall(words)
                while connection.recv(1 << 16):
                    pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield begin
    listener.close()
    for thread in threads:
        thread.join()


def acceptance(*contexts: tuple[int, int, str], longest: int = 4096) -> bytes:
    application = item(0x10, b"1.2.840.10008.3.1.1.1")
    results = b"".join(
        item(0x21, bytes((number, 0, result, 0)) + item(0x40, syntax.encode()))
        for number, result, syntax in contexts
    )
    user = item(0x50, item(0x51, struct.pack(">L", longest)))
    body = bytes((0, 1, 0, 0)) + bytes(64) + application + results + user
    return HEADER.pack(PDU.ASSOCIATE_AC, len(body)) + body


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "the peer closed the connection"),
        (b"", r"within 1 s|silent for 1 s"),
        (ABORT_BY_USER, "aborted"),
        (HEADER.pack(9, 4) + bytes(4), "type 9"),
        (HEADER.pack(PDU.ASSOCIATE_RJ, 4) + bytes((0, 2, 3, 2)), r"limit.*\(2/3/2\)"),
        (HEADER.pack(PDU.ASSOCIATE_AC, 1 << 30), "bytes"),
        (HEADER.pack(PDU.ASSOCIATE_AC, 70) + bytes(68) + b"\x21\x00", "cannot be read"),
        (acceptance((1, 3, IVRLE), (3, 4, EVRLE)), "none of what was proposed"),
        (acceptance((3, 0, "1.2.840.10008.1.2.4.50")), "none of what was proposed"),
        (acceptance((77, 0, EVRLE)), "none of what was proposed"),
    ],
)
def test_whatever_answers_is_no_association_in_words(scripted, said: bytes | None, words: str):
    with pytest.raises(NoAssociation, match=words) as caught:
        opened(scripted(said))
    assert caught.value.step == "association"


def test_what_was_accepted_is_what_counts(scripted):
    port = scripted(acceptance((1, 3, IVRLE), (3, 0, IVRLE), longest=4096), RELEASE_RP_PDU)
    with opened(port) as association:
        assert list(association.contexts) == [3]
        assert association.context_for(CT, EVRLE) is None
        context = association.context_for(CT)
        assert context is not None
        assert context.transfer_syntax == IVRLE


@pytest.mark.parametrize(
    ("said", "raised"), [(None, ConnectionLost), (b"\4\0", PeerTimeout)], ids=["gone", "stalled"]
)
def test_a_peer_that_vanishes_or_stalls_is_not_waited_for(scripted, said, raised):
    port = scripted(acceptance((1, 0, IVRLE)), said)
    association = opened(port)
    with pytest.raises(raised), association:
        association.send_c_echo()


def test_a_role_is_asked_for(scripted):
    asked = item(0x54, struct.pack(">H", len(CT)) + CT.encode() + bytes((0, 1)))
    user = item(0x50, item(0x51, struct.pack(">L", 4096)) + asked)
    body = bytes((0, 1, 0, 0)) + bytes(64)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(
        0x21, bytes((3, 0, 0, 0)) + item(0x40, EVRLE.encode())
    )
    said = HEADER.pack(PDU.ASSOCIATE_AC, len(body + user)) + body + user
    node = Node("PEER", "127.0.0.1", scripted(said, RELEASE_RP_PDU))
    with Requestor.open(node, "TESTER", CONTEXTS, limits=LIMITS, sent_to_us=[CT]) as association:
        [context] = association.accepted_contexts
        assert (context.as_scu, context.as_scp) == (False, True)
