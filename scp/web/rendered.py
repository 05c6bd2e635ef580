"""WADO-RS rendered and thumbnail (PS3.18 10.4.1.1.3, 10.4.1.1.4, 8.3.5.1), and what stands for a
series or study: the image in the middle of it.

Pictures are made in confined processes. A thumbnail is always a picture: where none can be made it
is a grey one, with the reason in the header ``X-No-Image``, so that no page shows a broken one.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.element_tree import Element, Elements
from plainpacs.archive.dicom.pixel_data import FRAMES_NEED, Frames
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.indexer.images.render import Picture, Renderers, Wanted
from plainpacs.indexer.images.representative import representative
from plainpacs.scp.web.frames import media_type_of, read_numbers, value_at
from plainpacs.scp.web.media import Accepted, accepted
from plainpacs.scp.web.metadata import Kept
from plainpacs.scp.web.places import Opened, Place, Tree, place_of
from plainpacs.scp.web.ranges import Held, Value, ranged

THUMBNAIL = 128
"""Pixels, where the client does not say."""
MOST_PIXELS = 8192
"""In width and height of a viewport."""
_MEMORY = 16 << 20
_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
_NUMBER = re.compile(
    r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:e[+-]?[0-9]{1,2})?", re.ASCII | re.IGNORECASE
)
_ENCAPSULATED, _MIME_TYPE = 0x00420011, 0x00420012
_SAFE_DOCUMENTS = frozenset(
    ("application/pdf", "text/xml", "application/xml", "model/stl", "model/obj", "model/mtl")
)
_KINDS = {"image/jpeg": "jpeg", "image/png": "png"}


class Rendered:
    """Answers with pictures of a tree. Thread-safe; ``end`` it."""

    def __init__(self, tree: Tree, renderers: Renderers) -> None:
        self._tree = tree
        self._renderers = renderers
        self._thumbnails = Kept(_MEMORY)

    def answer(self, request: Request) -> Response:
        """Answers a request for what an instance, frame, series or study looks like.

        Raises HTTPException.
        """
        place = place_of(request)
        if not place.instance:
            place = self._representative(place)
        return self.of_place(request, place)

    def of_place(self, request: Request, place: Place, kind: str = "") -> Response:
        """The same for an instance; ``kind``: whatever the Accept header says."""
        wanted = read_wanted(request)
        with ExitStack() as stack:
            opened = self._tree.open(place)
            stack.callback(opened.close)
            other = _document(opened, request, kind)
            if other is not None:
                stack.pop_all()
                return other
            kind = _kind([Accepted(kind, {})] if kind else accepted(request))
            picture = self._picture(opened, replace(wanted, kind=_KINDS[kind], tells=True))
        if not picture.data:
            status = 404 if picture.frames <= (wanted.frame or 0) else 406
            raise HTTPException(status, f"there is no picture of it: {picture.why}")
        headers = {"Cache-Control": "private, no-cache"}
        if picture.window is not None and all(map(math.isfinite, picture.window)):
            headers["X-Window"] = f"{picture.window[0]:g},{picture.window[1]:g}"
        return Response(picture.data, 200, headers, kind)

    def thumbnail(self, request: Request) -> Response:
        """Answers a request for a small picture, always with one. Raises HTTPException."""
        place = place_of(request)
        wanted = replace(read_wanted(request), kind="jpeg")
        if wanted.box is None:
            wanted = replace(wanted, box=(THUMBNAIL, THUMBNAIL))
        try:
            if not place.instance:
                place = self._representative(place)
            opened = self._tree.open(place)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return _no_image("nothing of it is here any more", status=404)
        try:
            facts = f"{opened.path} {opened.size} {opened.mtime} {wanted}"
            tag = f'"{hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()}"'
            data = self._thumbnails.get(tag)
            headers = {"Cache-Control": "private, max-age=60", "ETag": tag}
            if tag == request.headers.get("if-none-match"):
                return Response(status_code=304, headers=headers)
            if data is None:
                picture = self._picture(opened, wanted)
                if not picture.data:
                    return _no_image(picture.why)
                data = picture.data
                self._thumbnails.put(tag, data)
        finally:
            opened.close()
        return Response(data, 200, headers, "image/jpeg")

    def end(self) -> None:
        self._renderers.end()

    def _picture(self, opened: Opened, wanted: Wanted) -> Picture:
        return self._renderers.make(f"{self._tree.path}/{opened.path}", wanted)

    def _representative(self, place: Place) -> Place:
        """The instance that stands for a study or series. Raises HTTPException 404."""
        self._tree.check()
        found = representative(self._tree.path, place.study, place.series, self._tree.note)
        if found is None:
            raise HTTPException(404, "there is no such study or series here")
        return Place(place.study, *found)


def read_wanted(request: Request) -> Wanted:
    """What the query of the address wants (PS3.18 8.3.5.1). Raises HTTPException 400."""
    frame = None
    if "frames" in request.path_params:
        numbers = read_numbers(request.path_params["frames"])
        if len(numbers) > 1:
            raise HTTPException(400, "one frame is rendered at a time")
        frame = numbers[0] - 1
    query = _as_of_rs(request.query_params)
    if (text := query.get("frame")) and frame is None:
        frame = read_numbers(text)[0] - 1
    wanted = Wanted(frame=frame, kind="jpeg")
    if text := query.get("viewport"):
        numbers_ = _numbers("viewport", text, (2, 6), empty=True)
        wide, high = (int(one) for one in numbers_[:2])
        if not (1 <= wide <= MOST_PIXELS and 1 <= high <= MOST_PIXELS):
            raise HTTPException(400, f"a viewport is 1 to {MOST_PIXELS} pixels wide and high")
        wanted = replace(wanted, box=(wide, high), fill=True)
        if len(numbers_) == 6:
            x, y, w, h = numbers_[2:]
            wanted = replace(wanted, region=(x, y, w or 1e9, h or 1e9))
    if text := query.get("window"):
        *values, function = text.split(",")
        centre, width = _numbers("window", ",".join(values), (2,))
        if function.lower() not in _FUNCTIONS or width <= 0:
            raise HTTPException(400, "a window is CENTRE,WIDTH,linear|linear-exact|sigmoid")
        wanted = replace(wanted, window=(centre, max(width, 1.0), _FUNCTIONS[function.lower()]))
    if text := query.get("quality"):
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:4]) <= 100):
            raise HTTPException(400, "a quality is 1 to 100")
        wanted = replace(wanted, quality=min(95, int(text)))  # beyond, Pillow says, is no better
    return wanted


def _as_of_rs(query: QueryParams) -> Mapping[str, str]:
    """Also the parameters of WADO-URI (PS3.18 9.4.1), as those of WADO-RS."""
    found = {name: query[name] for name in ("viewport", "window", "quality") if name in query}
    columns, rows = query.get("columns"), query.get("rows")
    if columns or rows:
        found["viewport"] = f"{columns or rows},{rows or columns}"
    if "windowCenter" in query:
        found["window"] = f"{query['windowCenter']},{query.get('windowWidth', '')},linear"
    if "imageQuality" in query:
        found["quality"] = query["imageQuality"]
    if "frameNumber" in query:
        found["frame"] = query["frameNumber"]
    return found


def _numbers(what: str, text: str, counts: tuple[int, ...], *, empty: bool = False) -> list[float]:
    parts = text.split(",")
    good = all(_NUMBER.fullmatch(one.strip()) or (empty and not one and at > 1)
               for at, one in enumerate(parts))  # fmt: skip
    if len(parts) not in counts or not good:
        raise HTTPException(400, f"{what} is not made of numbers with commas between them")
    return [float(one) if one else 0.0 for one in parts]


def _kind(wanted: list[Accepted]) -> str:
    for one in wanted:
        for kind in _KINDS:
            if one.takes(kind):
                return kind
    raise HTTPException(406, "pictures are image/jpeg or image/png")


# --- what is no picture ---------------------------------------------------------------------------


def _document(opened: Opened, request: Request, asked: str) -> Response | None:
    """A document or video that is shown as it is, and then ``opened`` is closed by the answer; None
    for what is drawn."""
    header = opened.header((_ENCAPSULATED, _MIME_TYPE, *FRAMES_NEED))
    kind = media_type_of(header.part10.transfer_syntax)
    value: Value | Held
    if kind.startswith("video/"):
        try:
            value = Value(opened.fd, Frames(opened.fd, opened.size, header).fragments())
        except (UnreadableDataSet, OSError):
            raise HTTPException(406, "the video of the stored instance cannot be read") from None
    elif _ENCAPSULATED in header.elements:
        kind = _text(header.elements, _MIME_TYPE).lower()
        # What is not known to be harmless in a browser is handed out as octets by bulk data alone.
        if kind not in _SAFE_DOCUMENTS:
            raise HTTPException(406, "a document of this kind is not shown")
        value = value_at(opened, header.elements, f"{_ENCAPSULATED:08X}")
    else:
        return None
    takes = [Accepted(asked, {})] if asked else accepted(request)
    if not any(one.takes(kind) for one in takes):
        raise HTTPException(406, f"this is to be had as {kind}")
    return ranged(request, value, kind, opened.close)


def _text(elements: Elements, tag: int) -> str:
    element: Element | None = elements.get(tag)
    value = element.value if element is not None else None
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""


def _no_image(why: str, *, status: int = 200) -> Response:
    headers = {"X-No-Image": re.sub(r"[^ -~]", "?", why), "Cache-Control": "no-store"}
    return Response(_GREY, status, headers, "image/png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", checksum)


def _grey_png(size: int, grey: int) -> bytes:
    """A grey square with a line across it: "no image"."""
    rows = bytearray()
    for y in range(size):
        row = bytearray([grey]) * size
        if size // 8 <= y < size - size // 8:
            row[y] = row[min(size - 1, y + 1)] = grey + 48
        rows += b"\0" + row
    head = struct.pack(">LLBBBBB", size, size, 8, 0, 0, 0, 0)
    body = (
        _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(rows))) + _chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


_GREY = _grey_png(64, 96)
