"""The command ``restore``: back from the trash, and what is in it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.removal import trash
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import local_time, person_name
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import repeatable

TRASH_COLUMNS = (
    *("removed", "StudyInstanceUID", "series", "instances", "bytes", "path"),
    *("PatientName", "PatientID", "StudyDate", "StudyDescription"),
)


@click.command()
@click.argument("uids", metavar="[UID]...", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="List what is in the trash, and since when.")
@formats.format_option
@settings.options("node", "digest")
@click.pass_obj
def restore(
    context: Context,
    /,
    *,
    uids: tuple[str, ...],
    list_: bool,
    format_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Bring studies, series or instances back from the trash.

    Where the same instance was stored meanwhile, it only leaves the trash; where other bytes were,
    what was removed is kept aside among the conflicts. An instance that was removed several times
    comes back as it was the last time; again for the time before.

    \b
    Example:  plainpacs restore --list
    """
    chosen = settings.load(flags, config)
    path = context.archive_path()
    if list_ == bool(uids):
        raise click.UsageError("name UIDs to bring back, or --list what is in the trash")
    if list_:
        _list_trash(path, formats.chosen(format_))
        return
    with repeatable():
        wanted = [lookup.given_uid(uid) for uid in uids]
        done, unknown = removal.restore(path, wanted, node=chosen.node, digest=chosen.digest)
    counts = Counter(one.stored.outcome for one in done if one.stored)
    for one in done:
        if one.error:
            note(f"{one.entry.path} stays: {one.error}")
    note(
        f"{counts[StoreOutcome.STORED]:,} brought back; {counts[StoreOutcome.DUPLICATE]:,} there "
        f"already; {counts[StoreOutcome.CONFLICT]:,} kept aside (other bytes were stored since)"
    )
    for uid in unknown:
        note(f"nothing of {uid} is in the trash")
    sys.exit(1 if unknown or any(one.error for one in done) else 0)


def _list_trash(path: str, form: str) -> None:
    root = open_root(path)
    try:
        with repeatable():
            records = [study.as_dict() for study in trash.removed_studies(root)]
    finally:
        os.close(root)
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(TRASH_COLUMNS, records)
    elif form == "paths":
        formats.write_paths(os.path.join(path, record["path"]) for record in records)
    elif records:
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        formats.write_table(
            [
                Column("removed"),
                Column("patient"),
                Column("instances", right=True),
                Column("study"),
            ],
            [
                [
                    local_time(record["removed"]),
                    person_name(record.get("PatientName")),
                    f"{record['instances']:,}",
                    record["StudyInstanceUID"],
                ]
                for record in records
            ],
        )
    if not records:
        raise NoMatch("the trash is empty")
