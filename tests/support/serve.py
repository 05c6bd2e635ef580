"""``plainpacs serve`` as a process of its own, for tests that use it as people do."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.archives import eventually

COMMAND = [sys.executable, "-m", "plainpacs", "serve"]


@dataclass
class Service:
    root: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def port(self) -> int:
        def greeted() -> re.Match[str] | None:
            assert self.process.poll() is None, self.said
            return re.search(r" port (\d+) of ", self.said)

        return int(eventually(greeted)[1])

    def indexer(self) -> int:
        """The indexer's process id, once it runs."""
        return int(eventually(lambda: self.children(b"index"))[0])

    def receivers(self) -> list[int]:
        return self.children(b"plainpacs.scp.daemon.workers")

    def children(self, word: bytes = b"") -> list[int]:
        """The processes it started, or those that have ``word`` as an argument."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [int(one) for one in (task / "children").read_text().split()]
        return [pid for pid in found if not word or word in arguments_of(pid)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


class Serve(Protocol):
    def __call__(self, *arguments: str, root: Path | None = None) -> Service: ...


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    running: list[Service] = []

    def _serve(*arguments: str, root: Path | None = None) -> Service:
        root = root or tmp_path / "archive"
        log = tmp_path / f"log{len(running)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*COMMAND, "--create", "--port", "0", *arguments, str(root)],
                stderr=file,
                stdout=file,
                cwd=tmp_path,
            )
        running.append(Service(root, process, log))
        return running[-1]

    yield _serve
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def address_of_this_machine() -> str:
    """One that is not loopback; the test is skipped where there is none."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
        try:
            one.connect(("198.51.100.1", 9))  # nothing is sent: it finds the way there
        except OSError as error:
            pytest.skip(f"this machine has no address but loopback: {error}")
        address = str(one.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return address


def arguments_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
