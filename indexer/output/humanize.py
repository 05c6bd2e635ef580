"""Values of attributes as people read them, for tables. Never for programs, never to search by."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from plainpacs.indexer.query.matching import plain_date

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def text(record: Mapping[str, Any], keyword: str) -> str:
    """The value as it is, several separated by commas; empty when there is none."""
    value = record.get(keyword)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def person_name(value: object) -> str:
    """A PN (PS3.5 6.2.1): family name first, the ideographic form after it in brackets.

    >>> person_name("Yamada^Tarou=山田^太郎=やまだ^たろう"), person_name("Adams^John^Q^Rev.^M.Div.")
    ('Yamada, Tarou (山田 太郎)', 'Adams, Rev. John Q, M.Div.')
    >>> person_name("=山田^太郎"), person_name("^Rex"), person_name(None)
    ('山田 太郎', 'Rex', '')
    """
    if not isinstance(value, str):
        return ""
    alphabetic, _, others = value.partition("=")
    family, given, middle, prefix, suffix, *rest = [*alphabetic.split("^"), "", "", "", ""]
    personal = " ".join(part.strip() for part in (prefix, given, middle) if part.strip())
    ends = [suffix, *rest]
    parts = (family.strip(), personal, *(part.strip() for part in ends))
    name = ", ".join(part for part in parts if part)
    written = " ".join(others.partition("=")[0].replace("^", " ").split())
    if not written:
        return name or " ".join(others.replace("=", " ").replace("^", " ").split())
    return f"{name} ({written})" if name else written


def date(value: object) -> str:
    """``2024-01-31``; what is not a date as it is."""
    plain = plain_date(value)
    return f"{plain[:4]}-{plain[4:6]}-{plain[6:]}" if plain else str(value or "")


def time_of_day(value: object) -> str:
    """``10:15``; what is not a time as it is."""
    digits = str(value or "").replace(":", "")
    return f"{digits[:2]}:{digits[2:4]}" if digits[:4].isdecimal() and len(digits) >= 4 else digits


def size(count: int) -> str:
    """Bytes in decimal units.

    >>> size(999), size(526360), size(1200000000)
    ('999 B', '526 kB', '1.2 GB')
    """
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if value < 9.95 else f"{value:.0f} {_UNITS[unit]}"


def local_time(value: object) -> str:
    """A time as plainpacs writes it, in the zone of this machine: ``2024-02-28 03:38``."""
    try:
        return f"{datetime.fromisoformat(str(value)).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return str(value or "")
