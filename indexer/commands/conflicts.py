"""The command ``conflicts``: what is kept aside, how it differs, and deciding it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.conflicts.pending_conflicts import (
    Conflict,
    Version,
    conflicts,
    variants,
    version_of,
)
from plainpacs.archive.errors import NoMatch, StorageUnavailable
from plainpacs.archive.store import audit, set_aside
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.duplicates import two_places
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.output import formats, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar

_NAMED = 20
ALONE = "alone"
"""The class of a variant when nothing is published under its UID."""
TWO_PLACES = "two-places"

COLUMNS = (
    *("class", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    *("differing", "differing_count", "why"),
    *("first_path", "first_bytes", "first_stored", "first_calling_ae"),
    *("second_path", "second_bytes", "second_stored", "second_calling_ae"),
    *("digest", "values"),
)


@click.command(name="conflicts")
@naming.optional
@click.option("-v", "--verbose", is_flag=True, help="With the values that differ (patient data).")
@click.option(
    "--keep", type=click.Choice(("first", "second")), help="Decide, for all that is named."
)
@click.option("--all", "all_", is_flag=True, help="With --keep: for all that is kept aside.")
@click.option("--yes", is_flag=True, help="With --keep: do not ask.")
@click.option("--variant", metavar="DIGEST", help="The second is the one whose digest begins so.")
@formats.format_option
@settings.options("node", "digest", "default_charset")
@click.pass_obj
def conflicts_(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    verbose: bool,
    keep: str | None,
    all_: bool,
    yes: bool,
    variant: str | None,
    format_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """List instances that came with other bytes under a UID that was stored already; or decide.

    Of everything, or of the studies, series and instances that are named: by UID, by the beginning
    or end of one (4 characters or more), or by TERMs as of `ls`.

    The first is what is published, the second what is kept aside. They differ in class encoding
    (equal after decoding), header (then the attributes are named), or pixels. Pixels that cannot be
    decoded here count as different, and it says so. unreadable: one of them is damaged; same: equal
    bytes; alone: nothing is published under that UID. two-places: one SOP Instance UID lies under
    two StudyDates or Study UIDs; `plainpacs rm` takes the wrong one away.

    --keep first moves the second to the trash. --keep second publishes it (the latest, if there are
    several) and moves the first to the trash. A study's UID decides all that is in it. Unless whole
    UIDs are given, you are asked. Nothing is lost: `plainpacs restore` brings what is in the trash
    back, as a variant kept aside.

    Exit status 1 when there is something to decide.

    \b
    Example:  plainpacs conflicts
              plainpacs conflicts --keep second 1.2.840.113619.2.55.3
              plainpacs conflicts --keep first --all
    """
    form = formats.chosen(format_)
    given = settings.in_force(flags, config)
    path = context.archive_path()
    if keep is None and (variant is not None or all_ or yes):
        raise click.UsageError("--variant, --all and --yes go with --keep")
    wanted, unknown = _wanted(path, named, last=last, all_=all_)
    for uid in unknown:
        note(f"no study, series or instance {uid} here")
    if unknown and not wanted:
        raise NoMatch("no conflicts of these")
    if keep is None:
        _list(path, wanted, form, verbose=verbose)
        return
    if not wanted:
        raise click.UsageError("--keep needs UIDs, TERMs or --all: for which is it?")
    if variant is not None and keep == "first":
        raise click.UsageError("--variant names what --keep second is to publish")
    if not yes and set(wanted) != set(map(str.strip, named)):
        _ask(path, wanted, keep)
    _decide(path, wanted, keep, variant or "", given)


def _wanted(
    path: str, named: Sequence[str], *, last: bool, all_: bool
) -> tuple[list[str], list[str]]:
    """The UIDs that are meant, and those of which nothing is here. None named: all are meant."""
    if all_ and (named or last):
        raise click.UsageError("--all means everything that is kept aside: name nothing else")
    root = open_root(path)
    try:
        if all_:
            return sorted(set_aside.uids(root, layout.CONFLICTS)[0]), []
        if last:
            return [one.uid for one in naming.some(path, named, last=last)], []
        meant, unknown = naming.found(path, named, elsewhere=partial(_aside, root))
        return [one.uid for one in meant], unknown
    finally:
        os.close(root)


def _aside(root: int) -> set[str]:
    try:
        return set().union(*set_aside.uids(root, layout.CONFLICTS))
    except PermissionError:
        return set()


def _ask(path: str, uids: Sequence[str], keep: str) -> None:
    root = open_root(path)
    try:
        waiting = variants(root, _kept_targets(root, uids))
    finally:
        os.close(root)
    studies = sorted({f"{key.month}/{key.study}" for key in waiting})
    for study in studies[:_NAMED]:
        note(study)
    if len(studies) > _NAMED:
        note(f"and {len(studies) - _NAMED:,} more")
    question = f"Keep the {keep} of {len(waiting):,} instances in {len(studies):,} studies?"
    naming.confirm(question, "--yes")


# --- listing --------------------------------------------------------------------------------------


def _list(path: str, uids: list[str], form: str, *, verbose: bool) -> None:
    records = list(_records(path, uids, verbose=verbose))
    if form == "json":
        formats.write_json([orjson.dumps(record) for record in records])
    elif form == "jsonl":
        formats.write_jsonl([orjson.dumps(record) for record in records])
    elif form == "csv":
        formats.write_csv(COLUMNS, records)
    elif form == "paths":
        formats.write_paths(os.path.join(path, record["second_path"]) for record in records)
    elif records:
        from plainpacs.indexer.output import conflict_table  # noqa: PLC0415 - rich loads slowly

        conflict_table.write(records)
    if not records:
        note("no conflicts" + (" of these" if uids else ""))
    sys.exit(1 if records else 0)


def _records(path: str, uids: list[str], *, verbose: bool) -> Iterator[Record]:
    root = open_root(path)
    try:
        targets = _kept_targets(root, uids) if uids else set_aside.studies(root, layout.CONFLICTS)
        found = list(conflicts(root, targets))
        with ProgressBar("comparing", len(found)) as shown:
            for conflict in found:
                yield _record(path, conflict, verbose=verbose)
                shown.add(1)
    except PermissionError:
        note(f"{layout.CONFLICTS} may not be read here: what is kept aside is not listed")
    except OSError as error:
        raise StorageUnavailable(f"cannot read what is kept aside: {error.strerror}") from error
    finally:
        os.close(root)
    yield from _places(path, uids)


def _kept_targets(root: int, uids: Iterable[str]) -> list[Target]:
    return sorted(
        {target for uid in uids for target in set_aside.find(root, layout.CONFLICTS, uid)}
    )


def _record(path: str, conflict: Conflict, *, verbose: bool) -> Record:
    record: Record = {"class": ALONE, **_uids(conflict.key)}
    if conflict.first is not None:
        # Loaded where there is something to compare: pydicom takes a while.
        from plainpacs.archive.conflicts.compare import compare  # noqa: PLC0415 - as just said

        try:
            found = compare(path, conflict.first.path, conflict.second.path)
        except OSError as error:
            record |= {"class": "unreadable", "why": error.strerror or str(error)}
        else:
            record |= {
                "class": found.kind.value,
                "differing": [one.name for one in found.differing],
                "differing_count": found.count,
                "why": found.why,
            }
            if verbose:
                record["values"] = [
                    {"name": one.name, "first": one.first, "second": one.second}
                    for one in found.differing
                ]
        record |= _facts("first", conflict.first)
    record |= _facts("second", conflict.second)
    record["digest"] = conflict.digest
    return {key: value for key, value in record.items() if value not in ("", [])}


def _uids(key: InstanceKey) -> Record:
    return {
        "StudyInstanceUID": key.study,
        "SeriesInstanceUID": key.series,
        "SOPInstanceUID": key.instance,
    }


def _facts(which: str, version: Version) -> Record:
    return {
        f"{which}_path": version.path,
        f"{which}_bytes": version.size,
        f"{which}_stored": version.stored,
        f"{which}_calling_ae": version.calling_ae,
    }


def _places(path: str, uids: list[str]) -> Iterator[Record]:
    """A record for each place but the first of an instance that lies at several."""
    targets = None
    if uids:
        found = (place for uid in uids for place in lookup.places(path, uid, lambda _: None))
        targets = [target for place in found if (target := Target.at(place))]
    root = open_root(path)
    try:
        for keys in two_places(path, targets, note):
            first = version_of(root, keys[0])
            for key in keys[1:]:
                second = version_of(root, key)
                if first and second:
                    facts = _facts("first", first) | _facts("second", second)
                    record = {"class": TWO_PLACES, **_uids(key), **facts}
                    yield {name: value for name, value in record.items() if value != ""}
    except OSError as error:
        raise StorageUnavailable(f"cannot list the instances: {error.strerror}") from error
    finally:
        os.close(root)


# --- deciding -------------------------------------------------------------------------------------


def _decide(path: str, uids: list[str], keep: str, digest: str, chosen: Settings) -> None:
    # Only here: listing does without what writes.
    from plainpacs.archive.conflicts.resolve import Decider  # noqa: PLC0415 - as just said
    from plainpacs.archive.removal.remove import Removal  # noqa: PLC0415 - as just said
    from plainpacs.indexer.service.refresh import refresh_alone  # noqa: PLC0415 - as just said
    from plainpacs.indexer.service.removal import repeatable  # noqa: PLC0415 - as just said

    with repeatable(), Removal.open(path, node=chosen.node, digest=chosen.digest) as removal:
        waiting = variants(removal.root, _kept_targets(removal.root, uids))
        if not waiting:
            raise NoMatch("nothing of these is kept aside (two-places: see `plainpacs rm`)")
        if digest and len(waiting) > 1:
            raise NoMatch(f"--variant is for one instance; these are {len(waiting):,}")
        with Decider(removal, digest=chosen.digest) as decider:
            if keep == "first":
                done = decider.keep_first(waiting)
            else:
                done = [decider.keep_second(some, digest) for some in waiting.values()]
        audit.record(
            removal.writer,
            "conflicts",
            keep=keep,
            uids=uids,
            instances=sum(1 for one in done if not one.error),
        )
        studies = {(key.month, key.study) for key in waiting}
        refresh_alone(path, studies, node=chosen.node, digest=chosen.digest)
    for one in done:
        if one.error:
            note(f"{one.key.instance} stays as it is: {one.error}")
    trashed = sum(len(one.trashed) for one in done)
    note(f"{len(done):,} instances decided; {trashed:,} files are in the trash now")
    sys.exit(1 if any(one.error for one in done) else 0)
