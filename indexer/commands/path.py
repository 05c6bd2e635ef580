"""The command ``path``. It reads and never writes."""

from __future__ import annotations

import os

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree import layout
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.output import formats, naming

PLACE_COLUMNS = ("path", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@click.command()
@naming.options
@naming.level_option
@click.option("--all", "all_", is_flag=True, help="Print every place, when there are several.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(formats.FORMATS),
    default="paths",
    show_default=True,
    help="How to print.",
)
@formats.null_option
@click.pass_obj
def path(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    level: str | None,
    all_: bool,
    format_: str,
    null: bool,
) -> None:
    """Print the folder of a study or series, or the file of an instance.

    Name it by its UID, by the beginning or end of it (4 characters or more), or name a study by
    TERMs as of `ls`. If it lies in several places, nothing is printed and the exit status is 1,
    unless --all is given.

    \b
    Example:  dcmdump "$(plainpacs path 1.2.840.113619.2.55.3.604688)"
              cd "$(plainpacs path --last)"
    """
    formats.path_format(format_, null)
    root = context.archive_path()
    uid, places, _ = naming.one(root, named, last=last, level=level)
    if len(places) > 1 and not all_:
        raise NoMatch(f"{uid} lies in {len(places)} places: --all prints them")
    records = [_place(root, place) for place in places]
    if format_ == "paths":
        formats.write_paths((record["path"] for record in records), null=null)
    elif format_ == "csv":
        formats.write_csv(PLACE_COLUMNS, records)
    elif format_ == "table":
        # rich is slow to load
        from plainpacs.indexer.output import columns as tables  # noqa: PLC0415

        tables.write_places(record["path"] for record in records)
    else:
        write = formats.write_json if format_ == "json" else formats.write_jsonl
        write([orjson.dumps(record) for record in records])


def _place(root: str, place: str) -> Record:
    uids = place.removesuffix(layout.INSTANCE_ENDING).split("/")[1:]
    return {"path": os.path.join(root, place), **dict(zip(PLACE_COLUMNS[1:], uids, strict=False))}
