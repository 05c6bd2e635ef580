"""The command ``keep``: studies that no rule of retention removes."""

from __future__ import annotations

import os

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.store import audit
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note


@click.command()
@naming.optional
@click.option("--lift", is_flag=True, help="Take the marks away.")
@click.pass_obj
def keep(context: Context, /, *, named: tuple[str, ...], last: bool, lift: bool) -> None:
    """Mark studies that no rule of retention removes; without a study, list the marks.

    Name studies by UIDs, each by the beginning or end of it, or by TERMs as of `ls`. `plainpacs rm`
    still removes a study that is marked.

    \b
    Example:  plainpacs keep 1.2.840.113619.2.55.3
              plainpacs keep --lift 1.2.840.113619.2.55.3
    """
    path = context.archive_path()
    from plainpacs.indexer.service import retention  # noqa: PLC0415 - it takes a while

    root = open_root(path)
    try:
        if not (named or last):
            for study in sorted(retention.kept(root)):
                click.echo(study)
            return
        if lift:
            studies = [uid for text in named for uid in naming.among(text, retention.kept(root))]
        else:
            meant = naming.targets(naming.some(path, named, last=last, level="study"))
            studies = sorted({target.study for target in meant})
        retention.keep(root, studies, lift=lift)
        audit.record(root, "keep", studies=studies, lifted=lift or None)
    finally:
        os.close(root)
    note(f"{len(studies):,} studies " + ("have no mark any more" if lift else "are marked"))
