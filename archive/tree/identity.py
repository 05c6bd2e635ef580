r"""Who an instance is: its UIDs as names, and its key.

A UID becomes a name on disk, so it is judged before it may. Valid UIDs (PS3.5 9.1) always pass.
Real archives also hold a few that are not valid; those pass when they are harmless as a name
everywhere, and two that pass never collide, not even where file names ignore case:

>>> as_name("SOPInstanceUID", "1.2.840.10008.1\0")
'1.2.840.10008.1'
>>> as_name("SOPInstanceUID", "1.02.3")
'1.02.3'
>>> as_name("SOPInstanceUID", "../../etc/passwd")
Traceback (most recent call last):
plainpacs.archive.errors.InvalidUID: SOPInstanceUID has characters that a UID may not have
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from plainpacs.archive.errors import InvalidUID, UnreadableDataSet

UNDATED = "undated"
"""The month of an instance whose StudyDate is absent or not a date."""

_HARMLESS = re.compile(r"[0-9a-z._-]{1,64}", re.ASCII)
_OUR_ENDINGS = (".json", ".jsonl", ".dcm")
# Reserved by Windows with any extension; with it, a copy there could not hold the name.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.ASCII)
_STUDY_DATE = re.compile(r"([0-9]{4})(?:([0-9]{2})([0-9]{2})|\.([0-9]{2})\.([0-9]{2}))", re.ASCII)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MONTH = re.compile(r"[0-9]{4}(?:0[1-9]|1[0-2])", re.ASCII)


def strip_padding(uid: str) -> str:
    """``uid`` without the trailing NULs and spaces that pad it to even length (PS3.5 9.1)."""
    return uid.rstrip("\0 ")


def is_name(name: str) -> bool:
    """Whether ``name`` may stand for a UID in the tree."""
    return not _fault(name)


def as_name(keyword: str, uid: str) -> str:
    """The name in the tree for ``uid``, the value of the attribute ``keyword``.

    Raises InvalidUID when it may not be one; the words never repeat the value.
    """
    name = strip_padding(uid)
    fault = _fault(name)
    if fault:
        raise InvalidUID(keyword, fault)
    return name


def _fault(name: str) -> str:
    if len(name) > 64:  # before what remembers names: a hostile one may be 1000 times as long
        return "is longer than 64 characters"
    return _fault_of_short(name)


@lru_cache(maxsize=1 << 14)  # study and series come with each of their instances
def _fault_of_short(name: str) -> str:
    if not name:
        return "is empty"
    if not _HARMLESS.fullmatch(name):
        return "has characters that a UID may not have"
    if name[0] == "." or name[-1] == ".":
        return "starts or ends with a dot"
    if name.endswith(_OUR_ENDINGS):
        return "ends like a file of the archive"
    if _DEVICE.fullmatch(name):
        return "is a device name on Windows"
    return ""


def month_of(study_date: str | None) -> str:
    """The ``yyyyMM`` an instance of this StudyDate is filed under, or ``undated``.

    Takes ``YYYYMMDD`` and the old form ``YYYY.MM.DD`` (PS3.5 6.2, DA); what is not a date of the
    calendar counts as absent.

    >>> month_of("20240131"), month_of("1997.04.24"), month_of("20240230"), month_of("")
    ('202401', '199704', 'undated', 'undated')
    """
    date = (study_date or "").strip(" \0")
    return _month_of(date) if len(date) <= len("YYYY.MM.DD") else UNDATED


@lru_cache(maxsize=1 << 10)
def _month_of(date: str) -> str:
    match = _STUDY_DATE.fullmatch(date)
    if not match:
        return UNDATED
    year, month, day = match[1], match[2] or match[4], match[3] or match[5]
    if not 1 <= int(month) <= 12 or not 1 <= int(day) <= _DAYS[int(month) - 1] or year == "0000":
        return UNDATED
    leap = int(year) % 4 == 0 and (int(year) % 100 != 0 or int(year) % 400 == 0)
    if month == "02" and day == "29" and not leap:
        return UNDATED
    return year + month


def is_month(name: str) -> bool:
    """Whether ``name`` is that of a month's folder."""
    return name == UNDATED or _MONTH.fullmatch(name) is not None


class InstanceKey(NamedTuple):
    """What places an instance in the tree. Its fields are names: checked before it is made."""

    month: str
    study: str
    series: str
    instance: str

    @classmethod
    def of(
        cls, study_date: str | None, study_uid: str, series_uid: str, instance_uid: str
    ) -> InstanceKey:
        """The key for these attribute values. Raises InvalidUID."""
        return cls(
            month_of(study_date),
            as_name("StudyInstanceUID", study_uid),
            as_name("SeriesInstanceUID", series_uid),
            as_name("SOPInstanceUID", instance_uid),
        )

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any]) -> InstanceKey:
        """The key of an instance with these attributes, by keyword.

        Raises UnreadableDataSet when a UID is lacking, InvalidUID.
        """
        values: list[str] = []
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            value = attributes.get(keyword)
            if not isinstance(value, str) or not value:
                raise UnreadableDataSet(f"the data set has no {keyword}")
            values.append(value)
        return cls.of(attributes.get("StudyDate"), *values)
