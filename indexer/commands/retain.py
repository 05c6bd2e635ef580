"""The command ``retain``: studies that need not be kept any longer are removed."""

from __future__ import annotations

import sys
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadSettings
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.humanize import size


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--clock-is-right", is_flag=True, help="Although the last run was long ago.")
@settings.options(
    *("retention", "retention_most", "retention_purge", "trash_days", "node", "digest")
)
@click.pass_obj
def retain(
    context: Context,
    /,
    *,
    dry_run: bool,
    yes: bool,
    clock_is_right: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Remove studies that need not be kept any longer, by the rules of the setting `retention`.

    `serve` does it daily at --retention-hour. Studies go to the trash, or (--retention-purge) are
    erased; then what has been in the trash for --trash-days is erased. A run removes at most
    --retention-most studies, the oldest first. Never one that is marked by `plainpacs keep`, waits
    to be indexed, is in conflict, or has a command (--on-study-settled, --on-instance) that waits
    or failed.

    --dry-run lists the studies, one a line: StudyInstanceUID, StudyDate, rule. When the last run
    was more than 40 days ago the clock may be wrong: nothing is removed without --clock-is-right.

    \b
    Example:  plainpacs retain --dry-run --retention 'old=age>5y ModalitiesInStudy=US'
              plainpacs retain --config /etc/plainpacs.toml --yes
    """
    chosen = settings.load(flags, config)
    path = context.archive_path()
    # Loaded when the command runs.
    from plainpacs.indexer.service import retention  # noqa: PLC0415 - it takes a while
    from plainpacs.indexer.service.removal import repeatable  # noqa: PLC0415 - it takes a while

    if not chosen.retention and not chosen.trash_days:
        raise BadSettings("there are no rules: set `retention` (see scp/deploy/plainpacs.toml)")
    if not clock_is_right:
        retention.check_clock(path, note)
    plan = retention.plan(path, chosen, note)
    if dry_run or not yes:
        for one in plan.due:
            click.echo(f"{one.study}\t{one.when}\t{one.rule}")
    for why, count in sorted(plan.spared.items()):
        note(f"{count:,} studies are due and stay: they {why}")
    if plan.more:
        note(f"{plan.more:,} more are due: a run removes at most {chosen.retention_most:,}")
    total = size(sum(one.bytes for one in plan.due))
    if dry_run:
        note(f"{len(plan.due):,} studies would be removed, {total}")
        return
    if not yes:
        how = "Erase" if chosen.retention_purge == "on" else "Move to the trash:"
        naming.confirm(
            f"{how} {len(plan.due):,} studies, {total}?", "--yes, or look with --dry-run"
        )
    with repeatable():
        run = retention.apply(path, plan, chosen)
    note(
        f"{len(run.removed):,} studies removed"
        + (f", {run.grew:,} changed meanwhile and stay" * bool(run.grew))
    )
    if run.emptied and run.emptied.instances:
        note(f"{run.emptied.instances:,} instances erased from the trash")
    sys.exit(0)
