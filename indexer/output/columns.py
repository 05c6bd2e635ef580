"""What the tables of ``ls``, ``show`` and ``path`` hold. It loads rich: load it when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.tree import layout
from plainpacs.indexer.index.merge import Record, by_number, count
from plainpacs.indexer.output import formats, humanize, table
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.output.table import DATE, DATE_TIME, Column

_STUDIES = (
    Column("Date", DATE),
    Column("Time", 5, rank=3),
    Column("Patient", 12),
    Column("ID", 8),
    Column("Mod.", 5),
    Column("Description", 10, rank=1),
    Column("Acc. no.", 8, rank=4),
    Column("Inst.", 5, right=True),
    Column("Size", 6, rank=2, right=True),
    Column("Study UID", uid=True),
)
_SERIES = (
    Column("No.", 3, right=True),
    Column("Mod.", 4),
    Column("Description", 10),
    Column("Body part", 8, rank=2),
    Column("Inst.", 5, right=True),
    Column("Size", 6, rank=1, right=True),
    Column("Series UID", uid=True),
)
_INSTANCES = (
    Column("No.", 3, right=True),
    Column("Image", 5, rank=2),
    Column("Size", 6, rank=3, right=True),
    Column("Stored", DATE_TIME, rank=1),
    Column("From", 4, rank=4),
    Column("Instance UID", 12, uid=True),
)
_OF_WHOM = (Column("Date", DATE), Column("Patient", 10), Column("ID", 6, rank=5))
_PATIENTS = (
    Column("Patient", 12),
    Column("Born", DATE, rank=1),
    Column("Sex", 3, rank=2),
    Column("Studies", 7, right=True),
    Column("Inst.", 5, right=True),
    Column("Size", 6, rank=3, right=True),
    Column("Issuer", 6, rank=4),
    Column("Patient ID", whole=True),
)
_BRIEF = (
    Column("Date", DATE),
    Column("Mod.", 5),
    Column("Patient", 8),
    Column("Description", 8, rank=1),
    Column("UID", 24, uid=True),
)
_COLUMNS: Mapping[Level, tuple[Column, ...]] = {
    Level.PATIENT: _PATIENTS,
    Level.STUDY: _STUDIES,
    Level.SERIES: (*_OF_WHOM, *_SERIES),
    Level.INSTANCE: (*_OF_WHOM, Column("Mod.", 4), Column("Ser.", 4, right=True), *_INSTANCES),
}


def write_records(level: Level, records: Sequence[Record], fields: Sequence[str] = ()) -> None:
    """One row a record of ``level``; with ``fields`` a column for each of them instead."""
    if fields:
        columns = [
            Column(field, min(8, len(field)), uid=field.endswith("UID"), whole=field == fields[-1])
            for field in fields
        ]
        rows = [[humanize.text(record, field) for field in fields] for record in records]
    else:
        columns = list(_COLUMNS[level])
        rows = [_ROWS[level](record) for record in records]
    formats.write_table(columns, rows)


def brief(uids: Sequence[str], records: Sequence[Record], width: int | None) -> Iterator[str]:
    """A line a study, series or instance, with the ``records`` of those that are studies."""
    rows = [
        [
            humanize.date(record.get("StudyDate")),
            humanize.text(record, "ModalitiesInStudy").replace(", ", "/"),
            humanize.person_name(record.get("PatientName")),
            humanize.text(record, "StudyDescription"),
            uid,
        ]
        for uid, record in zip(uids, records, strict=True)
    ]
    yield from islice(table.lines(_BRIEF, rows, width, bold=False), 1, None)


def write_places(paths: Iterable[str]) -> None:
    """One row a path."""
    formats.write_table([Column("Path", whole=True)], [[path] for path in paths])


def write_study(record: Record, months: list[str]) -> None:
    """What is known of a study, filed in ``months``, its series, and the instances of those that
    have them."""
    _write_facts(_facts(record, months))
    series = sorted(record["series"], key=by_number)
    formats.write_text([""])
    formats.write_table(_SERIES, [_series_row(one) for one in series])
    for one in series:
        if "instances" in one:
            formats.write_text(["", f"Series {visible(humanize.text(one, 'SeriesInstanceUID'))}"])
            formats.write_table(_INSTANCES, [_instance_row(line) for line in one["instances"]])


def _study_row(record: Record) -> list[str]:
    return [
        humanize.date(record.get("StudyDate")),
        humanize.time_of_day(record.get("StudyTime")),
        humanize.person_name(record.get("PatientName")) + _others(record, "PatientName"),
        humanize.text(record, "PatientID") + _others(record, "PatientID"),
        humanize.text(record, "ModalitiesInStudy").replace(", ", "/"),
        humanize.text(record, "StudyDescription"),
        humanize.text(record, "AccessionNumber"),
        _number(record, "NumberOfStudyRelatedInstances"),
        _size(record),
        humanize.text(record, "StudyInstanceUID"),
    ]


def _patient_row(record: Record) -> list[str]:
    return [
        humanize.person_name(record.get("PatientName")) + _others(record, "PatientName"),
        humanize.date(record.get("PatientBirthDate")),
        humanize.text(record, "PatientSex"),
        _number(record, "NumberOfPatientRelatedStudies"),
        _number(record, "NumberOfPatientRelatedInstances"),
        _size(record),
        humanize.text(record, "IssuerOfPatientID"),
        humanize.text(record, "PatientID"),
    ]


def _series_of_study_row(record: Record) -> list[str]:
    return [
        humanize.date(record.get("StudyDate")),
        humanize.person_name(record.get("PatientName")),
        humanize.text(record, "PatientID"),
        *_series_row(record),
    ]


def _instance_of_study_row(record: Record) -> list[str]:
    return [
        humanize.date(record.get("StudyDate")),
        humanize.person_name(record.get("PatientName")),
        humanize.text(record, "PatientID"),
        humanize.text(record, "Modality"),
        humanize.text(record, "SeriesNumber"),
        *_instance_row(record),
    ]


def _number(record: Record, keyword: str) -> str:
    """Empty where it is not told, as peers may not."""
    return str(count(record, keyword)) if keyword in record else ""


def _size(record: Record) -> str:
    return humanize.size(count(record, "bytes")) if "bytes" in record else ""


def _others(record: Record, keyword: str) -> str:
    """`` +1`` when instances have one more value than the one shown."""
    conflicting = record.get("conflicting")
    values = conflicting.get(keyword) if isinstance(conflicting, dict) else None
    return f" +{len(values) - 1}" if isinstance(values, list) and len(values) > 1 else ""


def _facts(record: Record, months: list[str]) -> dict[str, str]:
    patient = [
        humanize.person_name(record.get("PatientName")),
        humanize.text(record, "PatientID"),
        humanize.text(record, "IssuerOfPatientID"),
        humanize.date(record.get("PatientBirthDate")),
        humanize.text(record, "PatientSex"),
        humanize.text(record, "PatientAge"),
    ]
    when = [humanize.date(record.get("StudyDate")), humanize.time_of_day(record.get("StudyTime"))]
    counts = (
        f"{count(record, 'NumberOfStudyRelatedSeries')} series, "
        f"{count(record, 'NumberOfStudyRelatedInstances')} instances, "
        f"{humanize.size(count(record, 'bytes'))}"
    )
    stored = [humanize.local_time(record.get(key)) for key in ("first_stored", "last_stored")]
    facts = {
        "Study": humanize.text(record, "StudyInstanceUID"),
        "Patient": "  ".join(part for part in patient if part),
        "Date": " ".join(part for part in when if part),
        "Description": humanize.text(record, "StudyDescription"),
        "Accession": humanize.text(record, "AccessionNumber"),
        "Study ID": humanize.text(record, "StudyID"),
        "Referred by": humanize.person_name(record.get("ReferringPhysicianName")),
        "Institution": humanize.text(record, "InstitutionName"),
        "Modalities": humanize.text(record, "ModalitiesInStudy"),
        "Holds": counts,
        "Stored": " to ".join(dict.fromkeys(time for time in stored if time)),
        "Filed in": ", ".join(months),
    }
    found = record.get("conflicting")
    conflicting: Record = found if isinstance(found, dict) else {}
    for keyword in conflicting:
        facts[f"Differing {keyword}"] = humanize.text(conflicting, keyword)
    return facts


def _write_facts(facts: dict[str, str]) -> None:
    wide = max(len(label) for label in facts if not label.startswith("Differing"))
    formats.write_text(
        f"{visible(label):<{wide}}  {visible(value)}" for label, value in facts.items() if value
    )


def _series_row(series: Record) -> list[str]:
    return [
        humanize.text(series, "SeriesNumber"),
        humanize.text(series, "Modality"),
        humanize.text(series, "SeriesDescription"),
        humanize.text(series, "BodyPartExamined"),
        _number(series, "NumberOfSeriesRelatedInstances"),
        _size(series),
        humanize.text(series, "SeriesInstanceUID"),
    ]


def _instance_row(line: Record) -> list[str]:
    image = "x".join(humanize.text(line, key) for key in ("Columns", "Rows") if key in line)
    frames = humanize.text(line, "NumberOfFrames")
    return [
        humanize.text(line, "InstanceNumber"),
        f"{image}, {frames} fr." if image and frames not in ("", "1") else image,
        _size(line),
        humanize.local_time(line.get("stored")),
        humanize.text(line, "calling_ae") or humanize.text(line, "origin"),
        layout.instance_of(humanize.text(line, "file"))
        or humanize.text(line, "file")
        or humanize.text(line, "SOPInstanceUID"),
    ]


_ROWS: Mapping[Level, Callable[[Record], list[str]]] = {
    Level.PATIENT: _patient_row,
    Level.STUDY: _study_row,
    Level.SERIES: _series_of_study_row,
    Level.INSTANCE: _instance_of_study_row,
}
