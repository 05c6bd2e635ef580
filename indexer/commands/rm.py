"""The command ``rm``: into the trash, or for good."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree import layout
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import person_name, size
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import Found, Removed, repeatable


@click.command()
@click.argument("uids", metavar="UID...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--purge", "erase", is_flag=True, help="Erase for good; also what is in the trash already."
)
@click.option("--forbid", is_flag=True, help="Also refuse it from now on.")
@settings.options("node", "digest")
@click.pass_obj
def rm(
    context: Context,
    /,
    *,
    uids: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    erase: bool,
    forbid: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Remove studies, series or instances: into the trash, from which restore brings them back.

    With --purge they are erased, here and in the trash, with every variant kept aside and every
    line about them: nothing but their UIDs stays. (What was copied elsewhere is not touched.)

    With --forbid they are refused from now on, whether sent (C000) or imported; `plainpacs
    forbidden` lists and lifts that.

    Interrupted, the same command again goes on. Files that are not instances stay.

    \b
    Example:  plainpacs rm 1.2.840.113619.2.55.3 --dry-run
    """
    chosen = settings.load(flags, config)
    path = context.archive_path()
    wanted = [lookup.given_uid(uid) for uid in uids]
    with repeatable():
        found = removal.find(path, wanted, note)
    nothing = [*found.instances, *found.entries] == [] and not (erase and found.targets)
    for uid in found.unknown:
        note(f"no study, series or instance {uid} here")
    if nothing and not forbid:
        raise NoMatch("nothing to remove")
    _say_what(path, found, erase=erase)
    if dry_run:
        formats.write_paths(
            os.path.join(path, layout.instance_path(i.key)) for i in found.instances
        )
        return
    if not yes and (found.instances or erase or forbid):
        _ask(erase=erase)
    with repeatable():
        removed = removal.remove(
            path,
            found,
            erase=erase,
            forbid=wanted if forbid else (),
            node=chosen.node,
            digest=chosen.digest,
        )
    _say_done(path, removed, wanted)
    if forbid:
        note("refused from now on; lift that with: plainpacs forbidden --lift UID")
    sys.exit(1 if found.unknown and not forbid else 0)


def _say_what(path: str, found: Found, *, erase: bool) -> None:
    for target in found.targets:
        some = [one for one in found.instances if target.covers(one.key)]
        record = lookup.stored_record(path, target.month, target.study) or {}
        who = " ".join((person_name(record.get("PatientName")), str(record.get("StudyDate", ""))))
        note(
            f"{target.path}: {_instances(len(some))}, {size(sum(one.size for one in some))}"
            + (f"  ({who.strip()})" if who.strip() and sys.stderr.isatty() else "")
        )
    if found.entries:
        where = "to be erased too" if erase else "already"
        note(f"{len(found.entries):,} files are in the trash {where}")
    if found.variants:
        where = "to be erased too" if erase else "which stay there"
        note(f"{len(found.variants):,} variants are among the conflicts, {where}")


def _instances(count: int) -> str:
    return f"{count:,} instance{'' if count == 1 else 's'}"


def _ask(*, erase: bool) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody to ask here: add --yes, or look first with --dry-run")
    question = "Erase this for good?" if erase else "Move this to the trash?"
    if not click.confirm(question, err=True):
        note("nothing was changed")
        sys.exit(1)


def _say_done(path: str, removed: Removed, uids: list[str]) -> None:
    if removed.purged is None:
        count = len(removed.entries)
        if count:
            note(f"{_instances(count)} taken out, into {os.path.join(path, layout.TRASH)}")
            note(f"bring them back with: plainpacs restore {' '.join(uids)}")
        return
    purged = removed.purged
    note(f"erased: {_instances(purged.instances)}, {purged.variants:,} variants kept aside")
    if purged.linked:
        note(f"{purged.linked:,} of the files have other names elsewhere, where their bytes stay")
    for words in removed.links:
        note(words)
