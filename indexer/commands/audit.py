"""The command ``audit``: what the audit log has."""

from __future__ import annotations

import os
from typing import Any

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, NoMatch, StorageUnavailable
from plainpacs.archive.store import audit as log
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats, humanize
from plainpacs.indexer.query import query

_WHO = ("user", "uid", "calling_ae", "called_ae", "peer")
COLUMNS = (
    *("time", "event", *_WHO, "StudyInstanceUID", "SOPInstanceUID", "uids", "targets"),
    *("stored", "duplicates", "conflicts", "refused", "instances", "what", "status", "why", "more"),
    *("sent", "failed", "unanswered", "source", "destination"),
)


@click.command()
@click.argument("uids", metavar="[UID]...", nargs=-1)
@click.option("--event", "events", multiple=True, metavar="NAME", help="stored, refused, rm, ….")
@click.option("--since", metavar="WHEN", help="today, yesterday, 30m, 1h, 7d, 20240228.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(("table", "json", "jsonl", "csv")),
    help="How to print.",
)
@click.pass_obj
def audit(
    context: Context,
    /,
    *,
    uids: tuple[str, ...],
    events: tuple[str, ...],
    since: str | None,
    format_: str | None,
) -> None:
    """Who stored, read, removed or was refused, oldest first; with UIDs, only what names them.

    Of what was sent the log has the study's UID and how many instances, not each; archive/FORMAT.md
    says what else. There are no patients' names or IDs in it. Its owner may read it, and root.

    Example:  plainpacs audit --since 7d --event refused
    """
    form = formats.chosen(format_)
    wanted = {lookup.given_uid(uid) for uid in uids}
    first = _first(since)
    root = open_root(context.archive_path())
    try:
        found = [
            entry
            for entry in log.entries(root, first)
            if (not events or entry["event"] in events) and (not wanted or wanted & _uids(entry))
        ]
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
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        columns = [Column("time"), Column("event"), Column("who"), Column("what")]
        formats.write_table(columns, [_row(entry) for entry in found])
    if not found:
        raise NoMatch("nothing in the audit log" + (" matches" if uids or events or since else ""))


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
