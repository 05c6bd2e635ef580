"""What ``ls`` prints of patients, studies, series and instances, in every format, as they come."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import BadQuery
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.output import formats
from plainpacs.indexer.query.keys import field_named, fields_at

_WHOSE = ("PatientName", "PatientID", "StudyDate", "AccessionNumber")
PATIENT_COLUMNS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries"),
    *("NumberOfPatientRelatedInstances", "bytes", "first_stored", "last_stored", "conflicting"),
    "by_another_value",
)
STUDY_COLUMNS = (
    *("StudyInstanceUID", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientIdentityRemoved", "StudyDate", "StudyTime"),
    *("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName"),
    *("InstitutionName", "ModalitiesInStudy", "SOPClassesInStudy", "NumberOfStudyRelatedSeries"),
    *("NumberOfStudyRelatedInstances", "bytes", "first_stored", "last_stored", "conflicting"),
    "by_another_value",
)
SERIES_COLUMNS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"),
    *("SeriesDate", "SeriesTime", "BodyPartExamined", "Laterality", "ProtocolName", "StationName"),
    *("Manufacturer", "ManufacturerModelName", "PerformedProcedureStepStartDate"),
    *("PerformedProcedureStepStartTime", "NumberOfSeriesRelatedInstances", "bytes"),
)
INSTANCE_COLUMNS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
    *("NumberOfFrames", "Rows", "Columns", "path", "bytes", "stored", "transfer_syntax"),
    *("calling_ae", "called_ae", "peer", "origin", "blake3", "sha256"),
)
COLUMNS: Mapping[Level, tuple[str, ...]] = {
    Level.PATIENT: PATIENT_COLUMNS,
    Level.STUDY: STUDY_COLUMNS,
    Level.SERIES: (*SERIES_COLUMNS, *_WHOSE),
    Level.INSTANCE: (*INSTANCE_COLUMNS, *_WHOSE),
}
"""Those of csv, where none are asked for."""


@dataclass(frozen=True, slots=True)
class Listing:
    """How to print records of one level. ``fields``: only these, in this order; none: all.

    ``null``: paths end with NUL instead of a newline. ``root``: what paths are below.
    """

    root: str
    level: Level
    form: str
    fields: tuple[str, ...] = ()
    null: bool = False

    def write(self, records: Iterable[Record]) -> int:
        """Prints them as they come, a table when the last has; gives how many there were."""
        counted = _Counted(records)
        if self.form == "json":
            formats.write_json(map(self.line, counted))
        elif self.form == "jsonl":
            formats.write_jsonl(map(self.line, counted))
        elif self.form == "csv":
            formats.write_csv(self.fields or COLUMNS[self.level], counted)
        elif self.form == "uids":
            formats.write_paths(str(record.get(_UIDS[self.level], "")) for record in counted)
        elif self.form == "paths":
            paths = (path for record in counted for path in _paths(record))
            formats.write_paths((os.path.join(self.root, path) for path in paths), null=self.null)
        else:
            rows = list(counted)
            if rows:
                # rich is slow to load
                from plainpacs.indexer.output import columns as tables  # noqa: PLC0415

                tables.write_records(self.level, rows, self.fields)
        return counted.count

    def line(self, record: Record) -> bytes:
        """The record as JSON, without a newline."""
        if self.fields:
            return orjson.dumps({key: record[key] for key in self.fields if key in record})
        uid = _UIDS[self.level]
        # As in the catalogue: what identifies it first, then by the alphabet.
        rest = {key: value for key, value in record.items() if key != uid}
        if self.level is Level.STUDY:
            rest.pop("paths", None)
        head = orjson.dumps({uid: record[uid]})[:-1] if uid in record else b"{"
        tail = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)[1:]
        return head + (b"," if len(head) > 1 and len(tail) > 1 else b"") + tail


_UIDS = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}


class _Counted:
    """Counts what comes through."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = records
        self.count = 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            self.count += 1
            yield record


def _paths(record: Record) -> Sequence[str]:
    if "path" in record:
        return [str(record["path"])]
    return [str(path) for path in record.get("paths", [])]


def field_names(text: str, level: Level) -> tuple[str, ...]:
    """The fields that ``--fields`` names, separated by commas, each once. Raises BadQuery."""
    named = [part for part in text.split(",") if part.strip()]
    if not named:
        some = ", ".join(list(fields_at(level))[:4])
        raise BadQuery(f"--fields names none; write some of {some} …, with commas between")
    return tuple(dict.fromkeys(field_named(part, level) for part in named))


LEVELS: Mapping[str, Level] = {level.name.lower(): level for level in COLUMNS}
"""By the names that ``--level`` takes."""
