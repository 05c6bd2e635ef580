"""Mends a race of pynetdicom 3.0.4 that loses an answer about once in some thousand requests.

An association's thread says that it pauses, asks whether it has to, and takes that back; whoever
sends a request in between believes it, and the thread then takes the answer from the queue of
messages as an unexpected one: the request times out after 30 s. Our receivers are not at fault, so
the tests do without it: the thread takes back that it pauses *before* it asks for the last time.
"""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom.association import Association


class Checkpoint(threading.Event):
    """In place of ``Association._reactor_checkpoint``: cleared by who wants the thread to pause."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association

    def wait(self, timeout: float | None = None) -> bool:
        while super().wait(timeout):
            self._association._is_paused = False
            if self.is_set():
                return True
            self._association._is_paused = True
        return False


def mend() -> None:
    """From now on, in this process."""
    made = Association.__init__

    def make(self: Association, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self._reactor_checkpoint = Checkpoint(self)
        self._reactor_checkpoint.set()

    Association.__init__ = make
