"""Waking up when a marker appears in ``pending/``: one directory, one watch.

Only a wake-up: what is pending is always learnt by listing the folder, because remote changes
raise no event and watchdog does not report an overflow of its queue.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from watchdog.events import (
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

log = logging.getLogger(__name__)
# It logs an error whenever it is stopped; and what it may miss, the listing finds.
logging.getLogger("watchdog").setLevel(logging.CRITICAL)


class _Waker(FileSystemEventHandler):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._event.set()


@contextlib.contextmanager
def waking(path: str, event: threading.Event) -> Iterator[None]:
    """Sets ``event`` whenever a file appears in the folder at ``path``.

    Where the system grants no watch (too many, or none at all), the caller's listing serves alone.
    """
    observer = Observer()
    try:
        observer.schedule(_Waker(event), path, event_filter=[FileCreatedEvent, FileMovedEvent])
        observer.start()
    except OSError as error:
        log.warning("cannot watch %s (%s); it is listed every second", path, error.strerror)
        yield
        return
    try:
        yield
    finally:
        observer.stop()
        observer.join()
