"""Waking up when a marker appears in ``pending/``: one directory, one watch.

Only a wake-up: what is pending is always learnt by listing the folder, because remote changes
raise no event and watchdog does not report an overflow of its queue.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)
# It logs an error whenever it is stopped; and what it may miss, the listing finds.
logging.getLogger("watchdog").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def waking(path: str, event: threading.Event) -> Iterator[None]:
    """Sets ``event`` whenever a file appears in the folder at ``path``.

    Where the system grants no watch (all are in use, or it has none), the log says so once and the
    caller's listing serves alone.
    """
    try:
        observer = _observer(path, event)
    except OSError as error:
        log.warning("cannot watch %s (%s); it is listed every second", path, error.strerror)
        yield
        return
    try:
        yield
    finally:
        observer.stop()
        observer.join()


def _observer(path: str, event: threading.Event) -> BaseObserver:
    # watchdog takes an inotify instance when it is imported, and there may be none left.
    from watchdog.events import (  # noqa: PLC0415 - as said above
        FileCreatedEvent,
        FileMovedEvent,
        FileSystemEvent,
        FileSystemEventHandler,
    )
    from watchdog.observers import Observer  # noqa: PLC0415 - as said above

    class Waker(FileSystemEventHandler):
        def on_any_event(self, _: FileSystemEvent) -> None:
            event.set()

    observer = Observer()
    observer.schedule(Waker(), path, event_filter=[FileCreatedEvent, FileMovedEvent])
    observer.start()
    return observer
