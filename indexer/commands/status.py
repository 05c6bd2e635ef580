"""The command ``status``. Apart from those that index: it starts fast."""

from __future__ import annotations

import os
from typing import Any

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.app.settings_file import default_files
from plainpacs.indexer.output import formats, humanize, table
from plainpacs.indexer.service.status import Status, status_of


@click.command()
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table")
@click.pass_obj
def status(context: Context, /, format_: str) -> None:
    """What is in the archive, what waits for somebody, and what runs on it.

    Example:  plainpacs status -a /srv/dicom
    """
    found = status_of(context.archive_path(), formats.note)
    where = [os.environ["PLAINPACS_CONFIG"]] if "PLAINPACS_CONFIG" in os.environ else []
    where = where or default_files()
    file = next(filter(os.path.exists, where), None)
    if format_ == "json":
        formats.write_object(found.as_dict() | {"settings": file})
    else:
        lines = _status_lines(found)
        words = table.visible(file or f"no file ({' or '.join(where)})")
        lines.insert(1, f"settings   {words}")
        formats.write_text(map(context.hint, lines))


_KINDS = {"study": "study-settled", "instance": "instance"}


def _status_lines(status: Status) -> list[str]:
    def number(value: int | None) -> str:
        return "not known (may not be read)" if value is None else f"{value:,}"

    lines = [
        f"archive    {table.visible(status.archive)}",
        f"studies    {status.studies:,}  ({status.series:,} series, {status.instances:,} "
        f"instances, {humanize.size(status.bytes)}; {humanize.size(status.free)} free)",
        f"pending    {number(status.pending)} studies to index",
        f"conflicts  {number(status.conflicts)} instances kept aside (other bytes, same UID)",
        f"indexer    {'at work' if status.indexer_running else 'not running'}",
    ]
    if status.reserve is not None:
        kept = humanize.size(status.reserve)
        lines.append(
            f"reserve    {kept}: what comes is stored until no more than that is free"
            if status.free > status.reserve
            else f"reserve    {kept}: NOTHING IS STORED until more than that is free"
        )
    if status.commitments:
        lines.append(f"committing {status.commitments:,} requests for storage commitment wait")
    for failed in status.failed_hooks:
        when = humanize.local_time(failed["time"])
        lines.append(
            f"failed     {when}  --on-{_KINDS[failed['kind']]} of {failed['month']}/"
            f"{failed['StudyInstanceUID']}, exit status {failed['exit']}; again: "
            "`plainpacs hooks --retry`"
        )
    for service in status.services or [{}]:
        lines += _service_lines(service)
    for last in status.last_stored:
        lines.append(f"arrived    {humanize.local_time(last['time'])}  {last['StudyInstanceUID']}")
    return lines


def _service_lines(service: dict[str, Any]) -> list[str]:
    def text(entry: dict[str, Any], key: str) -> str:
        return table.visible(str(entry.get(key, "")))

    if not service.get("running"):
        lines = ["receiver   not running"]
    else:
        aets = ", ".join(table.visible(str(aet)) for aet in service.get("aets", ()))
        lines = [f"receiver   {aets} on port {text(service, 'port')}, node {text(service, 'node')}"]
    if "stored" in service:
        lines.append(
            f"           since {humanize.local_time(service.get('started'))}: "
            f"{text(service, 'stored')} stored, {text(service, 'duplicates')} there already, "
            f"{text(service, 'conflicts')} kept aside, {text(service, 'refused')} refused"
        )
    for entry in service.get("last_refusals", ()):
        lines.append(
            f"refused    {humanize.local_time(entry.get('time'))}  {text(entry, 'calling_ae')} at "
            f"{text(entry, 'peer')} to {text(entry, 'called_ae')}: {text(entry, 'why')}"
        )
    return lines
