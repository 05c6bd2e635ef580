"""A data set with other values of a few attributes, which says what they were before.

Everything else stays byte for byte, the pixel data above all: new elements are put between the
bytes of the old ones. What was there before is told in Original Attributes Sequence (PS3.3
C.12.1.1.9). Group lengths of the groups that change are left out (PS3.5 7.2).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.charset import character_set
from plainpacs.archive.dicom.dictionary import tag_of, vrs_of
from plainpacs.archive.dicom.elements import (
    CHARACTER_SET,
    FIRST_OF_PIXELS,
    IN_CHARACTER_SET,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    encode_element,
    encode_item,
    head,
)
from plainpacs.archive.dicom.flatten import DataSet, Leaf
from plainpacs.archive.dicom.header import DEFLATED
from plainpacs.archive.dicom.text_encoding import UTF8, TextEncoding
from plainpacs.archive.errors import UnreadableDataSet

CORRECTABLE = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyDescription"),
)
"""The keywords of what can be corrected."""
_LONGEST = {"LO": 64, "SH": 16}
_FORMS = {"DA": re.compile(r"(\d{8})?"), "CS": re.compile(r"[MFO]?")}
_LONGEST_GROUP = 64
_ORIGINAL = tag_of("OriginalAttributesSequence")
_ASCII_ALONE = ((), ("",), ("ISO_IR 6",))


class CannotAmend(UnreadableDataSet):
    """The data set cannot have these values; the words carry none of them."""


@dataclass(frozen=True, slots=True)
class Modification:
    """Who changes it and when: ``moment`` is a DT, ``system`` an LO of at most 64 characters."""

    moment: str
    system: str


def checked(keyword: str, text: str) -> str:
    """``text`` as a value of ``keyword``. Raises ValueError with the words to say."""
    vr = vrs_of(tag_of(keyword))[0]
    if not text.isprintable() or "\\" in text:
        raise ValueError("it may have no backslash and no control characters")
    if form := _FORMS.get(vr):
        if not form.fullmatch(text):
            raise ValueError("use M, F or O" if vr == "CS" else "use YYYYMMDD")
    elif vr == "PN":
        if text.count("=") > 2 or any(len(part) > _LONGEST_GROUP for part in text.split("=")):
            raise ValueError("a name has at most three groups of 64 characters, with = between")
    elif len(text) > _LONGEST[vr]:
        raise ValueError(f"it is longer than {_LONGEST[vr]} characters")
    return text


def amended(
    data: Buffer, transfer_syntax: str, values: Mapping[str, str], by: Modification
) -> list[Buffer] | None:
    """The data set, in pieces, with the ``values`` by keyword; None when it has them already.

    Raises UnreadableDataSet, and CannotAmend when its character set cannot carry them.
    """
    data_set = DataSet(data, transfer_syntax, every=True)
    top = [leaf for leaf in data_set if len(leaf.path) == 1]
    pieces = _Amendment(data_set, top, by).pieces(values)
    if pieces is None or data_set.transfer_syntax not in DEFLATED:
        return pieces
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = b"".join([*map(deflate.compress, pieces), deflate.flush()])
    return [deflated + b"\0" * (len(deflated) % 2)]


class _Amendment:
    def __init__(self, data_set: DataSet, top: list[Leaf], by: Modification) -> None:
        self._data_set = data_set
        self._data = data_set.data
        self._by = by
        self._order = "<" if data_set.little_endian else ">"
        ends = [*(leaf.at for leaf in top[1:]), data_set.end]
        self._spans = {leaf.path[0]: (leaf, end) for leaf, end in zip(top, ends, strict=True)}
        terms = self._raw(CHARACTER_SET).decode("latin-1").strip("\0 ")
        self._terms = tuple(term.strip() for term in terms.split("\\")) if terms else ()
        self._texts = character_set(self._terms)

    def _raw(self, tag: int) -> bytes:
        if tag not in self._spans:
            return b""
        leaf = self._spans[tag][0]
        return bytes(self._data[leaf.start : leaf.end])

    def pieces(self, values: Mapping[str, str]) -> list[Buffer] | None:
        changed = {
            tag: text
            for tag, text in sorted((tag_of(keyword), text) for keyword, text in values.items())
            if self._text(tag) != text
        }
        if not changed:
            return None
        new = self._encoded(changed)
        elements = {tag: self._element(tag, raw) for tag, raw in new.items()}
        elements[_ORIGINAL] = self._original(list(new))
        return self._spliced(elements)

    def _text(self, tag: int) -> str:
        return self._texts.decode(self._raw(tag), name=tag == tag_of("PatientName")).strip("\0 ")

    def _encoded(self, values: Mapping[int, str]) -> dict[int, bytes]:
        """The values as bytes: in the data set's character set; in UTF-8, which is then declared,
        when the rest of it is ASCII."""
        found: dict[int, bytes] = {}
        encoding = TextEncoding(self._terms)
        for tag, text in values.items():
            raw = encoding.encode(text, name=vrs_of(tag)[0] == "PN")
            if raw is None and encoding is not UTF8:
                if self._terms not in _ASCII_ALONE or not self._all_ascii():
                    raise CannotAmend(
                        f"its character set ({', '.join(self._terms) or 'the default'}) cannot "
                        "carry the new value"
                    )
                encoding, found[CHARACTER_SET] = UTF8, b"ISO_IR 192"
                raw = UTF8.encode(text)
            found[tag] = raw or b""
        return found

    def _all_ascii(self) -> bool:
        for leaf in self._data_set:
            tag = leaf.path[-1]
            if leaf.path[0] >= FIRST_OF_PIXELS:
                break
            vr = leaf.vr if leaf.vr not in ("", "UN") else vrs_of(tag)[0]
            text = vr in IN_CHARACTER_SET or vr == "UN"
            if text and not bytes(self._data[leaf.start : leaf.end]).isascii():
                return False
        return True

    def _element(self, tag: int, raw: bytes) -> bytes:
        explicit, vr = not self._data_set.implicit, vrs_of(tag)[0]
        try:
            return encode_element(tag, vr, raw, explicit=explicit, order=self._order)
        except ValueError as error:
            raise CannotAmend(str(error)) from None

    def _original(self, tags: list[int]) -> bytes:
        """Original Attributes Sequence, with an item more: what the ``tags`` were."""
        old = b"".join(self._element(tag, self._raw(tag)) for tag in sorted(tags))
        item = b"".join(
            self._element(tag_of(keyword), raw)
            for keyword, raw in (
                ("ModifiedAttributesSequence", encode_item(old, order=self._order)),
                ("AttributeModificationDateTime", self._by.moment.encode("ascii")),
                ("ModifyingSystem", self._by.system.encode("ascii", "replace")),
                ("SourceOfPreviousValues", b""),
                ("ReasonForTheAttributeModification", b"CORRECT"),
            )
        )
        return self._element(_ORIGINAL, self._earlier() + encode_item(item, order=self._order))

    def _earlier(self) -> bytes:
        """The items of Original Attributes Sequence that are there already."""
        if _ORIGINAL not in self._spans:
            return b""
        leaf, end = self._spans[_ORIGINAL]
        header, value = self._data[leaf.at : leaf.start], bytes(self._data[leaf.start : end])
        delimiter = head(SEQUENCE_DELIMITER, "", 0, explicit=False, order=self._order)
        is_sequence = self._data_set.implicit or bytes(header[4:6]) == b"SQ"
        (length,) = struct.unpack(f"{self._order}I", header[-4:])
        if is_sequence and length == len(value):
            return value
        if not is_sequence or length != UNDEFINED or not value.endswith(delimiter):
            raise CannotAmend("its Original Attributes Sequence is encoded in no usual way")
        return value[: -len(delimiter)]

    def _spliced(self, elements: dict[int, bytes]) -> list[Buffer]:
        """The data set with these ``elements``, each in its place or instead of the one there."""
        lengths = {tag & 0xFFFF0000 for tag in elements}
        waiting = sorted(elements)
        pieces: list[Buffer] = []
        start = 0

        def put(at: int, upto: int) -> None:
            nonlocal start
            while waiting and waiting[0] <= upto:
                pieces.extend((self._data[start:at], elements[waiting.pop(0)]))
                start = at

        for tag, (leaf, end) in self._spans.items():
            put(leaf.at, tag)
            if tag in elements or tag in lengths:
                pieces.append(self._data[start : leaf.at])
                start = end
        put(self._data_set.end, 0xFFFFFFFF)
        return [*pieces, self._data[start:]]
