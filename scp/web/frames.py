"""WADO-RS frames and bulk data (PS3.18 10.4.1.1.5, 10.4.1.1.6), as they are stored.

A compressed frame has the media type of its transfer syntax (Table 8.7.3-5). One that is asked for
uncompressed is decoded in a confined process.
"""

from __future__ import annotations

import os

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.element_tree import Element, Elements
from plainpacs.archive.dicom.elements import WIDTHS, swapped
from plainpacs.archive.dicom.flatten import DataSet
from plainpacs.archive.dicom.pixel_data import FRAMES_NEED, TABLES, Frames, Pixels
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.indexer.images.render import Renderers, Wanted
from plainpacs.scp.web.media import (
    ANY_SYNTAX,
    OCTETS,
    Accepted,
    Part,
    accepted,
    length_of,
    multipart,
)
from plainpacs.scp.web.places import Opened, Tree, log, place_of

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
    opened = tree.open(place)
    try:
        frames = frames_of(opened)
        if any(number > frames.count for number in numbers):
            raise HTTPException(404, f"the instance has frames 1 to {frames.count}")
        syntax = frames.transfer_syntax if frames.pixels.encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
        kind = media_type_of(syntax)
        chosen, decode = _choice(request, kind, syntax)
        if decode:
            kind, syntax = OCTETS, EXPLICIT_VR_LITTLE_ENDIAN
        if decode:
            path = f"{tree.path}/{opened.path}"
            data = [_decoded(renderers, path, number - 1) for number in numbers]
        else:
            data = [frames.read(number - 1) for number in numbers]
    except UnreadableDataSet as error:
        log.warning("%s: %s", opened.path, error)
        raise HTTPException(406, "the frames of the stored instance cannot be read") from None
    finally:
        opened.close()
    whole = kind if syntax == "" else f"{kind}; transfer-syntax={syntax}"
    headers = {"Cache-Control": "private, no-cache"}
    if not chosen.is_multipart and chosen.type != "*/*":
        return Response(data[0], 200, headers, whole)
    parts = [
        Part(whole, (one,), len(one), f"{base}{place.url}/frames/{number}")
        for number, one in zip(numbers, data, strict=True)
    ]
    return multipart(parts, kind, length=sum(map(length_of, parts)))


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
    opened = tree.open(place)
    try:
        header = opened.header()
        if header.pixels is not None and path in ("7FE00010", "7FE00008", "7FE00009"):
            if header.pixels.encapsulated or header.pixels.tag in TABLES:
                return _all_frames(opened, request, f"{base}{place.url}")
            data = _native(opened, header.pixels, header.data)
            return single_or_multipart(request, data, OCTETS, f"{base}{place.url}/bulkdata/{path}")
        data = value_at(opened, header.elements, path)
    except UnreadableDataSet as error:
        log.warning("%s: %s", opened.path, error)
        raise HTTPException(406, "the stored instance cannot be read") from None
    finally:
        opened.close()
    return single_or_multipart(request, data, OCTETS, f"{base}{place.url}/bulkdata/{path}")


def value_at(opened: Opened, elements: Elements, path: str) -> bytes:
    """The value of an element, in little endian. ``path``: its tag, after those of the sequences it
    lies in, each with the number of the item. Raises HTTPException 404."""
    element = _element(elements, path)
    long = element.value is None or isinstance(element.value, list)
    data = _long_value(opened, path) if long else element.value
    assert isinstance(data, bytes)
    width = WIDTHS.get(element.vr, 1)
    return data if element.little_endian else swapped(data, width)


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


def _long_value(opened: Opened, path: str) -> bytes:
    """A value that is too long to be kept with the header: its place is looked for again."""
    from mmap import ACCESS_READ, mmap  # noqa: PLC0415 - of long values alone

    header = opened.header()
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
                    return bytes(data_set.data[leaf.start : leaf.end])
        finally:
            del data_set
            view.release()
    raise HTTPException(404, "the instance has no such value")


def _all_frames(opened: Opened, request: Request, url: str) -> Response:
    """The frames of encapsulated pixel data, each a part."""
    frames = frames_of(opened)
    kind, syntax = media_type_of(frames.transfer_syntax), frames.transfer_syntax
    data = [frames.read(number) for number in range(min(frames.count, MOST_FRAMES))]
    parts = [
        Part(f"{kind}; transfer-syntax={syntax}", (one,), len(one), f"{url}/frames/{number}")
        for number, one in enumerate(data, 1)
    ]
    return multipart(parts, kind, length=sum(map(length_of, parts)))


def _native(opened: Opened, pixels: Pixels, inflated: memoryview | None) -> bytes:
    if inflated is not None:
        data = bytes(inflated[pixels.start : pixels.end])
    else:
        data = os.pread(opened.fd, pixels.end - pixels.start, pixels.start)
    return data if pixels.little_endian else swapped(data, WIDTHS.get(pixels.vr, 1))


def single_or_multipart(request: Request, data: bytes, kind: str, url: str) -> Response:
    """``data`` as the client wants it, and the part of it that it wants (RFC 9110 14.2)."""
    for one in accepted(request):
        if one.takes(kind):
            break
    else:
        raise HTTPException(406, f"this is to be had as {kind}")
    if one.is_multipart:
        part = Part(kind, (data,), len(data), url)
        return multipart([part], kind, length=length_of(part))
    return ranged(request, data, kind)


def ranged(request: Request, data: bytes, kind: str) -> Response:
    """The part of ``data`` that the Range header names, else all of it."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    wanted = read_range(request.headers.get("range", ""), len(data))
    if wanted is None:
        return Response(data, 200, headers, kind)
    first, last = wanted
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, headers, kind)


def read_range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header of one range; None for none, or several.

    Raises HTTPException 416.
    """
    unit, _, span = text.partition("=")
    low, dash, high = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or "," in span:
        return None
    if not all(
        one == "" or (one.isascii() and one.isdecimal() and len(one) < 19) for one in (low, high)
    ):
        return None
    if low:
        first, last = int(low), min(int(high), size - 1) if high else size - 1
    else:
        first, last = max(0, size - int(high or 0)), size - 1
    if first > last or first >= size:
        raise HTTPException(416, "there are no such bytes", {"Content-Range": f"bytes */{size}"})
    return first, last
