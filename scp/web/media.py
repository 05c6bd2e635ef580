"""What a client accepts, and answers that are sent piece by piece (PS3.18 8.7; RFC 9110).

Answers are read in threads and sent from the loop: the next piece is read while one is on its way,
so a client of any speed costs the memory of two pieces and holds no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plainpacs.archive.errors import PlainpacsError

log = logging.getLogger("plainpacs.scp")

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
OCTETS = "application/octet-stream"
ANY_SYNTAX = "*"
"""``transfer-syntax=*``: as it is stored (PS3.18 8.7.3.5.2)."""

PIECE = 256 << 10
_AT_ONCE = 1 << 20
_SLOWEST = 60.0
"""Seconds a client may take for a piece before the connection is given up."""
_LONGEST_ACCEPT = 4096

_PARAMETER = re.compile(r'\s*;\s*([^\s=;,"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*)')
_WEIGHT = re.compile(r"[01](?:\.[0-9]{0,9})?", re.ASCII)
_TYPE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)")


class Accepted(NamedTuple):
    """A media type that the client takes, in lower case, and its parameters."""

    type: str
    parameters: Mapping[str, str]

    @property
    def part(self) -> str:
        """What the parts are to be, of multipart/related; else the type itself."""
        if self.type == "multipart/related":
            return self.parameters.get("type", "*/*").lower()
        return self.type

    @property
    def is_multipart(self) -> bool:
        return self.type == "multipart/related"

    @property
    def transfer_syntax(self) -> str:
        """Empty when none is asked for."""
        return self.parameters.get("transfer-syntax", "")

    def takes(self, kind: str) -> bool:
        """Whether a single part, or each part, may be of this kind."""
        mine = self.part
        return mine in ("*/*", kind) or (mine.endswith("/*") and kind.startswith(mine[:-1]))


def accepted(request: Request) -> list[Accepted]:
    """What the client takes, the dearest first: the query parameter ``accept``, else the header.

    Raises HTTPException 400.
    """
    # "+" is a space in a query, and part of a media type.
    given = [
        one.replace("dicom json", "dicom+json") for one in request.query_params.getlist("accept")
    ]
    text = ",".join(given or request.headers.getlist("accept"))
    if len(text) > _LONGEST_ACCEPT:
        raise HTTPException(400, "the Accept header is too long")
    found: list[tuple[float, Accepted]] = []
    at = 0
    while at < len(text):
        if text[at] in ", \t":
            at += 1
            continue
        matched = _TYPE.match(text, at)
        if matched is None:
            raise HTTPException(400, "the Accept header is not a list of media types")
        at = matched.end()
        parameters: dict[str, str] = {}
        while (one := _PARAMETER.match(text, at)) is not None:
            value = one[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            parameters[one[1].lower()] = value
            at = one.end()
        rest = text[at:].lstrip(" \t;")
        if rest and not rest.startswith(","):
            raise HTTPException(400, "the Accept header is not a list of media types")
        weight = parameters.pop("q", "1")
        if not _WEIGHT.fullmatch(weight):
            raise HTTPException(400, "a weight (q) in the Accept header is not a number")
        if float(weight) > 0:
            found.append((float(weight), Accepted(matched[1].lower(), parameters)))
        at = len(text) - len(rest)
    found.sort(key=lambda pair: -pair[0])
    return [one for _, one in found] if text.strip() else [Accepted("*/*", {})]


def need_json(request: Request) -> None:
    """Raises HTTPException 406 when the client does not take DICOM JSON."""
    for one in accepted(request):
        if one.type in (DICOM_JSON, "application/json", "application/*", "*/*"):
            return
    raise HTTPException(406, f"this is to be had as {DICOM_JSON} only")


def takes_gzip(request: Request) -> bool:
    encodings = request.headers.get("accept-encoding", "").lower()
    return any(
        one.partition(";")[0].strip() in ("gzip", "*") and not re.search(r";\s*q=0(\.0*)?$", one)
        for one in encodings.split(",")
    )


# --- multipart ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of multipart/related. ``length``: of its body, when it is known."""

    content_type: str
    body: Iterable[bytes]
    length: int | None = None
    location: str = ""


def multipart(
    parts: Iterable[Part],
    kind: str,
    *,
    length: int | None = None,
    closing: Callable[[], None] | None = None,
) -> Response:
    """The answer with these parts (PS3.18 8.6.1.2), of which ``kind`` is the media type.

    ``length``: of all bodies and heads together, as ``length_of`` counts them. What is short is
    read before the answer begins, so that what is wrong with it has its status. ``closing``: see
    ``Pieces``.
    """
    boundary = secrets.token_hex(16)
    media_type = f'multipart/related; type="{kind}"; boundary={boundary}'
    body = _joined(parts, boundary)
    held: list[bytes] = []
    if length is None or length <= _AT_ONCE:
        size = 0
        while size <= _AT_ONCE and (piece := next(body, None)) is not None:
            held.append(piece)
            size += len(piece)
        if size <= _AT_ONCE:
            if closing is not None:
                closing()
            return Response(b"".join(held), media_type=media_type)
    whole = None if length is None else length + len(_end(boundary))
    return Pieces(chain(held, body), media_type=media_type, length=whole, closing=closing)


def length_of(part: Part) -> int:
    """What a part of known length adds to the answer."""
    return len(_head(part, "0" * 32)) + (part.length or 0) + 2


def _joined(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    for part in parts:
        yield _head(part, boundary)
        yield from part.body
        yield b"\r\n"
    yield _end(boundary)


def _head(part: Part, boundary: str) -> bytes:
    location = f"Content-Location: {part.location}\r\n" if part.location else ""
    length = f"Content-Length: {part.length}\r\n" if part.length is not None else ""
    head = f"--{boundary}\r\nContent-Type: {part.content_type}\r\n{location}{length}\r\n"
    return head.encode("latin-1", "replace")


def _end(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()


class Pieces(Response):
    """An answer whose ``body`` is read from blocking iterators, a piece ahead of what is sent.

    ``closing`` is called at the end, whatever happened.
    """

    def __init__(
        self,
        body: Iterable[bytes],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        *,
        length: int | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self._pieces = gathered(body)
        self._closing = closing
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self.init_headers(dict(headers or {}))
        if length is not None:
            self.headers["content-length"] = str(length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        begun = False
        try:
            first = b"" if scope["method"] == "HEAD" else await run_in_threadpool(self._next)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            begun = True
            piece = first
            while piece and not gone.done():
                reading = asyncio.ensure_future(run_in_threadpool(self._next))
                try:
                    message = {"type": "http.response.body", "body": piece, "more_body": True}
                    await asyncio.wait_for(send(message), _SLOWEST)
                finally:
                    piece = await reading
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        except (OSError, PlainpacsError, HTTPException) as error:
            if not begun:
                raise
            # The connection is closed before the answer's end, which the client sees.
            log.warning("an answer broke off: %s", error or "the client takes no more of it")
        finally:
            gone.cancel()
            await run_in_threadpool(self._close)

    def _next(self) -> bytes:
        return next(self._pieces, b"")

    def _close(self) -> None:
        with contextlib.suppress(ValueError):  # it is at work in a thread that was given up
            self._pieces.close()
        if self._closing is not None:
            self._closing()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def gathered(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same bytes in pieces of about ``PIECE``."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield held[0] if len(held) == 1 else b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)
