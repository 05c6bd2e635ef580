"""The command ``show``. It reads and never writes."""

from __future__ import annotations

import os

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.merge import Record, merge
from plainpacs.indexer.output import formats, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.listing import INSTANCE_COLUMNS, SERIES_COLUMNS


@click.command()
@naming.options
@click.option("-v", "--verbose", is_flag=True, help="With the instances.")
@formats.format_option
@formats.null_option
@click.pass_obj
def show(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    verbose: bool,
    format_: str | None,
    null: bool,
) -> None:
    """Show one study and its series; with -v their instances too.

    The study is named by its UID, by the beginning or end of it (4 characters or more), or by TERMs
    as of `ls`.

    Formats: json, the object in study.json (-v: each series with "instances", the lines of its
    manifest); jsonl, the same on one line; csv, a row for each series (-v: instance); paths, the
    study's folder (-v: each instance's file).

    \b
    Examples:  plainpacs show 1.2.840.113619.2.55.3 -v
               plainpacs show doe Modality=MR
    """
    form = formats.chosen(formats.path_format(format_, null))
    root = context.archive_path()
    parts = lookup.study_parts(root, naming.study(root, named, last=last), note)
    if verbose:
        parts = lookup.with_instances(root, parts, note)
    record = merge(parts)
    if form == "json":
        formats.write_object(record)
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record, option=orjson.OPT_SORT_KEYS)])
    elif form == "csv" and verbose:
        formats.write_csv(INSTANCE_COLUMNS, _instances(parts))
    elif form == "csv":
        whose = {"StudyInstanceUID": record["StudyInstanceUID"]}
        formats.write_csv(SERIES_COLUMNS, ({**series, **whose} for series in record["series"]))
    elif form == "paths" and verbose:
        paths = (os.path.join(root, one["path"]) for one in _instances(parts))
        formats.write_paths(paths, null=null)
    elif form == "paths":
        folders = (os.path.join(root, month, record["StudyInstanceUID"]) for month, _ in parts)
        formats.write_paths(folders, null=null)
    else:
        # rich is slow to load
        from plainpacs.indexer.output import columns as tables  # noqa: PLC0415

        tables.write_study(record, [month for month, _ in parts])


def _instances(parts: list[tuple[str, Record]]) -> list[Record]:
    """The instances of every part, each with its ``path`` relative to the root."""
    found = []
    for month, part in parts:
        for series in part["series"]:
            folder = f"{month}/{part['StudyInstanceUID']}/{series['SeriesInstanceUID']}"
            found += [{**line, "path": f"{folder}/{line['file']}"} for line in series["instances"]]
    return found
