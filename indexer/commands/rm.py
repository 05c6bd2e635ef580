"""The commands that take instances out and bring them back: ``rm``, ``restore``, ``forbidden``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch, StorageUnavailable
from plainpacs.archive.removal import trash
from plainpacs.archive.store import audit
from plainpacs.archive.store.forbidden import Forbidden, allow
from plainpacs.archive.store.incoming_cleanup import mark_published
from plainpacs.archive.store.publish import StoreOutcome
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import lookup
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import local_time, person_name, size
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import Found, Removed

TRASH_COLUMNS = (
    *("removed", "StudyInstanceUID", "series", "instances", "bytes", "path"),
    *("PatientName", "PatientID", "StudyDate", "StudyDescription"),
)


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
    with _in_words():
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
    with _in_words():
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


@contextlib.contextmanager
def _writing(path: str, node: str | None) -> Iterator[Writer]:
    writer = Writer.open(path, node, mark_published)
    try:
        yield writer
    finally:
        writer.close()


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"{error.strerror or error}; what was not done yet, the same command does again"
        ) from error


@click.command()
@click.argument("uids", metavar="[UID]...", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="List what is in the trash, and since when.")
@formats.format_option
@settings.options("node", "digest")
@click.pass_obj
def restore(
    context: Context,
    /,
    *,
    uids: tuple[str, ...],
    list_: bool,
    format_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Bring studies, series or instances back from the trash.

    Where the same instance was stored meanwhile, it only leaves the trash; where other bytes were,
    what was removed is kept aside among the conflicts. An instance that was removed several times
    comes back as it was the last time; again for the time before.

    \b
    Example:  plainpacs restore --list
    """
    chosen = settings.load(flags, config)
    path = context.archive_path()
    if list_ == bool(uids):
        raise click.UsageError("name UIDs to bring back, or --list what is in the trash")
    if list_:
        _list_trash(path, formats.chosen(format_))
        return
    with _in_words():
        wanted = [lookup.given_uid(uid) for uid in uids]
        done, unknown = removal.restore(path, wanted, node=chosen.node, digest=chosen.digest)
    counts = Counter(one.stored.outcome for one in done if one.stored)
    for one in done:
        if one.error:
            note(f"{one.entry.path} stays: {one.error}")
    note(
        f"{counts[StoreOutcome.STORED]:,} brought back; {counts[StoreOutcome.DUPLICATE]:,} there "
        f"already; {counts[StoreOutcome.CONFLICT]:,} kept aside (other bytes were stored since)"
    )
    for uid in unknown:
        note(f"nothing of {uid} is in the trash")
    sys.exit(1 if unknown or any(one.error for one in done) else 0)


def _list_trash(path: str, form: str) -> None:
    root = open_root(path)
    try:
        with _in_words():
            records = [study.as_dict() for study in trash.removed_studies(root)]
    finally:
        os.close(root)
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(TRASH_COLUMNS, records)
    elif form == "paths":
        formats.write_paths(os.path.join(path, record["path"]) for record in records)
    elif records:
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        formats.write_table(
            [
                Column("removed"),
                Column("patient"),
                Column("instances", right=True),
                Column("study"),
            ],
            [
                [
                    local_time(record["removed"]),
                    person_name(record.get("PatientName")),
                    f"{record['instances']:,}",
                    record["StudyInstanceUID"],
                ]
                for record in records
            ],
        )
    if not records:
        raise NoMatch("the trash is empty")


@click.command()
@click.option("--lift", metavar="UID", multiple=True, help="No longer refuse this UID.")
@formats.format_option
@settings.options("node")
@click.pass_obj
def forbidden(
    context: Context,
    /,
    *,
    lift: tuple[str, ...],
    format_: str | None,
    config: str | None,
    node: str | None,
) -> None:
    """List the UIDs that are refused, since `rm --forbid`; with --lift, no longer refuse one.

    \b
    Example:  plainpacs forbidden --lift 1.2.840.113619.2.55.3
    """
    form = formats.chosen(format_)
    path = context.archive_path()
    if lift:
        _lift(path, [lookup.given_uid(uid) for uid in lift], settings.load({"node": node}, config))
        return
    root = open_root(path)
    try:
        since = Forbidden.load(root).since
    finally:
        os.close(root)
    if not since:
        raise NoMatch("nothing is forbidden")
    records = [{"uid": uid, "forbidden": when} for uid, when in sorted(since.items())]
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(("uid", "forbidden"), records)
    elif form == "paths":
        raise click.UsageError("what is forbidden has no paths")
    else:
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        formats.write_table(
            [Column("since"), Column("UID")],
            [[local_time(when), uid] for uid, when in sorted(since.items())],
        )


def _lift(path: str, uids: list[str], chosen: settings.Settings) -> None:
    with _in_words(), _writing(path, chosen.node) as writer:
        known = Forbidden.load(writer.root).since
        unknown = [uid for uid in uids if uid not in known]
        if unknown:
            raise NoMatch(f"not forbidden: {', '.join(unknown)}")
        allow(writer.root, uids)
        audit.record(writer, "lift", uids=uids)
    note("no longer refused; receivers at work notice within a second")
