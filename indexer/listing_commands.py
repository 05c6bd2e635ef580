"""The commands that list and find: ``ls``, ``show``, ``path``. They read and never write.

Results go to standard output, everything else to standard error; no match is exit status 1.
"""

from __future__ import annotations

import gc
import os
from itertools import islice

import click
import orjson

from plainpacs.archive import layout
from plainpacs.archive.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.indexer import lookup, output
from plainpacs.indexer.merging import Record, merge
from plainpacs.indexer.output import note
from plainpacs.indexer.query import ALIASES, KEYS, parse
from plainpacs.indexer.search import Found, everything, studies

SHOWN = 50
"""Studies in a table on a terminal, unless ``--all``."""

STUDY_COLUMNS = (
    *("StudyInstanceUID", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientIdentityRemoved", "StudyDate", "StudyTime"),
    *("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName"),
    *("InstitutionName", "ModalitiesInStudy", "SOPClassesInStudy", "NumberOfStudyRelatedSeries"),
    *("NumberOfStudyRelatedInstances", "bytes", "first_stored", "last_stored", "conflicting"),
)
SERIES_COLUMNS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"),
    *("SeriesDate", "SeriesTime", "BodyPartExamined", "Laterality", "ProtocolName", "StationName"),
    *("Manufacturer", "ManufacturerModelName", "PerformedProcedureStepStartDate"),
    *("PerformedProcedureStepStartTime", "NumberOfSeriesRelatedInstances", "bytes"),
)
INSTANCE_COLUMNS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
    *("NumberOfFrames", "Rows", "Columns", "path", "bytes", "stored", "transfer_syntax"),
    *("calling_ae", "called_ae", "peer", "origin", "blake3", "sha256"),
)
PLACE_COLUMNS = ("path", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

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
    "--all", "all_", is_flag=True, help=f"On a terminal, list more than the newest {SHOWN}."
)
@click.option("--limit", type=click.IntRange(min=0), help="List no more than so many.")
@output.format_option
@click.pass_obj
def ls(
    context: Context,
    /,
    *,
    terms: tuple[str, ...],
    stored: str | None,
    months: tuple[str, ...],
    all_: bool,
    limit: int | None,
    format_: str | None,
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
    accession numbers and UIDs do not. A name also matches by one of its component groups.

    Formats: table; jsonl, one object a line with the keys of study.json, which is what you get
    when the output is no terminal; json, one array; csv, with a header, an apostrophe before what
    a spreadsheet would run as a formula; paths, the study folders. Without any term, jsonl has
    the months newest first, but a month's studies as they are filed, which is much quicker.

    \b
    Example:  plainpacs ls doe Modality=CT StudyDate=20240101- --stored 7d
    """
    form = output.chosen(format_)
    root = context.archive_path()
    query = parse(terms, stored, months)
    everything_asked = not (terms or stored or months) and limit is None
    if form == "jsonl" and everything_asked and not output.on_terminal():
        written = 0
        for month_lines in everything(root, note):
            output.write(month_lines)
            written += len(month_lines)
        if written:
            return
    # A short run that makes many objects, none of them in cycles.
    gc.disable()
    try:
        # A month is read when its first study is asked for.
        found = list(islice(studies(root, query, note), limit))
        more = 0
        if form == "table" and output.on_terminal() and not all_:
            more = max(0, len(found) - SHOWN)
            found = found[:SHOWN]
        _write_studies(root, found, form)
    finally:
        gc.enable()
    if more:
        note(f"{more:,} older ones are not shown: narrow the search, or add --all")
    if not found:
        raise NoMatch("no study matches" if terms or stored or months else "no studies here yet")


def _write_studies(root: str, found: list[Found], form: str) -> None:
    lines = [one.line for one in found]
    if form == "json":
        output.write_json(lines)
    elif form == "jsonl":
        output.write_jsonl(lines)
    elif form == "csv":
        output.write_csv(STUDY_COLUMNS, map(orjson.loads, lines))
    elif form == "paths":
        output.write_paths(
            os.path.join(root, month, one.study) for one in found for month in one.months
        )
    elif found:
        from plainpacs.indexer import tables  # rich is slow to load  # noqa: PLC0415

        tables.write_studies(map(orjson.loads, lines))


@click.command()
@click.argument("uid")
@click.option("-v", "--verbose", is_flag=True, help="With the instances.")
@output.format_option
@click.pass_obj
def show(context: Context, /, *, uid: str, verbose: bool, format_: str | None) -> None:
    """Show one study and its series; with -v their instances too.

    Formats: json, the object in study.json (-v: each series with "instances", the lines of its
    manifest); jsonl, the same on one line; csv, a row for each series (-v: instance); paths, the
    study's folder (-v: each instance's file).

    \b
    Example:  plainpacs show 1.2.840.113619.2.55.3 -v
    """
    form = output.chosen(format_)
    root = context.archive_path()
    parts = lookup.study_parts(root, lookup.given_uid(uid), note)
    if verbose:
        parts = lookup.with_instances(root, parts, note)
    record = merge(parts)
    if form == "json":
        output.write_object(record)
    elif form == "jsonl":
        output.write_jsonl([orjson.dumps(record, option=orjson.OPT_SORT_KEYS)])
    elif form == "csv" and verbose:
        output.write_csv(INSTANCE_COLUMNS, _instances(parts))
    elif form == "csv":
        named = {"StudyInstanceUID": record["StudyInstanceUID"]}
        output.write_csv(SERIES_COLUMNS, ({**series, **named} for series in record["series"]))
    elif form == "paths" and verbose:
        output.write_paths(os.path.join(root, one["path"]) for one in _instances(parts))
    elif form == "paths":
        output.write_paths(
            os.path.join(root, month, record["StudyInstanceUID"]) for month, _ in parts
        )
    else:
        from plainpacs.indexer import tables  # rich is slow to load  # noqa: PLC0415

        tables.write_study(record, [month for month, _ in parts])


def _instances(parts: list[tuple[str, Record]]) -> list[Record]:
    """The instances of every part, each with its ``path`` relative to the root."""
    found = []
    for month, part in parts:
        for series in part["series"]:
            folder = f"{month}/{part['StudyInstanceUID']}/{series['SeriesInstanceUID']}"
            found += [{**line, "path": f"{folder}/{line['file']}"} for line in series["instances"]]
    return found


@click.command()
@click.argument("uid")
@click.option("--all", "all_", is_flag=True, help="Print every place, when there are several.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(output.FORMATS),
    default="paths",
    show_default=True,
    help="How to print.",
)
@click.pass_obj
def path(context: Context, /, *, uid: str, all_: bool, format_: str) -> None:
    """Print the folder of a study or series, or the file of an instance.

    When it lies in several places nothing is printed and the exit status is 1, unless --all.

    \b
    Example:  dcmdump "$(plainpacs path 1.2.840.113619.2.55.3.604688)"
    """
    root = context.archive_path()
    uid = lookup.given_uid(uid)
    places = lookup.places(root, uid, note)
    if not places:
        raise NoMatch(f"no study, series or instance {uid} here")
    if len(places) > 1 and not all_:
        raise NoMatch(f"{uid} lies in {len(places)} places: --all prints them")
    records = [_place(root, place) for place in places]
    if format_ == "paths":
        output.write_paths(record["path"] for record in records)
    elif format_ == "csv":
        output.write_csv(PLACE_COLUMNS, records)
    elif format_ == "table":
        from plainpacs.indexer import tables  # rich is slow to load  # noqa: PLC0415

        tables.write_places(record["path"] for record in records)
    else:
        write = output.write_json if format_ == "json" else output.write_jsonl
        write([orjson.dumps(record) for record in records])


def _place(root: str, place: str) -> Record:
    uids = place.removesuffix(layout.INSTANCE_ENDING).split("/")[1:]
    return {"path": os.path.join(root, place), **dict(zip(PLACE_COLUMNS[1:], uids, strict=False))}
