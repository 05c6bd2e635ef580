"""The command ``index``: keeping the indexes of an archive that nothing receives into."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import click

from plainpacs.archive.app import logs, settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.parent_pipe import begin
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.app.signals import waiting_for_stop
from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.tree.root import stamp
from plainpacs.indexer.hooks.scheduler import HookSettings
from plainpacs.indexer.service.indexer import Indexer


@click.command()
@click.argument("root", metavar="[ROOT]", required=False)
@click.option("--once", is_flag=True, help="Index what is pending or changed, then end.")
@click.option("--parent-pipe", is_flag=True, hidden=True, help="A child of serve.")
@settings.options(
    *("node", "digest", "default_charset", "log_level", "log_format"),
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
    config: str | None,
    **flags: Any,
) -> None:
    """Keep the indexes of an archive up to date until stopped.

    `plainpacs serve` does it by itself; this is for an archive that nothing receives into.

    Example:  plainpacs index --once -a /srv/dicom
    """
    given, told = begin() if parent_pipe else ({}, None)
    chosen = settings.from_document(given["settings"]) if told else settings.load(flags, config)
    logs.set_up(chosen.log_level, chosen.log_format)
    use_defaults(chosen.default_charset)
    path = context.archive_path(root)
    if once:
        with Indexer.open(path, node=chosen.node, digest=chosen.digest) as indexer:
            click.echo(f"{indexer.once()} studies indexed", err=True)
        return
    hooks = HookSettings(chosen, given.get("since") or stamp(time.time_ns()))
    _run_until_stopped(path, chosen, given.get("identity"), hooks, told)


def _run_until_stopped(
    path: str,
    chosen: Settings,
    only: str | None,
    hooks: HookSettings,
    told: Iterator[object] | None,
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
        for wait in (signalled, lambda: deque(told, 0)) if told else (signalled,):
            threading.Thread(target=stop_after, args=(wait,), daemon=True).start()
        # As a child of `serve`, we take over when another indexer ends; alone, we say so.
        patience = (lambda: not stopped.wait(1.0)) if told else None
        with Indexer.open(
            path,
            node=chosen.node,
            digest=chosen.digest,
            wait=patience,
            expected=only,
            hooks=hooks,
            browsers_after=None if chosen.web is None else chosen.settle_seconds,
        ) as indexer:
            running.append(indexer)
            if not stopped.is_set():
                indexer.run()
