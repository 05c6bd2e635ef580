"""The service: the receiver here or several as children, the indexer beside, till a clean stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from plainpacs.archive.app import logs
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.app.signals import waiting_for_stop
from plainpacs.archive.child_process import python_command
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store import audit
from plainpacs.archive.tree.new_root import refuse_source_tree
from plainpacs.archive.tree.root import create_archive, stamp
from plainpacs.scp.commitment.reports import Reporter
from plainpacs.scp.daemon import systemd
from plainpacs.scp.daemon.child import Child, document
from plainpacs.scp.daemon.daily import Retention
from plainpacs.scp.daemon.metrics import MetricsServer
from plainpacs.scp.daemon.workers import Receivers, number_of_receivers
from plainpacs.scp.receiver.greeting import greeting
from plainpacs.scp.receiver.receiver import Receiver

_LOG = logging.getLogger("plainpacs.scp")


def serve(
    root: str,
    settings: Settings,
    *,
    create: bool = False,
    force: bool = False,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """Receives into the archive at ``root`` and indexes it until SIGTERM or SIGINT.

    At a SIGHUP the rules of who may associate are taken anew from ``reread`` (raises BadSettings),
    and the certificates from their files. What is wrong then is logged, and changes nothing.

    Listens before anything else, so that nothing is made or started when it cannot. Stops in this
    order: no more associations, the stores in hand are finished and answered, associations are
    aborted, the indexer ends, the archive is closed with nothing left behind.
    Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
    """
    root = os.path.abspath(root)
    logs.set_up(settings.log_level, settings.log_format)
    terminal = os.isatty(2)
    with waiting_for_stop(signal.SIGHUP) as wait_for_signal:
        count = number_of_receivers(settings)
        receiver = Receiver(settings) if count == 1 else Receivers(settings, count)
        metrics: MetricsServer | None = None
        try:
            if settings.metrics_port is not None:
                metrics = MetricsServer(settings.metrics_bind, settings.metrics_port)
            refuse_source_tree(root)
            if create:
                create_archive(root, settings.node, force=force)
            archive = open_archive(root, settings)
        except BaseException:
            if metrics:
                metrics.close()
            receiver.stop()
            raise
        # What arrives before the indexer is at work is new to the hooks, too.
        more = {"identity": archive.identity, "since": stamp(time.time_ns())}
        indexer = Child("indexer", _command("index", root), document(settings, **more))
        web = None
        if settings.web is not None:
            web = Child("web server", _command("web", root), document(settings))
        reporter = Reporter(archive, settings)
        retention = Retention(root, settings)
        try:
            receiver.start(archive)
            indexer.start()
            if web:
                web.start()
            reporter.start()
            retention.start()
            _greet(settings, greeting(root, settings, receiver.port))
            if metrics:
                metrics.start(archive, receiver)
                _LOG.info("metrics on %s port %d", settings.metrics_bind, metrics.port)
            audit.record(archive.audit, "start", aets=settings.aet, port=receiver.port)
            archive.audit.flush()
            systemd.say(READY=1, STATUS=f"{', '.join(settings.aet)} on port {receiver.port}")
            with systemd.watchdog(lambda: not receiver.fault()):
                # A terminal that was closed is no wish to go on with other settings.
                while (number := wait_for_signal()) == signal.SIGHUP and terminal <= os.isatty(2):
                    systemd.reloading()
                    _reload(receiver, reread or (lambda: settings))
                    systemd.say(READY=1)
            name = signal.Signals(number).name
            systemd.say(STOPPING=1, STATUS="finishing the stores in hand")
            _LOG.info("%s: finishing the stores in hand, then stopping", name)
        finally:
            try:
                if metrics:
                    metrics.close()
                receiver.stop()
                reporter.stop()
                retention.stop()
                indexer.stop()
                if web:
                    web.stop()
            finally:
                audit.record(archive.audit, "stop")
                archive.close()
        _LOG.info("stopped")


def _command(name: str, root: str) -> list[str]:
    return python_command("plainpacs", name, "--parent-pipe", root)


def _greet(settings: Settings, words: str) -> None:
    if settings.log_format == "json":  # every line of the log is an object then
        _LOG.info("%s", words)
    else:
        print(words, file=sys.stderr, flush=True)


def _reload(receiver: Receiver | Receivers, reread: Callable[[], Settings]) -> None:
    try:
        others = receiver.reload(reread())
    except PlainpacsError as error:
        _LOG.error("SIGHUP: the settings stay as they were: %s", error)
        return
    wanting = f"; a restart is needed for {', '.join(others)}" if others else ""
    _LOG.info("SIGHUP: access rules, limits and certificates read again%s", wanting)
