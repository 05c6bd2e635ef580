"""The command ``send``: instances of the archive, or files from anywhere, to a node."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store import audit
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.deidentify import options as deidentify_options
from plainpacs.indexer.deidentify.instance import Deidentifier
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.scp.commands import send_selection
from plainpacs.scp.commands.send_selection import Unreadable
from plainpacs.scp.network.peer_status import meaning
from plainpacs.scp.remote import calling, instance_listing
from plainpacs.scp.remote.calling import Calling
from plainpacs.scp.remote.find_scu import Finder
from plainpacs.scp.storage.deidentified_file import described, opener
from plainpacs.scp.storage.instance_file import File, Outgoing
from plainpacs.scp.storage.send_log import Answered
from plainpacs.scp.storage.store_scu import Sent, Step, deliver


@click.command()
@click.argument("node")
@click.argument("what", metavar="PATH|UID|TERM...", nargs=-1)
@click.option("--last", is_flag=True, help="The study of the archive that came last.")
@naming.level_option
@click.option(
    "--resume", metavar="FILE", help="Keep in FILE what NODE took, and do not send that again."
)
@click.option(
    "--skip-existing", is_flag=True, help="Ask NODE, by C-FIND, what it has, and leave that out."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say how much would be sent, and send nothing.")
@deidentify_options.options
@calling.options()
@click.pass_obj
def send(
    context: Context,
    /,
    *,
    node: str,
    what: tuple[str, ...],
    last: bool,
    level: str | None,
    resume: str | None,
    skip_existing: bool,
    dry_run: bool,
    deidentify: str | None,
    key_file: str | None,
    uncleaned: tuple[str, ...],
    as_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Send instances to NODE, by C-STORE.

    NODE is a name of the settings (see `plainpacs nodes`) or AET@HOST:PORT, with /tls behind it
    for TLS. It is sent files, all DICOM files below folders, and instances of the archive: name
    those by UID, by the beginning or end of one (4 characters or more), or by TERMs as of `ls`.

    Data sets go as they are where NODE takes their transfer syntax, else decompressed where that
    can be. What could not be sent is named, with the step that failed and the status that NODE
    gave; then the exit status is 1. With --resume the same command again sends only the rest.

    With --deidentify NODE gets instances that do not say who the patient is, as `plainpacs export
    --deidentify` makes them. An instance that cannot be cleaned is not sent, but named.

    \b
    Examples:  plainpacs send PACS@10.0.0.5:104 1.2.840.113619.2.55.3
               plainpacs send WORKSTATION /media/cdrom --resume ~/sent.txt
               plainpacs send RESEARCH@10.0.0.9:104 1.2.840.113619.2.55.3 --deidentify
    """
    call = calling.calling(node, as_, config, flags)
    deidentifier = deidentify_options.deidentifier(deidentify, key_file, uncleaned, note)
    chosen = _gather(context, what, last=last, level=level)
    if deidentifier is not None:
        chosen.deidentify(deidentifier)
    report = _Report(chosen.unreadable, chosen.skipped, by_path=deidentifier is not None)
    with Answered(resume, call.node) as answered:
        waiting = [one for one in chosen.instances if not answered.has_taken(one.sop_instance)]
        if skip_existing:
            waiting = _without_existing(call, waiting)
        report.there = len(chosen.instances) - len(waiting)
        if dry_run:
            report.failed = sum(bool(one.fault) for one in waiting)
            note(f"{report}{len(waiting) - report.failed:,} would be sent to {call.node}")
            return
        interrupted = _deliver(call, waiting, answered, report, deidentifier)
    if chosen.studies:
        profile = str(deidentifier.profile) if deidentifier else None
        _record(context, chosen.studies, report, call, profile)
    for why, uids in report.lost.items():
        others = f" and {len(uids) - 1:,} others" if len(uids) > 1 else ""
        note(f"{uids[0]}{others} not sent: {why}")
    note(f"{report}{report.sent:,} sent to {call.node} ({report.progress})")
    if interrupted:
        note("interrupted; the same command" + (" goes on" if resume else " sends it all again"))
        sys.exit(130)
    if report.lost and not report.sent:
        sys.exit(3)
    sys.exit(1 if report.failed or report.unreadable or report.lost else 0)


# --- what -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chosen:
    instances: list[Outgoing] = field(default_factory=list)
    studies: dict[str, str] = field(default_factory=dict)
    """Those of which some comes out of the archive: its UID here, by the one that is sent."""
    unreadable: int = 0
    skipped: int = 0

    def deidentify(self, deidentifier: Deidentifier) -> None:
        self.instances = [described(one, deidentifier) for one in self.instances]
        self.studies = {deidentifier.uid(study): study for study in self.studies.values()}


def _gather(context: Context, what: Sequence[str], *, last: bool, level: str | None) -> _Chosen:
    chosen = _Chosen()
    paths = [one for one in what if os.path.lexists(one)]
    named = [one for one in what if one not in paths]
    if named or last or not paths:
        naming.check(named, last=last)
        root = context.archive_path()
        try:
            meant = naming.targets(naming.some(root, named, last=last, level=level))
        except NoMatch as none:
            raise NoMatch(f"{none}, nor is there such a file or folder") from None
        chosen.instances += send_selection.of_targets(root, meant, note)
        chosen.studies |= {one.study: one.study for one in chosen.instances}
    for one in paths:
        for instance in send_selection.of_paths([one]):
            if not isinstance(instance, Unreadable):
                chosen.instances.append(instance)
            elif instance.skipped:
                chosen.skipped += 1
            else:
                chosen.unreadable += 1
                note(f"{instance.path}: file: {instance.why}")
    if not chosen.instances:
        raise NoMatch("no instance is there to be sent")
    return chosen


def _without_existing(call: Calling, instances: list[Outgoing]) -> list[Outgoing]:
    """Those that the node does not have. One of a series that it does not know is not there."""
    existing: set[tuple[str, str]] = set()
    with Finder.open(call.node, call.ae_title, call.limits) as finder:
        for study in dict.fromkeys(one.study for one in instances if one.study):
            listed = instance_listing.instances(finder, study)
            existing.update((one.series, one.instance) for one in listed)
    return [one for one in instances if (one.series, one.sop_instance) not in existing]


# --- how it goes ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Report:
    """What became of all that was chosen. ``there``: what the node has already; ``lost``: those
    for which there was no association, by why not. ``by_path``: instances are named by their
    paths, as their UIDs are those of their pseudonyms."""

    unreadable: int
    skipped: int
    by_path: bool = False
    there: int = 0
    failed: int = 0
    sent_by_study: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[str]] = field(default_factory=dict)
    progress: ProgressBar = field(default_factory=lambda: ProgressBar("", None))

    @property
    def sent(self) -> int:
        return self.sent_by_study.total()

    def take(self, sent: Sent) -> None:
        if sent.is_success or sent.is_warning:
            self.sent_by_study[sent.instance.study] += 1
        elif sent.step is Step.ASSOCIATION:
            self.lost.setdefault(sent.why, []).append(self._name(sent.instance))
        else:
            self.failed += 1
        if sent.step is not Step.ASSOCIATION and not sent.is_success:
            note(f"{self._name(sent.instance)}: {sent.step.value}: {_why(sent)}")

    def _name(self, instance: Outgoing) -> str:
        return instance.path if self.by_path else instance.sop_instance

    def __str__(self) -> str:
        words = {
            f"{self.skipped:,} skipped (not instances)": self.skipped,
            f"{self.unreadable:,} cannot be read": self.unreadable,
            f"{self.there:,} there already": self.there,
            f"{self.failed:,} failed": self.failed,
        }
        return "".join(f"{text}; " for text, number in words.items() if number)


def _why(sent: Sent) -> str:
    if sent.status is not None:
        return meaning("C-STORE", sent.status)
    return sent.why


def _deliver(
    call: Calling,
    waiting: list[Outgoing],
    answered: Answered,
    report: _Report,
    deidentifier: Deidentifier | None,
) -> bool:
    """Whether the user interrupted it."""
    report.progress = ProgressBar(f"sending to {call.node.ae_title}", len(waiting))
    open_file = opener(deidentifier) if deidentifier else File
    with report.progress:
        try:
            for sent in deliver(
                call.node, call.ae_title, waiting, limits=call.limits, open_file=open_file
            ):
                report.take(sent)
                report.progress.add(1, sent.size)
                if sent.is_success or sent.is_warning:
                    answered.add(sent.instance.sop_instance)
        except KeyboardInterrupt:
            return True
    return False


def _record(
    context: Context, studies: dict[str, str], report: _Report, call: Calling, profile: str | None
) -> None:
    root = open_root(context.archive_path())
    try:
        for study, number in report.sent_by_study.items():
            if study in studies:
                audit.record(
                    root,
                    "send",
                    StudyInstanceUID=studies[study],
                    instances=number,
                    destination=str(call.node),
                    deidentified=profile,
                )
    finally:
        os.close(root)
