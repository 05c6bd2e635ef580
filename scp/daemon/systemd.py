"""Telling systemd how the service is, as sd_notify(3) says: a datagram to ``$NOTIFY_SOCKET``.

Without that variable, as on a terminal, nothing is said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

_LOG = logging.getLogger("plainpacs.scp")


def say(**states: object) -> None:
    """``say(READY=1)``. Raises nothing: who is not heard goes on all the same."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":  # a name without a file (unix(7), abstract)
        address = "\0" + address[1:]
    words = "\n".join(f"{name}={value}" for name, value in states.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(words.encode(), address)
    except OSError as error:
        _LOG.warning("systemd could not be told %s: %s", words.replace("\n", " "), error)


def reloading() -> None:
    """Before settings are read anew; ``say(READY=1)`` after."""
    say(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


@contextlib.contextmanager
def watchdog(alive: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile tells systemd's watchdog, where it is set for us (``WatchdogSec=``), that
    ``alive()`` is true: three times as often as it has to be told."""
    period = _watchdog_seconds()
    stopping = threading.Event()

    def tell() -> None:
        while not stopping.wait(period / 3):
            if alive():
                say(WATCHDOG=1)

    thread = threading.Thread(target=tell, name="watchdog", daemon=True)
    if period:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        if period:
            thread.join()


def _watchdog_seconds() -> float:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(int(os.environ.get("WATCHDOG_USEC", "0")), 0) / 1e6
    except ValueError:
        return 0.0
