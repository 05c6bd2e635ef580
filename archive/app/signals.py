"""Ending by signal without losing anything: SIGTERM and SIGINT are waited for, not suffered.

And other signals that ask a service for something, as SIGHUP does to read its settings again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def waiting_for_stop(*others: signal.Signals) -> Iterator[Callable[[], int]]:
    """Gives a function that waits for SIGTERM or SIGINT and returns its number, in any thread;
    or for one of ``others``.

    Meanwhile the signals do nothing else, however many come. Only in the main thread.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write_end, False)
    # The system may interrupt any thread, and Python runs a handler only when the main thread
    # wakes: what wakes us is the number that the interpreter itself writes here at once. (Nor may
    # a handler take a lock, as setting an Event does, that the interrupted thread may hold.)
    wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, *others)
    }
    try:
        yield lambda: os.read(read_end, 1)[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(write_end)  # ends a wait, with an IndexError
        os.close(read_end)


@contextlib.contextmanager
def interruptible(then: Callable[[], object] = bool) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed (SIGINT came): whoever is at work ends
    when it is at a good place, and ``then`` is called to let it know.

    Pressed again, it is a KeyboardInterrupt. Only in the main thread; elsewhere nothing is changed.
    """
    pressed: list[bool] = []

    def take(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        then()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, take)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
