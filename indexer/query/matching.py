"""How one value is compared with what was asked for: C-FIND matching (PS3.4 C.2.2.2).

Each kind of attribute has a function that compiles what was asked for into a ``Test``. A study
passes when any of the attribute's values does; an attribute without a value counts as the empty
string (``*`` matches it, ``?*`` means "has a value").

Kinder than C-FIND, because it is typed by hand: descriptions ignore case and accents as names do,
codes (CS) are turned to upper case, UIDs may have wildcards, every kind takes a list separated by
backslashes, dates and times may be written with their punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from plainpacs.archive.errors import BadQuery, QueryTooLarge
from plainpacs.archive.tree.identity import UNDATED, month_of, strip_padding

LONGEST_PATTERN = 512
"""Characters of a value with wildcards; a name has at most three groups of 64 (PS3.5 6.2)."""

_ACCENTS = re.compile("[\u0300-\u036f]+")
_DATE = re.compile(r"([0-9]{4})([.-]?)([0-9]{2})\2([0-9]{2})", re.ASCII)
_TIME = re.compile(
    r"(?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::?(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?", re.ASCII
)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_SIGNED = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_MOMENT = re.compile(rf"([0-9]{{8}})(?:T?({_TIME.pattern}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Test:
    """What one value is asked.

    ``needle``: bytes that JSON holding a value that passes must contain; None when unknown.
    ``span``: the first and last date (``YYYYMMDD``) that pass, for dates and moments.
    ``exact``: the one text that passes, when there is but one.
    ``pattern``: an expression that matches, whatever the case, every plain ASCII text that passes,
    but for ``^`` and blanks at its end; None when unknown.
    """

    __test__ = False  # no test of pytest's

    passes: Callable[[object], bool]
    needle: bytes | None = None
    span: tuple[str, str] | None = None
    exact: str | None = None
    pattern: str | None = None


def fold(text: str) -> str:
    """``text`` without what case and accents tell apart.

    >>> fold("MÜLLER") == fold("Mu\u0308ller") == fold("muller"), fold("ﾔﾏﾀﾞ")
    (True, 'ヤマダ')
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    # Composed again, so that "?" stands for one syllable of Hangul or kana, as it is read.
    return unicodedata.normalize("NFC", _ACCENTS.sub("", folded))


def has_wildcard(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def wildcard(pattern: str, folding: Callable[[str], str] = str) -> re.Pattern[str]:
    """The expression that fully matches what ``pattern`` does: ``*`` any text, ``?`` a character.

    Each stretch between asterisks matches where it first can, for good, so that no pattern takes
    long on any text: at most its length times that of the text. Raises QueryTooLarge.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise QueryTooLarge(f"a pattern is longer than {LONGEST_PATTERN} characters")
    return re.compile(_expression(pattern, folding, "."), re.DOTALL)


def _expression(pattern: str, folding: Callable[[str], str], any_one: str) -> str:
    stretches = [
        "".join(any_one if piece == "?" else re.escape(folding(piece)) for piece in split)
        for split in (re.split(r"(\?)", stretch) for stretch in re.split(r"\*+", pattern))
    ]
    first, *middle = stretches
    if not middle:
        return first
    inner = "".join(f"(?>{any_one}*?{stretch})" for stretch in middle[:-1] if stretch)
    return f"{first}{inner}{any_one}*{middle[-1]}"


def identifier(keyword: str, wanted: str) -> Test:
    """LO and SH that identify, and UI: to the letter."""
    wanted = strip_padding(wanted).lstrip(" ")
    if has_wildcard(wanted):
        passes = wildcard(wanted).fullmatch
        return Test(lambda value: passes(str(value)) is not None, pattern=_plain(wanted))
    return to_the_letter(wanted)


def to_the_letter(wanted: str) -> Test:
    """This text and no other, asterisks included."""
    # A copy: orjson's own bytes take 4 KB each, and there may be thousands.
    needle = bytes(memoryview(orjson.dumps(wanted)))
    return Test(lambda value: value == wanted, needle=needle, exact=wanted)


def code(keyword: str, wanted: str) -> Test:
    """CS and AS, which have no lower case (PS3.5 6.2)."""
    wanted = wanted.strip().upper()
    if has_wildcard(wanted):
        expression = wildcard(wanted)
        return Test(lambda value: expression.fullmatch(str(value).upper()) is not None)
    return Test(lambda value: str(value).upper() == wanted)


def description(keyword: str, wanted: str) -> Test:
    """Text for people: case and accents do not count."""
    compared = _folded_test(wanted)
    return Test(lambda value: compared(fold(str(value))), pattern=_plain(wanted))


def person_name(keyword: str, wanted: str) -> Test:
    """PN: the whole, or any one of its component groups; case and accents do not count.

    Trailing delimiters mean nothing (PS3.5 6.2.1.1): ``Doe^John^^^`` is ``Doe^John``.
    """
    wanted = wanted.rstrip("^= ") or wanted
    compared = _folded_test(wanted)

    def passes(value: object) -> bool:
        whole = fold(str(value)).rstrip("= ")
        return compared(whole.rstrip("^")) or any(
            compared(group) or compared(group.rstrip("^ ")) for group in whole.split("=")
        )

    return Test(passes, pattern=_plain(wanted))


def _plain(wanted: str) -> str:
    """The ``pattern`` of a test for ``wanted``, in which there may be wildcards."""
    expression = _expression(wanted.strip(), fold, r'[^"\n]')
    return expression if expression.isascii() else "(?!)"  # which nothing matches


def _folded_test(wanted: str) -> Callable[[str], bool]:
    wanted = wanted.strip()
    if has_wildcard(wanted):
        expression = wildcard(wanted, fold)
        return lambda text: expression.fullmatch(text) is not None
    folded = fold(wanted)
    return lambda text: text == folded


def plain_date(value: object) -> str:
    """``YYYYMMDD`` of a DA in either form (PS3.5 6.2); empty when it is not a date.

    >>> plain_date("1997.04.24"), plain_date("20240230"), plain_date(None)
    ('19970424', '', '')
    """
    text = str(value).strip(" \0") if value else ""
    return text.replace(".", "") if month_of(text) != UNDATED else ""


def date(keyword: str, wanted: str) -> Test:
    """DA: one date, or a range that may be open (PS3.4 C.2.2.2.5.1)."""
    low, high = _bounds(
        _DATE,
        keyword,
        _DATE.sub(r"\1\3\4", wanted.strip()),
        "a date YYYYMMDD or a range: 20240101-20240331, 20240101-, -20240331",
    )
    if low != high:
        # People write the last of a month as the 31st.
        while high[6:] in ("31", "30", "29") and month_of(high) == UNDATED:
            high = str(int(high) - 1)
    for bound in (low, high):
        if bound and month_of(bound) == UNDATED:
            raise BadQuery(f"{keyword}={wanted}: the calendar has no {bound}")
    first, last = low or "00000000", high or "99999999"
    _in_order(keyword, wanted, first <= last)
    return Test(lambda value: first <= (plain_date(value) or "x") <= last, span=(first, last))


def time_of_day(keyword: str, wanted: str) -> Test:
    """TM: a time or a range, each bound inclusive to its own precision: 10 ends at 10:59:59.9."""
    low, high = _bounds(
        _TIME, keyword, wanted.strip(), "a time HHMM or HHMMSS, or a range: 0800-1200, 0800-, -1200"
    )
    first, last = _time_bounds(low, high)
    _in_order(keyword, wanted, first <= last)

    def passes(value: object) -> bool:
        text = str(value).strip()
        return bool(_TIME.fullmatch(text)) and first <= _digits(text).ljust(12, "0") <= last

    return Test(passes)


def _time_bounds(low: str, high: str) -> tuple[str, str]:
    return _digits(low).ljust(12, "0"), _digits(high).ljust(12, "9")


def _digits(time: str) -> str:
    return time.replace(":", "").replace(".", "")


def number(keyword: str, wanted: str) -> Test:
    """Counts and sizes: one number, or a range that may be open."""
    low, high = _bounds(_NUMBER, keyword, wanted.strip(), "a number or a range: 100, 100-, 10-20")
    first, last = int(low or 0), int(high or 10**18)
    _in_order(keyword, wanted, first <= last)
    return Test(lambda value: isinstance(value, int) and first <= value <= last)


def integer(keyword: str, wanted: str) -> Test:
    """IS, which may be negative: one number, or a range of such as are not."""
    if _SIGNED.fullmatch(plain := wanted.strip()):
        only = int(plain)
        return Test(lambda value: value == only and not isinstance(value, bool))
    return number(keyword, wanted)


def decimal(keyword: str, wanted: str) -> Test:
    """DS: one number, whatever its notation."""
    if not _DECIMAL.fullmatch(plain := wanted.strip()):
        raise BadQuery(f"{keyword}={wanted} cannot be: it takes a number: 5, 0.75")
    only = float(plain)
    return Test(lambda value: value == only and not isinstance(value, bool))


def moment(keyword: str, wanted: str) -> Test:
    """A date and a time of day together, as one range (PS3.4 C.2.2.2.5.4).

    The value is the pair of both: (DA, TM). A bound without a time is the whole day; a value
    without a time lies somewhere in its day.
    """
    low, high = _bounds(
        _MOMENT,
        keyword,
        wanted.strip(),
        "a date and time YYYYMMDDHHMM or a range: 202401312200-202402010600",
    )
    (first, low_at), (last, high_at) = (_date_and_time(bound) for bound in (low, high))
    first, last = date(keyword, first if low == high else f"{first}-{last}").span or ("", "")
    start, end = _time_bounds(low_at, high_at)
    _in_order(keyword, wanted, first + start <= last + end)

    def passes(value: object) -> bool:
        day, at = value if isinstance(value, tuple) else (value, None)
        if not (plain := plain_date(day)):
            return False
        text = str(at or "").strip()
        if not _TIME.fullmatch(text):
            return first <= plain <= last
        return first + start <= plain + _digits(text).ljust(12, "0") <= last + end

    return Test(passes, span=(first, last))


def _date_and_time(bound: str) -> tuple[str, str]:
    match = _MOMENT.fullmatch(bound)
    return (match[1], match[2] or "") if match else ("", "")


def _bounds(one: re.Pattern[str], keyword: str, wanted: str, meant: str) -> tuple[str, str]:
    """What stands before and after the hyphen; both, when there is none."""
    low, hyphen, high = wanted.partition("-")
    if not hyphen:
        high = low
    if not (low or high) or any(bound and not one.fullmatch(bound) for bound in (low, high)):
        raise BadQuery(f"{keyword}={wanted} cannot be: it takes {meant}")
    return low, high


def _in_order(keyword: str, wanted: str, ordered: bool) -> None:
    if not ordered:
        raise BadQuery(f"{keyword}={wanted}: the range ends before it starts")
