"""``--stored``: a period of arrival as a person writes it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.query import matching

END = "~"
"""Sorts behind every time."""

_PERIOD = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def period(stored: str, now: datetime | None = None) -> tuple[str, str]:
    """[from, until) as plainpacs writes times: ISO, UTC, milliseconds.

    ``now`` carries the time zone whose days "today" and dates are; the machine's by default.
    Raises BadQuery.
    """
    asked = stored.strip().lower()
    zone = now.tzinfo if now else None
    now = now or datetime.now().astimezone()
    if past := _PERIOD.fullmatch(asked):
        try:
            return _utc(now - timedelta(**{_UNITS[past[2]]: int(past[1])})), END
        except OverflowError:
            return "", END
    day = timedelta(days=1)
    if asked in ("today", "yesterday"):
        first = last = f"{now if asked == 'today' else now - day:%Y%m%d}"
    else:
        try:
            first, last = matching.date("--stored", asked).span or ("", "")
        except BadQuery:
            raise BadQuery(
                f"--stored {stored} cannot be: write today, yesterday, 30m, 1h, 7d, a date "
                "YYYYMMDD or a range of dates"
            ) from None
    return _midnight(first, zone) or "", _midnight(last, zone, later=day) or END


def _midnight(day: str, zone: tzinfo | None, later: timedelta = timedelta()) -> str | None:
    """When ``day`` begins, ``later``; None for the ends of open ranges."""
    try:
        start = datetime(int(day[:4]), int(day[4:6]), int(day[6:])) + later
        # Without a zone the machine's is asked for that very day: summer time may lie between.
        return _utc(start.replace(tzinfo=zone) if zone else start.astimezone())
    except (ValueError, OverflowError):
        return None


def _utc(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
