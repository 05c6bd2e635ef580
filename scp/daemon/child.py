"""A child process: started, started again when it dies, stopped at the end.

Such are the indexer, for which the receiver never waits, the web server, and the receivers when
there are several. What a child needs to know goes to its standard input (``parent_pipe``), none of
it on its command line. It ends by itself when this process is gone, whatever ended that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import threading
import time

from plainpacs.archive.app.settings import Settings, to_document

_LOG = logging.getLogger("plainpacs.scp")

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 30.0
_STEADY_SECONDS = 60.0
_PATIENCE_SECONDS = 15.0


def document(settings: Settings, **more: object) -> bytes:
    """What a child is told, as it stands in its standard input: all settings, and ``more``."""
    return json.dumps({"settings": to_document(settings), **more}).encode() + b"\n"


class Child:
    """Keeps ``command`` running from ``start`` to ``stop``."""

    def __init__(
        self, name: str, command: list[str], told: bytes, inherited: tuple[int, ...] = ()
    ) -> None:
        """``told``: see ``document``. ``inherited``: descriptors that the child gets, under the
        same numbers."""
        self._name = name
        self._command = command
        self._told = told
        self._inherited = inherited
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name=f"keeper of the {name}")

    def start(self) -> None:
        """Returns at once; a command that cannot be started is tried again like one that died."""
        self._thread.start()

    def tell(self, told: bytes) -> None:
        """The child that runs is told this, too, and its successors only this."""
        with self._lock:
            self._told = told
            self._tell()

    def _tell(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            # It may be gone, or its pipe be closed already: its successor will be told.
            with contextlib.suppress(OSError, ValueError):
                os.write(self._process.stdin.fileno(), self._told)

    @property
    def is_running(self) -> bool:
        """Whether the process lives just now."""
        process = self._process
        return process is not None and process.poll() is None

    def ask_to_stop(self) -> None:
        """Returns at once; ``stop`` waits."""
        with self._lock:
            if not self._stopping.is_set():
                self._stopping.set()
                if self._process is not None:
                    self._process.terminate()

    def stop(self) -> None:
        """Asks the child to end, waits, and ends it if it does not."""
        self.ask_to_stop()
        process = self._process
        if process is not None:
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                _LOG.warning("the %s did not end when asked; killed", self._name)
                process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_running(self) -> None:
        delay = _FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            how = self._run()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _STEADY_SECONDS:
                delay = _FIRST_DELAY
            _LOG.warning("the %s ended (%s); started again in %.1f s", self._name, how, delay)
            self._stopping.wait(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _run(self) -> str:
        try:
            with self._lock:
                if self._stopping.is_set():
                    return "stopped"
                # A session of its own: Ctrl-C on the terminal is for us to pass on, in order.
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=self._inherited,
                )
                self._tell()
        except OSError as error:
            return str(error)
        try:
            code = self._process.wait()
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()
        return f"signal {-code}" if code < 0 else f"exit status {code}"
