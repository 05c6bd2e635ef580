"""The command ``export``. It reads the archive, and writes elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadSettings
from plainpacs.archive.store import audit
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Present
from plainpacs.indexer.deidentify import options
from plainpacs.indexer.export import ohif
from plainpacs.indexer.export.destination import (
    OutputFile,
    OutputFolder,
    StandardOutput,
    as_unavailable,
)
from plainpacs.indexer.export.file_set import Exported, Tick, To, as_file_set, by_study, chosen
from plainpacs.indexer.export.zip_file import Zip
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar

_NAMED = 20


@click.command()
@naming.options
@click.argument("out", metavar="OUT")
@naming.level_option
@click.option("--zip", "zip_", is_flag=True, help="OUT is a zip file of it; - is standard output.")
@click.option(
    "--ohif",
    "url",
    metavar="BASE_URL",
    help="OUT is a document for the viewer OHIF, and no files: BASE_URL is where a web server has "
    "the archive's folder.",
)
@click.option("--short", is_flag=True, help="Paths of 7 characters (000/000) instead of 35.")
@click.option("--force", is_flag=True, help="Replace the file, or the export, that OUT is.")
@options.options
@settings.options("default_charset")
@click.pass_obj
def export(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    out: str,
    level: str | None,
    zip_: bool,
    url: str | None,
    short: bool,
    force: bool,
    deidentify: str | None,
    key_file: str | None,
    uncleaned: tuple[str, ...],
    config: str | None,
    **flags: Any,
) -> None:
    """Copy studies, series or instances out: for a viewer, a CD, another hospital.

    Name them by UIDs, each by the beginning or end of it (4 characters or more), or name studies by
    TERMs as of `ls`: all that match are exported.

    OUT is a new or empty folder. It gets the DICOM files, as they are, and a DICOMDIR that
    describes them, in names that every file system and viewer takes (PT000000/ST000000/SE000000/
    IM000000). An instance that a DICOMDIR cannot describe is exported and named all the same: it
    lies in UNLISTED, and the exit status is 1.

    With --deidentify the copies do not say who the patient is: PatientName and PatientID are a
    pseudonym, UIDs are replaced, and identifying attributes and private ones are removed. The same
    key gives the same pseudonyms and UIDs in every export. An instance that cannot be cleaned
    (names in the pixels, a PDF) is left out and named, and the exit status is 1.

    With --ohif OUT is a JSON document for OHIF's data source "DICOM JSON", whose URLs lead to the
    archive's own files: serve the folder read-only, with CORS, and without .plainpacs.

    OUT appears when it is whole. Nothing is changed in the archive; the audit log has a line while
    a service is at work on it.

    \b
    Examples:  plainpacs export 1.2.840.113619.2.55.3 /media/usb/ct
               plainpacs export 1.2.840.113619.2.55.3 --zip - | ssh viewer 'cat > ct.zip'
               plainpacs export 1.2.840.113619.2.55.3 /tmp/study --deidentify=basic,dates
               plainpacs export 1.2.840.113619.2.55.3 ~/ct.json --ohif https://files.example.org
    """
    if url is not None and (zip_ or short or deidentify):
        raise BadSettings("--ohif goes with neither of --zip, --short, --deidentify: no copies")
    without_names = options.deidentifier(deidentify, key_file, uncleaned, note)
    base = ohif.base_url(url) if url is not None else ""
    settings.in_force(flags, config)
    path = context.archive_path()
    if out != "-":
        _refuse_inside(path, out)
    elif not zip_ and url is None:
        raise BadSettings("a folder cannot go to standard output; add --zip")
    root = open_root(path)
    try:
        meant = naming.targets(naming.some(path, named, last=last, level=level))
        instances = chosen(root, path, meant, note)
        try:
            with ProgressBar("exporting", len(instances)) as progress:
                tick = partial(progress.add, 1)

                def write(to: To) -> Exported:
                    return as_file_set(
                        root, instances, to, tick, short=short, deidentifier=without_names
                    )

                if url is not None:
                    result = _document(root, instances, base, out, tick, force=force)
                elif zip_:
                    result = _zip(out, write, force=force)
                else:
                    result = _folder(out, write, force=force)
        except OSError as error:
            raise as_unavailable(out, error) from None
        profile = str(without_names.profile) if without_names else None
        for study, count in by_study(instances).items():
            audit.record(
                root, "export", StudyInstanceUID=study, instances=count, deidentified=profile
            )
    finally:
        os.close(root)
    _say(result, out, len(instances) - len(result.left_out), files=url is None)
    sys.exit(1 if result.undescribed or result.left_out else 0)


def _refuse_inside(path: str, out: str) -> None:
    archive = os.path.realpath(path)
    if os.path.commonpath([archive, os.path.realpath(out)]) == archive:
        raise BadSettings(f"{out} lies in the archive; export to somewhere else")


def _folder(out: str, write: Callable[[To], Exported], *, force: bool) -> Exported:
    with OutputFolder(out, force=force) as to:
        result = write(to)
        to.finish()
    return result


def _zip(out: str, write: Callable[[To], Exported], *, force: bool) -> Exported:
    with _output(out, force=force) as file:
        with Zip(file) as to:
            result = write(to)
            to.finish()
        file.finish()
    return result


def _document(
    root: int, instances: Sequence[Present], base: str, out: str, tick: Tick, *, force: bool
) -> Exported:
    result = Exported()

    def unread(where: str, why: str) -> None:
        result.undescribed.append((where, "", why))

    with _output(out, force=force) as file:
        for piece in ohif.document(root, instances, base, tick, unread):
            file.write(piece)
        file.finish()
    return result


def _output(out: str, *, force: bool) -> OutputFile | StandardOutput:
    return StandardOutput() if out == "-" else OutputFile(out, force=force)


def _say(result: Exported, out: str, count: int, *, files: bool) -> None:
    for where, why in result.left_out:
        note(f"{where}: left out: {why}")
    for where, file, why in result.undescribed[:_NAMED]:
        note(f"{where}: {why}" + (f"; it is {file}, and not in the DICOMDIR" if file else ""))
    if (more := len(result.undescribed) - _NAMED) > 0:
        note(f"and {more:,} more")
    if result.stand_ins:
        what = ", ".join(f"{key} ({number:,})" for key, number in sorted(result.stand_ins.items()))
        note(f"the DICOMDIR has stand-ins for what is missing: {what}; the files are as they were")
    where = "standard output" if out == "-" else out
    instances = f"{count:,} instance{'' if count == 1 else 's'}"
    note(f"{instances} exported to {where}" if files else f"{instances} described in {where}")
