"""The command ``rm``: into the trash, or for good."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store import set_aside
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats, humanize, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import size
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import Found, Removed, repeatable

_NAMED = 20


@click.command()
@naming.options
@naming.level_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.option("-v", "--verbose", is_flag=True, help="With --dry-run, list every file.")
@click.option("--yes", is_flag=True, help="Do not ask: only whole UIDs and KEY=VALUE count.")
@click.option(
    "--purge", "erase", is_flag=True, help="Erase for good; also what is in the trash already."
)
@click.option("--forbid", is_flag=True, help="Also refuse it from now on.")
@settings.options("node", "digest", "default_charset")
@click.pass_obj
def rm(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    level: str | None,
    dry_run: bool,
    verbose: bool,
    yes: bool,
    erase: bool,
    forbid: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Remove studies, series or instances: into the trash, from which restore brings them back.

    Name them by UIDs, each by the beginning or end of it (4 characters or more), or name studies by
    TERMs as of `ls`: all that match are removed. What would be removed is shown, and you are asked.

    With --purge they are erased, here and in the trash, with every variant kept aside and every
    line about them: nothing but their UIDs stays. (What was copied elsewhere is not touched.)

    With --forbid they are refused from now on, whether sent (C000) or imported; `plainpacs
    forbidden` lists and lifts that.

    Interrupted, the same command again goes on. Files that are not instances stay.

    \b
    Example:  plainpacs rm 1.2.840.113619.2.55.3 --dry-run
              plainpacs rm StudyDate=-20041231 --yes
    """
    chosen = settings.in_force(flags, config)
    path = context.archive_path()
    with repeatable():
        wanted, unknown = _wanted(path, named, last=last, whole=yes, level=level)
        found = removal.find(path, wanted, note, level)
    unknown += found.unknown
    nothing = [*found.instances, *found.entries] == [] and not (erase and found.targets)
    for uid in unknown:
        note(f"no study, series or instance {uid} here" + ("; blocked all the same" * forbid))
    if nothing and not forbid:
        raise NoMatch("nothing to remove")
    _say_what(path, found, erase=erase)
    if dry_run:
        if verbose or not formats.on_terminal():
            formats.write_paths(
                os.path.join(path, layout.instance_path(i.key)) for i in found.instances
            )
        return
    blocked = [*wanted, *filter(is_name, unknown)] if forbid else []
    if not yes and (found.instances or erase or forbid):
        naming.confirm(
            "Erase this for good?" if erase else "Move this to the trash?",
            "--yes, or look first with --dry-run",
        )
    with repeatable():
        removed = removal.remove(
            path,
            found,
            erase=erase,
            forbid=blocked,
            node=chosen.node,
            digest=chosen.digest,
        )
    _say_done(path, removed, wanted)
    if forbid:
        note("blocked from now on; unblock with: `plainpacs forbidden --lift UID`")
    sys.exit(1 if unknown and not forbid else 0)


def _wanted(
    path: str, named: Sequence[str], *, last: bool, whole: bool, level: str | None
) -> tuple[list[str], list[str]]:
    """The UIDs to look for, and what looks like a UID and is none. ``whole``: nobody is asked."""
    if last or not named:
        if whole:
            raise click.UsageError("--last may be another study by now: leave out --yes")
        return [one.uid for one in naming.some(path, named, last=last, level=level)], []
    meant, unknown = naming.found(
        path, named, elsewhere=partial(_aside, path), whole=whole, level=level
    )
    uids = [one.uid for one in meant]
    return ([*uids, *unknown], []) if whole else (uids, unknown)


def _aside(path: str) -> set[str]:
    """The UIDs of what is in the trash or among the conflicts."""
    root = open_root(path)
    try:
        tops = (set_aside.uids(root, top) for top in (layout.TRASH, layout.CONFLICTS))
        return set().union(*(uids for groups in tops for uids in groups))
    finally:
        os.close(root)


def _say_what(path: str, found: Found, *, erase: bool) -> None:
    for target in found.targets[:_NAMED]:
        some = [one for one in found.instances if target.covers(one.key)]
        record = lookup.stored_record(path, target.month, target.study) or {}
        who = "  ".join(
            part
            for part in (
                humanize.person_name(record.get("PatientName")),
                humanize.date(record.get("StudyDate")),
                humanize.text(record, "StudyDescription"),
            )
            if part
        )
        note(
            f"{target.path}: {_instances(len(some))}, {size(sum(one.size for one in some))}"
            + (f"  ({who})" if who and sys.stderr.isatty() else "")
        )
    if (more := len(found.targets) - _NAMED) > 0:
        note(f"and {more:,} more: {_instances(len(found.instances))}, {size(found.bytes)} in all")
    if found.entries:
        where = "to be erased too" if erase else "already"
        note(f"{len(found.entries):,} files are in the trash {where}")
    if found.variants:
        where = "to be erased too" if erase else "which stay there"
        note(f"{len(found.variants):,} variants are among the conflicts, {where}")


def _instances(count: int) -> str:
    return f"{count:,} instance{'' if count == 1 else 's'}"


def _say_done(path: str, removed: Removed, uids: list[str]) -> None:
    if removed.purged is None:
        count = len(removed.entries)
        if count:
            note(f"{_instances(count)} moved to the trash, {os.path.join(path, layout.TRASH)}")
            note(f"restore them with: `plainpacs restore {' '.join(uids[:_NAMED])}`")
        return
    purged = removed.purged
    note(f"erased: {_instances(purged.instances)}, {purged.variants:,} variants kept aside")
    if purged.linked:
        note(f"{purged.linked:,} of the files have other names elsewhere, where their bytes stay")
    for words in removed.links:
        note(words)
