"""The command ``sheet``: a study on one page."""

from __future__ import annotations

import sys

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.app.extras import how_to_install
from plainpacs.archive.errors import PlainpacsError
from plainpacs.indexer.export.destination import OutputFile, as_unavailable
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note


@click.command()
@naming.options
@click.argument("out", metavar="OUT.png")
@click.option("--names", is_flag=True, help="With the patient's name, ID and date of birth.")
@click.option("--force", is_flag=True, help="Replace the file, if it is there.")
@click.pass_obj
def sheet(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    out: str,
    names: bool,
    force: bool,
) -> None:
    """Make a contact sheet of a study: the middle image of each series, with its description.

    The study is named by its UID, by the beginning or end of it (4 characters or more), or by TERMs
    as of `ls`. The sheet says no name unless --names; what is burned into an image is shown. A
    series without an image that can be decoded has a tile that says why.

    Needs the extra [pixels]; without it, the command says how to install it.

    \b
    Example:  plainpacs sheet 1.2.840.113619.2.55.3 ~/chest.png
    """
    if not out.lower().endswith(".png"):
        raise click.UsageError("the sheet is a PNG file: give it a name that ends in .png")
    root = context.archive_path()
    study = naming.study(root, named, last=last)
    try:
        import numpy as np  # an extra, and slow to load  # noqa: F401, PLC0415

        from plainpacs.indexer.images.contact_sheet import contact_sheet  # noqa: PLC0415
    except ImportError as error:
        words = f"contact sheets need {error.name}: {how_to_install('pixels')}"
        raise PlainpacsError(words) from None
    try:
        with OutputFile(out, force=force) as file:
            made = contact_sheet(root, study, note, names=names)
            file.write(made.png)
            file.finish()
    except OSError as error:
        raise as_unavailable(out, error) from error
    more = f", {made.missing:,} without a picture" if made.missing else ""
    note(f"{out}: {made.shown:,} series{more}")
    if made.shown < made.series:
        note(f"{made.series - made.shown:,} series more are not on the sheet")
        sys.exit(1)
