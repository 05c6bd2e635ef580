"""The command ``reindex``: changes made by hand found now, or every index made again."""

from __future__ import annotations

import sys
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.indexer.service.pending import (
    REQUEST_HEADERS,
    REQUEST_REBUILD,
    REQUEST_RECONCILE,
)
from plainpacs.indexer.service.refresh import index_all
from plainpacs.indexer.service.status import status_of


@click.command()
@click.option("--full", is_flag=True, help="Rebuild every index from the instances.")
@click.option("--headers", is_flag=True, help="Read the instances' attributes again.")
@settings.options("node", "digest", "default_charset")
@click.pass_obj
def reindex(
    context: Context, /, *, full: bool, headers: bool, config: str | None, **flags: Any
) -> None:
    """Find what was changed by hand, now; with --full, rebuild every index.

    Indexes can be deleted at any time: --full makes them again, to the same bytes. While
    `plainpacs serve` runs, its indexer does the work and this waits for it.

    With --headers the attributes in the indexes are read from the files again, for example with
    another --default-charset, or for one that this version keeps and an older one did not. Who sent
    an instance, and when, is kept. The indexer of `serve` goes by the settings of `serve`.

    Example:  plainpacs reindex --full -a /srv/dicom
    """
    chosen = settings.in_force(flags, config)
    path = context.archive_path()
    if full and headers:
        raise click.UsageError("--headers indexes what it reads again: leave --full out")
    request = REQUEST_REBUILD if full else REQUEST_HEADERS if headers else REQUEST_RECONCILE
    total = status_of(path, lambda _: None).studies if full and sys.stderr.isatty() else None
    with ProgressBar("indexing", total) as shown:
        count = index_all(
            path,
            note,
            request,
            node=chosen.node,
            digest=chosen.digest,
            full=full,
            tick=shown.add,
        )
    note("done" if count is None else f"{count:,} studies indexed")
