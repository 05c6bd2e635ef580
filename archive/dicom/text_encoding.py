"""Text encoded in a Specific Character Set: the other way of ``charset``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plainpacs.archive.dicom.charset import INTO_G1, MOST_SETS, character_set, codec_of

_DELIMITERS_OF_TEXT = re.compile(r"([\\\r\n\f\t]+)")
_DELIMITERS_OF_NAMES = re.compile(r"([\\\r\n\f\t^=]+)")
_ESCAPES_INTO_G1 = {codec: escape for escape, codec in reversed(INTO_G1.items())}
_JIS = {"87": "iso2022_jp", "159": "iso2022_jp_1"}


class TextEncoding:
    r"""How text is encoded in a Specific Character Set. ``terms``: the values of (0008,0005); none
    for the default repertoire, which is ASCII.

    What the set cannot carry is not written in it at all: whatever is encoded here decodes to the
    same text, else there is nothing, and the writer takes UTF-8.

    >>> TextEncoding(("ISO_IR 100",)).encode("Müller"), TextEncoding(("ISO_IR 100",)).encode("山田")
    (b'M\xfcller', None)
    >>> TextEncoding(("", "ISO 2022 IR 87")).encode("Yamada=山田", name=True)
    b'Yamada=\x1b$B;3ED\x1b(B'
    """

    def __init__(self, terms: Sequence[str] = ()) -> None:
        self.terms = tuple(terms)
        self._set = character_set(self.terms)
        first, *others = self.terms[:MOST_SETS] or ("",)
        self._first = codec_of(first) or "ascii"
        self._others: list[tuple[bytes, str]] = []
        for term in others:
            number = term.rpartition(" ")[2]
            if number in _JIS:
                self._others.append((b"", _JIS[number]))
            elif escape := _ESCAPES_INTO_G1.get(codec := codec_of(term) or ""):
                self._others.append((b"\x1b" + escape, codec))

    def encode(self, text: str, *, name: bool = False) -> bytes | None:
        """None when this repertoire cannot carry ``text``. ``name``: it is a PN."""
        if text.isascii():
            return text.encode()
        if self._first == "utf_8":
            return text.encode("utf_8", "replace")
        if self._others:
            encoded = self._with_escapes(
                text, _DELIMITERS_OF_NAMES if name else _DELIMITERS_OF_TEXT
            )
        else:
            encoded = _strictly(text, self._first)
        if encoded is None or self._set.decode(encoded, name=name) != text:
            return None
        return encoded

    def _with_escapes(self, text: str, delimited: re.Pattern[str]) -> bytes | None:
        """Each stretch in one set: after a delimiter the first is in force again (PS3.5
        6.1.2.5.3)."""
        found = []
        for stretch in delimited.split(text):
            encoded = _strictly(stretch, self._first)
            for escape, codec in self._others:
                if encoded is not None:
                    break
                encoded = _strictly(stretch, codec)
                if encoded is not None:
                    encoded = escape + encoded
            if encoded is None:
                return None
            found.append(encoded)
        return b"".join(found)


def _strictly(text: str, codec: str) -> bytes | None:
    try:
        return text.encode(codec)
    except UnicodeEncodeError:
        return None


UTF8 = TextEncoding(("ISO_IR 192",))
