"""The command ``ls``. It reads and never writes.

Results go to standard output, everything else to standard error; no match is exit status 1.
"""

from __future__ import annotations

import gc
from itertools import islice

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import BadQuery, NoMatch
from plainpacs.indexer.index import catalogue
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.listing import LEVELS, Listing, field_names
from plainpacs.indexer.query.find import find
from plainpacs.indexer.query.query import ALIASES, KEYS, Query, parse
from plainpacs.indexer.query.search import everything, studies
from plainpacs.indexer.query.sorting import sort_keys

SHOWN = 50
"""Studies in a table on a terminal, unless ``--all``."""

_KEYS = ", ".join([*KEYS, *(f"{alias} ({key})" for alias, key in ALIASES.items())])


@click.command(
    epilog=f"Keys: {_KEYS}.",
)
@click.argument("terms", metavar="[TERM]...", nargs=-1)
@click.option(
    "--stored", metavar="WHEN", help="Last stored: today, yesterday, 30m, 1h, 7d, 20240228."
)
@click.option(
    "--month", "months", metavar="yyyyMM", multiple=True, help="Filed in this month, or undated."
)
@click.option(
    "--all", "all_", is_flag=True, help=f"On a terminal, list more than the first {SHOWN}."
)
@click.option(
    "--level",
    type=click.Choice(tuple(LEVELS)),
    default="study",
    show_default=True,
    help="What to list.",
)
@click.option("--sort", metavar="KEY,...", help="In this order; -KEY: from the last to the first.")
@click.option("--limit", type=click.IntRange(min=0), help="List no more than so many.")
@click.option("--fields", metavar="KEY,...", help="Only these, in this order.")
@formats.format_choice(*formats.FORMATS, "uids")
@formats.null_option
@click.pass_obj
def ls(
    context: Context,
    /,
    *,
    terms: tuple[str, ...],
    stored: str | None,
    months: tuple[str, ...],
    all_: bool,
    level: str,
    sort: str | None,
    limit: int | None,
    fields: str | None,
    format_: str | None,
    null: bool,
) -> None:
    """List studies, newest first; those that match every TERM, if any is given.

    A TERM without "=" is looked for in patient name and ID, accession number, study description
    and UID; case and accents do not count.

    \b
    KEY=VALUE compares one attribute as C-FIND does:
      PatientID=A12          the whole value; again with another value: either
      PatientName='doe^j*'   * any characters, ? any one; ?* any value at all
      StudyDate=20240101-20240331    also 20240101- and -20240331
      Modality='CT\\MR'       any of these
      NumberOfStudyRelatedInstances=100-

    Names and descriptions (StudyDescription, InstitutionName) ignore case and accents; IDs,
    accession numbers and UIDs do not. A name also matches by one of its component groups. What
    matches only by a value that some of its instances have says so in by_another_value.

    --level series and instance list those of the studies, and take their keys too; patient lists
    whose studies match, by name.

    Formats: table; jsonl, one object a line with the keys of study.json, which is what you get
    when the output is no terminal; json, one array; csv, with a header, an apostrophe before what
    a spreadsheet would run as a formula; paths, the folders (of instances: files), with -0 for
    xargs -0; uids, the UIDs (of patients: their IDs). Without any term, jsonl has the months newest
    first, but a month's studies as they are filed, which is much quicker.

    \b
    Examples:  plainpacs ls doe Modality=CT StudyDate=20240101- --stored 7d
               plainpacs ls --level series Modality=MR --sort -bytes --limit 10
               plainpacs ls StudyDate=2024* -0 | xargs -0 du -sh
    Example:   plainpacs ls --fields PatientID,StudyDate --format csv
    """
    asked = formats.path_format(format_, null)
    form = formats.chosen(asked)
    formats.note_of_lines(asked)
    at = LEVELS[level]
    if fields is not None and form == "paths":
        raise BadQuery("--fields goes with table, json, jsonl or csv, not with paths")
    listing = Listing(
        context.archive_path(),
        at,
        form,
        field_names(fields, at) if fields is not None else (),
        null,
    )
    keys = sort_keys(sort, at) if sort is not None else ()
    query = parse(terms, stored, months, level=at)
    everything_asked = not (terms or stored or months) and limit is None
    plain = at is Level.STUDY and not listing.fields and not keys
    # A short run that makes many objects, none of them in cycles.
    gc.disable()
    try:
        if plain and form == "jsonl" and everything_asked and not formats.on_terminal():
            found = _write_everything(listing.root)
        elif plain:
            found = _write_studies(listing, query, limit, all_=all_)
        else:
            found = _write_records(listing, query, keys, limit, all_=all_)
    finally:
        gc.enable()
    if not found and limit != 0:
        raise NoMatch(f"no {level} matches" if terms or stored or months else "no studies here yet")


def _write_everything(root: str) -> int:
    written = 0
    for month_lines in everything(root, note):
        written += len(month_lines)
        if not formats.write(month_lines):
            break
    return written


def _write_studies(listing: Listing, query: Query, limit: int | None, *, all_: bool) -> int:
    """Studies with their lines as the catalogue has them, which is quick; how many there are."""
    # A month is read when its first study is asked for.
    found = list(islice(studies(listing.root, query, note), limit))
    count = len(found)
    if listing.form == "table" and formats.on_terminal() and not all_:
        found = found[:SHOWN]
    lines = (_marked(query, one.line) for one in found)
    if listing.form == "json":
        formats.write_json(lines)
    elif listing.form == "jsonl":
        formats.write_jsonl(lines)
    elif listing.form == "paths":
        listing.write({"paths": [f"{month}/{one.study}" for month in one.months]} for one in found)
    elif listing.form == "uids":
        formats.write_paths(one.study for one in found)
    else:
        listing.write(map(orjson.loads, lines))
    if more := count - len(found):
        note(f"{more:,} older ones are not shown: narrow the search, or add --all")
    return count


def _marked(query: Query, line: bytes) -> bytes:
    """The line, which says so when the study matches only by a value that it does not show."""
    if not query.conditions or b'"conflicting":{"' not in line:
        return line
    record = orjson.loads(line)
    marks = query.by_another_value(record)
    return catalogue.line_of({**record, "by_another_value": marks}) if marks else line


def _write_records(
    listing: Listing, query: Query, keys: tuple[str, ...], limit: int | None, *, all_: bool
) -> int:
    """Records of any level, as they come, unless they are sorted; how many there are."""
    cut = listing.form == "table" and formats.on_terminal() and not all_
    if not cut or (limit is not None and limit <= SHOWN):
        return listing.write(find(listing.root, query, note, sort=keys, limit=limit))
    found = list(find(listing.root, query, note, sort=keys, limit=SHOWN + 1))
    listing.write(found[:SHOWN])
    if len(found) > SHOWN:
        note(f"only the first {SHOWN} are shown: narrow the search, or add --all")
    return len(found)
