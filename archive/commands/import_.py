"""The command ``import``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.errors import BadSettings
from plainpacs.archive.store import audit
from plainpacs.archive.store.audit import StudyCounts
from plainpacs.archive.store.import_files import Imported, import_all, sources
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked, open_root

_RECORDED_EVERY = 10.0


@click.command(name="import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@settings.options("node", "sync", "digest", "reserve", "on_conflict", "default_charset")
@click.pass_obj
def import_(context: Context, /, paths: tuple[str, ...], config: str | None, **flags: str) -> None:
    """Take DICOM files, folders of them, or another archive in.

    The files are copied and stay where they are. What is not DICOM is skipped and counted; what
    is damaged is named and left out (exit status 1). It may be interrupted and repeated: what is
    in already is not taken twice. Another archive brings along who sent each instance, and when.

    Example:  plainpacs import -a /srv/dicom /media/cdrom
    """
    chosen = settings.load(flags, config)
    root = context.archive_path()
    for path in paths:
        if os.path.commonpath([os.path.realpath(path), os.path.realpath(root)]) == (
            os.path.realpath(root)
        ):
            raise BadSettings(f"{path} lies in the archive itself; `plainpacs reindex` finds it")
    counts: Counter[str] = Counter()
    taken = StudyCounts()
    recorded = time.monotonic()
    interrupted = False
    with open_archive(root, chosen) as to:
        results = import_all(to, sources(paths))
        try:
            for result in _shown(results, paths):
                counts[_kind(result)] += 1
                if result.stored:
                    taken.add(result.stored)
                if time.monotonic() - recorded > _RECORDED_EVERY:
                    _record(to, taken)
                    recorded = time.monotonic()
                if result.error and not result.skipped:
                    click.echo(f"{_printable(result.path)}: {result.error}", err=True)
        except KeyboardInterrupt:
            interrupted = True
            results.close()
        finally:
            _record(to, taken)
            if counts["refused"]:
                audit.record(to.audit, "import", refused=counts["refused"])
    click.echo(_summary(counts), err=True)
    if interrupted:
        click.echo("interrupted; the same command again goes on", err=True)
        sys.exit(130)
    say_who_indexes(root)
    sys.exit(1 if counts["refused"] else 0)


def _record(to: Archive, taken: StudyCounts) -> None:
    """In the audit log: by study, and no path, as paths have patients' names in them."""
    for facts in taken.take():
        audit.record(to.audit, "import", **facts)
    to.audit.flush()


def _kind(result: Imported) -> str:
    if result.stored:
        return result.stored.outcome.value
    return "skipped" if result.skipped else "refused"


def _summary(counts: Counter[str]) -> str:
    words = {
        "stored": "stored",
        "duplicate": "there already",
        "conflict": "kept aside (other bytes under a stored UID)",
        "skipped": "skipped (not instances)",
        "refused": "refused",
    }
    return "; ".join(f"{counts[kind]} {text}" for kind, text in words.items())


def _shown(results: Generator[Imported, None, None], paths: tuple[str, ...]) -> Iterator[Imported]:
    """``results``, with a progress bar when there is a terminal to show it on."""
    if not sys.stderr.isatty():
        yield from results
        return
    # rich is loaded only where it is seen: it takes longer to load than a small import takes.
    from rich.console import Console  # noqa: PLC0415 - as said above
    from rich.progress import Progress  # noqa: PLC0415 - as said above

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("importing", total=sum(1 for _ in sources(paths)))
        for result in results:
            progress.advance(task)
            yield result


def say_who_indexes(root: str) -> None:
    """Tells the user, when nothing indexes the archive, what to do about it."""
    fd = open_root(root)
    try:
        if not is_locked(fd, layout.INDEXER_LOCK):
            click.echo("nothing indexes this archive now; run: plainpacs index --once", err=True)
    finally:
        os.close(fd)


def _printable(path: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)
