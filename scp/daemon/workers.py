"""Several receiver processes on one port, as one service, to use more than one core.

They accept from one inherited socket, so that whichever is free takes the next connection, and one
that dies takes no waiting connection with it. Each has an archive of its own. This process accepts
nothing: it starts them, starts again what died, stops them, and writes the one note.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from plainpacs.archive.app import logs
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.app.parent_pipe import begin
from plainpacs.archive.app.settings import Settings, from_document, reloaded
from plainpacs.archive.app.signals import waiting_for_stop
from plainpacs.archive.child_process import python_command
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store.store import Archive
from plainpacs.scp.daemon.child import Child, document
from plainpacs.scp.receiver.access import Access
from plainpacs.scp.receiver.admission import Admissions
from plainpacs.scp.receiver.receiver import Receiver, open_listener
from plainpacs.scp.receiver.statistics import Statistics, merged

_LOG = logging.getLogger("plainpacs.scp")

_NOTE_SECONDS = 2.0
_MOST_BY_DEFAULT = 4


def number_of_receivers(settings: Settings) -> int:
    """How many processes are to receive: as set, else one for each core, up to four."""
    if settings.receivers:
        return settings.receivers
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _MOST_BY_DEFAULT)


class Receivers:
    """As ``Receiver``, with ``count`` processes. Raises InUse when it cannot listen."""

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        Access.of(settings)  # what is wrong with it is said before anything is made
        self._listener = open_listener(settings)
        self.port = int(self._listener.getsockname()[1])
        self._admissions = Admissions.create(count)
        self._own_note = Statistics(settings.aet, self.port, reserve=settings.reserve).note() or b""
        self._archive: Archive
        self._children: list[Child] = []
        self._written = b""
        self._stopping = threading.Event()
        self._noting = threading.Thread(target=self._keep_noting, name="housekeeper")

    def start(self, archive: Archive) -> None:
        """Accepts associations from now on, and stores as ``archive`` does."""
        self._archive = archive
        self._write_note()
        for slot in range(self._admissions.slots):
            self._children.append(self._child(slot))
            self._children[-1].start()
        self._noting.start()

    def stop(self) -> None:
        """Accepts no more, has the stores in hand answered, ends the processes."""
        self._listener.close()
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.stop()
        self._stopping.set()
        if self._noting.is_alive():
            self._noting.join()
        self._admissions.close()

    def reload(self, settings: Settings) -> list[str]:
        """As ``Receiver.reload``, for all processes."""
        merged, others = reloaded(self._settings, settings)
        Access.of(merged)  # what is wrong is said here, once
        self._settings = merged
        for slot, child in enumerate(self._children):
            child.tell(self._told(slot))
        return others

    # --- how they are: see ``metrics.Service`` --------------------------------------------------

    def report(self) -> bytes:
        return merged([self._own_note, *self._admissions.notes()])

    def associations(self) -> int:
        return self._admissions.associations()

    def fault(self) -> str:
        running = any(child.is_running for child in self._children)
        return "" if running else "no receiver process runs"

    # --- what goes on ---------------------------------------------------------------------------

    def _child(self, slot: int) -> Child:
        inherited = (self._listener.fileno(), self._admissions.fd)
        command = python_command(__name__, self._archive.root)
        return Child(f"receiver {slot + 1}", command, self._told(slot), inherited)

    def _told(self, slot: int) -> bytes:
        return document(
            self._settings,
            identity=self._archive.identity,
            listener=self._listener.fileno(),
            admissions=[self._admissions.fd, self._admissions.slots, slot],
        )

    def _keep_noting(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_NOTE_SECONDS)
            self._archive.sweep()
            self._write_note()

    def _write_note(self) -> None:
        note = self.report()
        if note == self._written:
            return
        try:
            self._archive.write_service_note(note)
            self._written = note
        except (OSError, PlainpacsError) as error:
            _LOG.warning("the note for `plainpacs status` could not be written: %s", error)


def _be_one(root: str) -> None:
    """The work of one of the processes, until a signal or until the parent is gone."""
    given, told = begin()
    settings = from_document(given["settings"])
    logs.set_up(settings.log_level, settings.log_format)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # our parent tells us what it then reads
    with waiting_for_stop() as wait_for_signal:
        admissions = Admissions(*given["admissions"])
        admissions.clear()
        receiver = Receiver(settings, socket.socket(fileno=given["listener"]), admissions)
        expected = given["identity"]
        with open_archive(root, settings, expected=expected) as archive:
            receiver.start(archive)
            threading.Thread(target=_follow_parent, args=(told, receiver), daemon=True).start()
            wait_for_signal()
            receiver.stop()


def _follow_parent(told: Iterator[Any], receiver: Receiver) -> None:
    try:
        for given in told:
            try:
                receiver.reload(from_document(given["settings"]))
            except PlainpacsError as error:
                _LOG.error("the settings stay as they were: %s", error)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        _be_one(sys.argv[1])
    except PlainpacsError as error:
        _LOG.error("a receiver cannot work: %s", error)
        sys.exit(error.exit_code)
