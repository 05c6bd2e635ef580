"""What the folders and links of a tree for people are called: from records to names.

    Doe, Jane [P1]/2024-01-15 CT chest/03 lung/0001.dcm            by patient
    2024-01/2024-01-15 Doe, Jane [P1] CT chest/03 lung/0001.dcm    by date
    A77 Doe, Jane [P1]/2024-01-15 CT chest/03 lung/0001.dcm        by accession number

Names are a function of what the archive holds, not of what came first. No path below the tree has
more than ``layout.LONGEST_PATH`` characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from plainpacs.archive.tree import layout
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.links.file_names import MARK, folded, safe, told_apart
from plainpacs.indexer.output import humanize

DEPTH = 3
"""Folders above each link."""

_NAME, _ID, _ACCESSION, _MODALITIES, _STUDY, _SERIES = 30, 20, 20, 10, 24, 26
"""Characters of each part; with the marks of ``told_apart`` no path gets too long."""
_MOST = 999_999
_LINK = re.compile(rf"[0-9]{{4,6}}(?: {MARK}[0-9a-f]{{8,64}})?\.dcm", re.ASCII)


class By(Enum):
    """What the folders at the top of a tree stand for."""

    PATIENT = "patient"
    DATE = "date"
    ACCESSION = "accession"


def folders(by: By, records: Iterable[tuple[str, Record]]) -> dict[str, str]:
    """The folder of each study, ``<top>/<study>``; (StudyInstanceUID, record) are given."""
    tops: dict[tuple[str, str], str] = {}
    studies: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for uid, record in records:
        name, identity = _top(by, record)
        key = folded(name), identity
        # One patient's name may be spelled in several ways that a file system takes for one.
        tops[key] = min(name, tops.get(key, name))
        studies.setdefault(key, []).append((uid, uid, _study(by, record)))
    names = told_apart((key, key[1], name) for key, name in tops.items())
    return {
        uid: f"{names[key]}/{study}"
        for key, below in studies.items()
        for uid, study in told_apart(below).items()
    }


def _top(by: By, record: Mapping[str, Any]) -> tuple[str, str]:
    """(name, the text of what it stands for): who is meant is told by more than a name shows."""
    if by is By.DATE:
        month = humanize.date(record.get("StudyDate"))[:7]
        return (month, month) if re.fullmatch("[0-9]{4}-[0-9]{2}", month) else ("undated", "")
    patient = _patient(record)
    identity = [_text(record, "PatientID"), _text(record, "IssuerOfPatientID")]
    if not identity[0]:
        identity += [_text(record, "PatientName"), _text(record, "PatientBirthDate")]
    if by is By.ACCESSION:
        number = _text(record, "AccessionNumber")
        identity.append(number)
        patient = f"{safe(number, _ACCESSION) or 'no number'} {patient}"
    return patient, "\\".join(identity)


def _patient(record: Mapping[str, Any]) -> str:
    name = safe(humanize.person_name(record.get("PatientName")), _NAME) or "unnamed"
    return f"{name} [{safe(_text(record, 'PatientID'), _ID) or 'no ID'}]"


def _study(by: By, record: Mapping[str, Any]) -> str:
    date = humanize.date(record.get("StudyDate"))
    modalities = record.get("ModalitiesInStudy")
    listed = modalities if isinstance(modalities, list) else []
    parts = [
        date if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", date) else "undated",
        _patient(record) if by is By.DATE else "",
        _modalities(map(str, listed)),
        safe(_text(record, "StudyDescription"), _STUDY),
    ]
    return " ".join(part for part in parts if part)


def _modalities(listed: Iterable[str]) -> str:
    """As many as there is room for."""
    text = ""
    for one in map(safe, listed):
        longer = f"{text}+{one}" if text else one
        if len(longer) <= _MODALITIES:
            text = longer
    return text


def series_folders(series: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The folder of each series of one study, by SeriesInstanceUID: ``03 lung``."""
    wanted = []
    for one in series:
        uid, number = str(one.get("SeriesInstanceUID", "")), one.get("SeriesNumber")
        words = (safe(_text(one, key), _SERIES) for key in _SERIES_WORDS)
        parts = (f"{number:02d}" if _counts(number) else "", next(filter(None, words), "series"))
        wanted.append((uid, uid, " ".join(part for part in parts if part)))
    return told_apart(wanted)


_SERIES_WORDS = ("SeriesDescription", "ProtocolName", "Modality")


def link_names(instances: Iterable[tuple[str, object]]) -> dict[str, str]:
    """The link of each instance of one series, by its path, of which (path, InstanceNumber) are
    given: ``0001.dcm``; without a number ``0000``."""
    wanted = (
        (path, path, f"{number:04d}" if _counts(number) else "0000") for path, number in instances
    )
    return {path: name + layout.INSTANCE_ENDING for path, name in told_apart(wanted).items()}


def is_link_name(name: str) -> bool:
    """Whether ``link_names`` may have made it."""
    return _LINK.fullmatch(name) is not None


def _counts(number: object) -> bool:
    return isinstance(number, int) and 0 <= number <= _MOST


def _text(record: Mapping[str, Any], keyword: str) -> str:
    value = record.get(keyword)
    return value if isinstance(value, str) else ""
