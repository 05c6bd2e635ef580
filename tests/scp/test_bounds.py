"""What a request may be: beyond that it is refused with a word, and costs no memory and no time."""

from __future__ import annotations

import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plainpacs.archive.dicom.dictionary import tag_of
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.query.matching import LONGEST_PATTERN, wildcard
from plainpacs.indexer.query.query import MOST_VALUES, asked, parse
from tests.scp.test_commitment import COMMITMENT, INSTANCE
from tests.scp.test_retrieve import CT, STUDY_GET, STUDY_MOVE, asking, read, request, role
from tests.support.peer import (
    IVRLE,
    Peer,
    associate_rq,
    command_element,
    context_item,
    data_set,
    item,
    message,
    us,
)
from tests.support.queries import IMPLICIT, SUCCESS, Asker, fill
from tests.support.receiver import Start
from tests.support.serve import Serve

UNREADABLE, UNMATCHABLE, NOT_OF_THIS_MODEL = 0xC001, 0xC002, 0xA900
MOST_MEMORY = 150 << 20


def keys(level: str = "STUDY", **values: str) -> bytes:
    """In Implicit VR, whose values have 32 bits for their lengths."""
    told = {tag_of(keyword): value for keyword, value in values.items()}
    told[tag_of("QueryRetrieveLevel")] = level
    return b"".join(
        struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) + len(value) % 2)
        + value.encode("latin-1")
        + b" " * (len(value) % 2)
        for tag, value in sorted(told.items())
    )


def uids(number: int) -> str:
    return "\\".join(f"1.2.{n}" for n in range(number))


TOO_MUCH = {
    "100,000 UIDs": (keys(StudyInstanceUID=uids(100_000)), UNREADABLE),
    "200,000 names of a letter": (keys(PatientName="a\\" * 200_000), UNREADABLE),
    "1,000,000 values": (keys(PatientID="1\\" * 1_000_000), UNREADABLE),
    "a value of 3 MB": (keys(StudyDescription="x" * 3_000_000), UNREADABLE),
    "20,000 UIDs": (keys(StudyInstanceUID=uids(20_000)), UNMATCHABLE),
    "100,000 dates": (keys(StudyDate="2\\" * 100_000), UNMATCHABLE),
    "100 names": (keys(PatientName="a\\" * 100), UNMATCHABLE),
    "100 modalities": (keys(ModalitiesInStudy="CT\\" * 100), UNMATCHABLE),
    "a pattern of 60 kB": (keys(PatientName="*?" * 30_000), UNMATCHABLE),
    "a pattern of 1 kB": (keys(PatientID="*a?" * 340), UNMATCHABLE),
    "60 patterns": (keys(AccessionNumber="*12345678*\\" * 60), UNMATCHABLE),
    "10,000 keys": (
        keys() + b"".join(b"\x21\x10" + us(n) + bytes(4) for n in range(0x1001, 0x3800)),
        UNREADABLE,
    ),
    "30,000 items": (
        keys()
        + b"\x40\0\x75\2"
        + (8 * 30_000).to_bytes(4, "little")
        + b"\xfe\xff\0\xe0\0\0\0\0" * 30_000,
        UNREADABLE,
    ),
    "30,000 character sets": (
        b"\x08\0\x05\0" + (60_000).to_bytes(4, "little") + b"X\\" * 30_000 + keys(),
        UNREADABLE,
    ),
}


@pytest.mark.parametrize(("identifier", "status"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_query_that_is_too_large_is_refused(start: Start, identifier: bytes, status: int) -> None:
    running = start()
    fill(running)
    with Asker(running.port, syntax=IMPLICIT) as peer:
        began = time.monotonic()
        peer.begin(identifier)
        found = peer.finish()
        assert (found.answers, found.status) == ([], status)
        assert "more" in found.comment or "longer" in found.comment
        assert time.monotonic() - began < 2.0
        assert peer.ask({"StudyInstanceUID": "1.1"}).status == SUCCESS


def test_as_much_as_an_application_asks_for_is_answered(start: Start) -> None:
    running = start()
    fill(running)
    with Asker(running.port, syntax=IMPLICIT) as peer:
        for more in (
            {"StudyInstanceUID": f"1.1\\{uids(MOST_VALUES - 1)}"},
            {"PatientID": "P1\\" + "X\\" * 4000},
            {"PatientName": "Mül*\\" + "other^name\\" * 40},
            {"StudyDate": "20240131\\" + "20230101\\" * 60},
            {"StudyDescription": "?" * 200 + "\\C*"},
        ):
            found = peer.ask({"StudyInstanceUID": "", **more})
            assert (found.status, found.texts("StudyInstanceUID")) == (SUCCESS, [("1.1",)])


@pytest.mark.parametrize("code", [0x21, 0x10], ids=["C-MOVE", "C-GET"])
@pytest.mark.parametrize(
    ("identifier", "status"),
    [
        (keys("IMAGE", SOPInstanceUID=uids(100_000)), UNREADABLE),
        (keys("IMAGE", SOPInstanceUID=uids(20_000)), NOT_OF_THIS_MODEL),
        (keys("SERIES", SeriesInstanceUID=uids(6_000)), NOT_OF_THIS_MODEL),
        (keys("STUDY", StudyInstanceUID="1\\" * 100_000), NOT_OF_THIS_MODEL),
    ],
)
def test_a_retrieve_that_is_too_large_is_refused(
    start: Start, code: int, identifier: bytes, status: int
) -> None:
    running = start(nodes=("STORE@127.0.0.1:9",))
    with asking(
        running.port,
        [(1, STUDY_GET, [IVRLE]), (3, STUDY_MOVE, [IVRLE]), (5, CT, [IVRLE])],
        role(CT, 0, 1),
    ) as peer:
        context, model = (1, STUDY_GET) if code == 0x10 else (3, STUDY_MOVE)
        peer.send(message(context, request(code, model, "STORE" * (code == 0x21)), identifier))
        answer = read(peer)
        assert answer.status == status
        assert re.search(rb"more|longer", answer.elements[0x0902])


# --- memory ---------------------------------------------------------------------------------------


def finder(port: int, identifier: bytes) -> None:
    with Asker(port, syntax=IMPLICIT) as peer:
        for _ in range(3):
            peer.begin(identifier)
            peer.finish()


def mover(port: int, identifier: bytes) -> None:
    with asking(port, [(1, STUDY_MOVE, [IVRLE])]) as peer:
        peer.send(message(1, request(0x21, STUDY_MOVE, "STORE"), identifier))
        assert read(peer).status is not None


def committer(port: int, identifier: bytes) -> None:
    user = item(0x51, bytes(4)) + item(0x52, b"1.2.3.4")
    with Peer(port, associate_rq(context_item(1, COMMITMENT, [IVRLE]), user=user)) as peer:
        body = command_element(0x0003, COMMITMENT.encode())
        body += command_element(0x0100, us(0x0130)) + command_element(0x0110, us(7))
        body += command_element(0x0800, us(1))
        body += command_element(0x1001, INSTANCE.encode()) + command_element(0x1008, us(1))
        told = command_element(0, len(body).to_bytes(4, "little")) + body
        peer.socket.settimeout(50)  # large ones are taken one after the other
        peer.send(message(1, told, identifier))
        assert read(peer).status is not None


def references(number: int) -> bytes:
    told = [
        {"ReferencedSOPClassUID": CT, "ReferencedSOPInstanceUID": f"1.2.3.4.5.6.7.8.{n}"}
        for n in range(number)
    ]
    return encode({"TransactionUID": "1.2.3", "ReferencedSOPSequence": told}, IMPLICIT)


AT_ONCE: dict[str, tuple[Callable[[int, bytes], None], bytes]] = {
    "10 letters, often": (finder, keys(PatientName="a\\" * 200_000)),
    "as many UIDs as may be": (
        finder,
        keys("IMAGE", **dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), uids(5000))),
    ),
    "4 MB of values": (finder, keys(PatientID="1\\" * 2_000_000)),
    "many items": (
        finder,
        keys()
        + b"\x40\0\x75\2\xff\xff\xff\xff"
        + b"\xfe\xff\0\xe0\0\0\0\0" * 500_000
        + b"\xfe\xff\xdd\xe0\0\0\0\0",
    ),
    "a retrieve of as many UIDs as may be": (mover, keys("IMAGE", SOPInstanceUID=uids(5000))),
    "a retrieve of 4 MB of UIDs": (mover, keys("IMAGE", SOPInstanceUID=uids(400_000))),
    "commitment of 4 MB of instances": (committer, references(38_000)),
    "commitment of 8,000 instances": (committer, references(8_000)),
    "commitment of empty items": (
        committer,
        b"\x08\0\x99\x11\xff\xff\xff\xff"
        + b"\xfe\xff\0\xe0\0\0\0\0" * 500_000
        + b"\xfe\xff\xdd\xe0\0\0\0\0",
    ),
}


def peak(pid: int) -> int:
    [line] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) << 10


@pytest.mark.parametrize(("ask", "identifier"), AT_ONCE.values(), ids=AT_ONCE)
def test_twelve_at_once_take_little_memory(
    serve: Serve, ask: Callable[[int, bytes], None], identifier: bytes
) -> None:
    service = serve("--receivers", "1", "--nodes", "STORE@127.0.0.1:9")
    port = service.port
    with Peer(port) as peer:
        assert peer.store(data_set()) == 0
        peer.release()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ask(port, identifier)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    used = peak(service.process.pid)  # the one receiver there is
    assert used < MOST_MEMORY, f"{used >> 20} MB"


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", ["a", "a?", "*?", "?", "a*", "?a*"], ids=repr)
def test_no_pattern_takes_long_on_any_text(stretch: str) -> None:
    """Twice the text or twice the pattern takes about twice as long, and no more."""
    text = "a" * 65_000
    pattern = f"*{stretch * (LONGEST_PATTERN // len(stretch) - 3)}b*"
    began = time.process_time()
    assert wildcard(pattern).fullmatch(text) is None
    assert time.process_time() - began < 0.5


def test_a_person_may_give_a_long_list_but_no_endless_pattern() -> None:
    assert parse([f"PatientName=doe{n}" for n in range(300)]).matches({"PatientName": "Doe7"})
    for pattern in ("*?" * 400, "a" * 600 + "*", "?" * 513):
        with pytest.raises(BadQuery, match="pattern is longer"):
            parse([f"PatientName={pattern}"])
        with pytest.raises(BadQuery, match="pattern"):
            parse([pattern])
        with pytest.raises(BadQuery, match="patterns than are compared"):
            asked({"PatientID": pattern})
