"""The command ``forbidden``: what ``rm --forbid`` refuses from then on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

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
from plainpacs.indexer.output import formats, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import local_time
from plainpacs.indexer.service.removal import repeatable


@click.command()
@click.option(
    "--lift",
    metavar="UID",
    multiple=True,
    help="Unblock this UID, named whole or by its beginning or end.",
)
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
    """List the UIDs that `rm --forbid` blocked; with --lift, unblock one.

    \b
    Example:  plainpacs forbidden --lift 1.2.840.113619.2.55.3
    """
    form = formats.chosen(format_)
    path = context.archive_path()
    if lift:
        _lift(path, lift, settings.load({"node": node}, config))
        return
    root = open_root(path)
    try:
        since = Forbidden.load(root).since
    finally:
        os.close(root)
    if not since:
        raise NoMatch("nothing is blocked")
    records = [{"uid": uid, "forbidden": when} for uid, when in sorted(since.items())]
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(("uid", "forbidden"), records)
    elif form == "paths":
        raise click.UsageError("what is blocked has no paths: take another --format")
    else:
        from plainpacs.indexer.output.table import (  # rich is slow to load  # noqa: PLC0415
            DATE_TIME,
            Column,
        )

        formats.write_table(
            [Column("Since", DATE_TIME), Column("UID", whole=True)],
            [[local_time(when), uid] for uid, when in sorted(since.items())],
        )


def _lift(path: str, named: Sequence[str], chosen: settings.Settings) -> None:
    with repeatable(), contextlib.closing(Writer.open(path, chosen.node, mark_published)) as writer:
        known = Forbidden.load(writer.root).since.keys()
        found = {text: naming.among(text.strip(), known) for text in named}
        if unknown := [text for text, uids in found.items() if not uids]:
            raise NoMatch(f"not blocked: {', '.join(unknown)}")
        uids = [uid for some in found.values() for uid in some]
        allow(writer.root, uids)
        audit.record(writer, "lift", uids=uids)
    note(f"unblocked: {', '.join(uids)}; receivers at work notice within a second")
