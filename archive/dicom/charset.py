r"""Text of a data set, decoded by its Specific Character Set (PS3.3 C.12.1.1.2, PS3.5
6.1.2).

Decoding is never refused and never guesses twice: a value and a character set always give the same
text. What cannot be decoded becomes U+FFFD.

- Without a character set, with the default repertoire, and with a name nobody knows, bytes above
  7F are read in the first of the further sets declared, else in the default of the settings
  (``use_defaults``). Valid UTF-8 is read as UTF-8 all the same, but for text that has two-byte
  characters alone where the default has two-byte characters, too. Without any of these it is
  Latin-1.
- Under ISO_IR 100, text that is not plausible in Latin-1 is read in that set or default likewise,
  where it is valid there.
- Sets are read with their supersets: GB 2312 as GB18030, EUC-KR as CP949, Shift_JIS as CP932, Big5
  as CP950, JIS X 0208 with the rows of NEC and IBM.
- Misspelt names are understood: case, ``-``, ``_`` and blanks do not count, nor does ``2022``; and
  the names that vendors and Python have for encodings (CP936, WINDOWS-1251, KS_C_5601-1987).
- Escape sequences of PS3.3 Tables C.12-3 and C.12-4 are followed whether or not the data set
  declares their sets. After a delimiter the first declared set is in force again.
- After MOST_ESCAPES escape sequences of a value no more are followed: each of them costs.
- UTF-8, GB18030 and GBK stand alone: further values beside them do not count, and there are no
  escape sequences in them.

>>> character_set(["", "ISO 2022 IR 87"]).decode(b"Yamada^Tarou=\x1b$B;3ED\x1b(B", name=True)
'Yamada^Tarou=山田'
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from itertools import islice

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_ESCAPES = 1000
MOST_SETS = 8

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
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "cp950",
}
"""What is written in an encoding is read in its superset."""
# Of the encodings that Python knows, those a data set may be in: text, with ASCII in it.
_ENCODINGS = re.compile(r"big5|cp[0-9]|euc|gb|hp|iso8859|koi8|kz|mac|ptcp|shift|tis|utf_8")
_WIDE = re.compile(r"big5|cp9[345]|euc|gb|shift")
_CODE_PAGE = re.compile(r"(?:X?MS|WINDOWS|CP|IBM)([0-9]{3,4})")
_ISO_8859 = re.compile(r"(?:ISO)?8859([0-9]{1,2})")
_JAPANESE_WINDOWS = "WINDOWS31J"
_PRINTABLE = bytes(range(0x20, 0x7F))
_REGISTERED = re.compile(r"(?:(?:ISO)?IR)?([0-9]{1,3})")

# What an escape sequence puts into G1 (a codec as above) ...
INTO_G1 = {
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

    __slots__ = ("_decode_run", "_default", "_escapes")

    def __init__(self, first: str | None, further: str, default: str, *, alone: bool) -> None:
        """``first``, ``further``: codecs of the values declared. ``default``: that of the settings;
        '' for none."""
        self._default = default
        self._escapes = not alone
        self._decode_run = _by(first or "", further or default)

    def declared(self, terms: Iterable[str]) -> CharacterSet:
        """That of a data set, or item, with these values of (0008,0005), where this one is in force
        around it; no values: the default repertoire."""
        return _character_set(tuple(term[:64] for term in islice(terms, MOST_SETS)), self._default)

    def __str__(self) -> str:
        return self._default

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
                    if escape in INTO_G1:
                        # ISO 2022 would leave G0 as it is; DCMTK and pydicom write and read an
                        # escape sequence as the end of what the one before brought.
                        prefix, right = None, _by(INTO_G1[escape], "")
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
            text.append(_kanji(pairs, prefix))
        elif high:
            text.append(right(high))
        else:
            text.append(low.decode("ascii") if low else REPLACEMENT)
    return "".join(text)


def _kanji(pairs: bytes, prefix: bytes) -> str:
    euc = pairs.translate(_SET_HIGH_BIT)
    if prefix:
        euc = b"".join(prefix + euc[at : at + 2] for at in range(0, len(euc), 2))
        return euc.decode("euc_jp", "replace")
    try:
        return euc.decode("euc_jp")
    except UnicodeDecodeError:
        return "".join(_one_kanji(*pairs[at : at + 2]) for at in range(0, len(pairs), 2))


@lru_cache(maxsize=1 << 10)
def _one_kanji(row: int, cell: int) -> str:
    """One of JIS X 0208; else of what NEC and IBM have in its free rows, as CP932 has it."""
    lead = (row - 0x21) // 2 + (0x81 if row < 0x5F else 0xC1)
    trail = cell + (0x1F + (cell >= 0x60) if row % 2 else 0x7E)
    found = _strictly_decoded(bytes((row | 0x80, cell | 0x80)), "euc_jp")
    return found or _strictly_decoded(bytes((lead, trail)), "cp932") or REPLACEMENT


@cache
def _by(codec: str, otherwise: str) -> Callable[[bytes], str]:
    """Reads what is in ``codec`` ('': nobody says in what), or may be in ``otherwise``."""
    codec, otherwise = _SUPERSETS.get(codec, codec), _SUPERSETS.get(otherwise, otherwise)
    wide = _WIDE.match(otherwise)

    def decode(value: bytes) -> str:
        return value.decode(codec, "replace")

    def guessed(value: bytes) -> str | None:
        utf_8 = _strictly_decoded(value, "utf_8")
        if not otherwise or (utf_8 is not None and (not wide or max(utf_8, default="") > "\u07ff")):
            return utf_8
        found = _strictly_decoded(value, otherwise)
        return utf_8 if found is None else found

    def unless_implausible(value: bytes) -> str:
        found = guessed(value) if _IMPLAUSIBLE.search(value) else None
        return decode(value) if found is None else found

    def undeclared(value: bytes) -> str:
        found = guessed(value)
        return value.decode(otherwise or "iso8859_1", "replace") if found is None else found

    if not codec:
        return undeclared
    return unless_implausible if otherwise and codec == "iso8859_1" else decode


# In Latin-1: control characters, symbols beside letters that are not ASCII, words without an ASCII
# letter.
_IMPLAUSIBLE = re.compile(
    rb"[\x80-\x9f]|[\xa1-\xbf][\xa1-\xff]|[\xc0-\xff][\xa1-\xbf]|[\xc0-\xff]{3}"
    rb"|(?<![A-Za-z\xc0-\xff])[\xc0-\xff]{2}(?![A-Za-z\xc0-\xff])"
)


def _strictly_decoded(value: bytes, codec: str) -> str | None:
    try:
        return value.decode(codec)
    except UnicodeDecodeError:
        return None


def character_set(terms: Iterable[str]) -> CharacterSet:
    """How to decode under these values of (0008,0005); no values: the default repertoire."""
    return DEFAULT.declared(terms)


@lru_cache(maxsize=256)
def _character_set(terms: tuple[str, ...], default: str) -> CharacterSet:
    # Escape sequences themselves say which set they bring; the further values say what bytes above
    # 7F without one are.
    first = terms[0] if terms else ""
    further = next((codec for term in terms[1:] if (codec := codec_of(term))), "")
    return CharacterSet(codec_of(first), further, default, alone=_plain(first) in _ALONE)


def codec_of(term: str) -> str | None:
    """Python's name for the set that a value of (0008,0005) names; None for the default repertoire
    and for names nobody knows. Escape sequences are not in it."""
    name = _plain(term)
    if name in _ALONE:
        return _ALONE[name]
    if registered := _REGISTERED.fullmatch(name):
        return _G1_CODECS.get(int(registered[1]))
    if page := _CODE_PAGE.fullmatch(name):
        return _python_codec("cp" + page[1])
    if part := _ISO_8859.fullmatch(name):
        return _python_codec("iso8859_" + part[1])
    if name == _JAPANESE_WINDOWS:
        return "cp932"
    return _python_codec(term.strip()) or _python_codec(name.removeprefix("X"))


def _python_codec(name: str) -> str | None:
    try:
        codec = codecs.lookup(name).name.replace("-", "_")
        if _ENCODINGS.match(codec) and _PRINTABLE.decode(codec).encode() == _PRINTABLE:
            return codec
    except (LookupError, ValueError):  # nobody knows it, it has a NUL, or it has no ASCII
        pass
    return None


def _plain(term: str) -> str:
    return re.sub(r"[\s\0_-]+", "", term).upper().removeprefix("ISO2022")


DEFAULT = CharacterSet(None, "", "", alone=False)
"""The default repertoire: no Specific Character Set, and nothing else said."""


# --- defaults -------------------------------------------------------------------------------------

_defaults = {"": DEFAULT}


def use_defaults(defaults: Iterable[str]) -> None:
    """From now on text without a character set is read, in this process, in ``GBK``, or, with
    ``CT1=GBK``, that of instances from CT1: the values of the setting default_charset."""
    _defaults.clear()
    _defaults[""] = DEFAULT
    for one in defaults:
        calling_ae, _, term = one.rpartition("=")
        _defaults[calling_ae] = CharacterSet(None, "", codec_of(term) or "", alone=False)


def defaults_in_force() -> str:
    """The defaults, as a text that is another when they are."""
    return ",".join(f"{title}={one}" for title, one in sorted(_defaults.items()))


def default_for(calling_ae: str) -> CharacterSet:
    """How text is decoded of an instance that says nothing of it and came from ``calling_ae``."""
    return _defaults.get(calling_ae) or _defaults[""]
