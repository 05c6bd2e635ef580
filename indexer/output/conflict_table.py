"""The table of ``conflicts``. It loads rich: load it when needed."""

from __future__ import annotations

from collections.abc import Iterable

from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.output import formats, humanize
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.output.table import DATE_TIME, Column

_COLUMNS = (
    Column("Class", 10),
    Column("Study UID", uid=True),
    Column("Instance UID", 12, uid=True),
    Column("Stored", DATE_TIME, rank=2),
    Column("From", 4, rank=4),
    Column("Kept aside", DATE_TIME, rank=1),
    Column("From", 4, rank=3),
    Column("Differs in", whole=True),
)
_NAMED = 3


def write(records: Iterable[Record]) -> None:
    """One row a variant; below it, of those with ``values``, what differs."""
    some = list(records)
    formats.write_table(_COLUMNS, [_row(record) for record in some])
    for record in some:
        if record.get("values"):
            title = f"{record['SOPInstanceUID']}  {record.get('digest', '')[:12]}"
            formats.write_text(["", visible(title)])
            formats.write_table(
                [Column("Attribute"), Column("First"), Column("Second", whole=True)],
                [
                    [one["name"], _value(one["first"]), _value(one["second"])]
                    for one in record["values"]
                ],
            )


def _row(record: Record) -> list[str]:
    return [
        str(record["class"]),
        humanize.text(record, "StudyInstanceUID"),
        humanize.text(record, "SOPInstanceUID"),
        humanize.local_time(record.get("first_stored")),
        humanize.text(record, "first_calling_ae"),
        humanize.local_time(record.get("second_stored")),
        humanize.text(record, "second_calling_ae"),
        _differing(record),
    ]


def _differing(record: Record) -> str:
    names = record.get("differing", [])
    more = int(record.get("differing_count", 0)) - len(names[:_NAMED])
    parts = [*names[:_NAMED], *([f"{more} more"] if more > 0 else [])]
    why = humanize.text(record, "why")
    return "; ".join(part for part in (", ".join(parts), why) if part)


def _value(value: object) -> str:
    return "(absent)" if value is None else str(value)
