"""A receiver in this process, with an archive of its own, for tests that speak to it by socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.store.free_space import Reserve
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import create_archive
from plainpacs.scp.receiver.receiver import Receiver, open_listener


@dataclass
class Running:
    receiver: Receiver
    archive: Archive
    root: Path
    stopped: bool = field(default=False)

    @property
    def port(self) -> int:
        return self.receiver.port

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.receiver.stop()
            self.archive.close()

    def instances(self) -> list[Path]:
        return sorted(p for p in self.root.rglob("*.dcm") if ".plainpacs" not in p.parts)

    def lines(self) -> list[dict[str, object]]:
        return [
            json.loads(line)
            for path in self.root.glob("[0-9]*/*/*.jsonl")
            for line in path.read_text().splitlines()
        ]

    def tree(self) -> set[str]:
        """Everything that a store could leave behind."""
        found = {str(p.relative_to(self.root)) for p in self.root.rglob("*")}
        return {p for p in found if "service." not in p and ".plainpacs/audit" not in p}


class Start(Protocol):
    def __call__(self, *, send_buffer: int = ..., **settings: object) -> Running: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def _start(*, send_buffer: int = 0, **changes: object) -> Running:
        root = tmp_path / f"archive{len(running)}"
        create_archive(str(root))
        settings = Settings(**{"port": 0, "bind": "127.0.0.1", **changes})  # type: ignore[arg-type]  # a test's own
        listener = open_listener(settings)
        if send_buffer:  # bytes of answers that the system keeps until the peer takes them
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        receiver = Receiver(settings, listener)
        reserve = Reserve.parse(str(changes.get("reserve", "0")))
        archive = Archive.open(str(root), sync=False, reserve=reserve)
        receiver.start(archive)
        running.append(Running(receiver, archive, root))
        return running[-1]

    yield _start
    for one in running:
        one.stop()
    leftovers = [t.name for t in threading.enumerate() if "association" in t.name]
    assert not leftovers, leftovers


def wait_until(true: object, seconds: float = 10.0) -> None:
    """Waits for what another thread does and nothing announces."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
