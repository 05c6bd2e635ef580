"""Values that lie in a file, sent from there in pieces: all of one, or the part of it that a client
wants (RFC 9110 14.2). None is held in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.elements import swapped
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.scp.web.media import PIECE, Part, Pieces, accepted, length_of, multipart


class Value(NamedTuple):
    """Bytes of the file open as ``fd``: one stretch after the other, each from its start up to its
    end. ``width``: of the words whose bytes lie the other way round."""

    fd: int
    stretches: Sequence[tuple[int, int]]
    width: int = 1

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.stretches)

    def pieces(self, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """From the byte ``first`` to the byte ``last``. Raises UnreadableDataSet."""
        end = self.size if last is None else last + 1
        before = first % self.width
        at = first - before
        while at < end:
            piece = self._read(at, min(PIECE, self.size - at))
            at += len(piece)
            piece = swapped(piece, self.width) if self.width > 1 else piece
            yield piece[before : len(piece) - max(0, at - end)]
            before = 0

    def _read(self, at: int, size: int) -> bytes:
        """So many bytes from there on, or fewer, but whole words of them."""
        for start, end in self.stretches:
            if at < end - start:
                data = os.pread(self.fd, min(size, end - start - at), start + at)
                data = data[: len(data) - len(data) % self.width] or data
                if data:
                    return data
                break
            at -= end - start
        raise UnreadableDataSet("the file became shorter")


class Held(NamedTuple):
    """Bytes that are in memory anyhow."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        end = self.size if last is None else last + 1
        for at in range(first, end, PIECE):
            yield bytes(self.data[at : min(end, at + PIECE)])


def single_or_multipart(
    request: Request, value: Value | Held, kind: str, url: str, closing: Callable[[], None]
) -> Response:
    """The value as the client wants it. ``closing``: see ``Pieces``. Raises HTTPException 406."""
    for one in accepted(request):
        if one.takes(kind):
            break
    else:
        raise HTTPException(406, f"this is to be had as {kind}")
    if one.is_multipart:
        part = Part(kind, value.pieces(), value.size, url)
        return multipart([part], kind, length=length_of(part), closing=closing)
    return ranged(request, value, kind, closing)


def ranged(
    request: Request,
    value: Value | Held,
    kind: str,
    closing: Callable[[], None],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The part of the value that the Range header names, else all of it. Raises HTTPException."""
    said = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", **(headers or {})}
    tag = said.get("ETag")
    wanted = request.headers.get("range", "")
    if request.headers.get("if-range", tag) != tag:
        wanted = ""
    span = read_range(wanted, value.size)
    first, last = span or (0, value.size - 1)
    if span is not None:
        said["Content-Range"] = f"bytes {first}-{last}/{value.size}"
    status = 200 if span is None else 206
    length = last + 1 - first
    return Pieces(value.pieces(first, last), status, said, kind, length=length, closing=closing)


def read_range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header of one range; None for none, or several.

    Raises HTTPException 416.
    """
    unit, _, span = text.partition("=")
    low, dash, high = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or "," in span or not low + high:
        return None
    if not all(
        one == "" or (one.isascii() and one.isdecimal() and len(one) < 19) for one in (low, high)
    ):
        return None
    if low:
        first, last = int(low), min(int(high), size - 1) if high else size - 1
        if high and int(high) < first:
            return None  # which is no range at all, and is passed over (RFC 9110 14.1.1)
    else:
        first, last = max(0, size - int(high)), size - 1
    if first > last or first >= size:
        raise HTTPException(416, "there are no such bytes", {"Content-Range": f"bytes */{size}"})
    return first, last
