"""The command ``init``."""

from __future__ import annotations

import click

from plainpacs.archive.app import settings
from plainpacs.archive.tree.root import create_archive


@click.command()
@click.argument("root", metavar="ROOT")
@settings.options("node")
def init(root: str, node: str | None, config: str | None) -> None:
    """Make the folder ROOT an archive.

    What lies in it already is left alone; `plainpacs import` takes DICOM files in.

    Example:  plainpacs init /data/archive
    """
    create_archive(root, settings.load({"node": node}, config).node)
    click.echo(f"{root} is an archive; receive into it with: plainpacs serve {root}", err=True)
