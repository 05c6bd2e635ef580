"""The command ``restore``: back from the trash, and what is in it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, NoMatch
from plainpacs.archive.removal import trash
from plainpacs.archive.store import set_aside
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.output import formats, humanize, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.query import resolve
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import repeatable

TRASH_COLUMNS = (
    *("removed", "StudyInstanceUID", "series", "instances", "bytes", "path"),
    *("PatientName", "PatientID", "StudyDate", "StudyDescription"),
)


@click.command()
@click.argument("named", metavar="[UID|TERM]...", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="List what is in the trash, and since when.")
@formats.format_option
@settings.options("node", "digest", "default_charset")
@click.pass_obj
def restore(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    list_: bool,
    format_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Restore studies, series or instances from the trash.

    Name them by UIDs, each by the beginning or end of it (4 characters or more), or name studies by
    TERMs as of `ls`: all in the trash that match are restored. With --list, only those are listed.

    Where the same instance was stored meanwhile, it only leaves the trash; where other bytes were,
    what was removed is kept aside among the conflicts. An instance that was removed several times
    comes back as it was the last time; again for the time before.

    \b
    Example:  plainpacs restore --list doe
              plainpacs restore PatientID=A12
    """
    chosen = settings.in_force(flags, config)
    path = context.archive_path()
    if not (list_ or named):
        raise click.UsageError("name what to restore, or --list what is in the trash")
    with repeatable():
        wanted = _wanted(path, named)
        if list_:
            _list_trash(path, wanted if named else None, formats.chosen(format_))
            return
        done, unknown = removal.restore(path, wanted, node=chosen.node, digest=chosen.digest)
    counts = Counter(one.stored.outcome for one in done if one.stored)
    for one in done:
        if one.error:
            note(f"{one.entry.path} stays: {one.error}")
    note(
        f"{counts[StoreOutcome.STORED]:,} restored; {counts[StoreOutcome.DUPLICATE]:,} there "
        f"already; {counts[StoreOutcome.CONFLICT]:,} kept aside (other bytes were stored since)"
    )
    for uid in unknown:
        note(f"nothing of {uid} is in the trash")
    sys.exit(1 if unknown or any(one.error for one in done) else 0)


def _wanted(path: str, named: Sequence[str]) -> list[str]:
    """The UIDs that are meant, of what is in the trash. Raises NoMatch, BadQuery."""
    root = open_root(path)
    try:
        groups = set_aside.uids(root, layout.TRASH)
        terms, uids = [], []
        for text in map(str.strip, named):
            # A UID of which the trash has nothing may have been copied back by hand.
            found = naming.among(text, *groups) or [text] * (resolve.looks_whole(text))
            uids += found
            terms += [] if found else [text]
        if terms and uids:
            raise BadQuery(f"give either UIDs or terms: {terms[0]!r} is a term")
        if terms:
            query = parse(terms)
            studies = trash.removed_studies(root)
            uids = [one.target.study for one in studies if query.matches(one.as_dict())]
            if not uids:
                raise NoMatch(f"nothing in the trash matches {' '.join(terms)!r}")
        return uids
    finally:
        os.close(root)


def _list_trash(path: str, only: Sequence[str] | None, form: str) -> None:
    root = open_root(path)
    try:
        studies = trash.removed_studies(root)
        records = [one.as_dict() for one in studies if only is None or one.target.study in only]
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
        # rich is slow to load
        from plainpacs.indexer.output.table import DATE, DATE_TIME, Column  # noqa: PLC0415

        formats.write_table(
            [
                Column("Removed", DATE_TIME),
                Column("Date", DATE, rank=1),
                Column("Patient", 8),
                Column("Description", 8, rank=2),
                Column("Inst.", right=True),
                Column("Size", right=True),
                Column("Study UID", uid=True),
            ],
            [
                [
                    humanize.local_time(record["removed"]),
                    humanize.date(record.get("StudyDate")),
                    humanize.person_name(record.get("PatientName")),
                    humanize.text(record, "StudyDescription"),
                    f"{record['instances']:,}",
                    humanize.size(record["bytes"]),
                    record["StudyInstanceUID"],
                ]
                for record in records
            ],
        )
    if not records:
        raise NoMatch("the trash is empty")
