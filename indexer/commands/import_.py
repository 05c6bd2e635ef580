"""The command ``import``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.app.signals import interruptible
from plainpacs.archive.errors import BadSettings
from plainpacs.archive.store import audit
from plainpacs.archive.store.audit import StudyCounts
from plainpacs.archive.store.import_files import Imported, import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import create_archive
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.indexer.service.refresh import index_pending

_RECORDED_EVERY = 10.0


@click.command(name="import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--create", metavar="ROOT", help="Make ROOT, a new or empty folder, the archive.")
@click.option("--force", is_flag=True, help="With --create: ROOT may hold other files.")
@click.option("--list-skipped", is_flag=True, help="Name every file that is skipped.")
@settings.options("node", "sync", "digest", "reserve", "on_conflict", "default_charset")
@click.pass_obj
def import_(
    context: Context,
    /,
    *,
    paths: tuple[str, ...],
    create: str | None,
    force: bool,
    list_skipped: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Import DICOM files, folders, zip files, what a DICOMDIR names, or another archive.

    The files are copied and stay where they are. Files that are not DICOM are skipped and counted;
    those that look like DICOM are named, and --list-skipped names them all. Files that are damaged
    are named and left out, and so are files that the manifests of another archive name and it does
    not have. For these, and for a PATH in which there is no instance, the exit status is 1.

    You can interrupt it and run it again: nothing is imported twice. Another archive brings along
    who sent each instance, and when. What was imported is indexed at the end, unless `serve` or
    `index` is at work on the archive and does it.

    \b
    Examples:  plainpacs import --create ~/dicom /media/cdrom
               plainpacs import -a /srv/dicom ~/study.zip /mnt/other-archive
    """
    chosen = settings.load(flags, config)
    if create:
        create_archive(create, chosen.node, force=force)
    root = context.archive_path(create)
    for path in paths:
        if os.path.commonpath([os.path.realpath(path), os.path.realpath(root)]) == (
            os.path.realpath(root)
        ):
            raise BadSettings(f"{path} lies in the archive itself; `plainpacs reindex` finds it")
    report = _Report(list_skipped)
    total = sum(1 for _ in sources(paths)) if sys.stderr.isatty() else None
    with open_archive(root, chosen) as to:
        try:
            with interruptible() as interrupted, ProgressBar("importing", total) as progress:
                for result in import_all(to, sources(paths), interrupted):
                    report.add(result, to)
                    progress.add(1)
        finally:
            report.record(to)
            if refused := report.counts["refused"]:
                audit.record(to.audit, "import", refused=refused)
            note(str(report))
    if interrupted():
        note("interrupted; the same command again goes on")
    else:
        report.say_which_gave_nothing(paths)
    index_pending(root, node=chosen.node, digest=chosen.digest)
    if interrupted():
        sys.exit(130)
    sys.exit(1 if report.failed else 0)


class _Report:
    """What became of the files."""

    def __init__(self, list_skipped: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.failed = False
        self._list_skipped = list_skipped
        self._taken = StudyCounts()
        self._recorded = time.monotonic()
        self._found: Counter[str] = Counter()
        self._gave: set[str] = set()

    def add(self, result: Imported, to: Archive) -> None:
        kind = _kind(result)
        source = result.source
        self.counts[kind] += 1
        self._found[source.given] += 1
        if result.stored:
            self._gave.add(source.given)
            self._taken.add(result.stored)
        elif not result.skipped or result.like_dicom or self._list_skipped:
            self.failed |= not result.skipped
            note(f"{source.path}: {result.error}" + " (skipped)" * result.skipped)
        if time.monotonic() - self._recorded > _RECORDED_EVERY:
            self.record(to)

    def record(self, to: Archive) -> None:
        """In the audit log: by study, and no path, as paths have patients' names in them."""
        for facts in self._taken.take():
            audit.record(to.audit, "import", **facts)
        to.audit.flush()
        self._recorded = time.monotonic()

    def say_which_gave_nothing(self, paths: tuple[str, ...]) -> None:
        for path in paths:
            if path not in self._gave:
                self.failed = True
                number = self._found[path]
                files = "1 file" if number == 1 else f"{number:,} files"
                note(f"{path}: nothing was imported from it ({files} there, no instance)")

    def __str__(self) -> str:
        words = {
            "stored": "stored",
            "duplicate": "there already",
            "conflict": "kept aside (other bytes under a stored UID)",
            "skipped": "skipped (not instances)",
            "refused": "refused",
        }
        if self.counts["missing"]:
            words["missing"] = "missing, though named"
        return "; ".join(f"{self.counts[kind]} {text}" for kind, text in words.items())


def _kind(result: Imported) -> str:
    if result.stored:
        return result.stored.outcome.value
    if result.source.missing:
        return "missing"
    return "skipped" if result.skipped else "refused"
