"""Patients: the studies that match, put together by whose they are.

There is no index of patients, as nothing in the tree is a patient: they are made of the catalogue's
studies, and as many of them are in memory at once as match.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from plainpacs.archive.attributes import PATIENT
from plainpacs.indexer import matching
from plainpacs.indexer.lookup import Note
from plainpacs.indexer.merging import Record, count, merge
from plainpacs.indexer.query import Condition, Query
from plainpacs.indexer.search import studies
from plainpacs.indexer.sorting import sort_value

_KEPT = (*sorted(PATIENT), "conflicting", "first_stored", "last_stored", "bytes")
_COUNTS = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
# So many patients are asked for by their IDs; for more of them every study is read.
_FEW = 40

Whose = tuple[str, ...]


def find(root: str, query: Query, note: Note) -> Iterator[Record]:
    """The patients who have a study that matches, by name; each with all their studies counted:
    NumberOfPatientRelatedStudies, NumberOfPatientRelatedSeries, NumberOfPatientRelatedInstances.
    """
    matched: set[Whose] = set()
    for found in studies(root, query.of_studies(), note):
        matched.add(_whose(orjson.loads(found.line)))
    patients: dict[Whose, Record] = {}
    for found in studies(root, _all_of(matched), note):
        record = orjson.loads(found.line)
        if (whose := _whose(record)) in matched:
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


def _all_of(matched: set[Whose]) -> Query:
    """The studies of these patients, and perhaps of others."""
    ids = {whose[0] for whose in matched}
    if len(ids) > _FEW or "" in ids or any(matching.has_wildcard(one) for one in ids):
        return Query()
    tests = tuple(matching.identifier("PatientID", one) for one in sorted(ids))
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
    both: list[tuple[str, dict[str, Any]]] = [("0", before), ("1", _of(record))]
    merged = merge(both)
    for key in ("ModalitiesInStudy", "SOPClassesInStudy"):
        merged.pop(key, None)
    merged["NumberOfPatientRelatedStudies"] = before["NumberOfPatientRelatedStudies"] + 1
    merged["conflicting"].pop("NumberOfPatientRelatedStudies", None)
    return merged
