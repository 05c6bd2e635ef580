"""The service: the receiver here or several as children, the indexer beside, till a clean stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

from plainpacs.archive import logs
from plainpacs.archive.archive import Archive
from plainpacs.archive.root import create_archive
from plainpacs.archive.settings import Settings
from plainpacs.archive.signals import waiting_for_stop
from plainpacs.scp.child import Child, indexer_command
from plainpacs.scp.receiver import Receiver
from plainpacs.scp.receivers import Receivers, number_of_receivers

_LOG = logging.getLogger("plainpacs.scp")


def serve(root: str, settings: Settings, *, create: bool = False) -> None:
    """Receives into the archive at ``root`` and indexes it until SIGTERM or SIGINT.

    Listens before anything else, so that nothing is made or started when it cannot. Stops in this
    order: no more associations, the stores in hand are finished and answered, associations are
    aborted, the indexer ends, the archive is closed with nothing left behind.
    Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable.
    """
    root = os.path.abspath(root)
    logs.set_up(settings.log_level)
    with waiting_for_stop() as wait_for_signal:
        count = number_of_receivers(settings)
        receiver = Receiver(settings) if count == 1 else Receivers(settings, count)
        try:
            if create:
                create_archive(root, settings.node)
            archive = Archive.open(
                root, node=settings.node, sync=settings.sync == "on", digest=settings.digest
            )
        except BaseException:
            receiver.stop()
            raise
        indexer = Child("indexer", indexer_command(root, settings))
        try:
            receiver.start(archive)
            indexer.start()
            print(greeting(root, settings, receiver.port), file=sys.stderr, flush=True)
            name = signal.Signals(wait_for_signal()).name
            _LOG.info("%s: finishing the stores in hand, then stopping", name)
        finally:
            try:
                receiver.stop()
                indexer.stop()
            finally:
                archive.close()
        _LOG.info("stopped")


def greeting(root: str, settings: Settings, port: int) -> str:
    """What is said on start: where, as whom, and a client's command line that works."""
    reach = settings.bind or "127.0.0.1"
    listening = f"{settings.bind or 'all addresses'}, port {port}"
    called = "any called AE title" if settings.called_ae == "any" else "or called ANY-SCP"
    caller = f" -aet {settings.calling_ae[0]}" if settings.calling_ae else ""
    return "\n".join(
        (
            f"plainpacs serves {root}",
            f"as {', '.join(settings.aet)} ({called}) on {listening} of {socket.gethostname()}",
            # So spelled, it works with DCMTK's storescu and with pynetdicom's, which is beside us.
            f"try: storescu{caller} -aec {settings.aet[0]} {reach} {port} FILE",
        )
    )
