"""The command ``pull``: studies out of another archive, as far as they are missing here."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import click

from plainpacs.archive.app.ae_address import ae_title
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.app.signals import interruptible
from plainpacs.archive.errors import BadSettings, NoMatch
from plainpacs.archive.store import audit
from plainpacs.archive.store.audit import COUNTED_AS, StudyCounts
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.listing import LEVELS
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.indexer.service.refresh import index_pending
from plainpacs.scp.commands.find import level_option
from plainpacs.scp.remote import calling, missing, selection
from plainpacs.scp.remote import terms as remote_terms
from plainpacs.scp.remote.calling import Calling, Failed
from plainpacs.scp.remote.find_scu import STUDY_ROOT_GET, STUDY_ROOT_MOVE, Finder
from plainpacs.scp.remote.get_scu import Getter, try_to_get
from plainpacs.scp.remote.missing import Missing
from plainpacs.scp.remote.move_scu import Mover
from plainpacs.scp.remote.pull import Event, Open, Problem, Pull, Take
from plainpacs.scp.remote.retrieve import Retriever, Wanted

_RECORDED_EVERY = 10.0
_FEW_CLASSES = 5
"""SOP Classes for which there is a context in every transfer syntax."""


@click.command()
@click.argument("from_", metavar="NODE")
@click.argument("what", metavar="UID|TERM...", nargs=-1, required=True)
@level_option("What the TERMs are to find.", ("study", "series", "instance"))
@click.option(
    "--via",
    type=click.Choice(("get", "move")),
    help="By C-GET, or C-MOVE.  [C-GET where NODE offers it]",
)
@click.option(
    "--move-to",
    metavar="AET",
    help="For C-MOVE, the receiver of this archive, as NODE knows it.  [the first of --aet]",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    metavar="N",
    help="Associations at once.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say how much is missing, and fetch nothing.")
@calling.options("node", "sync", "digest", "reserve", "on_conflict", "refuse_sop_class")
@click.pass_obj
def pull(
    context: Context,
    /,
    *,
    from_: str,
    what: tuple[str, ...],
    level: str,
    via: str | None,
    move_to: str | None,
    jobs: int,
    dry_run: bool,
    as_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Fetch from NODE what is missing here, of studies, series and instances.

    NODE is a name of the settings (see `plainpacs nodes`) or AET@HOST:PORT, with /tls behind it
    for TLS. Give UIDs, or TERMs as of `plainpacs find`: every study (--level series: series) that
    matches is fetched.

    By C-GET the instances come over the same association and are stored at once, as `serve` would;
    by C-MOVE NODE sends them to the receiver of this archive, which has to run, and to be known to
    NODE under the title of --move-to. It may be interrupted and repeated: what is here already,
    by SOP Instance UID, is not fetched again. What could not be had is named, with the step that
    failed; then the exit status is 1.

    \b
    Examples:  plainpacs pull PACS@10.0.0.5:104 1.2.840.113619.2.55.3
               plainpacs pull PACS PatientID=A12 StudyDate=20240101- --jobs 4
    """
    call = calling.calling(from_, as_, config, flags)
    title = _title(move_to) if move_to is not None else call.settings.aet[0]
    root = context.archive_path()
    uids = [one for one in what if selection.is_uid(one)]
    terms = remote_terms.read([one for one in what if one not in uids], LEVELS[level])
    plan = Missing()
    with Finder.open(call.node, call.ae_title, call.limits) as finder:
        offers = finder.offers
        chosen = [one for uid in uids for one in selection.by_uid(finder, uid)]
        if len(uids) < len(what):
            chosen += selection.by_terms(finder, terms, note)
        if not chosen:
            raise NoMatch(f"{call.node} has nothing that matches")
        for one in selection.merged(chosen):
            missing.find(finder, root, one, plan)
    if plan.unlisted:
        note(f"{call.node} does not list what {plan.unlisted} studies hold: they are fetched whole")
    if dry_run or not plan.wanted:
        number = "an unknown number" if plan.instances is None else f"{plan.instances:,}"
        note(f"{plan.here:,} instances are here already, {number} are missing")
        return
    wanted = missing.shared_out(plan.wanted, jobs)
    books = _Books(plan.here)
    with contextlib.ExitStack() as stack:
        if _by_get(call, offers, via, wanted[0]):
            books.archive = stack.enter_context(open_archive(root, call.settings))
            open_ = _getters(call, books.archive, wanted)
        else:
            open_ = _movers(call, title)
        fetching = Pull(root, wanted, open_, jobs)
        interrupted = stack.enter_context(interruptible(fetching.stop))
        progress = stack.enter_context(ProgressBar(f"from {call.node.ae_title}", plan.instances))
        try:
            books.keep(fetching.run(), progress, call)
        finally:
            note(f"{books}; {progress}")
    if interrupted():
        note("interrupted; the same command again goes on")
    if books.archive is not None:
        index_pending(root, node=call.settings.node, digest=call.settings.digest)
    if interrupted():
        sys.exit(130)
    sys.exit(1 if books.failed else 0)


def _title(text: str) -> str:
    try:
        return ae_title(text)
    except ValueError as error:
        raise BadSettings(f"--move-to {text!r} cannot be: {error}") from None


# --- how ------------------------------------------------------------------------------------------


def _by_get(call: Calling, offers: frozenset[str], via: str | None, first: Wanted) -> bool:
    """Whether by C-GET. Raises Failed when the peer offers nothing that will do."""
    moves = STUDY_ROOT_MOVE in offers
    if via == "get" or (via is None and STUDY_ROOT_GET in offers):
        try:
            try_to_get(call, first)
        except Failed:
            if via or not moves:
                raise
        else:
            return True
    if not moves:
        which = "does not offer C-MOVE" if via else "offers neither C-GET nor C-MOVE"
        raise Failed(call.node, "context", f"the peer {which}")
    return False


def _getters(call: Calling, archive: Archive, wanted: Iterable[Wanted]) -> Open:
    provenance = Provenance(call.node.ae_title, call.ae_title, _address(call))
    classes = frozenset().union(*(one.sop_classes() for one in wanted))

    def open_(one: Wanted, take: Take, _: Callable[[int], None], stopping: int) -> Retriever:
        needed = one.sop_classes()
        if needed and len(classes) <= _FEW_CLASSES:
            needed = classes  # for whatever comes after it
        return Getter(call, archive, provenance, needed, take, stopping=stopping)

    return open_


def _movers(call: Calling, title: str) -> Open:
    def open_(_: Wanted, __: Take, moved: Callable[[int], None], stopping: int) -> Retriever:
        return Mover(call, title, moved, stopping=stopping)

    return open_


def _address(call: Calling) -> str:
    """The node's network address, as a receiver would note it."""
    try:
        found = socket.getaddrinfo(call.node.host, call.node.port, type=socket.SOCK_STREAM)
    except OSError:
        return call.node.host
    return str(found[0][4][0])


# --- how it goes ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Books:
    """What came and what did not. ``here``: what was not asked for; ``archive``: where it is
    stored by us, and by whom the audit log is kept then."""

    here: int
    archive: Archive | None = None
    came: int = 0
    failed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    _studies: StudyCounts = field(default_factory=StudyCounts)
    _recorded: float = 0.0

    def keep(self, events: Iterable[Event], progress: ProgressBar, call: Calling) -> None:
        self._recorded = time.monotonic()
        try:
            for event in events:
                self._take(event, progress)
                if time.monotonic() - self._recorded > _RECORDED_EVERY:
                    self._record(call)
        finally:
            self._record(call)

    def _take(self, event: Event, progress: ProgressBar) -> None:
        if isinstance(event, Problem):
            self.failed += event.number
            number = f" ({event.number:,} instances)" if event.number > 1 else ""
            note(f"{event.what}{number}: {event.step}: {event.why}")
            return
        progress.add(event.number, event.size)
        self.came += event.number
        if event.stored is not None:
            self.outcomes[COUNTED_AS[event.stored.outcome]] += 1
            self._studies.add(event.stored)

    def _record(self, call: Calling) -> None:
        self._recorded = time.monotonic()
        if self.archive is not None:
            for facts in self._studies.take():
                audit.record(self.archive.audit, "pull", source=str(call.node), **facts)
            self.archive.audit.flush()
            self.archive.flush()

    def __str__(self) -> str:
        words = {
            f"{self.came - self.outcomes['duplicates']:,} fetched": True,
            f"{self.here:,} here already": self.here,
            f"{self.outcomes['duplicates']:,} came again": self.outcomes["duplicates"],
            f"{self.outcomes['conflicts']:,} kept aside (other bytes under a stored UID)": (
                self.outcomes["conflicts"]
            ),
            f"{self.failed:,} failed": self.failed,
        }
        return "; ".join(text for text, shown in words.items() if shown)
