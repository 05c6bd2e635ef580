"""Retention: which studies need not be kept any longer, by the settings' rules, and their removal.

Never one that is kept by a mark (``plainpacs keep``), waits to be indexed, is in conflict, or has a
command that waits or failed (it may be one that forwards it).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson

from plainpacs.archive.app.retention_rule import AGE, FREE, STORED, RetentionRule
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import NoMatch, PlainpacsError
from plainpacs.archive.removal import trash
from plainpacs.archive.removal.purge import Purged, empty_trash
from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store import audit, set_aside
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import open_root, stamp
from plainpacs.archive.tree.targets import Target, present
from plainpacs.indexer.hooks.journal import HookJournal, Kind
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.query import resolve
from plainpacs.indexer.query.matching import plain_date
from plainpacs.indexer.query.query import Query, parse
from plainpacs.indexer.query.search import everything, studies
from plainpacs.indexer.service import removal
from plainpacs.indexer.service.removal import Found

_LAST_RUN = f"{layout.INTERNAL}/retention.json"
_KEPT = f"{layout.INTERNAL}/keep"
# What a line of a catalogue says; parsing 100,000 of them as JSON takes a second.
_UID = re.compile(rb'"StudyInstanceUID":"([^"]*)"')
_DATE = re.compile(rb'"StudyDate":"([^"]*)"')
_STORED = re.compile(rb'"last_stored":"([^"]*)"')
_BYTES = re.compile(rb'"bytes":(\d+)')
_INSTANCES = re.compile(rb'"NumberOfStudyRelatedInstances":(\d+)')
_TRUSTED = timedelta(days=40)
"""Later than this after the last run (`serve` has one a day) the clock is not believed."""


class ClockJumped(PlainpacsError):
    """The clock is much later than the last time that is known here."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Due:
    """A study that need not be kept, by the rule of that name. ``when``: its date, or arrival."""

    study: str
    bytes: int
    instances: int
    when: str
    rule: str


@dataclass(slots=True)
class Plan:
    """What a run removes, the oldest first. ``more``: how many are due beyond the most of a run;
    ``spared``: how many are due and are kept, by why."""

    due: list[Due] = field(default_factory=list)
    more: int = 0
    spared: Counter[str] = field(default_factory=Counter)


def plan(path: str, settings: Settings, note: Note, now: datetime | None = None) -> Plan:
    """What a run would remove now. Reads only. Raises BadQuery, NotAnArchive, OSError."""
    now = now or datetime.now(UTC)
    root = open_root(path)
    try:
        busy = _Busy(root)
        found: dict[str, Due] = {}
        spared: dict[str, str] = {}
        for text in settings.retention:
            for one in _due(path, root, RetentionRule.parse(text), note, now):
                if why := busy.why(one):
                    spared.setdefault(one.study, why)
                else:
                    found.setdefault(one.study, one)
    finally:
        os.close(root)
    due = sorted(found.values(), key=lambda one: (one.when, one.study))
    most = settings.retention_most
    return Plan(due[:most], max(0, len(due) - most), Counter(spared.values()))


def _due(path: str, root: int, rule: RetentionRule, note: Note, now: datetime) -> Iterator[Due]:
    before = now - timedelta(days=rule.limit if rule.measure in (AGE, STORED) else 0)
    last_day, last_stamp = f"{before.astimezone():%Y%m%d}", _stamp(before)
    found = []
    total = 0
    for line in _lines(path, parse(rule.terms), note):
        date = plain_date(_said(line, _DATE))
        stored = _said(line, _STORED)
        if (rule.measure == AGE and not "" < date < last_day) or (
            rule.measure == STORED and not "" < stored < last_stamp
        ):
            continue
        size = int(_said(line, _BYTES) or 0)
        total += size
        when = date or stored[:10].replace("-", "")
        instances = int(_said(line, _INSTANCES) or 0)
        found.append(Due(_said(line, _UID), size, instances, when, rule.name))
    if rule.measure in (AGE, STORED):
        yield from found
        return
    needed = _needed(path, root, rule, total)
    for due in sorted(found, key=lambda due: (due.when, due.study)):
        if needed <= 0:
            return
        needed -= due.bytes
        yield due


def _lines(path: str, query: Query, note: Note) -> Iterator[bytes]:
    if not query.is_empty():
        yield from (one.line for one in studies(path, query, note))
        return
    for month in everything(path, note):
        yield from month.splitlines()


def _said(line: bytes, pattern: re.Pattern[bytes]) -> str:
    found = pattern.search(line)
    return found[1].decode() if found else ""


def _stamp(when: datetime) -> str:
    return stamp(int(when.timestamp()) * 10**9)


def _needed(path: str, root: int, rule: RetentionRule, total: int) -> int:
    """How many bytes are to go. What is in the trash is free when that is emptied."""
    if rule.measure != FREE:
        return total - rule.limit
    in_trash = sum(one.bytes for one in trash.removed_studies(root))
    return rule.limit - shutil.disk_usage(path).free - in_trash


class _Busy:
    """Which studies are not to be touched, and why."""

    def __init__(self, root: int) -> None:
        self._why: dict[str, str] = {}
        journal = HookJournal(root)
        waiting = [study for kind in Kind for study in journal.waiting(kind)]
        for why, uids in (
            ("are marked by `plainpacs keep`", kept(root)),
            ("have commands that wait or failed", {study for _, study in waiting}),
            ("have commands that wait or failed", {study for _, (_, study) in journal.failed()}),
            ("are in conflict", {one.study for one in set_aside.studies(root, layout.CONFLICTS)}),
            ("wait to be indexed", _pending(root)),
        ):
            self._why |= dict.fromkeys(uids, why)

    def why(self, one: Due) -> str:
        return self._why.get(one.study, "")


def _pending(root: int) -> set[str]:
    names = [*_names(root, layout.PENDING), *_names(root, layout.INDEXING)]
    return {study[1] for name in names if (study := layout.study_of_pending(name))}


def _names(root: int, folder: str) -> list[str]:
    try:
        fd = durable.open_folder(folder, folder=root)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


# --- marks ----------------------------------------------------------------------------------------


def kept(root: int) -> set[str]:
    """The studies that are marked. Raises OSError."""
    return set(_names(root, _KEPT))


def keep(root: int, studies_: Sequence[str], *, lift: bool) -> None:
    """Marks studies, or (``lift``) takes their marks away. Raises OSError."""
    if not _names(root, _KEPT) and not lift:
        with contextlib.suppress(FileExistsError):
            durable.make_folder(_KEPT, folder=root)
    for study in studies_:
        if not lift:
            durable.touch(f"{_KEPT}/{study}", folder=root)
            continue
        try:
            durable.unlink(f"{_KEPT}/{study}", folder=root)
        except FileNotFoundError:
            continue
    folder = durable.open_folder(_KEPT, folder=root)
    try:
        durable.sync_folder(folder)
    finally:
        os.close(folder)


# --- a run ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """What a run did. ``grew``: studies that are not as they were when it was planned."""

    removed: list[Due] = field(default_factory=list)
    grew: int = 0
    emptied: Purged | None = None


def check_clock(path: str, note: Note, now: datetime | None = None) -> None:
    """Raises ClockJumped when the clock is not to be believed: then nothing is to be removed."""
    now = now or datetime.now(UTC)
    root = open_root(path)
    try:
        known = _last_run(root)
    finally:
        os.close(root)
    if not known:
        try:
            known = _said(resolve.last(path, note).line, _STORED)
        except NoMatch:
            return
    if known and _stamp(now - _TRUSTED) > known:
        raise ClockJumped(
            f"nothing was removed: the clock says {now:%Y-%m-%d}, and what is known here ends on "
            f"{known[:10]}. If the clock is right: plainpacs retain --clock-is-right"
        )


def _last_run(root: int) -> str:
    try:
        fd = os.open(_LAST_RUN, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        with open(fd, "rb") as file:
            return str(orjson.loads(file.read())["last_run"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def apply(path: str, chosen: Plan, settings: Settings) -> Run:
    """Removes what was planned, and empties the trash of what is old enough.

    Raises InUse, StorageUnavailable, OSError; the next run goes on.
    """
    run = Run()
    found = Found()
    root = open_root(path)
    try:
        targets = {
            one: [Target(month, one.study) for month in lookup.months_of(path, one.study)]
            for one in chosen.due
        }
        instances = {one: present(root, targets[one]) for one in chosen.due}
        busy = _Busy(root)
        for one, there in instances.items():
            # Once more, after the listing: what came since then is not removed.
            if busy.why(one) or len(there) != one.instances:
                run.grew += 1
                continue
            run.removed.append(one)
            found.targets += targets[one]
            found.instances += there
    finally:
        os.close(root)
    if run.removed:
        rules = sorted({one.rule for one in run.removed})
        purge = settings.retention_purge == "on"
        removal.remove(
            path, found, erase=purge, node=settings.node, digest=settings.digest, rules=rules
        )
    with Removal.open(path, node=settings.node, digest=settings.digest) as open_:
        if settings.trash_days:
            before = stamp(time.time_ns() - settings.trash_days * 86_400 * 10**9)
            run.emptied = empty_trash(open_.root, before)
            if run.emptied.instances:
                audit.record(
                    open_.writer, "purge", trash_before=before, instances=run.emptied.instances
                )
        data = orjson.dumps({"last_run": stamp(time.time_ns())}, option=orjson.OPT_APPEND_NEWLINE)
        durable.replace_file(open_.root, _LAST_RUN, data)
    return run
