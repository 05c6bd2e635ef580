"""The service: the receiver here, the indexer beside it, from start to a clean stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from plainpacs.archive import logs
from plainpacs.archive.archive import Archive
from plainpacs.archive.root import create_archive
from plainpacs.archive.settings import Settings
from plainpacs.scp.child import Child, indexer_command
from plainpacs.scp.receiver import Receiver

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
    with _signals() as wait_for_signal:
        receiver = Receiver(settings)
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


class _Waiter:
    def __init__(self, read_end: int) -> None:
        self._read_end = read_end

    def __call__(self) -> int:
        """The number of the first signal, when it comes."""
        return os.read(self._read_end, 1)[0]


@contextmanager
def _signals() -> Iterator[_Waiter]:
    """SIGTERM and SIGINT end the wait instead of the process; more of them change nothing."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write_end, False)
    # The system may interrupt any thread, and Python runs a handler only when the main thread
    # wakes: what wakes it is the number that the interpreter itself writes here at once.
    wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield _Waiter(read_end)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(read_end)
        os.close(write_end)
