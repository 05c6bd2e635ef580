"""The command ``audit``: what the audit log has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, NoMatch, StorageUnavailable
from plainpacs.archive.store import audit as log
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.output import formats, humanize, naming
from plainpacs.indexer.query import query

_WHO = ("user", "uid", "calling_ae", "called_ae", "peer")
COLUMNS = (
    *("time", "event", *_WHO, "StudyInstanceUID", "SOPInstanceUID", "uids", "targets"),
    *("stored", "duplicates", "conflicts", "refused", "instances", "what", "status", "why", "more"),
    *("sent", "failed", "unanswered", "source", "destination"),
)


@click.command()
@naming.optional
@click.option("--event", "events", multiple=True, metavar="NAME", help="stored, refused, rm, ….")
@click.option("--since", metavar="WHEN", help="today, yesterday, 30m, 1h, 7d, 20240228.")
@click.option("--limit", type=click.IntRange(min=0), help="Only the latest so many.")
@formats.format_choice("table", "json", "jsonl", "csv")
@click.pass_obj
def audit(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    events: tuple[str, ...],
    since: str | None,
    limit: int | None,
    format_: str | None,
) -> None:
    """Show who stored, read, removed or was refused, oldest first; or only what is about UIDs.

    Name studies, series and instances by UID, by the beginning or end of one (4 characters or
    more), or name studies by TERMs as of `ls`.

    Of what was sent the log has the study's UID and how many instances, not each; archive/FORMAT.md
    says what else. There are no patients' names or IDs in it. Its owner may read it, and root.

    Example:  plainpacs audit --since 7d --event refused
    """
    form = formats.chosen(format_)
    first = _first(since)
    path = context.archive_path()
    root = open_root(path)
    try:
        found = [
            entry for entry in log.entries(root, first) if not events or entry["event"] in events
        ]
        if named or last:
            wanted = _wanted(path, named, found, last=last)
            found = [entry for entry in found if wanted & _uids(entry)]
        if limit is not None:
            found = found[max(0, len(found) - limit) :]
    except OSError as error:
        raise StorageUnavailable(
            f"{layout.AUDIT} may not be read ({error.strerror}); its owner may"
        ) from None
    finally:
        os.close(root)
    if form == "json":
        formats.write_json([orjson.dumps(entry) for entry in found])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(entry) for entry in found])
    elif form == "csv":
        formats.write_csv(COLUMNS, found)
    elif found:
        from plainpacs.indexer.output.table import (  # noqa: PLC0415 - rich is slow to load
            DATE_TIME,
            Column,
        )

        columns = [
            Column("Time", DATE_TIME),
            Column("Event", 8),
            Column("Who", 12),
            Column("What", whole=True),
        ]
        formats.write_table(columns, [_row(entry) for entry in found])
    if not found:
        raise NoMatch(
            "nothing in the audit log" + (" matches" if named or last or events or since else "")
        )


def _wanted(
    path: str, named: Sequence[str], entries: Sequence[dict[str, Any]], *, last: bool
) -> set[str]:
    """The UIDs that are meant: of what the log names, which may be gone, or of the archive."""
    logged = {uid for entry in entries for uid in _uids(entry)}
    meant = [naming.among(text.strip(), logged) for text in named if not last]
    if meant and all(meant):
        return {uid for uids in meant for uid in uids}
    return {one.uid for one in naming.some(path, named, last=last)}


def _first(since: str | None) -> str:
    try:
        asked = query.parse((), since, ()).stored if since else None
    except BadQuery as error:
        raise BadQuery(str(error).replace("--stored", "--since")) from None
    return asked[0] if asked else ""


def _uids(entry: dict[str, Any]) -> set[str]:
    """Those that the line is about."""
    named = {str(value) for key, value in entry.items() if key.endswith("InstanceUID")}
    for key in ("uids", "targets", "forbidden"):  # UIDs, or paths of which they are parts
        several = entry.get(key)
        if isinstance(several, list):
            named.update(part for one in several for part in str(one).split("/"))
    return named


def _row(entry: dict[str, Any]) -> list[str]:
    peer = entry.get("peer")
    if peer:
        who = f"{entry.get('calling_ae', 'somebody')} at {peer}"
    else:
        who = str(entry.get("user") or entry.get("uid", ""))
    shown = ("time", "event", *_WHO)
    rest = (f"{key} {_words(value)}" for key, value in entry.items() if key not in shown)
    when = humanize.local_time(entry["time"])
    return [when, str(entry["event"]), who, "; ".join(rest).removeprefix("StudyInstanceUID ")]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
