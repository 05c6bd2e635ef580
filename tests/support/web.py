"""``plainpacs web`` as a process of its own, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.archives import eventually

COMMAND = [sys.executable, "-P", "-m", "plainpacs", "web", "--port", "0"]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Web:
    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, accept: str = "", method: str = "GET", **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if accept:
            sent["Accept"] = accept
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=sent)
            answer = connection.getresponse()
            known = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, known, answer.read())

    def post(self, path: str, body: bytes, kind: str, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": kind, **headers})
            answer = connection.getresponse()
            known = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, known, answer.read())


@contextlib.contextmanager
def web(root: Path | str, folder: Path, *arguments: str) -> Iterator[Web]:
    """One that serves the archive at ``root``; its log lies in ``folder``."""
    log = folder / "web.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, *arguments, str(root)],
            stderr=file,
            stdout=file,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:

        def said() -> re.Match[str] | None:
            text = log.read_text()
            assert process.poll() is None, text
            return re.search(r"look at it: https?://[^/]*:(\d+)/", text)

        yield Web(process, log, int(eventually(said)[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
