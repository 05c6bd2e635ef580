"""The command of this package: ``serve``."""

from __future__ import annotations

import functools
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.scp.daemon import serve as service


@click.command()
@click.argument("root", metavar="[ROOT]", required=False)
@click.option("--create", is_flag=True, help="Make ROOT, a new or empty folder, an archive first.")
@click.option("--force", is_flag=True, help="With --create: ROOT may hold other files.")
@settings.options()
@click.pass_obj
def serve(
    context: Context,
    /,
    root: str | None,
    create: bool,
    force: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Receive instances into the archive ROOT, and index them, until stopped (Ctrl-C, SIGTERM).

    Every setting may also be a variable (--port: PLAINPACS_PORT) or a key of the TOML file. SIGHUP
    makes it read who may send (called and calling AE titles, networks, limits) and the certificates
    again.

    Example:  plainpacs serve --create ~/dicom
    """
    reread = functools.partial(settings.load, flags, config)
    chosen = reread()
    named = root or context.archive
    if create and not named:
        raise click.UsageError("--create needs ROOT, the folder to make an archive of")
    folder = named if create and named else context.archive_path(root)
    service.serve(folder, chosen, create=create, force=force, reread=reread)
