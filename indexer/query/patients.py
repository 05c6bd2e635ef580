"""Patients: the studies that match, put together by whose they are.

There is no index of patients, as nothing in the tree is a patient: they are made of the catalogue's
studies, and as many of them are in memory at once as match.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from plainpacs.archive.dicom.attributes import PATIENT
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, count, merge
from plainpacs.indexer.query import matching
from plainpacs.indexer.query.query import Condition, Query
from plainpacs.indexer.query.search import studies
from plainpacs.indexer.query.sorting import sort_value

_OWN = tuple(sorted(PATIENT))
_KEPT = (*_OWN, "conflicting", "first_stored", "last_stored", "bytes")
_COUNTS = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
_TIMES = (("first_stored", min), ("last_stored", max))

Whose = tuple[str, ...]


def find(root: str, query: Query, note: Note) -> Iterator[Record]:
    """The patients who have a study that matches, by name; each with all their studies counted:
    NumberOfPatientRelatedStudies, NumberOfPatientRelatedSeries, NumberOfPatientRelatedInstances.
    """
    wanted = query.of_studies()
    matched: set[Whose] | None = None
    if not wanted.is_empty():
        matched = {_whose(orjson.loads(found.line)) for found in studies(root, wanted, note)}
    patients: dict[Whose, Record] = {}
    for found in studies(root, _all_of(matched), note):
        record = orjson.loads(found.line)
        whose = _whose(record)
        if matched is None or whose in matched:
            before = patients.get(whose)
            patients[whose] = _with(before, record) if before else _of(record)
    for record in sorted(patients.values(), key=lambda one: sort_value(one, "PatientName")):
        numbers = {
            key.replace("Study", "Patient"): record.pop(key)
            for key in ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
        }
        if not record.get("conflicting"):
            record.pop("conflicting", None)
        yield record | numbers


def _whose(record: Record) -> Whose:
    def text(keyword: str) -> str:
        return str(record.get(keyword) or "")

    if text("PatientID"):
        return text("PatientID"), text("IssuerOfPatientID")
    return "", "", matching.fold(text("PatientName")), text("PatientBirthDate")


def _all_of(matched: set[Whose] | None) -> Query:
    """The studies of these patients, and perhaps of others; of all patients for None."""
    ids = {whose[0] for whose in matched or ()}
    if matched is None or "" in ids:
        return Query()
    tests = tuple(matching.to_the_letter(one) for one in sorted(ids))
    return Query((Condition(("PatientID",), tests),))


def _of(record: Record) -> Record:
    patient: Record = {key: record[key] for key in _KEPT if key in record}
    conflicting = record.get("conflicting")
    if isinstance(conflicting, dict):
        patient["conflicting"] = {k: v for k, v in conflicting.items() if k in PATIENT}
    for key in _COUNTS:
        patient[key] = count(record, key)
    patient["NumberOfPatientRelatedStudies"] = 1
    return patient


def _with(before: Record, record: Record) -> Record:
    """One more study. What they disagree on is settled as between the parts of a study."""
    other = _of(record)
    if _agree(before, other):  # as nearly always, and 20 times as quick
        for key in (*_COUNTS, "bytes"):
            before[key] = count(before, key) + count(other, key)
        for key, choose in _TIMES:
            before[key] = choose(before[key], other[key])
        before["NumberOfPatientRelatedStudies"] += 1
        return before
    both: list[tuple[str, dict[str, Any]]] = [("0", before), ("1", other)]
    merged = merge(both)
    for key in ("ModalitiesInStudy", "SOPClassesInStudy"):
        merged.pop(key, None)
    merged["NumberOfPatientRelatedStudies"] = before["NumberOfPatientRelatedStudies"] + 1
    merged["conflicting"].pop("NumberOfPatientRelatedStudies", None)
    return merged


def _agree(one: Record, other: Record) -> bool:
    """Whether nothing is to be settled between them."""
    return (
        not (one.get("conflicting") or other.get("conflicting"))
        and all(one.get(key) == other.get(key) for key in _OWN)
        and all(isinstance(r.get(key), str) for key, _ in _TIMES for r in (one, other))
    )
