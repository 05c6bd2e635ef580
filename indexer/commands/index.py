"""The commands on the indexes: ``index`` and ``reindex``."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import click

from plainpacs.archive.app import logs, settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.app.signals import waiting_for_stop
from plainpacs.archive.errors import InUse
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked, open_root, stamp
from plainpacs.indexer.hooks.retry_policy import Kind
from plainpacs.indexer.hooks.scheduler import HookSettings
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.indexer.service.pending import REQUEST_REBUILD, REQUEST_RECONCILE, Pending

_POLL = 0.1


@click.command()
@click.argument("root", metavar="[ROOT]", required=False)
@click.option("--once", is_flag=True, help="Index what is pending or changed, then end.")
@click.option("--parent-pipe", is_flag=True, hidden=True, help="End when stdin is closed.")
@click.option("--only", hidden=True, help="The identity of the archive that is meant.")
@click.option("--hooks-since", hidden=True, help="What came before is nothing new.")
@settings.options(
    *("node", "digest", "log_level", "log_format"),
    *("on_study_settled", "on_instance", "settle_seconds", "hooks_at_once"),
)
@click.pass_obj
def index(
    context: Context,
    /,
    root: str | None,
    *,
    once: bool,
    parent_pipe: bool,
    only: str | None,
    hooks_since: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """Keep the indexes of an archive up to date until stopped.

    `plainpacs serve` does it by itself; this is for an archive that nothing receives into.

    Example:  plainpacs index --once -a /data/archive
    """
    chosen = settings.load(flags, config)
    logs.set_up(chosen.log_level, chosen.log_format)
    path = context.archive_path(root)
    if once:
        with Indexer.open(path, node=chosen.node, digest=chosen.digest) as indexer:
            click.echo(f"{indexer.once()} studies indexed", err=True)
        return
    hooks = _hooks(chosen, hooks_since or stamp(time.time_ns()))
    _run_until_stopped(path, chosen, only, hooks, parent_pipe=parent_pipe)


def _hooks(chosen: Settings, since: str) -> HookSettings:
    commands = {Kind.STUDY: chosen.on_study_settled, Kind.INSTANCE: chosen.on_instance}
    return HookSettings(
        {kind: command for kind, command in commands.items() if command},
        since,
        chosen.settle_seconds,
        chosen.hooks_at_once,
        chosen.log_level,
        chosen.log_format,
    )


def _run_until_stopped(
    path: str, chosen: Settings, only: str | None, hooks: HookSettings, *, parent_pipe: bool
) -> None:
    stopped = threading.Event()
    running: list[Indexer] = []

    def stop_after(wait: Callable[[], object]) -> None:
        with contextlib.suppress(OSError, IndexError):  # nothing to wait for any more
            wait()
        stopped.set()
        for one in running:
            one.stop()

    with waiting_for_stop() as signalled:
        for wait in (signalled, _until_stdin_ends) if parent_pipe else (signalled,):
            threading.Thread(target=stop_after, args=(wait,), daemon=True).start()
        # As a child of `serve`, we take over when another indexer ends; alone, we say so.
        patience = (lambda: not stopped.wait(1.0)) if parent_pipe else None
        with Indexer.open(
            path,
            node=chosen.node,
            digest=chosen.digest,
            wait=patience,
            expected=only,
            hooks=hooks,
        ) as indexer:
            running.append(indexer)
            if not stopped.is_set():
                indexer.run()


def _until_stdin_ends() -> None:
    """Our parent holds the other end of our stdin: when it dies, however, we learn of it."""
    while os.read(0, 100):
        pass


@click.command()
@click.option("--full", is_flag=True, help="Rebuild every index from the instances.")
@settings.options("node", "digest")
@click.pass_obj
def reindex(context: Context, /, full: bool, config: str | None, **flags: Any) -> None:
    """Find what was changed by hand, now; with --full, rebuild every index.

    Indexes can be deleted at any time: --full makes them again, to the same bytes. While
    `plainpacs serve` runs, its indexer does the work and this waits for it.

    Example:  plainpacs reindex --full -a /data/archive
    """
    chosen = settings.load(flags, config)
    path = context.archive_path()
    request = REQUEST_REBUILD if full else REQUEST_RECONCILE
    count = index_all(path, chosen, full=full, request=request)
    click.echo("done" if count is None else f"{count} studies indexed", err=True)


def index_all(path: str, chosen: Settings, *, full: bool, request: str) -> int | None:
    """Indexes what is pending or changed, or (``full``) everything; how many studies that was.

    None when an indexer at work did what ``request`` means in our stead. If that one ends before
    it has, we do. Raises StorageUnavailable and what ``Indexer.open`` raises, but InUse.
    """
    while True:
        try:
            with Indexer.open(path, node=chosen.node, digest=chosen.digest) as indexer:
                return indexer.once(full=full)
        except InUse:
            if _ask(path, request):
                return None


def _ask(path: str, request: str) -> bool:
    """Has the indexer that is at work do it, and waits; False when it ended before."""
    click.echo("an indexer is at work on the archive; it does this now", err=True)
    root = open_root(path)
    pending = Pending(root)
    try:
        pending.request(request)
        while pending.requested(request):
            if not is_locked(root, layout.INDEXER_LOCK):
                return False
            time.sleep(_POLL)
        return True
    finally:
        pending.close()
        os.close(root)
