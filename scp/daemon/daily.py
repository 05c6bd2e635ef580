"""What `serve` has done once a day: `plainpacs retain`, in a process of its own."""

from __future__ import annotations

import logging
import subprocess
import threading
from datetime import datetime, timedelta

from plainpacs.archive.app.settings import Settings, environment
from plainpacs.archive.child_process import python_command

_LOG = logging.getLogger("plainpacs.scp")

_LONGEST_WAIT = 600.0
"""Seconds: a clock that was set is noticed."""


class Retention:
    """Applies the rules of retention at the hour of the settings, from ``start`` to ``stop``."""

    def __init__(self, root: str, settings: Settings) -> None:
        self._root = root
        self._settings = settings
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run_daily, name="retention", daemon=True)

    def start(self) -> None:
        if self._settings.retention or self._settings.trash_days:
            self._thread.start()

    def stop(self) -> None:
        """A run in hand is ended; the next goes on."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
        if self._thread.ident is not None:
            self._thread.join()

    def _run_daily(self) -> None:
        due = next_run(datetime.now(), self._settings.retention_hour)
        while not self._stopping.wait(min(_LONGEST_WAIT, max(1.0, _until(due)))):
            if _until(due) <= 0:
                self._run()
                due = next_run(datetime.now(), self._settings.retention_hour)

    def _run(self) -> None:
        command = python_command("plainpacs", "retain", "--archive", self._root, "--yes")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(self._settings),
                start_new_session=True,
            )
        except OSError as error:
            _LOG.error("retention cannot be applied: %s", error)
            return
        said = self._process.communicate()[1]
        level = logging.ERROR if self._process.returncode else logging.INFO
        for line in said.splitlines():
            _LOG.log(level, "retention: %s", line)


def next_run(now: datetime, hour: int) -> datetime:
    """The next time after ``now`` that it is that hour, local time."""
    today = now.replace(hour=hour, minute=0, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def _until(due: datetime) -> float:
    return (due - datetime.now()).total_seconds()
