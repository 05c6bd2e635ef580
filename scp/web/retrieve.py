"""WADO-RS and WADO-URI: whole instances (PS3.18 10.4.1.1.1, chapter 9).

As they are stored, or in the transfer syntax asked for; without one in Explicit VR Little Endian
(8.7.3.4), where that can be had. An instance is converted before its part begins, so that what
cannot be converted is sent as it is stored, and says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from email.utils import formatdate
from itertools import chain

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.part10 import file_meta
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.archive.tree.identity import is_name
from plainpacs.scp.storage.convert import CannotConvert, Converter, can_become
from plainpacs.scp.storage.instance_file import File, Outgoing
from plainpacs.scp.web.media import (
    ANY_SYNTAX,
    DICOM,
    Accepted,
    Part,
    Pieces,
    accepted,
    length_of,
    multipart,
)
from plainpacs.scp.web.places import Opened, Place, Tree, log, place_of
from plainpacs.scp.web.ranges import Value, ranged


def answer(tree: Tree, request: Request, base: str) -> Response:
    """Answers a request for the instances of a study, series, or for one. Raises HTTPException."""
    place = place_of(request)
    one = _choice(request, single=bool(place.instance))
    if place.instance and not one.is_multipart and one.type != "*/*":
        return single(tree, request, place, one.transfer_syntax)
    wanted = tree.listed(place)
    target = one.transfer_syntax or EXPLICIT_VR_LITTLE_ENDIAN
    as_stored = target == ANY_SYNTAX or all(each.transfer_syntax == target for each in wanted)
    if not as_stored and one.transfer_syntax:
        for each in wanted:
            if each.transfer_syntax != target and not can_become(each.transfer_syntax, target):
                raise HTTPException(406, "not all of it can be had in that transfer syntax")
    parts = _stored(wanted, base) if as_stored else _converted(wanted, target, base)
    length = sum(length_of(part) for part in _stored(wanted, base)) if as_stored else None
    return multipart(parts, DICOM, length=length)


def _choice(request: Request, *, single: bool) -> Accepted:
    for one in accepted(request):
        if one.takes(DICOM) and (single or one.is_multipart or one.type == "*/*"):
            return one
    raise HTTPException(406, f'instances are to be had as multipart/related; type="{DICOM}"')


def single(tree: Tree, request: Request, place: Place, syntax: str) -> Response:
    """One instance as a Part 10 file of its own. Raises HTTPException."""
    opened = tree.open(place)
    try:
        with File(f"{tree.path}/{opened.path}") as file:
            stored = file.transfer_syntax
    except (OSError, UnreadableDataSet):
        opened.close()
        raise HTTPException(406, "the stored instance cannot be read") from None
    target = syntax or EXPLICIT_VR_LITTLE_ENDIAN
    if target in (ANY_SYNTAX, stored) or (not syntax and not can_become(stored, target)):
        return _file(opened, request, stored)
    opened.close()
    each = Outgoing(f"{tree.path}/{opened.path}", "", place.instance, stored)
    parts = _converted([each], target, "") if can_become(stored, target) else iter(())
    part = next(parts, None)
    kind = _kind(target)
    if part is None or part.content_type != kind:
        raise HTTPException(406, "it cannot be had in that transfer syntax")
    return Pieces(chain(part.body, (b"" for _ in parts)), 200, None, kind)


def _kind(syntax: str) -> str:
    return f"{DICOM}; transfer-syntax={syntax}"


def _file(opened: Opened, request: Request, syntax: str) -> Response:
    headers = {
        "ETag": f'"{opened.mtime:x}-{opened.size:x}"',
        "Last-Modified": formatdate(opened.mtime / 1e9, usegmt=True),
    }
    try:
        if headers["ETag"] == request.headers.get("if-none-match"):
            opened.close()
            return Response(status_code=304, headers=headers)
        value = Value(opened.fd, [(0, opened.size)])
        return ranged(request, value, _kind(syntax), opened.close, headers)
    except HTTPException:
        opened.close()
        raise


def _stored(wanted: list[Outgoing], base: str) -> Iterator[Part]:
    for each in wanted:
        size = os.stat(each.path).st_size
        yield Part(
            _kind(each.transfer_syntax), _whole(each.path, size), size, _location(each, base)
        )


def _whole(path: str, size: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield from Value(fd, [(0, size)]).pieces()
    finally:
        os.close(fd)


def _location(each: Outgoing, base: str) -> str:
    _, study, series, _ = each.path.rsplit("/", 3)
    return base + Place(study, series, each.sop_instance).url


def _converted(wanted: list[Outgoing], target: str, base: str) -> Iterator[Part]:
    with Converter() as converter:
        for each in wanted:
            body = _in_syntax(each, target, converter)
            first = next(body, None)
            if first is None:
                yield from _stored([each], base)
            else:
                yield Part(_kind(target), chain((first,), body), None, _location(each, base))


def _in_syntax(each: Outgoing, target: str, converter: Converter) -> Iterator[bytes]:
    """The Part 10 file in another transfer syntax; nothing when that cannot be."""
    with File(each.path) as file:
        if file.transfer_syntax == target:
            yield from _whole(each.path, file.size)
            return
        try:
            attributes = file.header()
            pieces = converter.convert(file, target)
            first = next(iter(pieces), b"")
        except (CannotConvert, UnreadableDataSet) as error:
            log.warning("%s is not converted: %s", each.sop_instance, error)
            return
        yield file_meta(str(attributes.get("SOPClassUID", "")), each.sop_instance, target) + first
        yield from pieces


def wado_uri(tree: Tree, request: Request) -> tuple[Place, str]:
    """What a request of WADO-URI (PS3.18 9.4) names, and the media type it wants.

    Raises HTTPException.
    """
    query = request.query_params
    if query.get("requestType", "").upper() != "WADO":
        raise HTTPException(400, "requestType is to be WADO")
    uids = [query.get(name, "") for name in ("studyUID", "seriesUID", "objectUID")]
    if not all(map(is_name, uids)):
        raise HTTPException(400, "studyUID, seriesUID and objectUID are to be UIDs")
    kinds = [one.partition(";")[0].strip() for one in query.get("contentType", "").split(",")]
    for kind in kinds:
        if kind.replace(" ", "+") in (DICOM, "image/jpeg", "image/png", "application/pdf"):
            return Place(*uids), kind
    if kinds == [""]:
        return Place(*uids), ""
    raise HTTPException(406, "contentType is one of application/dicom, image/jpeg, image/png")
