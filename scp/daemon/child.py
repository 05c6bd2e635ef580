"""A child process: started, started again when it dies, stopped at the end.

Such are the indexer, for which the receiver never waits, and the receivers when there are several.
The child ends by itself when this process is gone, whatever
ended it: its standard input, a pipe from here, comes to its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
import time

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.child_process import python_command
from plainpacs.archive.tree.root import stamp

_LOG = logging.getLogger("plainpacs.scp")

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 30.0
_STEADY_SECONDS = 60.0
_PATIENCE_SECONDS = 15.0


def indexer_command(root: str, identity: str, settings: Settings) -> list[str]:
    """The command that indexes archive ``identity`` at ``root`` until its standard input ends."""
    command = python_command("plainpacs", "index", "--parent-pipe")
    command += ["--digest", settings.digest, "--log-level", settings.log_level]
    command += ["--log-format", settings.log_format, "--only", identity]
    if settings.node:
        command += ["--node", settings.node]
    command += ["--on-study-settled", settings.on_study_settled]
    command += ["--on-instance", settings.on_instance]
    command += ["--settle-seconds", str(settings.settle_seconds)]
    command += ["--hooks-at-once", str(settings.hooks_at_once)]
    if settings.web is not None:
        command.append("--browsers")
    # What comes before the indexer is at work is new, too.
    command += ["--hooks-since", stamp(time.time_ns())]
    return [*command, root]


def web_command(root: str, settings: Settings) -> list[str]:
    """The command that shows the archive at ``root`` to browsers until its standard input ends."""
    command = python_command("plainpacs", "web", "--parent-pipe", "--port", str(settings.web))
    command += ["--bind", settings.web_bind, "--log-level", settings.log_level]
    command += ["--log-format", settings.log_format, "--web-users", settings.web_users]
    command += ["--web-hosts", ",".join(settings.web_hosts)]
    command += ["--web-user-header", settings.web_user_header]
    command += ["--web-proxies", ",".join(settings.web_proxies)]
    command += ["--web-origins", ",".join(settings.web_origins)]
    command += ["--web-open" if settings.web_open == "on" else "--no-web-open"]
    command += ["--ohif", settings.ohif]
    command += ["--web-stow" if settings.web_stow == "on" else "--no-web-stow"]
    command += ["--sync", settings.sync, "--digest", settings.digest]
    command += ["--reserve", settings.reserve, "--on-conflict", settings.on_conflict]
    if settings.node:
        command += ["--node", settings.node]
    command += ["--tls-cert", settings.tls_cert, "--tls-key", settings.tls_key]
    return [*command, root]


class Child:
    """Keeps ``command`` running from ``start`` to ``stop``."""

    def __init__(self, name: str, command: list[str], inherited: tuple[int, ...] = ()) -> None:
        """``inherited``: descriptors that the child gets, under the same numbers."""
        self._name = name
        self._command = command
        self._inherited = inherited
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name=f"keeper of the {name}")

    def start(self) -> None:
        """Returns at once; a command that cannot be started is tried again like one that died."""
        self._thread.start()

    def renew(self, command: list[str], told: bytes) -> None:
        """From now on it is ``command`` that is started; the one that runs gets ``told`` to read on
        its standard input.
        """
        with self._lock:
            self._command = command
            if self._process is not None and self._process.stdin is not None:
                # It may be gone, or its pipe be closed already: its successor knows by the command.
                with contextlib.suppress(OSError, ValueError):
                    os.write(self._process.stdin.fileno(), told)

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
        except OSError as error:
            return str(error)
        try:
            code = self._process.wait()
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()
        return f"signal {-code}" if code < 0 else f"exit status {code}"
