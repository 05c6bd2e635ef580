"""From the records of a query to the identifiers of its answers, by hand: 100,000 are one query.

What does not change from one answer to the next is encoded once. Text is in the character set of
the query; an answer with text that this cannot carry is in UTF-8 (PS3.4 C.4.1.1.3.2 allows any).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plainpacs.scp.beyond import attributes_in, path_of
from plainpacs.scp.dictionary import vr_of
from plainpacs.scp.identifiers import (
    BINARY,
    CHARACTER_SET,
    LONG_VRS,
    DataSet,
    element,
    head,
    value_bytes,
    written_anew,
)
from plainpacs.scp.repertoire import UTF8, Repertoire

_LENGTHS = 1024
_BYTES_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
"""Those of what no query is for."""


@dataclass(frozen=True, slots=True)
class Column:
    """One element of every answer: whose value in a record it has.

    ``constant``: it has this one instead. ``beyond``: it has that in the instance's file.
    ``items``: of a sequence, the keywords that its items have.
    """

    tag: int
    source: str = ""
    constant: str = ""
    beyond: bool = False
    items: tuple[str, ...] = ()


# What the loop over the columns needs of each: source, head without the length, padding, VR, and
# the whole element when the record says nothing.
_Compiled = tuple[str, bytes, bytes, str, bytes]


class Template:
    """How the records of one query become answers, in the order of their tags.

    ``root``: where files lie that are read for columns ``beyond``.
    """

    def __init__(
        self, columns: Collection[Column], repertoire: Repertoire, root: str, *, explicit: bool
    ) -> None:
        self._explicit = explicit
        self._root = root
        self._tags = {column.source: column.tag for column in columns}
        self._items = {column.source: column.items for column in columns if column.items}
        self._beyond = sorted(column.tag for column in columns if column.beyond)
        size, shape = (2, "<H") if explicit else (4, "<L")
        # The lengths of nearly all values, to be looked up.
        self._lengths = [struct.pack(shape, number) for number in range(_LENGTHS)]
        self._length_size = size
        every = sorted(columns, key=lambda column: column.tag)
        self._choices = [
            (one, [self._compile(column, one) for column in every])
            for one in dict.fromkeys((repertoire, UTF8))
        ]

    def _compile(self, column: Column, repertoire: Repertoire) -> _Compiled:
        vr, explicit = vr_of(column.tag), self._explicit
        if column.tag == CHARACTER_SET:
            terms = "\\".join(repertoire.terms).encode("ascii", "replace")
            whole = element(column.tag, vr, terms, explicit=explicit) if terms else b""
            return "", b"", b"", vr, whole
        # The VRs of a query's constants have no text of people.
        raw = column.constant.encode("ascii", "replace")
        whole = element(column.tag, vr, raw, explicit=explicit)
        source = _beyond(column.tag) if column.beyond else column.source
        quick = vr not in LONG_VRS and vr not in BINARY
        before = head(column.tag, vr, 0, explicit=explicit)[: -self._length_size] if quick else b""
        padding = b"\0" if vr == "UI" else b" "
        return source, before, padding, vr, whole

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """The answer that ``record`` becomes."""
        file = None
        if self._beyond:
            file = attributes_in(path_of(self._root, record.get("path")), self._beyond[-1])
        for repertoire, columns in self._choices:
            more = self._from_file(file, repertoire) if file is not None else {}
            if more is not None:
                encoded = self._encode({**record, **more} if more else record, columns, repertoire)
                if encoded is not None:
                    return encoded
        raise AssertionError("UTF-8 carries everything")

    def _from_file(self, file: DataSet, repertoire: Repertoire) -> dict[str, bytes] | None:
        """Whole elements, by the sources of their columns."""
        found = {}
        for tag in self._beyond:
            one = file.elements.get(tag)
            if one is not None and one.vr not in _BYTES_VRS:
                whole = written_anew(tag, one, file, repertoire, explicit=self._explicit)
                if whole is None:
                    return None
                found[_beyond(tag)] = whole
        return found

    def _encode(
        self, record: Mapping[str, Any], columns: Sequence[_Compiled], repertoire: Repertoire
    ) -> bytes | None:
        lengths, get = self._lengths, record.get
        parts: list[bytes] = []
        add = parts.append
        for source, before, padding, vr, whole in columns:
            value = get(source)
            if value is None:
                add(whole)
                continue
            kind = type(value)
            text = str(value) if kind is int else value if kind is str else ""
            if text and before and text.isascii() and len(text) < _LENGTHS - 1:
                raw = text.encode()
                if len(raw) & 1:
                    raw += padding
                add(before)
                add(lengths[len(raw)])
                add(raw)
            elif kind is bytes:  # of the file, and an element already
                add(value)
            else:
                encoded = self._element(source, vr, value, repertoire)
                if encoded is None:
                    return None
                add(encoded)
        return b"".join(parts)

    def _element(self, source: str, vr: str, value: object, repertoire: Repertoire) -> bytes | None:
        tag = self._tags[source]
        if vr == "SQ" and isinstance(value, list) and (keys := self._items.get(source)):
            items = [item for item in value if isinstance(item, dict)]
            value = [{key: item.get(key, "") for key in keys} for item in items]
        raw = value_bytes(vr, value, repertoire, explicit=self._explicit)
        return None if raw is None else element(tag, vr, raw, explicit=self._explicit)


def _beyond(tag: int) -> str:
    return f"({tag:08X})"
