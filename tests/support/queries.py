"""What tests of queries share: an archive of a few studies, and a peer that asks."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plainpacs.archive.dicom.identifier import EXPLICIT, IMPLICIT, DataSet, read
from plainpacs.archive.dicom.identifier_writing import Value, encode
from plainpacs.archive.dicom.text_encoding import TextEncoding
from plainpacs.archive.store.store import Provenance
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.scp.network.dimse import read_command
from tests.support.dimse import Element
from tests.support.peer import (
    APPLICATION,
    DATA,
    Peer,
    associate_rq,
    command,
    context_item,
    item,
    message,
)
from tests.support.receiver import Running

PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
PENDING, PENDING_KEYS, SUCCESS, CANCELLED = 0xFF00, 0xFF01, 0x0000, 0xFE00

MUELLER: dict[str, Value] = {
    "SOPClassUID": CT,
    "PatientName": "Müller^Jörg",
    "PatientID": "P1",
    "PatientBirthDate": "19700102",
    "StudyInstanceUID": "1.1",
    "StudyDate": "20240131",
    "StudyTime": "101500",
    "AccessionNumber": "ACC1",
    "StudyDescription": "Chest",
    "SeriesInstanceUID": "1.1.1",
    "Modality": "CT",
    "SeriesNumber": 2,
    "SeriesDescription": "Lung",
    "RequestAttributesSequence": [
        {"ScheduledProcedureStepID": "STEP1", "RequestedProcedureID": "PROC1"}
    ],
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "SliceThickness": 0.75,
    "Rows": 512,
    "KVP": 120.0,
    "ImageComments": "größer",
    "AnatomicRegionSequence": [{"CodeValue": "T-D3000", "CodeMeaning": "Brust (größer)"}],
}
REPORT: dict[str, Value] = {
    "SOPClassUID": SR,
    "PatientName": "Roe^Richard",  # by mistake in the same study
    "PatientID": "P2",
    "StudyInstanceUID": "1.1",
    "StudyDate": "20240131",
    "SeriesInstanceUID": "1.1.2",
    "SOPInstanceUID": "1.1.2.1",
    "Modality": "SR",
    "SeriesNumber": 1,
}
YAMADA: dict[str, Value] = {
    "SOPClassUID": CT,
    "PatientName": "Yamada^Tarou=山田^太郎",
    "PatientID": "P3",
    "StudyInstanceUID": "1.2",
    "StudyDate": "20240301",
    "StudyTime": "2350",
    "SeriesInstanceUID": "1.2.1",
    "SOPInstanceUID": "1.2.1.1",
    "Modality": "MR",
    "TimezoneOffsetFromUTC": "+0900",
}
NOBODY: dict[str, Value] = {
    "SOPClassUID": CT,
    "PatientName": "Nobody",
    "StudyInstanceUID": "1.3",
    "SeriesInstanceUID": "1.3.1",
    "SOPInstanceUID": "1.3.1.1",
    "Modality": "CT",
}
JAPANESE = TextEncoding(("", "ISO 2022 IR 87"))
LATIN = TextEncoding(("ISO_IR 100",))
SENDER = Provenance("CT1", "DRDCM", "10.0.0.5")


def fill(running: Running) -> None:
    """Stores the studies above, and indexes them."""
    stored = (
        (MUELLER | {"SOPInstanceUID": "1.1.1.1", "InstanceNumber": 10}, EXPLICIT, LATIN),
        (MUELLER | {"SOPInstanceUID": "1.1.1.2", "InstanceNumber": 9}, IMPLICIT, LATIN),
        (REPORT, EXPLICIT, None),
        (YAMADA, EXPLICIT, JAPANESE),
        (NOBODY, IMPLICIT, None),
    )
    for values, syntax, repertoire in stored:
        running.archive.store(encode(values, syntax, repertoire), syntax, SENDER)
    index(running)


def index(running: Running) -> None:
    with Indexer.open(str(running.root)) as indexer:
        indexer.once()


@dataclass(frozen=True)
class Found:
    """What came of a query: the identifiers, the statuses they came with, and the last response."""

    answers: list[DataSet]
    pending: set[int]
    status: int
    comment: str
    offending: int

    def texts(self, *keywords: str) -> list[tuple[str, ...]]:
        """The values of each answer, sorted."""
        return sorted(tuple(one.text(keyword) for keyword in keywords) for one in self.answers)


class Asker(Peer):
    """A peer that queries. ``extended``: what is proposed by extended negotiation."""

    def __init__(
        self,
        port: int,
        model: str = STUDY_ROOT,
        syntax: str = EXPLICIT,
        *,
        extended: bytes = b"",
        called: str = "DRDCM",
        longest: int = 1 << 14,
    ) -> None:
        user = item(0x51, struct.pack(">L", longest)) + item(0x52, b"1.2.3.4")
        if extended:
            user += item(0x56, struct.pack(">H", len(model)) + model.encode() + extended)
        contexts = context_item(1, model, [syntax]) + context_item(
            3, "1.2.840.10008.1.1", [IMPLICIT]
        )
        request = associate_rq(contexts, called=called, user=user, application=APPLICATION)
        super().__init__(port, request)
        self.model = model
        self.syntax = syntax

    def agreed(self) -> dict[str, bytes]:
        """The extended negotiation of the acceptance."""
        found = {}
        _, body = self.answer
        for kind, value in _items(body[68:]):
            if kind == 0x50:
                for inner, told in _items(value):
                    if inner == 0x56:
                        end = 2 + int.from_bytes(told[:2], "big")
                        found[told[2:end].decode()] = told[end:]
        return found

    def find_rq(self, identifier: bytes | None) -> bytes:
        told = command(0x20, self.model.encode(), None, data=identifier is not None)
        return message(1, told, identifier, 1 << 14)

    def begin(self, identifier: bytes | None) -> None:
        self.send(self.find_rq(identifier))

    def cancel_rq(self, message_id: int = 7) -> bytes:
        body = b"".join(
            struct.pack("<HHLH", 0, number, 2, value)
            for number, value in ((0x0100, 0x0FFF), (0x0120, message_id), (0x0800, 0x0101))
        )
        return message(1, struct.pack("<HHLL", 0, 0, 4, len(body)) + body, None)

    def ask(
        self,
        keys: Mapping[str, Value] | None = None,
        level: str = "STUDY",
        *,
        repertoire: TextEncoding | None = None,
        **more: Value,
    ) -> Found:
        """The answers to a query of these keys."""
        values: dict[str, Any] = {"QueryRetrieveLevel": level, **(keys or {}), **more}
        self.begin(encode(values, self.syntax, repertoire))
        return self.finish()

    def finish(self) -> Found:
        """What comes until the last response."""
        answers: list[DataSet] = []
        pending: set[int] = set()
        told, data = b"", b""
        while True:
            kind, body = self.receive()
            assert kind == DATA, (kind, body)
            at = 0
            while at < len(body):
                length, context, control = struct.unpack_from(">LBB", body, at)
                assert context == 1
                value = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    told += value
                else:
                    data += value
                if not control & 2:
                    continue
                response = read_command(told)
                assert (response.field, response.message_id) == (0x8020, 7)
                assert response.sop_class == self.model
                if control & 1 and response.has_data_set:
                    pending.add(response.status)
                    continue
                if control & 1:
                    offending = response.elements.get(Element.OFFENDING_ELEMENT, bytes(4))
                    group, number = struct.unpack("<HH", offending)
                    comment = response.elements.get(Element.ERROR_COMMENT, b"").decode().strip()
                    return Found(answers, pending, response.status, comment, group << 16 | number)
                answers.append(read(data, self.syntax))
                told, data = b"", b""


def _items(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from(">BxH", data, at)
        found.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found
