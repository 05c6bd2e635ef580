"""C-MOVE and C-GET: what is meant, how it is counted, and peers of every kind."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pydicom
import pytest

from tests.scp.test_tls import Certificates, certificates
from tests.support.peer import (
    CT,
    EVRLE,
    IVRLE,
    MR,
    Peer,
    associate_rq,
    command_element,
    context_item,
    data_set,
    element,
    item,
    message,
    pdu,
    us,
)
from tests.support.receiver import Running, Start, wait_until

__all__ = ["certificates"]  # the fixture

PATIENT_MOVE, PATIENT_GET = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_MOVE, STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
JPEG = "1.2.840.10008.1.2.4.50"


# --- a peer that asks -----------------------------------------------------------------------------


def role(uid: str, scu: int, scp: int) -> bytes:
    return item(0x54, len(uid).to_bytes(2, "big") + uid.encode() + bytes((scu, scp)))


def asking(
    port: int, contexts: list[tuple[int, str, list[str]]], *roles: bytes, calling: str = "VIEWER"
) -> Peer:
    user = item(0x51, (16384).to_bytes(4, "big")) + item(0x52, b"1.2.3.4") + b"".join(roles)
    proposed = b"".join(context_item(*context) for context in contexts)
    return Peer(port, associate_rq(proposed, calling=calling, user=user))


def mover(port: int, model: str = STUDY_MOVE) -> Peer:
    return asking(port, [(1, model, [EVRLE])])


def getter(port: int, syntaxes: list[str] | None = None) -> Peer:
    contexts = [(1, STUDY_GET, [EVRLE]), (3, CT, syntaxes or [IVRLE, EVRLE])]
    return asking(port, contexts, role(CT, 0, 1))


def keys(level: str, **more: str) -> bytes:
    numbers = {
        "PatientID": (0x0010, 0x0020, b"LO"),
        "StudyInstanceUID": (0x0020, 0x000D, b"UI"),
        "SeriesInstanceUID": (0x0020, 0x000E, b"UI"),
        "SOPInstanceUID": (0x0008, 0x0018, b"UI"),
    }
    found = [(0x0008, 0x0052, element(0x0008, 0x0052, b"CS", level.encode(), b" "))]
    for keyword, value in more.items():
        group, number, vr = numbers[keyword]
        found.append((group, number, element(group, number, vr, value.encode())))
    return b"".join(encoded for _, _, encoded in sorted(found))


def request(code: int, model: str, destination: str = "", message_id: int = 7) -> bytes:
    body = command_element(0x0002, model.encode() + b"\0" * (len(model) % 2))
    body += command_element(0x0100, us(code)) + command_element(0x0110, us(message_id))
    if destination:
        body += command_element(0x0600, destination.encode() + b" " * (len(destination) % 2))
    body += command_element(0x0700, us(0)) + command_element(0x0800, us(1))
    return command_element(0, len(body).to_bytes(4, "little")) + body


def cancel(message_id: int = 7) -> bytes:
    body = command_element(0x0100, us(0x0FFF)) + command_element(0x0120, us(message_id))
    body += command_element(0x0800, us(0x0101))
    return command_element(0, len(body).to_bytes(4, "little")) + body


def elements_of(encoded: bytes) -> dict[int, bytes]:
    at, found = 0, {}
    while at < len(encoded):
        number, length = (
            encoded[at + 2 : at + 4],
            int.from_bytes(encoded[at + 4 : at + 8], "little"),
        )
        found[int.from_bytes(number, "little")] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return found


class Answer:
    """A message that came: its command's elements, and its data set."""

    def __init__(self, context_id: int, command: bytes, data: bytes) -> None:
        self.context_id = context_id
        self.elements = elements_of(command)
        self.data = data

    def number(self, element: int) -> int | None:
        value = self.elements.get(element)
        return None if value is None else int.from_bytes(value, "little")

    @property
    def field(self) -> int | None:
        return self.number(0x0100)

    @property
    def status(self) -> int | None:
        return self.number(0x0900)

    @property
    def counts(self) -> tuple[int | None, ...]:
        """Remaining, completed, failed, with a warning."""
        return tuple(map(self.number, (0x1020, 0x1021, 0x1022, 0x1023)))

    @property
    def failed(self) -> list[str]:
        if not self.data:
            return []
        found = pydicom.dcmread(pydicom.filebase.DicomBytesIO(self.data), force=True)
        value = found.FailedSOPInstanceUIDList
        return [value] if isinstance(value, str) else list(value)


class Over(Exception):
    """Another PDU came: its type; 0 when the connection ended."""


def read(peer: Peer) -> Answer:
    """The next message."""
    command, data, context_id = b"", b"", 0
    while True:
        kind, body = peer.receive()
        if kind != 4:
            raise Over(kind)
        at = 0
        while at < len(body):
            length = int.from_bytes(body[at : at + 4], "big")
            context_id, header = body[at + 4], body[at + 5]
            fragment = body[at + 6 : at + 4 + length]
            at += 4 + length
            if header & 1:
                command += fragment
            else:
                data += fragment
            has_data = elements_of(command).get(0x0800) != us(0x0101) if header & 3 == 3 else True
            if header & 2 and (not header & 1 or not has_data):
                return Answer(context_id, command, data)


def move(
    peer: Peer, identifier: bytes, destination: str = "STORE", model: str = STUDY_MOVE
) -> list[Answer]:
    """All answers to a C-MOVE, the last one at the end."""
    peer.send(message(1, request(0x21, model, destination), identifier))
    return answers(peer)


def answers(peer: Peer) -> list[Answer]:
    found = [read(peer)]
    while found[-1].status == 0xFF00:
        found.append(read(peer))
    return found


# --- a destination --------------------------------------------------------------------------------


@pytest.fixture
def filled(start: Start) -> Iterator[tuple[Running, Running]]:
    """An archive with two studies, and another that is a destination of it by the name STORE."""
    destination = start(called_ae="any")
    source = start(nodes=(f"STORE@127.0.0.1:{destination.port}", "NOBODY@127.0.0.1:9"))
    fill(source)
    return source, destination


SERIES = {"1.2.3.1.1": 5, "1.2.3.1.2": 3}
ALL = [f"{series}.{n}" for series, many in SERIES.items() for n in range(1, many + 1)]


def fill(running: Running) -> None:
    with Peer(running.port) as peer:
        for uid in ALL:
            series = uid.rpartition(".")[0]
            data = data_set(uid, series, "1.2.3.1", size=40_000)
            assert peer.store(data, sop=uid) == 0
        assert peer.store(data_set("1.2.3.2.1.1", "1.2.3.2.1", "1.2.3.2"), sop="1.2.3.2.1.1") == 0
        peer.release()


def arrived(running: Running) -> list[str]:
    return sorted(path.name.removesuffix(".dcm") for path in running.instances())


def stored_data(running: Running) -> dict[str, bytes]:
    found = {}
    for line in running.lines():
        path = next(running.root.rglob(str(line["file"])))
        found[path.name] = path.read_bytes()[int(str(line["dataset_offset"])) :]
    return found


# --- what is meant --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "given", "meant"),
    [
        ("STUDY", {"StudyInstanceUID": "1.2.3.1"}, ALL),
        ("STUDY", {"StudyInstanceUID": "1.2.3.1\\1.2.3.2"}, [*ALL, "1.2.3.2.1.1"]),
        ("STUDY", {"StudyInstanceUID": "1.2.3.9"}, []),
        ("SERIES", {"StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.1.2"}, ALL[5:]),
        (
            "SERIES",
            {"StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.1.2\\1.2.3.1.1"},
            ALL,
        ),
        (
            "IMAGE",
            {
                "StudyInstanceUID": "1.2.3.1",
                "SeriesInstanceUID": "1.2.3.1.1",
                "SOPInstanceUID": "1.2.3.1.1.2\\1.2.3.1.1.5\\1.2.3.1.2.1",
            },
            ["1.2.3.1.1.2", "1.2.3.1.1.5"],
        ),
        ("IMAGE", {"StudyInstanceUID": "1.2.3.1", "SOPInstanceUID": "1.2.3.1.2.1"}, [ALL[5]]),
    ],
)
def test_what_is_meant_arrives_byte_for_byte(
    filled: tuple[Running, Running], level: str, given: dict[str, str], meant: list[str]
) -> None:
    source, destination = filled
    with mover(source.port) as peer:
        last = move(peer, keys(level, **given))[-1]
        peer.release()
    assert (last.status, last.counts, last.data) == (0, (None, len(meant), 0, 0), b"")
    assert arrived(destination) == sorted(meant)
    here = stored_data(source)
    assert all(here[name] == data for name, data in stored_data(destination).items())


@pytest.mark.parametrize(
    ("level", "given", "number"),
    [
        ("PATIENT", {"PatientID": "SECRETID"}, 9),
        ("PATIENT", {"PatientID": "*"}, 0),
        ("PATIENT", {"PatientID": "secretid"}, 0),
        ("STUDY", {"PatientID": "SECRETID", "StudyInstanceUID": "1.2.3.1"}, 8),
        ("STUDY", {"PatientID": "OTHER", "StudyInstanceUID": "1.2.3.1"}, 0),
        ("STUDY", {"StudyInstanceUID": "1.2.3.1"}, 8),
    ],
)
def test_patients_are_compared_to_the_letter(
    filled: tuple[Running, Running], level: str, given: dict[str, str], number: int
) -> None:
    source, destination = filled
    with mover(source.port, PATIENT_MOVE) as peer:
        last = move(peer, keys(level, **given), model=PATIENT_MOVE)[-1]
        peer.release()
    assert (last.status, last.counts) == (0, (None, number, 0, 0))
    assert len(arrived(destination)) == number


@pytest.mark.parametrize(
    ("identifier", "status"),
    [
        (keys("STUDY"), 0xA900),
        (keys("PATIENT", PatientID="A"), 0xA900),
        (keys("FRAME", StudyInstanceUID="1.2.3.1"), 0xA900),
        (keys("SERIES", StudyInstanceUID="1.2.3.1"), 0xA900),
        (keys("STUDY", StudyInstanceUID="*"), 0xA900),
        (keys("STUDY", StudyInstanceUID="../1.2"), 0xA900),
        (keys("STUDY", StudyInstanceUID="1.2.3.1\\"), 0),
        (keys("STUDY", StudyInstanceUID="1.2.3.1")[:-3], 0xC001),
        (b"\xff" * 40, 0xC001),
        (b"", 0xA900),
    ],
)
def test_an_identifier_that_means_nothing_is_refused(
    filled: tuple[Running, Running], identifier: bytes, status: int
) -> None:
    source, _ = filled
    with mover(source.port) as peer:
        (*_, last) = move(peer, identifier)
        assert last.status == status
        again = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.9"))
        assert [one.status for one in again] == [0]
        peer.release()


def test_an_unknown_destination_is_a801(
    filled: tuple[Running, Running], caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = filled
    with mover(source.port) as peer:
        identifier = keys("STUDY", StudyInstanceUID="1.2.3.1")
        for title in ("ELSEWHERE", "store", ""):
            (answer,) = move(peer, identifier, title)
            assert (answer.status, answer.data) == (0xA801, b"")
        peer.release()
    assert "--nodes ELSEWHERE@HOST:PORT" in caplog.text


def test_a_destination_that_is_not_there_fails_everything(
    filled: tuple[Running, Running],
) -> None:
    source, _ = filled
    with mover(source.port) as peer:
        (*_, last) = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"), "NOBODY")
        peer.release()
    assert (last.status, last.counts) == (0xA702, (None, 0, 8, 0))
    assert last.failed == ALL
    assert b"connect: Connection refused" in last.elements[0x0902]


def test_what_is_not_indexed_or_has_no_line_is_sent(filled: tuple[Running, Running]) -> None:
    source, destination = filled
    for path in source.root.glob("[0-9]*/1.2.3.1/*.jsonl"):
        path.unlink()
    with mover(source.port) as peer:
        assert move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1].status == 0
        peer.release()
    assert arrived(destination) == ALL


def test_what_is_forbidden_is_hopped_over(filled: tuple[Running, Running]) -> None:
    source, destination = filled
    line = json.dumps({"uid": ALL[1], "forbidden": "2024-02-28T02:38:10.123Z"})
    (source.root / ".plainpacs" / "forbidden").write_text(line + "\n")
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
        peer.release()
    assert (last.status, last.counts) == (0, (None, 7, 0, 0))
    assert ALL[1] not in arrived(destination)


# --- what goes wrong on the way -------------------------------------------------------------------


class Scripted:
    """A destination that answers each C-STORE with what ``script`` gives for its number: a status,
    or None to end the connection. ``origins``: the Move Originators."""

    def __init__(self, script: list[int | None]) -> None:
        self._script = iter(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.origins: list[tuple[bytes, bytes]] = []
        self.stored: list[str] = []
        self.associations = 0
        self.ends: list[int] = []
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.associations += 1
            with connection:
                connection.settimeout(10)
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        peer = object.__new__(Peer)
        peer.socket = connection
        kind, body = peer.receive()
        assert kind == 1
        results, at = b"", 68
        while at < len(body):
            length = int.from_bytes(body[at + 2 : at + 4], "big")
            if body[at] == 0x20:
                inner = body[at + 4 : at + 4 + length]
                syntax = inner[4:].partition(b"\x40\0")[2][2:]
                results += item(0x21, bytes((inner[0], 0, 0, 0)) + item(0x40, syntax))
            at += 4 + length
        user = item(0x50, item(0x51, (16384).to_bytes(4, "big")))
        peer.send(pdu(2, bytes((0, 1, 0, 0)) + body[4:68] + results + user))
        while True:
            try:
                request = read(peer)
            except Over as end:
                (kind,) = end.args
                self.ends.append(kind)
                if kind == 5:
                    peer.send(pdu(6))
                return
            self.reached.set()
            self.go_on.wait(10)
            status = next(self._script, 0)
            if status is None:
                return
            self.origins.append((request.elements[0x1030], request.elements[0x1031]))
            sop = request.elements[0x1000].rstrip(b"\0")
            if status == 0:
                self.stored.append(sop.decode())
            answer = command_element(0x0100, us(0x8001))
            answer += command_element(0x0120, request.elements[0x0110])
            answer += command_element(0x0800, us(0x0101)) + command_element(0x0900, us(status))
            answer = command_element(0, len(answer).to_bytes(4, "little")) + answer
            peer.send(message(request.context_id, answer, None))


@pytest.fixture
def scripted(start: Start) -> Iterator[object]:
    made: list[Scripted] = []

    def begin(*script: int | None) -> tuple[Running, Scripted]:
        destination = Scripted(list(script))
        made.append(destination)
        source = start(nodes=(f"STORE@127.0.0.1:{destination.port}",), idle_timeout=5.0)
        fill(source)
        return source, destination

    yield begin
    for one in made:
        one.close()


def test_a_destination_that_refuses_half(scripted) -> None:
    source, destination = scripted(0, 0xA700, 0xB007, 0xC000, 0, 0x0122, 0xB000, 0)
    with mover(source.port) as peer:
        progress = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))
        peer.release()
    last = progress.pop()
    assert (last.status, last.counts) == (0xB000, (None, 3, 3, 2))
    assert last.failed == [ALL[1], ALL[3], ALL[5]]
    assert progress[0].counts == (7, 1, 0, 0)
    assert all(sum(one.counts) == 8 for one in progress)
    assert set(destination.origins) == {(b"VIEWER", us(7))}
    assert destination.ends == [5]


def test_only_warnings_are_a_warning(scripted) -> None:
    source, _ = scripted(*[0xB000] * 8)
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
    assert (last.status, last.counts, last.data) == (0xB000, (None, 0, 0, 8), b"")


def test_all_refused_is_a702(scripted) -> None:
    source, _ = scripted(*[0xA700] * 8)
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
    assert (last.status, last.counts, last.failed) == (0xA702, (None, 0, 8, 0), ALL)


def test_an_association_that_is_lost_is_opened_again(scripted) -> None:
    source, destination = scripted(0, 0, None, 0, 0, 0, None, 0, 0, 0)
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
    assert (last.status, last.counts) == (0, (None, 8, 0, 0))
    assert destination.associations == 3
    assert destination.stored == ALL


def test_an_instance_that_ends_the_association_twice_is_left_out(scripted) -> None:
    source, destination = scripted(0, None, None, 0, 0, 0, 0, 0, 0)
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
    assert (last.status, last.counts, last.failed) == (0xB000, (None, 7, 1, 0), [ALL[1]])
    assert destination.associations == 3


def test_when_nothing_comes_through_the_rest_is_given_up(scripted) -> None:
    source, destination = scripted(0, None, None, None)
    with mover(source.port) as peer:
        last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
    assert (last.status, last.counts, last.failed) == (0xB000, (None, 1, 7, 0), ALL[1:])
    assert destination.associations == 4 - 1


def test_a_cancel_ends_it_in_order(scripted) -> None:
    source, destination = scripted()
    destination.go_on.clear()
    with mover(source.port) as peer:
        peer.send(
            message(
                1, request(0x21, STUDY_MOVE, "STORE"), keys("STUDY", StudyInstanceUID="1.2.3.1")
            )
        )
        assert destination.reached.wait(10)
        peer.send(message(1, cancel(), None))
        destination.go_on.set()
        last = answers(peer)[-1]
        assert last.status == 0xFE00
        remaining, completed, failed, warned = last.counts
        assert (completed, failed, warned) == (1, 0, 0)
        assert remaining == 7
        peer.release()
    assert destination.ends == [5]


def test_a_requestor_that_vanishes_ends_it(scripted, caplog: pytest.LogCaptureFixture) -> None:
    source, destination = scripted()
    destination.go_on.clear()
    with mover(source.port) as peer:
        peer.send(
            message(
                1, request(0x21, STUDY_MOVE, "STORE"), keys("STUDY", StudyInstanceUID="1.2.3.1")
            )
        )
        assert destination.reached.wait(10)
    destination.go_on.set()
    wait_until(lambda: destination.ends)
    assert len(destination.stored) < len(ALL)
    wait_until(lambda: audited(source))


def audited(running: Running) -> list[dict[str, object]]:
    lines = [
        json.loads(line)
        for path in running.root.glob(".plainpacs/audit/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line for line in lines if line["event"] == "retrieved"]


def test_what_was_handed_out_is_in_the_audit_log(filled: tuple[Running, Running]) -> None:
    source, destination = filled
    with mover(source.port, PATIENT_MOVE) as peer:
        move(peer, keys("PATIENT", PatientID="SECRETID"), model=PATIENT_MOVE)
        peer.release()
    entries = [
        {key: value for key, value in entry.items() if key not in ("time", "event")}
        for entry in audited(source)
    ]
    assert sorted(entries, key=lambda entry: str(entry["StudyInstanceUID"])) == [
        {
            "what": "C-MOVE",
            "peer": "127.0.0.1",
            "calling_ae": "VIEWER",
            "called_ae": "DRDCM",
            "destination": f"STORE@127.0.0.1:{destination.port}",
            "StudyInstanceUID": study,
            "sent": number,
        }
        for study, number in (("1.2.3.1", 8), ("1.2.3.2", 1))
    ]
    assert "SECRET" not in json.dumps(entries)


def test_a_stop_ends_a_move(scripted) -> None:
    source, destination = scripted()
    destination.go_on.clear()
    with mover(source.port) as peer:
        peer.send(
            message(
                1, request(0x21, STUDY_MOVE, "STORE"), keys("STUDY", StudyInstanceUID="1.2.3.1")
            )
        )
        assert destination.reached.wait(10)
        source.stop()  # waits for the association's thread
    destination.go_on.set()


# --- C-GET ----------------------------------------------------------------------------------------


def get(
    peer: Peer, identifier: bytes, statuses: Iterator[int] | None = None
) -> tuple[Answer, dict[str, bytes]]:
    """The last answer, and the data sets that came, all of which are answered."""
    peer.send(message(1, request(0x10, STUDY_GET), identifier))
    came: dict[str, bytes] = {}
    while True:
        got = read(peer)
        if got.field == 0x8010:
            if got.status != 0xFF00:
                return got, came
            continue
        assert got.field == 1
        came[got.elements[0x1000].rstrip(b"\0").decode()] = got.data
        told = command_element(0x0100, us(0x8001))
        told += command_element(0x0120, got.elements[0x0110])
        told += command_element(0x0800, us(0x0101))
        told += command_element(0x0900, us(next(statuses, 0) if statuses else 0))
        told = command_element(0, len(told).to_bytes(4, "little")) + told
        peer.send(message(got.context_id, told, None))


def test_a_get_comes_over_the_same_association(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    with getter(source.port) as peer:
        assert peer.results() == {1: (0, EVRLE), 3: (0, EVRLE)}
        assert role(CT, 0, 1) in peer.answer[1]
        last, came = get(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))
        peer.release()
    assert (last.status, last.counts) == (0, (None, 8, 0, 0))
    here = stored_data(source)
    assert came == {uid: here[f"{uid}.dcm"] for uid in ALL}


def test_who_refuses_in_a_get_is_counted(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    with getter(source.port) as peer:
        statuses = iter([0xA700, 0, 0xB000])
        last, _ = get(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"), statuses)
        peer.release()
    assert (last.status, last.counts, last.failed) == (0xB000, (None, 6, 1, 1), [ALL[0]])


def test_without_the_role_nothing_can_be_got(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    with asking(source.port, [(1, STUDY_GET, [EVRLE]), (3, CT, [EVRLE])]) as peer:
        last, came = get(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))
        peer.release()
    assert (last.status, last.counts, came) == (0xA702, (None, 0, 8, 0), {})


def test_a_cancel_amid_a_get(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    with getter(source.port) as peer:
        peer.send(message(1, request(0x10, STUDY_GET), keys("STUDY", StudyInstanceUID="1.2.3.1")))
        first = read(peer)
        peer.send(message(1, cancel(), None))
        told = command_element(0x0100, us(0x8001))
        told += command_element(0x0120, first.elements[0x0110])
        told += command_element(0x0800, us(0x0101)) + command_element(0x0900, us(0))
        told = command_element(0, len(told).to_bytes(4, "little")) + told
        peer.send(message(3, told, None))
        last = answers(peer)[-1]
        assert (last.status, last.counts) == (0xFE00, (7, 1, 0, 0))
        peer.release()


def test_a_peer_that_vanishes_amid_a_get_leaves_nothing(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    with getter(source.port) as peer:
        peer.send(message(1, request(0x10, STUDY_GET), keys("STUDY", StudyInstanceUID="1.2.3.1")))
        read(peer)
    wait_until(lambda: not source.receiver.associations())
    assert [line["unanswered"] for line in audited(source)] == [1]


def test_several_at_once(filled: tuple[Running, Running]) -> None:
    source, _ = filled
    came: list[int] = []

    def run() -> None:
        with getter(source.port) as peer:
            came.append(len(get(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[1]))
            peer.release()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came == [8] * 6


def test_what_the_peer_would_be_scp_of_is_taken_for_a_get_alone(start: Start) -> None:
    running = start()
    both = [(1, STUDY_GET, [EVRLE]), (3, CT, [JPEG, IVRLE]), (5, MR, [JPEG, EVRLE])]
    with asking(running.port, both, role(CT, 1, 1), role(MR, 0, 1), role(STUDY_GET, 1, 1)) as peer:
        assert peer.results() == {1: (0, EVRLE), 3: (0, JPEG), 5: (0, EVRLE)}
        assert role(CT, 1, 1) in peer.answer[1]
        assert role(MR, 0, 1) in peer.answer[1]
        assert role(STUDY_GET, 1, 0) in peer.answer[1]
    with asking(running.port, both[1:], role(CT, 1, 1), role(MR, 0, 1)) as peer:
        assert {number: result for number, (result, _) in peer.results().items()} == {3: 0, 5: 1}
        assert role(CT, 1, 0) in peer.answer[1]


def test_a_move_over_tls(start: Start, certificates: Certificates) -> None:
    destination = start(called_ae="any", **certificates.serving())
    where = f"STORE@127.0.0.1:{destination.port}/tls"
    source = start(nodes=(f"{where}-any-name",), tls_ca=certificates.ca.cert)
    strict = start(nodes=(where,), tls_ca=certificates.ca.cert)
    for running, expected in ((source, 0), (strict, 0xA702)):
        fill(running)
        with mover(running.port) as peer:
            last = move(peer, keys("STUDY", StudyInstanceUID="1.2.3.1"))[-1]
            peer.release()
        assert last.status == expected
    assert b"STORE@127.0.0.1" in last.elements[0x0902]
    assert arrived(destination) == ALL


def test_queries_and_retrieves_can_be_turned_off(start: Start) -> None:
    running = start(query_retrieve="off")
    with asking(
        running.port,
        [(1, STUDY_GET, [EVRLE]), (3, CT, [EVRLE]), (5, STUDY_MOVE, [EVRLE])],
        role(CT, 0, 1),
    ) as peer:
        assert {number: result for number, (result, _) in peer.results().items()} == {
            1: 3,
            3: 1,
            5: 3,
        }
