"""WADO-RS metadata (PS3.18 10.4.1.1.2): the whole headers, from the compressed document a series.

A document that is true to the files is sent as it is. Where there is none yet it is made, and kept
on disk while something is at work on the archive (a copy is never written to), else in memory. Its
BulkDataURIs become absolute on the way out, for a client that resolves none.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.tree.root import is_at_work
from plainpacs.indexer.index.series_metadata import (
    SeriesMetadata,
    inflated,
    metadata_of,
    state_of,
)
from plainpacs.scp.web.media import DICOM_JSON, Pieces, need_json, takes_gzip
from plainpacs.scp.web.places import Place, Tree, log, missing, place_of, unavailable

_MEMORY = 16 << 20
_RELATIVE = b'"BulkDataURI":"'
_FASTEST = 1


class Metadata:
    """The documents of a tree. Thread-safe."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._files = SeriesMetadata(tree.path, tree.root)
        self._sent = Kept(_MEMORY)
        self._made = Kept(_MEMORY)
        self._making = threading.Lock()

    def answer(self, request: Request, base: str) -> Response:
        """Answers a request for metadata of a study, series or instance. Raises HTTPException."""
        need_json(request)
        place = place_of(request)
        if place.instance:
            return self._of_instance(request, place, base)
        parts: list[tuple[str, bytes]] = []
        try:
            for month, series in self._tree.series_of(place):
                one = self._part(month, place.study, series, base)
                if one is not None:
                    parts.append(one)
        except OSError as error:
            raise unavailable(error) from None
        if not parts:
            self._tree.check()
            raise missing(place)
        packed = takes_gzip(request)
        states = "".join(state for state, _ in parts) + base + str(packed)
        tag = f'"{hashlib.blake2b(states.encode(), digest_size=12).hexdigest()}"'
        headers = {
            "ETag": tag,
            "Cache-Control": "private, no-cache",
            "Vary": "Accept, Accept-Encoding",
        }
        if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if packed:
            headers["Content-Encoding"] = "gzip"
        if len(parts) == 1 and packed:
            return Response(parts[0][1], 200, headers, DICOM_JSON)
        pieces = _array(data for _, data in parts)
        return Pieces(_packed(pieces) if packed else pieces, 200, headers, DICOM_JSON)

    def _of_instance(self, request: Request, place: Place, base: str) -> Response:
        opened = self._tree.open(place)
        try:
            data = metadata_of(opened.header(), f"{base}{place.url}/bulkdata/")
        finally:
            opened.close()
        return Response(b"[" + data + b"]", 200, {"Cache-Control": "private, no-cache"}, DICOM_JSON)

    def _part(self, month: str, study: str, series: str, base: str) -> tuple[str, bytes] | None:
        """(state, document with absolute URIs) of the part of a series that lies in one month."""
        files = self._files.files(month, study, series)
        allowed = self._tree.allowed(study, series, files)
        if not allowed:
            return None
        state = state_of(allowed).decode()
        sent = self._sent.get(f"{state} {month} {series} {base}")
        if sent is None:
            made = f"{state} {month} {series}"
            data = self._files.kept(month, study, series, allowed) or self._made.get(made)
            if data is None:
                with self._making:  # one at a time: several clients often want the same
                    data = self._files.kept(month, study, series, allowed) or self._made.get(made)
                    if data is None:
                        data = self._files.made(month, study, series, allowed, log.warning)
                        if allowed.keys() != files.keys() or not self._keep(
                            month, study, series, data
                        ):
                            self._made.put(made, data)
            absolute = f"{base}{Place(study, series).url}/".encode()
            pieces = _replaced(inflated(data), _RELATIVE, _RELATIVE + absolute)
            sent = b"".join(_packed(pieces))
            self._sent.put(f"{state} {month} {series} {base}", sent)
        return state, sent

    def _keep(self, month: str, study: str, series: str, data: bytes) -> bool:
        if not is_at_work(self._tree.root):
            return False
        try:
            self._files.keep(month, study, series, data)
        except OSError as error:
            log.warning("metadata of a series could not be kept: %s", error)
            return False
        return True


class Kept:
    """Documents in memory, those used last, up to so many bytes. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._room = most
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            data = self._kept.get(key)
            if data is not None:
                self._kept.move_to_end(key)
            return data

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._room += len(self._kept.pop(key, b""))
            self._kept[key] = data
            self._room -= len(data)
            while self._room < 0 and len(self._kept) > 1:
                self._room += len(self._kept.popitem(last=False)[1])


def _replaced(pieces: Iterator[bytes], old: bytes, new: bytes) -> Iterator[bytes]:
    """The bytes of ``pieces`` with every ``old`` replaced, also one that is cut in two."""
    held = b""
    for piece in pieces:
        data = (held + piece).replace(old, new) if old != new else held + piece
        # What might be the beginning of another one waits for the rest.
        cut = next((n for n in range(len(old) - 1, 0, -1) if data.endswith(old[:n])), 0)
        held = data[len(data) - cut :] if cut else b""
        yield data[: len(data) - cut]
    yield held


def _array(documents: Iterator[bytes]) -> Iterator[bytes]:
    """One JSON array of the elements of several."""
    between = b"["
    for data in documents:
        inner = _inside(inflated(data))
        first = next(inner, b"")
        if first:
            yield between + first
            yield from inner
            between = b","
    yield b"[]" if between == b"[" else b"]"


def _inside(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """An array without its brackets."""
    held = next(pieces, b"")[1:]
    for piece in pieces:
        if held:
            yield held
        held = piece
    if held[:-1]:
        yield held[:-1]


def _packed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_FASTEST, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
