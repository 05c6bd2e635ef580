"""From the records of a query to the identifiers of its answers, by hand: 100,000 are one query.

What does not change from one answer to the next is encoded once. Text is in the character set of
the query; an answer with text that this cannot carry is in UTF-8 (PS3.4 C.4.1.1.3.2 allows any).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from plainpacs.archive.dicom.dictionary import vr_of
from plainpacs.archive.dicom.elements import CHARACTER_SET, LONG_VRS, NUMBERS, head
from plainpacs.archive.dicom.identifier import DataSet
from plainpacs.archive.dicom.identifier_writing import element, value_bytes, written_anew
from plainpacs.archive.dicom.text_encoding import UTF8, TextEncoding
from plainpacs.scp.query_retrieve.file_attributes import attributes_in, file_of

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


# What the loop over the columns needs of each: source, head without the length, padding, and the
# whole element when the record says nothing.
_Compiled = tuple[str, bytes, bytes, bytes]


@cache
def _lengths(explicit: bool) -> list[bytes]:
    """The lengths of nearly all values, to be looked up."""
    length = struct.Struct("<H" if explicit else "<L")
    return [length.pack(number) for number in range(_LENGTHS)]


def _compiled(tag: int, source: str, constant: str, explicit: bool) -> _Compiled:
    vr = vr_of(tag)
    # What is constant has no text of people.
    raw = constant.encode("ascii", "replace")
    whole = element(tag, vr, raw, explicit=explicit)
    if vr in LONG_VRS or vr in NUMBERS:
        return source, b"", b"", whole
    before = head(tag, vr, 0, explicit=explicit)[: -len(_lengths(explicit)[0])]
    return source, before, b"\0" if vr == "UI" else b" ", whole


_compiled_again = lru_cache(maxsize=4096)(_compiled)  # who asks again wants the same returned


class Template:
    """How the records of one query become answers, in the order of their tags.

    ``root``: where files lie that are read for columns ``beyond``.
    """

    def __init__(
        self, columns: Iterable[Column], repertoire: TextEncoding, root: str, *, explicit: bool
    ) -> None:
        self._explicit = explicit
        self._root = root
        self._repertoires = (repertoire, UTF8)
        self._columns = (Column(CHARACTER_SET), *sorted(columns, key=lambda column: column.tag))
        self._beyond = [place for place, one in enumerate(self._columns) if one.beyond]
        self._lengths = _lengths(explicit)
        naming = self._naming(self._repertoires[0])
        self._compiled: list[_Compiled] = [
            ("", b"", b"", naming)
            if one.tag == CHARACTER_SET
            else _compiled(one.tag, one.source, one.constant, explicit)
            if one.constant
            else _compiled_again(one.tag, one.source, "", explicit)
            for one in self._columns
        ]

    def _naming(self, repertoire: TextEncoding) -> bytes:
        """The element that names the character set, if there is to be one."""
        terms = "\\".join(repertoire.terms).encode("ascii", "replace")
        return element(CHARACTER_SET, "CS", terms, explicit=self._explicit) if terms else b""

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """The answer that ``record`` becomes."""
        lengths, get = self._lengths, record.get
        parts: list[bytes] = []
        later = self._beyond.copy()
        add = parts.append
        for source, before, padding, whole in self._compiled:
            value = get(source)
            if value is None:
                add(whole)
                continue
            kind = type(value)
            if kind is list and len(value) == 1:
                value = value[0]
                kind = type(value)
            text = value if kind is str else str(value) if kind is int else ""
            if text and before and text.isascii() and len(text) < _LENGTHS - 1:
                raw = text.encode()
                if len(raw) & 1:
                    raw += padding
                add(before + lengths[len(raw)] + raw)
            else:
                later.append(len(parts))
                add(b"")
        if later:
            self._add(parts, later, record)
        return b"".join(parts)

    def _add(self, parts: list[bytes], places: Sequence[int], record: Mapping[str, Any]) -> None:
        """Adds to the ``parts`` those elements that depend on the character set, or are rare."""
        file = DataSet({})
        if self._beyond:
            last = self._columns[self._beyond[-1]].tag
            file = attributes_in(file_of(self._root, record), last)
        for repertoire in self._repertoires:
            for place in places:
                column = self._columns[place]
                if column.beyond:
                    found = self._from_file(column, file, repertoire)
                else:
                    found = self._element(column, record[column.source], repertoire)
                if found is None:
                    break
                parts[place] = found
            else:
                parts[0] = self._naming(repertoire)
                return

    def _element(self, column: Column, value: object, repertoire: TextEncoding) -> bytes | None:
        vr = vr_of(column.tag)
        if column.items and isinstance(value, list):
            items = [item for item in value if isinstance(item, dict)]
            value = [{key: item.get(key, "") for key in column.items} for item in items]
        raw = value_bytes(vr, value, repertoire, explicit=self._explicit)
        return None if raw is None else element(column.tag, vr, raw, explicit=self._explicit)

    def _from_file(self, column: Column, file: DataSet, repertoire: TextEncoding) -> bytes | None:
        found = file.elements.get(column.tag)
        if found is None or found.vr in _BYTES_VRS:
            return element(column.tag, vr_of(column.tag), b"", explicit=self._explicit)
        return written_anew(column.tag, found, file, repertoire, explicit=self._explicit)
