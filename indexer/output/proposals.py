"""The studies that a shell proposes while a UID is typed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import orjson

from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.output import humanize
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.query import search
from plainpacs.indexer.query.query import parse

MOST = 60
_UID = set("0123456789abcdefghijklmnopqrstuvwxyz.-_")


def studies(root: str, start: str) -> Iterator[tuple[str, str]]:
    """(UID, what the study is) of the newest studies whose UIDs start with ``start``.

    When there are more than ``MOST``, ``start`` itself is among them: a shell types what all the
    proposals have in common, and there may be one that goes on in another way.
    """
    if not set(start) <= _UID:
        return
    try:
        query = parse([f"StudyInstanceUID={start}*"] if start else [])
    except BadQuery:
        return
    found = list(islice(search.studies(root, query, lambda _: None), MOST + 1))
    for one in found[:MOST]:
        yield one.study, _words(one.line)
    if len(found) > MOST and start:
        yield start, "and more"


def _words(line: bytes) -> str:
    record = orjson.loads(line)
    words = (
        humanize.date(record.get("StudyDate")),
        humanize.text(record, "ModalitiesInStudy").replace(", ", "/"),
        humanize.person_name(record.get("PatientName")),
        humanize.text(record, "StudyDescription"),
    )
    return visible("  ".join(word for word in words if word))
