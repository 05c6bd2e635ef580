"""Associations over real sockets: large instances, aborts, time, numbers, and stock pynetdicom."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import build_context

from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.scp.network import reader
from tests.support.peer import (
    ABORT,
    ACCEPT,
    CT,
    DATA,
    EVRLE,
    IVRLE,
    MR,
    RELEASE_RP,
    RELEASE_RQ,
    SOP,
    VERIFICATION,
    WORKLIST,
    Peer,
    associate_rq,
    command,
    context_item,
    data_set,
    message,
    pdu,
    pdv,
)
from tests.support.receiver import Running, Start, wait_until

LARGE = reader.MOST_GATHERED + (3 << 20)


def kept(running: Running) -> dict[str, bytes]:
    """The data set of each instance in the tree, by its SOP Instance UID."""
    found = {}
    for path in running.instances():
        content = path.read_bytes()
        found[path.stem] = content[read_part10(content[: 1 << 20]).dataset_offset :]
    return found


def unfinished(running: Running) -> list[str]:
    return [
        path.name for path in (running.root / ".plainpacs/incoming").rglob("*") if path.is_file()
    ]


# --- every service through one path ---------------------------------------------------------------


def test_services_and_contexts_may_alternate(start: Start) -> None:
    running = start()
    with Peer(running.port) as peer:
        for number in range(5):
            sop = f"1.2.{number}"
            assert peer.store(data_set(sop), sop=sop) == 0
            assert peer.echo() == 0
            mr = data_set(f"{sop}.1", sop_class=MR)
            assert peer.store(mr, context_id=7, sop_class=MR, sop=f"{sop}.1") == 0
            assert peer.store(data_set(study=""), sop=sop) == 0xC000
        peer.release()
    assert len(running.instances()) == 10


def test_a_peer_may_send_byte_by_byte(start: Start) -> None:
    running = start()
    contexts = context_item(1, CT, [EVRLE]) + context_item(3, VERIFICATION, [IVRLE])
    data = data_set()
    with Peer(running.port, b"") as peer:
        for stream, answer in (
            (associate_rq(contexts), ACCEPT),
            (message(1, command(), data, longest=150), DATA),
            (message(3, command(0x30, VERIFICATION.encode(), None, data=False), None), DATA),
            (pdu(RELEASE_RQ), RELEASE_RP),
        ):
            for byte in stream:
                peer.send(bytes((byte,)))
            assert peer.receive()[0] == answer
    assert kept(running) == {SOP: data}


@pytest.mark.parametrize("end", [pdu(ABORT), pdu(RELEASE_RQ), b""])
@pytest.mark.parametrize("size", [100_000, LARGE])
def test_an_association_that_ends_within_an_object_leaves_nothing(
    start: Start, end: bytes, size: int
) -> None:
    running = start()
    before = running.tree()
    with Peer(running.port) as peer:
        # Whole PDUs, of which the last fragment is not sent.
        pieces = message(1, command(), data_set(size=size), 1 << 16)
        cut = pieces.rindex(struct.pack(">BB", DATA, 0), 0, len(pieces) - 10)
        peer.send(pieces[:cut] + end)
        if end == pdu(RELEASE_RQ):
            assert peer.receive()[0] == RELEASE_RP
    wait_until(lambda: not any("association" in thread.name for thread in threading.enumerate()))
    assert unfinished(running) == ["lock"]
    assert running.tree() == before


# --- what does not fit in memory ------------------------------------------------------------------


def test_a_large_instance_is_stored_again_and_kept_aside_like_any(start: Start) -> None:
    running = start()
    data, other = data_set(size=LARGE), data_set(size=LARGE + 2)
    with Peer(running.port) as peer:
        assert peer.store(data, longest=1 << 17) == 0
        assert peer.store(data, longest=16384) == 0
        assert peer.store(other, longest=1 << 20) == 0
        assert peer.echo() == 0
        assert unfinished(running) == ["lock"]
    running.stop()
    assert kept(running) == {SOP: data}
    [aside] = (running.root / ".plainpacs/conflicts").rglob(f"{SOP}~*")
    assert aside.read_bytes().endswith(other)
    assert len(running.lines()) == 1


@pytest.mark.parametrize(
    ("told", "data", "expected"),
    [
        ({"sop_class": WORKLIST.encode()}, {}, 0x0122),
        ({"sop": b"../x"}, {}, 0xC000),
        ({"sop": b"1.2.3.9"}, {}, 0xA900),
        ({}, {"study": ""}, 0xC000),
        ({"code": 0x20}, {}, 0x0211),
    ],
)
def test_a_large_instance_that_is_refused_is_taken_and_answered(
    start: Start, told: dict[str, bytes | int], data: dict[str, str], expected: int
) -> None:
    running = start()
    before = running.tree()
    with Peer(running.port) as peer:
        peer.send(message(1, command(**told), data_set(size=LARGE, **data)))  # type: ignore[arg-type]  # the arguments of both
        assert peer.status() == expected
        assert peer.echo() == 0
        assert running.tree() == before


# --- aborts ---------------------------------------------------------------------------------------

UNRECOGNIZED, UNEXPECTED, INVALID = (2, 1), (2, 2), (2, 6)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (pdu(9, bytes(20)), UNRECOGNIZED),
        (pdu(0), UNRECOGNIZED),
        (associate_rq(b""), UNEXPECTED),
        (pdu(ACCEPT, bytes(80)), UNEXPECTED),
        (pdu(RELEASE_RP), UNEXPECTED),
        (pdu(RELEASE_RQ, bytes(5)), INVALID),
        (struct.pack(">BBL", DATA, 0, (1 << 20) + 100), INVALID),
        (pdu(DATA, struct.pack(">LBB", 5000, 1, 3)), INVALID),
        (message(99, command(data=False), None), INVALID),
    ],
)
def test_an_abort_says_who_and_why(
    start: Start, sent: bytes, expected: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Peer(start().port) as peer:
        peer.send(sent)
        kind, body = peer.receive()
        assert kind == ABORT
        assert tuple(body[2:4]) == expected
        wait_until(lambda: "association ended" in caplog.text)
    assert caplog.text.count("aborted by us") == 1


def test_before_an_association_an_abort_is_the_users(start: Start) -> None:
    with Peer(start().port, pdu(DATA, bytes(20))) as peer:
        assert peer.answer == (ABORT, bytes(4))


def test_another_protocol_version_is_rejected_as_such(start: Start) -> None:
    with Peer(start().port, associate_rq(b"", version=2)) as peer:
        assert peer.answer == (3, bytes((0, 1, 2, 2)))


# --- time -----------------------------------------------------------------------------------------

STORE = message(1, command(), data_set(size=3000))


@pytest.mark.parametrize(
    ("established", "stream"),
    [
        pytest.param(False, associate_rq(context_item(1, CT, [EVRLE]))[:5], id="header"),
        pytest.param(False, associate_rq(context_item(1, CT, [EVRLE])), id="request"),
        pytest.param(True, STORE[:6], id="PDU header"),
        pytest.param(True, STORE[:12], id="value header"),
        pytest.param(True, STORE[:60], id="command"),
        pytest.param(True, STORE[-3010:], id="data set"),
        pytest.param(True, pdu(RELEASE_RQ), id="release"),
    ],
)
def test_a_peer_that_trickles_is_cut_off_in_time(
    start: Start, established: bool, stream: bytes
) -> None:
    """Each byte comes well before any limit on silence; only the PDU as a whole is late."""
    running = start(pdu_timeout=0.4)
    with Peer(running.port, None if established else b"") as peer:
        if stream is STORE[-3010:]:
            peer.send(STORE[:-3010])
        began = time.monotonic()
        over = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                for byte in stream[:-1]:
                    peer.send(bytes((byte,)))
                    if over.wait(0.15):
                        return

        sender = threading.Thread(target=trickle)
        sender.start()
        kind, _ = peer.receive()
        elapsed = time.monotonic() - began
        over.set()
        sender.join()
        assert kind == (ABORT if established else 0)
        assert 0.3 < elapsed < 3
        # After the abort it waits for us to close, but not for ever.
        assert peer.receive() == (0, b"")
        assert time.monotonic() - began < 5
    with Peer(running.port) as peer:
        assert peer.echo() == 0


def test_a_peer_that_never_closes_is_closed(start: Start) -> None:
    running = start(pdu_timeout=0.3)
    for last, answer in ((pdu(RELEASE_RQ), RELEASE_RP), (pdu(9), ABORT)):
        with Peer(running.port) as peer:
            peer.send(last)
            assert peer.receive()[0] == answer
            assert peer.receive() == (0, b"")
    with Peer(running.port, called="OTHER") as peer:
        assert peer.answer[0] == 3
        assert peer.receive() == (0, b"")


def flood(peer: Peer) -> None:
    """Asks and takes no answer, until no more can be sent. Raises OSError."""
    echo = message(3, command(0x30, VERIFICATION.encode(), None, data=False), None)
    while True:
        peer.send(echo * 1000)


def test_a_peer_that_takes_no_answers_is_cut_off(start: Start) -> None:
    running = start(pdu_timeout=0.3, send_buffer=4096)
    with Peer(running.port, receive_buffer=4096) as peer:
        with pytest.raises(ConnectionError):
            flood(peer)
        wait_until(
            lambda: not any("association" in thread.name for thread in threading.enumerate())
        )


def test_a_stop_waits_for_nobody_that_takes_no_answers(start: Start) -> None:
    running = start(send_buffer=4096)
    with Peer(running.port, receive_buffer=4096) as peer:
        peer.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            flood(peer)
        began = time.monotonic()
        running.stop()
        assert time.monotonic() - began < 5


# --- numbers --------------------------------------------------------------------------------------


def test_two_hundred_senders_at_once_are_all_served(start: Start) -> None:
    running = start(max_associations=200, max_associations_per_peer=200)
    barrier = threading.Barrier(200)
    sizes = {f"1.2.9.{n}": 1000 + 2 * n for n in range(200)}

    def send(sop: str) -> int:
        barrier.wait()
        with Peer(running.port) as peer:
            status = peer.store(data_set(sop, size=sizes[sop]), sop=sop)
            peer.release()
            return status

    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(send, sizes)) == [0] * 200
    assert kept(running) == {sop: data_set(sop, size=size) for sop, size in sizes.items()}


def test_nothing_grows_with_associations_and_stores(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The long runs are 100,000 stores and 20,000 associations; these show what grows with each."""
    caplog.set_level("CRITICAL", "plainpacs.scp")  # what pytest keeps of the log grows
    running = start()

    def associate() -> None:
        with Peer(running.port) as peer:
            assert peer.store(data_set(size=200_000)) == 0
            peer.release()

    def store_many() -> None:
        with Peer(running.port) as peer:
            for _ in range(400):
                assert peer.store(data_set(size=200_000)) == 0

    for work, times in ((associate, 150), (store_many, 1)):
        work()
        before = usage()
        for _ in range(times):
            work()
        wait_until(
            lambda: not any("association" in thread.name for thread in threading.enumerate())
        )
        objects, files, resident = usage()
        assert objects - before[0] < 1000
        assert files <= before[1] + 2
        assert resident - before[2] < 8 << 20


def usage() -> tuple[int, int, int]:
    """Objects, open files and bytes of memory."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), resident


def test_it_listens_on_both_kinds_of_address(start: Start) -> None:
    running = start(bind="")
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0
    assert running.lines()[0]["peer"] == "127.0.0.1"
    try:
        connection = socket.create_connection(("::1", running.port), timeout=5)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with connection:
        connection.sendall(associate_rq(context_item(1, CT, [EVRLE])))
        assert connection.recv(1) == bytes((ACCEPT,))


# --- the same as stock pynetdicom -----------------------------------------------------------------

DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
SYNTAXES = {1: EVRLE, 5: IVRLE, 7: DEFLATED, 9: JPEG}
REQUEST = associate_rq(
    b"".join(context_item(number, CT, [uid]) for number, uid in SYNTAXES.items())
    + context_item(3, VERIFICATION, [IVRLE])
)


def implicit(sop: str) -> bytes:
    def element(group: int, number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", group, number, len(value)) + value

    return b"".join(
        (
            element(8, 0x16, CT.encode()),
            element(8, 0x18, sop.encode()),
            element(0x20, 0x0D, b"1.2.3.1"),
            element(0x20, 0x0E, b"1.2.3.1.1"),
            element(0x7FE0, 0x10, bytes(range(256)) * 300),
        )
    )


def deflated(sop: str) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    raw = compressor.compress(data_set(sop, size=90_000)) + compressor.flush()
    return raw + b"\0" * (len(raw) % 2)


def compressed(sop: str) -> bytes:
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 50_000)
    items += b"\xff\xd8" + bytes(49_996) + b"\xff\xd9" + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    head = data_set(sop, size=0)[:-12]
    return head + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items


def streams() -> Iterator[tuple[int, bytes, bytes]]:
    """Context id, data set and the PDUs of its C-STORE, in every shape that senders give them."""
    kinds: dict[int, Callable[[str], bytes]] = {
        1: lambda sop: data_set(sop, size=70_000),
        5: implicit,
        7: deflated,
        9: compressed,
    }
    shapes: list[Callable[[int, bytes, bytes], bytes]] = [
        lambda context, told, data: message(context, told, data, 16384),
        lambda context, told, data: message(context, told, data, 1000),
        lambda context, told, data: pdu(DATA, pdv(context, 3, told) + pdv(context, 2, data)),
        lambda context, told, data: (
            pdu(DATA, pdv(context, 1, told[:11]))
            + pdu(DATA, pdv(context, 3, told[11:]) + pdv(context, 0, data[:1]))
            + pdu(DATA, pdv(context, 0, data[1:501]) + pdv(context, 0, data[501:504]))
            + pdu(DATA, pdv(context, 2, data[504:]))
        ),
    ]
    for context, kind in kinds.items():
        for number, shape in enumerate(shapes):
            sop = f"1.2.3.{context}.{number}"
            data = kind(sop)
            yield context, data, shape(context, command(sop=sop.encode()), data)


def answers(port: int, *, in_pieces: bool) -> list[tuple[int, int]]:
    """Message id and status of each answer to the streams, with echoes between them."""
    echo = message(3, command(0x30, VERIFICATION.encode(), None, data=False), None)
    found = []
    with Peer(port, REQUEST) as peer:
        assert {result for result, _ in peer.results().values()} == {0}
        for _, _, stream in streams():
            for sent in (stream, echo):
                step = 777 if in_pieces else len(sent)
                for at in range(0, len(sent), step):
                    peer.send(sent[at : at + step])
                got = peer.response()
                found.append((got[0x0120][0], int.from_bytes(got[0x0900], "little")))
        peer.release()
    return found


@pytest.mark.filterwarnings("ignore:::pynetdicom", "ignore:::pydicom")
def test_the_same_bytes_give_the_same_as_stock_pynetdicom(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    theirs: dict[str, bytes] = {}

    def keep(event: evt.Event) -> int:
        request = event.request
        theirs[str(request.AffectedSOPInstanceUID)] = request.DataSet.getvalue()
        return 0

    ae = AE("DRDCM")
    ae.maximum_pdu_size = 0
    ae.supported_contexts = [
        build_context(CT, list(SYNTAXES.values())),
        build_context(VERIFICATION, IVRLE),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    assert server is not None
    try:
        expected = answers(server.server_address[1], in_pieces=False)
    finally:
        server.shutdown()
    running = start()
    assert answers(running.port, in_pieces=False) == expected
    assert kept(running) == theirs
    again = start()
    assert answers(again.port, in_pieces=True) == expected
    assert kept(again) == theirs
    assert len(theirs) == 16


# --- anything at all ------------------------------------------------------------------------------

ECHO = message(3, command(0x30, VERIFICATION.encode(), None, data=False), None)
PDUS = [
    associate_rq(b"".join(context_item(n, CT, [uid]) for n, uid in SYNTAXES.items())),
    pdu(DATA, pdv(1, 3, command())),
    pdu(DATA, pdv(1, 0, data_set()[:50])),
    pdu(DATA, pdv(1, 2, data_set()[50:])),
    ECHO,
    message(1, command(sop=b"1.9"), data_set("1.9")),
    pdu(RELEASE_RQ),
]


@st.composite
def broken_streams(draw: st.DrawFn) -> bytes:
    """A valid association, its PDUs reordered, left out or repeated, bytes changed, and cut."""
    pdus = list(PDUS)
    for _ in range(draw(st.integers(0, 3))):
        one, other = draw(st.integers(0, len(pdus) - 1)), draw(st.integers(0, len(pdus) - 1))
        what = draw(st.sampled_from(("swap", "repeat", "drop")))
        if what == "swap":
            pdus[one], pdus[other] = pdus[other], pdus[one]
        elif what == "repeat":
            pdus.insert(one, pdus[other])
        elif len(pdus) > 1:
            del pdus[one]
    stream = bytearray(b"".join(pdus))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(stream) - 1))
        stream[at] = draw(st.integers(0, 255))
    return bytes(stream[: draw(st.integers(0, len(stream)))])


def test_after_any_stream_the_next_is_served(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(pdu_timeout=0.2, idle_timeout=0.2)
    numbers = iter(range(100_000))

    @settings(
        max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(broken_streams(), st.integers(0, 9))
    def check(stream: bytes, manner: int) -> None:
        with Peer(running.port, b"") as peer:
            with contextlib.suppress(OSError):
                peer.send(stream)
                if manner:  # else it stalls until it is cut off
                    peer.socket.shutdown(socket.SHUT_WR)
            while peer.receive()[0]:
                pass
        sop = f"1.2.77.{next(numbers)}"
        data = data_set(sop)
        with Peer(running.port) as peer:
            assert peer.echo() == 0
            assert peer.store(data, sop=sop) == 0
            peer.release()
        assert (
            Path(running.root, f"202401/1.2.3.1/1.2.3.1.1/{sop}.dcm").read_bytes()[-64:]
            == (data[-64:])
        )

    check()
    assert "defect" not in caplog.text
    assert unfinished(running) == ["lock"]
