"""``plainpacs serve`` as a process that is killed, restarted and watched."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.receiving.processes import family, is_indexer
from tests.soak.volume import Volume

PLAINPACS = [sys.executable, "-m", "plainpacs"]
_PATIENCE = 60.0


class Broken(Exception):
    """The service cannot be started, or does not end."""


class Service:
    """One service on one port, over all its restarts."""

    def __init__(self, volume: Volume, place: Path) -> None:
        self.root = volume.folder / "archive"
        self.log = place / "log"
        self.volume = volume
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: set[int] = set()
        self._starts = itertools.count()

    def start(self) -> None:
        """Returns when it takes associations; what is left of a killed one may be in the way."""
        deadline = time.monotonic() + _PATIENCE
        command = [*PLAINPACS, "serve", "--create", "--bind", "127.0.0.1"]
        command += ["--port", str(self.port), "--receivers", "2"]
        while time.monotonic() < deadline:
            with self.log.open("ab") as log:
                told = [*self.volume.reserve(next(self._starts)), str(self.root)]
                self._process = subprocess.Popen(
                    [*command, *told], stdout=log, stderr=log, start_new_session=True
                )
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    if len(self.receivers()) == 2:
                        return
                time.sleep(0.1)
            time.sleep(0.3)
        raise Broken("the service does not start")

    def processes(self) -> list[int]:
        if self._process is None or self._process.poll() is not None:
            return []
        found = family(self._process.pid)
        self._ours |= set(found)
        return found

    def receivers(self) -> list[int]:
        return [pid for pid in self.processes()[1:] if not is_indexer(pid)]

    def indexers(self) -> list[int]:
        return [pid for pid in self.processes() if is_indexer(pid)]

    def kill(self) -> None:
        """The whole service at once; its children notice."""
        assert self._process is not None
        self.processes()
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As people stop it. Returns the exit status; raises Broken."""
        assert self._process is not None
        self.processes()
        self._process.terminate()
        try:
            return self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Broken(f"the service does not stop within {_PATIENCE:.0f} s") from None

    def end(self) -> None:
        """Nothing of it is left, however it was."""
        if self._process is not None and self._process.poll() is None:
            self.processes()
            self._process.kill()
            self._process.wait()
        deadline = time.monotonic() + 10
        while (left := [pid for pid in self._ours if _runs(pid, self.root)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _runs(pid: int, root: Path) -> bool:
    """Whether it is still ours: its number may be somebody else's by now."""
    with contextlib.suppress(OSError):
        return str(root).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


class Memory(threading.Thread):
    """Samples the memory of each process (RssAnon, bytes) once a second."""

    def __init__(self, service: Service, stopping: threading.Event) -> None:
        super().__init__(name="memory", daemon=True)
        self._service = service
        self._stopping = stopping
        self._samples: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)

    def run(self) -> None:
        while not self._stopping.wait(1.0):
            processes = self._service.processes()
            for at, pid in enumerate(processes):
                role = "indexer" if is_indexer(pid) else "receiver" if at else "parent"
                if (size := _anonymous(pid)) is not None:
                    self._samples[role, pid].append((time.monotonic(), size))

    def peaks(self) -> dict[str, int]:
        """The highest of each role."""
        found: dict[str, int] = defaultdict(int)
        for (role, _), samples in list(self._samples.items()):
            found[role] = max(found[role], *(size for _, size in samples))
        return dict(found)

    def growth(self, warm_up: float) -> dict[str, tuple[int, float]]:
        """Of each role the process that grew most after its warm-up: bytes, and over how long."""
        found: dict[str, tuple[int, float]] = {}
        for (role, _), samples in list(self._samples.items()):
            born, died = samples[0][0], samples[-1][0]
            if died - born < 3 * warm_up:
                continue
            early = [size for at, size in samples if warm_up <= at - born < 2 * warm_up]
            late = [size for at, size in samples if died - at <= warm_up]
            if early and late:
                grown = (max(late) - max(early), died - born - warm_up)
                found[role] = max(found.get(role, grown), grown)
        return found


def _anonymous(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return None
