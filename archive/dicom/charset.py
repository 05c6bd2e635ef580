r"""Text of a data set, decoded and encoded by a Specific Character Set (PS3.3 C.12.1.1.2, PS3.5
6.1.2).

Decoding is never refused and never guesses twice: a value and a character set always give the same
text. What cannot be decoded becomes U+FFFD.

- Without a character set, with the default repertoire, and with a name nobody knows, bytes above
  7F are taken as UTF-8 when they are valid UTF-8, else as Latin-1.
- Misspelt names are understood: case, ``-``, ``_`` and blanks do not count, nor does ``2022``.
- Escape sequences of PS3.3 Tables C.12-3 and C.12-4 are followed whether or not the data set
  declares their sets. After a delimiter the first declared set is in force again.
- After MOST_ESCAPES escape sequences of a value no more are followed: each of them costs.
- UTF-8, GB18030 and GBK stand alone: further values beside them do not count, and there are no
  escape sequences in them.

>>> character_set(["", "ISO 2022 IR 87"]).decode(b"Yamada^Tarou=\x1b$B;3ED\x1b(B", name=True)
'Yamada^Tarou=山田'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_ESCAPES = 1000

# Registration number (as in "ISO_IR 100") -> codec that has ISO 646 in G0 and the set in G1.
# shift_jis gives JIS X 0201 its half-width katakana, and reads the Shift-JIS some makers put there.
_G1_CODECS = {
    13: "shift_jis",
    58: "gb2312",
    100: "iso8859_1",
    101: "iso8859_2",
    109: "iso8859_3",
    110: "iso8859_4",
    126: "iso8859_7",
    127: "iso8859_6",
    138: "iso8859_8",
    144: "iso8859_5",
    148: "iso8859_9",
    149: "euc_kr",
    166: "tis_620",
    203: "iso8859_15",
}
# By name without case, blanks, "-", "_" and "ISO 2022". These allow no code extensions (PS3.3 Table
# C.12-5).
_ALONE = {
    "ISOIR192": "utf_8",
    "IR192": "utf_8",
    "UTF8": "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
# Programs' own names of encodings, met where a Defined Term should be.
_FOREIGN = {
    "LATIN1": "iso8859_1",
    "ISO88591": "iso8859_1",
    "ISO885915": "iso8859_15",
    "CP1252": "cp1252",
    "WINDOWS1252": "cp1252",
    "SHIFTJIS": "shift_jis",
    "SJIS": "shift_jis",
    "EUCKR": "euc_kr",
    "GB2312": "gb2312",
}
_REGISTERED = re.compile(r"(?:(?:ISO)?IR)?([0-9]{1,3})")

# What an escape sequence puts into G1 (a codec as above) ...
_INTO_G1 = {
    b")I": "shift_jis",
    b"-A": "iso8859_1",
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-F": "iso8859_7",
    b"-G": "iso8859_6",
    b"-H": "iso8859_8",
    b"-L": "iso8859_5",
    b"-M": "iso8859_9",
    b"-T": "tis_620",
    b"-b": "iso8859_15",
    b"$)C": "euc_kr",
    b"$)A": "gb2312",
}
# ... and into G0: nothing for the single-byte sets ISO 646 and JIS X 0201 romaji (whose 5C and 7E
# stay backslash and tilde, PS3.5 6.1.2.3), else what makes a pair of its bytes EUC-JP.
_INTO_G0: dict[bytes, bytes | None] = {
    b"(B": None,
    b"(J": None,
    b"$B": b"",  # JIS X 0208
    b"$@": b"",  # its edition of 1978
    b"$(D": b"\x8f",  # JIS X 0212
}
_SET_HIGH_BIT = bytes(byte | 0x80 for byte in range(256))
_IN_TWO_BYTE_G0 = re.compile(
    rb"((?:[\x21-\x7e]{2})+)|([\x80-\xff]+)|([\x00-\x20\x7f]+)|[\x21-\x7e]"
)

# PS3.5 6.1.2.5.3: what brings the first set back. A two-byte G0 has the printable ones inside.
_CONTROLS = re.compile(rb"[\t\n\f\r]")
_DELIMITERS = re.compile(rb"[\t\n\f\r\\]")
_NAME_DELIMITERS = re.compile(rb"[\t\n\f\r\\^=]")


class CharacterSet:
    """How text of one data set is decoded. Immutable: made once for each declaration."""

    __slots__ = ("_decode_run", "_escapes", "_first")

    def __init__(self, first: str | None, *, alone: bool) -> None:
        self._first = first
        self._escapes = not alone
        self._decode_run = _undeclared if first is None else _by(first)

    def decode(self, value: bytes, *, name: bool = False) -> str:
        """The text of ``value``; with ``name``, of VR PN: ``^`` and ``=`` are delimiters too."""
        if self._escapes and b"\x1b" in value:
            return self._with_escapes(value, _NAME_DELIMITERS if name else _DELIMITERS)
        return self._decode_run(value)

    def _with_escapes(self, value: bytes, delimiters: re.Pattern[bytes]) -> str:
        text: list[str] = []
        prefix: bytes | None = None
        right = self._decode_run
        pieces = value.split(b"\x1b", MOST_ESCAPES + 1)
        beyond = pieces.pop() if len(pieces) > MOST_ESCAPES + 1 else b""
        for number, piece in enumerate(pieces):
            run = piece
            if number:
                for escape in (piece[:3], piece[:2]):
                    if escape in _INTO_G1:
                        # ISO 2022 would leave G0 as it is; DCMTK and pydicom write and read an
                        # escape sequence as the end of what the one before brought.
                        prefix, right = None, _by(_INTO_G1[escape])
                    elif escape in _INTO_G0:
                        prefix = _INTO_G0[escape]
                    else:
                        continue
                    run = piece[len(escape) :]
                    break
                else:
                    text.append(REPLACEMENT)
            end = (delimiters if prefix is None else _CONTROLS).search(run)
            before = run[: end.start()] if end else run
            text.append(right(before) if prefix is None else _two_byte(before, prefix, right))
            if end:
                prefix, right = None, self._decode_run
                text.append(right(run[end.start() :]))
        if beyond:
            text.append(REPLACEMENT + self._decode_run(beyond).replace("\x1b", REPLACEMENT))
        return "".join(text)


def _two_byte(run: bytes, prefix: bytes, right: Callable[[bytes], str]) -> str:
    text: list[str] = []
    for match in _IN_TWO_BYTE_G0.finditer(run):
        pairs, high, low = match.groups()
        if pairs:
            euc = pairs.translate(_SET_HIGH_BIT)
            if prefix:
                euc = b"".join(prefix + euc[at : at + 2] for at in range(0, len(euc), 2))
            text.append(euc.decode("euc_jp", "replace"))
        elif high:
            text.append(right(high))
        else:
            text.append(low.decode("ascii") if low else REPLACEMENT)
    return "".join(text)


def _undeclared(value: bytes) -> str:
    try:
        return value.decode("utf_8")
    except UnicodeDecodeError:
        return value.decode("iso8859_1")


@cache
def _by(codec: str) -> Callable[[bytes], str]:
    def decode(value: bytes) -> str:
        return value.decode(codec, "replace")

    return decode


def character_set(terms: Iterable[str]) -> CharacterSet:
    """How to decode under these values of (0008,0005); no values: the default repertoire."""
    return _character_set(next(iter(terms), "")[:64])


@lru_cache(maxsize=256)
def _character_set(term: str) -> CharacterSet:
    # Only the first value matters: escape sequences themselves say which set they bring.
    return CharacterSet(codec_of(term), alone=_plain(term) in _ALONE)


def codec_of(term: str) -> str | None:
    """Python's name for the set that a value of (0008,0005) names; None for the default repertoire
    and for names nobody knows. Escape sequences are not in it."""
    name = _plain(term)
    if name in _ALONE:
        return _ALONE[name]
    registered = _REGISTERED.fullmatch(name)
    return _G1_CODECS.get(int(registered[1])) if registered else _FOREIGN.get(name)


def _plain(term: str) -> str:
    return re.sub(r"[\s\0_-]+", "", term).upper().removeprefix("ISO2022")


DEFAULT = character_set(())
"""The default repertoire: no Specific Character Set."""


# --- encoding -------------------------------------------------------------------------------------

_MOST_SETS = 8
_DELIMITERS_OF_TEXT = re.compile(r"([\\\r\n\f\t]+)")
_DELIMITERS_OF_NAMES = re.compile(r"([\\\r\n\f\t^=]+)")
_ESCAPES_INTO_G1 = {codec: escape for escape, codec in reversed(_INTO_G1.items())}
_JIS = {"87": "iso2022_jp", "159": "iso2022_jp_1"}


class Repertoire:
    r"""How text is encoded in a Specific Character Set. ``terms``: the values of (0008,0005); none
    for the default repertoire, which is ASCII.

    What the set cannot carry is not written in it at all: whatever is encoded here decodes to the
    same text, else there is nothing, and the writer takes UTF-8.

    >>> Repertoire(("ISO_IR 100",)).encode("Müller"), Repertoire(("ISO_IR 100",)).encode("山田")
    (b'M\xfcller', None)
    >>> Repertoire(("", "ISO 2022 IR 87")).encode("Yamada=山田", name=True)
    b'Yamada=\x1b$B;3ED\x1b(B'
    """

    def __init__(self, terms: Sequence[str] = ()) -> None:
        self.terms = tuple(terms)
        self._set = character_set(self.terms)
        first, *others = self.terms[:_MOST_SETS] or ("",)
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


UTF8 = Repertoire(("ISO_IR 192",))
