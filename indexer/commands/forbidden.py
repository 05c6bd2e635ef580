"""The command ``forbidden``: what ``rm --forbid`` refuses from then on."""

from __future__ import annotations

import contextlib
import os

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store import audit
from plainpacs.archive.store.forbidden import Forbidden, allow
from plainpacs.archive.store.incoming_cleanup import mark_published
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import local_time
from plainpacs.indexer.service.removal import repeatable


@click.command()
@click.option("--lift", metavar="UID", multiple=True, help="No longer refuse this UID.")
@formats.format_option
@settings.options("node")
@click.pass_obj
def forbidden(
    context: Context,
    /,
    *,
    lift: tuple[str, ...],
    format_: str | None,
    config: str | None,
    node: str | None,
) -> None:
    """List the UIDs that are refused, since `rm --forbid`; with --lift, no longer refuse one.

    \b
    Example:  plainpacs forbidden --lift 1.2.840.113619.2.55.3
    """
    form = formats.chosen(format_)
    path = context.archive_path()
    if lift:
        _lift(path, [lookup.given_uid(uid) for uid in lift], settings.load({"node": node}, config))
        return
    root = open_root(path)
    try:
        since = Forbidden.load(root).since
    finally:
        os.close(root)
    if not since:
        raise NoMatch("nothing is forbidden")
    records = [{"uid": uid, "forbidden": when} for uid, when in sorted(since.items())]
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(("uid", "forbidden"), records)
    elif form == "paths":
        raise click.UsageError("what is forbidden has no paths")
    else:
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        formats.write_table(
            [Column("since"), Column("UID")],
            [[local_time(when), uid] for uid, when in sorted(since.items())],
        )


def _lift(path: str, uids: list[str], chosen: settings.Settings) -> None:
    with repeatable(), contextlib.closing(Writer.open(path, chosen.node, mark_published)) as writer:
        known = Forbidden.load(writer.root).since
        unknown = [uid for uid in uids if uid not in known]
        if unknown:
            raise NoMatch(f"not forbidden: {', '.join(unknown)}")
        allow(writer.root, uids)
        audit.record(writer, "lift", uids=uids)
    note("no longer refused; receivers at work notice within a second")
