"""STOW-RS: storing instances (PS3.18 10.5, Annex I), by the seam through which C-STORE goes.

A body is read part by part into the unfinished file of an instance: none is held in memory, but for
small ones. Each part has its answer from the table of C-STORE, and an instance is named as stored
only when it would outlive a power loss.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.store.audit import COUNTED_AS
from plainpacs.archive.store.store import Archive, Provenance, StoreOutcome
from plainpacs.archive.tree.identity import strip_padding
from plainpacs.scp.network.answers import StoreStatus
from plainpacs.scp.storage.store_scp import LargeInstance, StoreAnswer, StoreRequest, store
from plainpacs.scp.web.media import DICOM, DICOM_JSON, PIECE
from plainpacs.scp.web.places import Place, log, place_of

if TYPE_CHECKING:  # where alone it is
    from python_multipart.multipart import MultipartCallbacks

ORIGIN = "stow-rs"
MOST_PARTS = 10_000
LONGEST_PART = 16 << 30
LONGEST_BODY = 256 << 30
_HELD = 256 << 10
"""Bytes of a part that are held before its file is begun."""
_SILENCE = 60.0
_CONFLICT = 0xB000
"""Warning Reason (0008,1196): stored, with a word (PS3.18 Table I.2-2)."""


@dataclass
class Item:
    """What became of a part."""

    status: int
    sop_class: str = ""
    sop_instance: str = ""
    place: Place | None = None
    outcome: StoreOutcome | None = None
    comment: str = ""


class _Part:
    """A part on its way in. ``study``: the only one it may be of, if any."""

    def __init__(self, archive: Archive, provenance: Provenance, study: str) -> None:
        self._archive = archive
        self._provenance = provenance
        self._study = study
        self._held = bytearray()
        self._large: LargeInstance | None = None
        self._found: part10.Part10 | None = None
        self._size = 0
        self._failed: Item | None = None
        self.wrong_type = False

    def write(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > LONGEST_PART:
            raise HTTPException(413, "a part is too long")
        if self._large is not None:
            self._large.write(data)
        elif self._failed is None:
            self._held += data
            if len(self._held) >= _HELD:
                self._begin()

    def _request(self, found: part10.Part10) -> StoreRequest:
        return StoreRequest(
            found.sop_class, found.sop_instance, "", found.transfer_syntax, self._provenance
        )

    def _begin(self) -> None:
        """The file, from what is held on."""
        found = self._head(complete=False)
        if found is None:
            return
        self._large = LargeInstance(self._archive, self._request(found))
        self._large.write(memoryview(self._held)[found.dataset_offset :])
        self._held = bytearray()

    def _head(self, *, complete: bool) -> part10.Part10 | None:
        """What the file says of itself; None when it is not known yet, or refused."""
        try:
            found = part10.read_part10(self._held)
        except UnreadableDataSet as error:
            if complete or len(self._held) > part10.LONGEST_META:
                self._failed = Item(StoreStatus.CANNOT_UNDERSTAND, comment=str(error))
            return None
        self._found = found
        if self._study and not self._is_of_study(found, complete=complete):
            about = (StoreStatus.DATA_SET_DOES_NOT_MATCH, found.sop_class, found.sop_instance)
            self._failed = Item(*about, comment="it is of another study")
            return None
        return found

    def _is_of_study(self, found: part10.Part10, *, complete: bool) -> bool:
        head = memoryview(self._held)[found.dataset_offset :]
        try:
            attributes = read_header(head, found.transfer_syntax, complete=complete)
        except UnreadableDataSet:
            return False
        return strip_padding(str(attributes.get("StudyInstanceUID", ""))) == self._study

    def finish(self) -> Item:
        """Keeps the instance, and says what became of it. Raises nothing that is an Exception."""
        if self.wrong_type:
            return Item(StoreStatus.CANNOT_UNDERSTAND, comment=f"the part is not {DICOM}")
        found = self._found
        if self._large is None and self._failed is None:
            found = self._head(complete=True)
        if self._failed is not None:
            return self._failed
        assert found is not None, "a part is read, or has failed"
        if self._large is not None:
            answer = self._large.store()
        else:
            data_set = memoryview(self._held)[found.dataset_offset :]
            answer = store(self._archive, self._request(found), data_set)
        return _item(found, answer)

    def discard(self) -> None:
        if self._large is not None:
            self._large.discard()


def _item(found: part10.Part10, answer: StoreAnswer) -> Item:
    if answer.stored is None:
        return Item(answer.status, found.sop_class, found.sop_instance, comment=answer.comment)
    key = answer.stored.key
    place = Place(key.study, key.series, key.instance)
    return Item(0, found.sop_class, key.instance, place, answer.stored.outcome)


@dataclass
class _Reading:
    """The parts of one request."""

    new_part: Callable[[], _Part]
    items: list[Item] = field(default_factory=list)
    _part: _Part | None = None
    _header: bytes = b""
    _value: bytes = b""
    _type: bytes = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._name,
            "on_header_value": self._add,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self.end,
        }

    def _begin(self) -> None:
        if len(self.items) >= MOST_PARTS:
            raise HTTPException(413, f"more than {MOST_PARTS} parts")
        self._part = self.new_part()
        self._header = self._value = self._type = b""

    def _name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.strip().lower() == b"content-type":
            self._type = parse_options_header(self._value)[0]
        self._header = self._value = b""

    def _headers_end(self) -> None:
        assert self._part is not None
        self._part.wrong_type = self._type not in (b"", DICOM.encode())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.write(memoryview(data)[start:end])

    def whole(self) -> None:
        """The body is one instance."""
        self._part = self.new_part()

    def write(self, data: memoryview) -> None:
        if self._part is not None and not self._part.wrong_type:
            self._part.write(data)

    def end(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self.items.append(part.finish())

    def close(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.discard()


async def answer(archive: Archive, request: Request, base: str) -> Response:
    """Keeps what a request has, and answers what became of each part. Raises HTTPException."""
    place = place_of(request)
    peer = request.client.host if request.client else ""
    provenance = Provenance(peer=peer, origin=ORIGIN)
    reading = _Reading(lambda: _Part(archive, provenance, place.study))
    feed = _feeder(request, reading)
    try:
        await _fed(request, feed)
    except TimeoutError:
        raise HTTPException(408, "the request came to a stop") from None
    except ClientDisconnect:
        log.warning("a client at %s left while it stored", peer)
        raise HTTPException(400, "the request was cut short") from None
    except FormParserError:
        raise HTTPException(400, "the body is not multipart/related, or was cut short") from None
    finally:
        # What was stored stays stored, whatever came after it.
        await to_thread.run_sync(_settle, archive, request, reading, peer)
    if not reading.items:
        raise HTTPException(400, "the request has no instance")
    return _said(reading.items, place, base)


async def _fed(request: Request, feed: Callable[[bytes], None]) -> None:
    """Takes the body in while what came before is written."""
    stream = request.stream().__aiter__()
    held: list[bytes] = []
    size = 0
    writing: asyncio.Future[None] | None = None
    try:
        while (chunk := await asyncio.wait_for(anext(stream, None), _SILENCE)) is not None:
            held.append(chunk)
            size += len(chunk)
            if writing is not None and (writing.done() or size >= PIECE):
                await writing
                writing = None
            if writing is None and size:
                writing = asyncio.ensure_future(to_thread.run_sync(feed, b"".join(held)))
                held, size = [], 0
    finally:
        if writing is not None:
            await writing
    if size:
        await to_thread.run_sync(feed, b"".join(held))
    await to_thread.run_sync(feed, b"")


def _feeder(request: Request, reading: _Reading) -> Callable[[bytes], None]:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "the body is not to be compressed")
    if int(request.headers.get("content-length", 0)) > LONGEST_BODY:
        raise HTTPException(413, "the body is too long")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == DICOM.encode():
        reading.whole()

        def one(data: bytes) -> None:
            if data:
                reading.write(memoryview(data))
            else:
                reading.end()

        return one
    if kind != b"multipart/related" or options.get(b"type", DICOM.encode()) != DICOM.encode():
        raise HTTPException(415, f'instances come as multipart/related; type="{DICOM}"')
    boundary = options.get(b"boundary")
    if not boundary:
        raise HTTPException(400, "multipart/related needs a boundary")
    try:
        parser = MultipartParser(boundary, reading.callbacks())
    except FormParserError:
        raise HTTPException(400, "the boundary cannot be used") from None

    def parse(data: bytes) -> None:
        if data:
            parser.write(data)
        else:
            parser.finalize()

    return parse


def _settle(archive: Archive, request: Request, reading: _Reading, peer: str) -> None:
    reading.close()
    studies: dict[str, Counter[str]] = {}
    for item in reading.items:
        if item.place is not None and item.outcome is not None:
            studies.setdefault(item.place.study, Counter())[COUNTED_AS[item.outcome]] += 1
    user = getattr(request.state, "user", "") or None
    for study, counts in studies.items():
        archive.audit.write("stored", peer=peer, web_user=user, StudyInstanceUID=study, **counts)
    refused = Counter(item.comment for item in reading.items if item.status)
    for why, count in refused.items():
        log.warning("refused: %d instances by STOW-RS from %s: %s", count, peer, why)


def _said(items: list[Item], place: Place, base: str) -> Response:
    """The answer of PS3.18 Annex I: one item for each part, also for one that is no DICOM."""
    kept = [item for item in items if item.place is not None]
    failed = [item for item in items if item.place is None]
    study = place.study or (kept[0].place.study if kept and kept[0].place else "")
    found: dict[str, Any] = {}
    if study:
        found["00081190"] = {"vr": "UR", "Value": [base + Place(study).url]}
    if failed:
        found["00081198"] = {
            "vr": "SQ",
            "Value": [
                {**_reference(item), "00081197": {"vr": "US", "Value": [int(item.status)]}}
                for item in failed
            ],
        }
    if kept:
        found["00081199"] = {"vr": "SQ", "Value": [_success(item, base) for item in kept]}
    status = 200 if not failed else 202 if kept else 409
    if not kept and all(item.status == StoreStatus.OUT_OF_RESOURCES for item in failed):
        status = 503
    headers = {"Retry-After": "60"} if status == 503 else {}
    return Response(orjson.dumps(found), status, headers, DICOM_JSON)


def _reference(item: Item) -> dict[str, Any]:
    known = (("00081150", item.sop_class), ("00081155", item.sop_instance))
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in known if uid}


def _success(item: Item, base: str) -> dict[str, Any]:
    assert item.place is not None
    found = {**_reference(item), "00081190": {"vr": "UR", "Value": [base + item.place.url]}}
    if item.outcome is StoreOutcome.CONFLICT:
        found["00081196"] = {"vr": "US", "Value": [_CONFLICT]}
    return found
