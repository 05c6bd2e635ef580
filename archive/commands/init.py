"""The command ``init``."""

from __future__ import annotations

import click

from plainpacs.archive.app import settings
from plainpacs.archive.tree.root import create_archive


@click.command()
@click.argument("root", metavar="ROOT")
@click.option("--force", is_flag=True, help="ROOT may hold other files; they are left alone.")
@settings.options("node")
def init(root: str, force: bool, node: str | None, config: str | None) -> None:
    """Make ROOT, a new or an empty folder, an archive.

    `plainpacs import` copies DICOM files into it, `plainpacs serve` receives into it.

    Example:  plainpacs init ~/dicom
    """
    create_archive(root, settings.load({"node": node}, config).node, force=force)
    click.echo(f"{root} is an archive; receive into it with: plainpacs serve {root}", err=True)
