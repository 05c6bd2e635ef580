"""The command ``repair``: mending what ``verify`` finds, and indexing what was mended."""

from __future__ import annotations

import os
import sys

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.verify.finding import Finding, Severity
from plainpacs.archive.verify.repair import INDEXES, LEFT, PLANNED, Mender, Trust, plan
from plainpacs.archive.verify.verify import Options, Verification
from plainpacs.indexer.commands.verify import (
    checks,
    format_option,
    gauge,
    print_finding,
    summary,
    targets_of,
)
from plainpacs.indexer.output import formats, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.indexer.service.pending import REQUEST_REBUILD, REQUEST_RECONCILE
from plainpacs.indexer.service.refresh import index_all


@click.command()
@naming.optional
@click.option("--apply", "apply_", is_flag=True, help="Do it; else only say what would be.")
@click.option("--fast", is_flag=True, help="Leave the digests out: names, sizes, lines, indexes.")
@click.option(
    "--trust",
    type=click.Choice([one.value for one in Trust]),
    help="Where a file and its line disagree and nothing tells why: which is right.",
)
@format_option
@settings.options("node", "digest", "default_charset")
@click.pass_obj
def repair(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    apply_: bool,
    fast: bool,
    trust: str | None,
    format_: str | None,
    config: str | None,
    **flags: str | None,
) -> None:
    """Repair what `verify` finds, everywhere or in what is named.

    Name studies, series and instances by UID, by the beginning or end of one (4 characters or
    more), or name studies by TERMs as of `ls`.

    Only what is safe is done, from the files themselves. What cannot stay where it lies is moved to
    .plainpacs/conflicts with the reason: nothing is deleted. Without --apply nothing is changed.
    Exit status 1 when something is, or is left, to be done.

    \b
    Example:  plainpacs repair
              plainpacs repair --apply 1.2.840.113619.2.55.3
    """
    chosen = settings.in_force(flags, config)
    root = context.archive_path()
    form = formats.chosen(format_)
    trusted = Trust(trust) if trust else None
    options = Options(targets_of(root, named, last=last), fast=fast, threads=os.cpu_count() or 1)
    verification = Verification(root, options, checks(root, options))
    findings: list[Finding] = []
    with gauge(verification, root, options) as shown:
        for finding in verification:
            findings.append(finding)
            if not apply_:
                with shown.printing():
                    planned = plan(finding, verification.forbidden, trusted)
                    print_finding(finding, form, planned or LEFT)
    note(summary(verification.progress))
    if apply_ and findings:
        sys.exit(1 if _apply(root, chosen, findings, form, trusted) else 0)
    if findings:
        note("nothing was changed; --apply does it")
    open_ = [one for one in findings if one.severity is not Severity.NOTE or one.kind in PLANNED]
    sys.exit(1 if open_ else 0)


def _apply(
    root: str, chosen: Settings, findings: list[Finding], form: str, trust: Trust | None
) -> int:
    """Mends and indexes; returns how much is left to be done."""
    mended = left = 0
    rebuild = False
    with (
        Mender.open(root, node=chosen.node, digest=chosen.digest, trust=trust) as mender,
        ProgressBar("repairing", len(findings)) as shown,
    ):
        for finding, done in mender.mend(findings):
            shown.add(1)
            with shown.printing():
                print_finding(finding, form, done.words)
            mended += done.words != LEFT
            left += done.left
            rebuild |= done.rebuild
    # An indexer at work trusts what it wrote itself, unless it makes everything again.
    index = any(finding.kind in INDEXES for finding in findings)
    request = REQUEST_REBUILD if rebuild or index else REQUEST_RECONCILE
    index_all(root, note, request, node=chosen.node, digest=chosen.digest, full=rebuild)
    note(f"{mended:,} mended, {left:,} for you to look at")
    return left
