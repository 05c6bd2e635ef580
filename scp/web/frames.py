"""WADO-RS frames and bulk data (PS3.18 10.4.1.1.5, 10.4.1.1.6), as they are stored.

A compressed frame has the media type of its transfer syntax (Table 8.7.3-5). One that is asked for
uncompressed is decoded in a confined process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.element_tree import Element, Elements
from plainpacs.archive.dicom.elements import WIDTHS, swapped
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.dicom.pixel_data import FRAMES_NEED, TABLES, Frames
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.indexer.images.render import Renderers, Wanted
from plainpacs.scp.web.media import (
    ANY_SYNTAX,
    OCTETS,
    Accepted,
    Part,
    accepted,
    multipart,
)
from plainpacs.scp.web.places import Opened, Tree, log, place_of
from plainpacs.scp.web.ranges import Held, Value, single_or_multipart

MOST_FRAMES = 1000
"""In one request."""
_JPEG, _JLS, _JP2, _JPX, _JPH, _RLE = (
    f"image/{name}" for name in ("jpeg", "jls", "jp2", "jpx", "jphc", "dicom-rle")
)
MEDIA_TYPES = {
    **dict.fromkeys(("4.50", "4.51", "4.57", "4.70"), _JPEG),
    **dict.fromkeys(("4.80", "4.81"), _JLS),
    **dict.fromkeys(("4.90", "4.91"), _JP2),
    **dict.fromkeys(("4.92", "4.93"), _JPX),
    **dict.fromkeys(("4.201", "4.202", "4.203"), _JPH),
    "5": _RLE,
    **dict.fromkeys(("4.100", "4.100.1", "4.101", "4.101.1"), "video/mpeg"),
    **{
        f"4.{number}{form}": "video/mp4"
        for number in range(102, 109)
        for form in ("", ".1")
    },
    **dict.fromkeys(("4.110", "4.111", "4.112"), "image/jxl"),
}  # fmt: skip
_ROOT = "1.2.840.10008.1.2."


def media_type_of(syntax: str) -> str:
    """Of a frame in a transfer syntax; octets for one that is not compressed, or unknown."""
    return MEDIA_TYPES.get(syntax.removeprefix(_ROOT), OCTETS)


def answer(tree: Tree, renderers: Renderers, request: Request, base: str) -> Response:
    """Answers a request for frames. Raises HTTPException."""
    place = place_of(request)
    numbers = read_numbers(request.path_params["frames"])
    with ExitStack() as stack:
        opened = tree.open(place)
        stack.callback(opened.close)
        try:
            frames = frames_of(opened)
            if any(number > frames.count for number in numbers):
                raise HTTPException(404, f"the instance has frames 1 to {frames.count}")
            encapsulated = frames.pixels.encapsulated
            syntax = frames.transfer_syntax if encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
            kind = media_type_of(syntax)
            chosen, decode = _choice(request, kind, syntax)
            path = f"{tree.path}/{opened.path}"
            if decode:
                kind, syntax = OCTETS, EXPLICIT_VR_LITTLE_ENDIAN
            whole = f"{kind}; transfer-syntax={syntax}"
            bodies: Iterator[bytes] = (
                _decoded(renderers, path, number - 1) if decode else frames.read(number - 1)
                for number in numbers
            )
            if not chosen.is_multipart and chosen.type != "*/*":
                headers = {"Cache-Control": "private, no-cache"}
                return Response(next(bodies), 200, headers, whole)
            parts = (
                Part(whole, (one,), len(one), f"{base}{place.url}/frames/{number}")
                for number, one in zip(numbers, bodies, strict=True)
            )
            return multipart(parts, kind, closing=stack.pop_all().close)
        except UnreadableDataSet as error:
            log.warning("%s: %s", opened.path, error)
            raise HTTPException(406, "the frames of the instance cannot be read") from None


def read_numbers(text: str) -> list[int]:
    """Frame numbers, from 1 on. Raises HTTPException 400."""
    numbers = text.split(",")
    if not all(one.isascii() and one.isdecimal() and len(one) < 10 for one in numbers):
        raise HTTPException(400, "frames are numbers, separated by commas")
    found = [int(one) for one in numbers]
    if not all(found):
        raise HTTPException(400, "frames are counted from 1 on")
    if len(found) > MOST_FRAMES:
        raise HTTPException(400, f"at most {MOST_FRAMES} frames a request")
    return found


def frames_of(opened: Opened) -> Frames:
    """Raises HTTPException 404 when there are none."""
    header = opened.header(FRAMES_NEED)
    if header.pixels is None:
        raise HTTPException(404, "the instance has no pixel data")
    return Frames(opened.fd, opened.size, header)


def _choice(request: Request, kind: str, syntax: str) -> tuple[Accepted, bool]:
    """What of the Accept header is met, and whether frames are decoded for it."""
    several = "," in request.path_params["frames"]
    for one in accepted(request):
        if several and not one.is_multipart and one.type != "*/*":
            continue
        wanted = one.transfer_syntax
        if one.takes(kind) and wanted in ("", ANY_SYNTAX, syntax):
            return one, False
        if not one.takes(OCTETS):
            continue
        # Octets with any syntax are what is stored, whatever its own media type is: so do viewers.
        if wanted == ANY_SYNTAX:
            return one, False
        if wanted in ("", EXPLICIT_VR_LITTLE_ENDIAN):
            return one, kind != OCTETS
    raise HTTPException(406, f"these frames are to be had as {kind} and {OCTETS}")


def _decoded(renderers: Renderers, path: str, frame: int) -> bytes:
    picture = renderers.make(path, Wanted(frame=frame, kind="raw"))
    if not picture.data:
        raise HTTPException(406, f"the frame cannot be decompressed: {picture.why}")
    return picture.data


# --- bulk data ------------------------------------------------------------------------------------


def bulk_data(tree: Tree, request: Request, base: str) -> Response:
    """Answers a request for the value of one element. Raises HTTPException."""
    place = place_of(request)
    path = request.path_params["tags"]
    url = f"{base}{place.url}"
    with ExitStack() as stack:
        opened = tree.open(place)
        stack.callback(opened.close)
        try:
            header = opened.header()
            pixels = header.pixels
            value: Value | Held
            if pixels is None or path not in ("7FE00010", "7FE00008", "7FE00009"):
                value = value_at(opened, header.elements, path)
            elif pixels.encapsulated or pixels.tag in TABLES:
                parts = _all_frames(opened, url)
                kind = media_type_of(header.part10.transfer_syntax)
                return multipart(parts, kind, closing=stack.pop_all().close)
            elif header.data is not None:
                value = Held(header.data[pixels.start : pixels.end])
            else:
                width = 1 if pixels.little_endian else WIDTHS.get(pixels.vr, 1)
                value = Value(opened.fd, [(pixels.start, pixels.end)], width)
        except UnreadableDataSet as error:
            log.warning("%s: %s", opened.path, error)
            raise HTTPException(406, "the stored instance cannot be read") from None
        answer = single_or_multipart(request, value, OCTETS, f"{url}/bulkdata/{path}", opened.close)
        stack.pop_all()
        return answer


def value_at(opened: Opened, elements: Elements, path: str) -> Value | Held:
    """The value of an element, in little endian. ``path``: its tag, after those of the sequences it
    lies in, each with the number of the item. Raises HTTPException 404."""
    element = _element(elements, path)
    width = 1 if element.little_endian else WIDTHS.get(element.vr, 1)
    if isinstance(element.value, bytes):
        return Held(swapped(element.value, width) if width > 1 else element.value)
    return _long_value(opened, path, width)


def _element(elements: Elements, path: str) -> Element:
    *above, last = path.split("/")
    at: Elements | None = elements
    try:
        for tag, number in zip(above[::2], above[1::2], strict=True):
            items = at[int(tag, 16)].value if at else None
            at = items[int(number)] if isinstance(items, list) else None
        if at is None:
            raise KeyError(path)
        return at[int(last, 16)]
    except (KeyError, IndexError, ValueError):
        raise HTTPException(404, "the instance has no such element") from None


def _long_value(opened: Opened, path: str, width: int) -> Value | Held:
    """A value that is too long to be kept with the header: its place is looked for again."""
    from mmap import ACCESS_READ, mmap  # noqa: PLC0415 - of long values alone

    header = opened.header(())
    wanted = tuple(
        int(part, 16) if at % 2 == 0 else int(part) for at, part in enumerate(path.split("/"))
    )
    offset = header.part10.dataset_offset
    with mmap(opened.fd, 0, access=ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            data_set = DataSet(view[offset:], header.part10.transfer_syntax, header_only=True)
            for leaf in data_set:
                if leaf.path == wanted and leaf.vr != "SQ":
                    if header.data is not None:  # it was deflated
                        return Held(bytes(data_set.data[leaf.start : leaf.end]))
                    return Value(opened.fd, [(leaf.start + offset, leaf.end + offset)], width)
        finally:
            del data_set
            view.release()
    raise HTTPException(404, "the instance has no such value")


def _all_frames(opened: Opened, url: str) -> Iterator[Part]:
    """The frames of encapsulated pixel data, each a part."""
    frames = frames_of(opened)
    syntax = frames.transfer_syntax
    for number in range(1, frames.count + 1):
        data = frames.read(number - 1)
        kind = f"{media_type_of(syntax)}; transfer-syntax={syntax}"
        yield Part(kind, (data,), len(data), f"{url}/frames/{number}")
