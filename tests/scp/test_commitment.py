"""Storage commitment: what is promised, to whom, and what a peer may do meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, build_role, evt

from plainpacs.archive.dicom.identifier import EXPLICIT, read
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.scp.commitment import reports, requests
from plainpacs.scp.commitment.check import PutOff, Reference, judge
from plainpacs.scp.commitment.reports import Reporter
from plainpacs.scp.network.dimse import read_command
from tests.support.archives import CT_IMAGE_STORAGE as CT
from tests.support.archives import MODALITY, data_set, part10, store
from tests.support.dimse import Element
from tests.support.orthanc import orthanc
from tests.support.peer import (
    DATA,
    RELEASE_RP,
    Peer,
    associate_rq,
    command_element,
    context_item,
    message,
    pdu,
    us,
)
from tests.support.queries import index
from tests.support.receiver import Running, Start, wait_until
from tests.support.serve import Serve

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
ONE, TWO = "1.2.3.4.5", "1.2.3.4.6"


@pytest.fixture
def running(start: Start) -> Running:
    one = start()
    fill(one)
    return one


def fill(running: Running) -> None:
    store(running.archive, SOPInstanceUID=ONE)
    store(running.archive, SOPInstanceUID=TWO)
    index(running)


def waiting(running: Running) -> list[dict[str, Any]]:
    folder = running.root / ".plainpacs" / "commitments"
    found = []
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(FileNotFoundError):  # it was reported on just now
            found.append(json.loads(path.read_text()))
    return found


# --- real peers: pynetdicom -----------------------------------------------------------------------


@dataclass
class Modality:
    """One of pynetdicom, that may listen too. ``status``: what it answers reports with."""

    reports: queue.Queue[tuple[int, Dataset]] = field(default_factory=queue.Queue)
    status: int = 0x0000
    port: int = 0

    def take(self, event: evt.Event) -> tuple[int, None]:
        self.reports.put((event.event_type, event.event_information))
        return self.status, None

    def report(self) -> tuple[int, list[str], dict[str, int]]:
        """Event type, what is committed, and what is not, and why."""
        kind, told = self.reports.get(timeout=20)
        good = [one.ReferencedSOPInstanceUID for one in told.get("ReferencedSOPSequence", [])]
        bad = told.get("FailedSOPSequence", [])
        return kind, good, {one.ReferencedSOPInstanceUID: one.FailureReason for one in bad}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        entity = AE("CT1")
        entity.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.take)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield
        finally:
            server.shutdown()

    @contextlib.contextmanager
    def asking(self, running: Running, references: list[tuple[str, str]]) -> Iterator[int]:
        """The status of the answer, and then the association."""
        entity = AE("CT1")
        entity.add_requested_context(COMMITMENT)
        association = entity.associate(
            "127.0.0.1", running.port, ae_title="DRDCM",
            ext_neg=[build_role(COMMITMENT, scu_role=True)],
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)],
        )  # fmt: skip
        assert association.is_established
        asked = Dataset()
        asked.TransactionUID = "1.9.1"
        asked.ReferencedSOPSequence = [referenced(*one) for one in references]
        try:
            answer, _ = association.send_n_action(asked, 1, COMMITMENT, INSTANCE)
            yield answer.Status
        finally:
            association.release()


def referenced(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    return item


@contextlib.contextmanager
def reporting(running: Running, **changes: Any) -> Iterator[None]:
    settings = running.receiver.settings
    told = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    reporter = Reporter(running.archive, type(settings)(**told | changes))
    reporter.start()
    try:
        yield
    finally:
        reporter.stop()


def test_all_is_committed_on_the_same_association(running: Running) -> None:
    modality = Modality()
    with modality.asking(running, [(CT, ONE), (CT, TWO)]) as status:
        assert status == 0x0000
        assert modality.report() == (1, [ONE, TWO], {})
        wait_until(lambda: not waiting(running))


@pytest.mark.parametrize(
    ("references", "good", "bad"),
    [
        ([(CT, "1.5")], [], {"1.5": 0x0112}),
        ([(CT, ONE), (CT, "1.2.3.4.7"), (CT, TWO)], [ONE, TWO], {"1.2.3.4.7": 0x0112}),
        ([(CT, ONE), (MR, TWO), (CT, "1.5")], [ONE], {TWO: 0x0119, "1.5": 0x0112}),
    ],
)
def test_what_fails_is_reported_on_the_same_association(
    running: Running, references: list[tuple[str, str]], good: list[str], bad: dict[str, int]
) -> None:
    modality = Modality()
    with modality.asking(running, references) as status:
        assert status == 0x0000
        assert modality.report() == (2, good, bad)
        wait_until(lambda: not waiting(running))


def test_on_the_same_association_everything_is_looked_at(running: Running) -> None:
    """What the indexes do not know is found, and other bytes are compared."""
    store(running.archive, SOPInstanceUID=ONE, PatientID="P2")
    store(running.archive, SOPInstanceUID="1.7.1.1", StudyInstanceUID="1.7")
    for marker in (running.root / ".plainpacs" / "pending").iterdir():
        marker.unlink()
    modality = Modality()
    with modality.asking(running, [(CT, ONE), (CT, "1.7.1.1")]):
        assert modality.report() == (2, ["1.7.1.1"], {ONE: 0x0110})


def test_a_restart_forgets_nothing(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    modality = Modality()
    with modality.asking(running, [(CT, ONE), (CT, "1.5")]):
        pass
    with reporting(running):
        wait_until(lambda: "flag to add it: --nodes CT1@HOST:PORT" in caplog.text, 20)
    with modality.listening(), reporting(running, nodes=(f"CT1@127.0.0.1:{modality.port}",)):
        assert modality.report() == (2, [ONE], {"1.5": 0x0112})
        wait_until(lambda: not waiting(running))


def test_who_is_not_there_is_tried_again_later(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_OURS_SECONDS", 0.0)
    monkeypatch.setattr(reports, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(reports, "_FIRST_PAUSE", 0.3)
    modality = Modality()
    with modality.listening():
        pass
    with Asker(running.port) as one, Asker(running.port) as other:
        assert one.ask(ONE, transaction="1.9.1") == 0
        assert other.ask(TWO, transaction="1.9.2") == 0
    with reporting(running, nodes=(f"CT1@127.0.0.1:{modality.port}",)):
        tried = "commitment not reported: CT1@127.0.0.1"
        wait_until(lambda: caplog.text.count(tried) == 2, 20)
        assert len(waiting(running)) == 2
    times = [one.created for one in caplog.records if one.getMessage().startswith(tried)]
    assert times[1] - times[0] > 0.25, "one try for both requests"


def test_a_report_that_is_refused_waits(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    modality = Modality(status=0x0110)
    with modality.asking(running, [(CT, ONE)]):
        assert modality.report()[0] == 1
        wait_until(lambda: "answers the report with 0110" in caplog.text)
    modality.status = 0x0000
    with modality.listening(), reporting(running, nodes=(f"CT1@127.0.0.1:{modality.port}",)):
        assert modality.report() == (1, [ONE], {})
        wait_until(lambda: not waiting(running))


def test_without_sync_nothing_is_promised(start: Start) -> None:
    running = start(sync="off")
    fill(running)
    modality = Modality()
    with modality.asking(running, [(CT, ONE)]):
        assert modality.report() == (2, [], {ONE: 0x0110})
        wait_until(lambda: not waiting(running))


# --- real peers: Orthanc --------------------------------------------------------------------------


def test_orthanc_asks_and_is_reported_to(running: Running, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", {}, DicomAet="ORTHANC") as peer:
        with contextlib.suppress(ValueError):  # it answers with nothing, which is no JSON
            peer.call("PUT", "/modalities/us", ["DRDCM", "127.0.0.1", running.port])

        def ask(*references: tuple[str, str]) -> Any:
            """What Orthanc knows of it once it was reported to."""
            asked = [{"SOPClassUID": one, "SOPInstanceUID": uid} for one, uid in references]
            path = "/modalities/us/storage-commitment"
            where = peer.call("POST", path, {"DicomInstances": asked})["Path"]
            wait_until(lambda: peer.call("GET", where)["Status"] != "Pending")
            return peer.call("GET", where)

        with reporting(running, nodes=(f"ORTHANC@127.0.0.1:{peer.port}",)):
            kept = ask((CT, ONE), (CT, TWO))
            lost = ask((CT, ONE), (MR, TWO), (CT, "1.2.3.4.7"))
            wait_until(lambda: not waiting(running))
    assert kept["Status"] == "Success"
    assert sorted(one["SOPInstanceUID"] for one in kept["Success"]) == [ONE, TWO]
    assert lost["Status"] == "Failure"
    assert [one["SOPInstanceUID"] for one in lost["Success"]] == [ONE]
    reasons = {one["SOPInstanceUID"]: one["FailureReason"] for one in lost["Failures"]}
    assert reasons == {TWO: 0x0119, "1.2.3.4.7": 0x0112}


# --- byte by byte ---------------------------------------------------------------------------------


def data_of(*uids: str, transaction: str = "1.9.1") -> bytes:
    items = [{"ReferencedSOPClassUID": CT, "ReferencedSOPInstanceUID": uid} for uid in uids]
    return encode({"TransactionUID": transaction, "ReferencedSOPSequence": items}, EXPLICIT)


def action(
    data: bytes | None, sop_class: str = COMMITMENT, sop: str = INSTANCE, kind: int | None = 1
) -> bytes:
    elements = {
        0x0003: (sop_class + "\0" * (len(sop_class) % 2)).encode(),
        0x0100: us(0x0130),
        0x0110: us(9),
        0x0800: us(0x0101 if data is None else 1),
        0x1001: (sop + "\0" * (len(sop) % 2)).encode(),
    } | ({} if kind is None else {0x1008: us(kind)})
    body = b"".join(command_element(number, value) for number, value in sorted(elements.items()))
    return message(1, command_element(0, struct.pack("<L", len(body))) + body, data)


class Asker(Peer):
    def __init__(self, port: int, calling: str = "CT1") -> None:
        contexts = context_item(1, COMMITMENT, [EXPLICIT])
        contexts += context_item(3, "1.2.840.10008.1.1", ["1.2.840.10008.1.2"])
        super().__init__(port, associate_rq(contexts, calling=calling))

    def ask(self, *uids: str, transaction: str = "1.9.1") -> int:
        self.send(action(data_of(*uids, transaction=transaction)))
        return self.status()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (action(data_of(ONE), sop_class="1.2.840.10008.1.1"), 0x0118),
        (action(data_of(ONE), sop="1.2.840.10008.1.20.1.2"), 0x0112),
        (action(data_of(ONE), kind=2), 0x0123),
        (action(data_of(ONE), kind=None), 0x0123),
        (action(None), 0x0115),
        (action(b"nonsense"), 0x0115),
        (action(data_of()), 0x0115),
        (action(data_of(ONE, transaction="")), 0x0115),
        (action(data_of(ONE, transaction="../1")), 0x0115),
        (action(data_of(ONE, "")), 0x0115),
    ],
)
def test_what_is_malformed_is_refused(running: Running, sent: bytes, status: int) -> None:
    with Asker(running.port) as asker:
        asker.send(sent)
        assert asker.status() == status
        assert asker.echo() == 0
        assert not waiting(running)
        asker.release()


def test_a_peer_that_goes_on_is_served(running: Running) -> None:
    """Its report does not come in between, and waits."""
    with Asker(running.port) as asker:
        sent = action(data_of(ONE)) + action(data_of(TWO, transaction="1.9.2"))
        asker.send(sent)
        assert [asker.status(), asker.status()] == [0, 0]
        assert event(asker) == "1.9.2"
        asker.release()
    assert [one["TransactionUID"] for one in waiting(running)] == ["1.9.1", "1.9.2"]


def event(asker: Asker) -> str:
    """The transaction of the next message, a report."""
    kind, body = asker.receive()
    assert kind == DATA
    told = read_command(body[6:])
    assert told.field == 0x0100
    assert told.elements[Element.EVENT_TYPE_ID] == b"\1\0"
    kind, body = asker.receive()
    return read(body[6:], EXPLICIT).text("TransactionUID")


def test_a_peer_that_releases_is_not_reported_to(running: Running) -> None:
    with Asker(running.port) as asker:
        assert asker.ask(ONE) == 0
        asker.send(pdu(5))
        assert asker.receive()[0] == RELEASE_RP
    assert [one["TransactionUID"] for one in waiting(running)] == ["1.9.1"]


def test_the_same_request_again_and_another_under_its_uid(running: Running) -> None:
    with Asker(running.port) as asker:
        assert asker.ask("1.5") == 0
        assert asker.ask("1.5") == 0
        assert [one["duplicate"] for one in waiting(running)] == [False]
        assert asker.ask(ONE, TWO) == 0
    assert sorted(one["duplicate"] for one in waiting(running)) == [False, True]
    with Asker(running.port, calling="CT2") as other:
        assert other.ask("1.5", "1.6") == 0
    assert sorted(one["duplicate"] for one in waiting(running)) == [False, False, True]
    modality = Modality()
    with modality.listening(), reporting(running, nodes=(f"CT1@127.0.0.1:{modality.port}",)):
        found = sorted((modality.report(), modality.report()), key=str)
        assert found == [
            (2, [], {ONE: 0x0131, TWO: 0x0131}),
            (2, [], {"1.5": 0x0112}),
        ]


def test_it_is_given_up_after_a_week(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Not before it was tried once more."""
    root = os.open(running.root, os.O_RDONLY)
    ago = time.time() - 8 * 24 * 3600.0
    references = (Reference(CT, ONE),)
    requests.put(root, requests.Transaction("1.9", "CT1", "DRDCM", "10.0.0.5", references, ago))
    os.close(root)
    with reporting(running, nodes=("CT1@127.0.0.1:1",)):
        wait_until(lambda: not waiting(running))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(
        "commitment not reported: CT1@127.0.0.1:1: connect: Connection refused;"
    )
    assert "given up, of 1.9" in said[1]


def test_a_whole_service_reports(serve: Serve) -> None:
    """Several receivers, one reporter; also after a kill."""
    modality = Modality()
    with modality.listening():
        arguments = ("--receivers", "2", "--nodes", f"CT1@127.0.0.1:{modality.port}")
        service = serve(*arguments)
        queued = service.root / ".plainpacs" / "commitments"

        def ask(transaction: str) -> None:
            with Asker(service.port) as asker:
                assert asker.ask("1.5", transaction=transaction) == 0
                asker.release()

        ask("1.9.1")
        assert modality.report() == (2, [], {"1.5": 0x0112})
        wait_until(lambda: not list(queued.iterdir()))
        ask("1.9.2")
        service.process.kill()
        service.process.wait()
        again = serve(*arguments, root=service.root)
        assert modality.report() == (2, [], {"1.5": 0x0112})
        wait_until(lambda: not list(queued.iterdir()))
        assert again.stop() == 0
    audit = (service.root / ".plainpacs" / "audit").glob("*")
    lines = [json.loads(line) for path in audit for line in path.read_text().splitlines()]
    told = [line["TransactionUID"] for line in lines if line["event"] == "commitment"]
    assert told == ["1.9.1", "1.9.2"]


def test_a_damaged_or_strange_file_in_the_queue_hurts_nobody(running: Running) -> None:
    folder = running.root / ".plainpacs" / "commitments"
    folder.mkdir()
    (folder / "1.1~0").write_text("{")
    (folder / ".DS_Store").write_text("")
    modality = Modality()
    with Asker(running.port) as asker:
        assert asker.ask(ONE, "1.5") == 0
    with modality.listening(), reporting(running, nodes=(f"CT1@127.0.0.1:{modality.port}",)):
        assert modality.report()[0] == 2


def test_one_at_a_time(running: Running) -> None:
    root = os.open(running.root, os.O_RDONLY)
    now = time.time()
    kept = requests.put(
        root,
        requests.Transaction("1.9", "CT1", "DRDCM", "10.0.0.5", (Reference(CT, ONE),), now),
    )
    first = requests.claim(root, kept.name)
    assert first is not None
    assert requests.claim(root, kept.name) is None
    first.release()
    second = requests.claim(root, kept.name)
    assert second is not None
    assert second.transaction == kept
    second.done()
    second.release()
    assert requests.claim(root, kept.name) is None
    os.close(root)


# --- what counts as kept --------------------------------------------------------------------------


def reasons(running: Running, *uids: str) -> list[int]:
    references = [Reference(CT, uid) for uid in uids]
    found = judge(str(running.root), references, lambda: False)
    return [one.reason for one in found]


def path_of(running: Running, uid: str) -> Path:
    return next(path for path in running.instances() if path.stem == uid)


def test_a_file_that_changed_is_not_committed(running: Running) -> None:
    path = path_of(running, ONE)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reasons(running, ONE, TWO) == [0x0110, 0x0000]


def test_a_file_without_a_line_is_not_committed(running: Running) -> None:
    path = path_of(running, ONE)
    path.with_name("1.2.3.4.9.dcm").write_bytes(part10(SOPInstanceUID="1.2.3.4.9"))
    assert reasons(running, "1.2.3.4.9", ONE) == [0x0110, 0x0000]


@pytest.mark.parametrize("changed", [{"PatientID": "P2"}, {"PixelData": b"\3\4" * 64}])
def test_other_bytes_that_wait_are_in_the_way(running: Running, changed: dict[str, Any]) -> None:
    store(running.archive, SOPInstanceUID=ONE, **changed)
    assert reasons(running, ONE, TWO) == [0x0110, 0x0000]


def test_another_encoding_is_no_conflict(running: Running) -> None:
    body = data_set(SOPInstanceUID=ONE)
    group_length = struct.pack("<HH2sHL", 0x0008, 0, b"UL", 4, 0)  # means nothing
    running.archive.store(group_length + body, EXPLICIT_LITTLE_ENDIAN, MODALITY)
    assert list((running.root / ".plainpacs" / "conflicts").rglob("*~*"))
    assert reasons(running, ONE) == [0x0000]


def test_an_instance_in_two_studies_is_not_committed(running: Running) -> None:
    store(running.archive, SOPInstanceUID=ONE, StudyInstanceUID="1.2.4")
    index(running)
    assert reasons(running, ONE) == [0x0110]


def test_what_the_indexes_do_not_know_is_found(running: Running) -> None:
    store(running.archive, SOPInstanceUID="1.7.1.1", StudyInstanceUID="1.7")
    assert reasons(running, "1.7.1.1") == [0x0000]
    for marker in (running.root / ".plainpacs" / "pending").iterdir():
        marker.unlink()
    assert reasons(running, "1.7.1.1", *(f"1.8.{n}" for n in range(9))) == [0] + [0x0112] * 9


def test_it_can_be_interrupted(running: Running) -> None:
    with pytest.raises(PutOff):
        judge(str(running.root), [Reference(CT, ONE)], lambda: True)


def test_what_cannot_be_looked_at_is_not_called_missing(running: Running) -> None:
    """A link that leads around in a circle stands for a folder that cannot be read."""
    study = running.root / "202401" / "1.2.3"
    (study / "1.2.3.9").symlink_to("1.2.3.9")
    assert reasons(running, "1.5", ONE) == [0x0110, 0x0000]
