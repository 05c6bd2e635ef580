"""The command ``index``: keeping the indexes of an archive that nothing receives into."""

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
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.hooks.retry_policy import Kind
from plainpacs.indexer.hooks.scheduler import HookSettings
from plainpacs.indexer.service.indexer import Indexer


@click.command()
@click.argument("root", metavar="[ROOT]", required=False)
@click.option("--once", is_flag=True, help="Index what is pending or changed, then end.")
@click.option("--parent-pipe", is_flag=True, hidden=True, help="End when stdin is closed.")
@click.option("--only", hidden=True, help="The identity of the archive that is meant.")
@click.option("--browsers", is_flag=True, hidden=True, help="Make headers for browsers, too.")
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
    browsers: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Keep the indexes of an archive up to date until stopped.

    `plainpacs serve` does it by itself; this is for an archive that nothing receives into.

    Example:  plainpacs index --once -a /srv/dicom
    """
    chosen = settings.load(flags, config)
    logs.set_up(chosen.log_level, chosen.log_format)
    path = context.archive_path(root)
    if once:
        with Indexer.open(path, node=chosen.node, digest=chosen.digest) as indexer:
            click.echo(f"{indexer.once()} studies indexed", err=True)
        return
    hooks = _hooks(chosen, hooks_since or stamp(time.time_ns()))
    browsers_after = chosen.settle_seconds if browsers else None
    _run_until_stopped(path, chosen, only, hooks, browsers_after, parent_pipe=parent_pipe)


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
    path: str,
    chosen: Settings,
    only: str | None,
    hooks: HookSettings,
    browsers_after: float | None,
    *,
    parent_pipe: bool,
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
            browsers_after=browsers_after,
        ) as indexer:
            running.append(indexer)
            if not stopped.is_set():
                indexer.run()


def _until_stdin_ends() -> None:
    """Our parent holds the other end of our stdin: when it dies, however, we learn of it."""
    while os.read(0, 100):
        pass
