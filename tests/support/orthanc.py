"""Orthanc as a process, for tests that it takes part in.

Where it is not installed they are skipped; in CI they fail.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import eventually


class Orthanc:
    """One that listens for DICOM on ``port``; ``call`` speaks to its REST interface."""

    def __init__(self, port: int, http_port: int) -> None:
        self.port = port
        self._http_port = http_port

    def call(self, method: str, path: str, body: object = None) -> Any:
        """What it answers, as JSON. Raises ConnectionError, and AssertionError for a refusal."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=60)
        with contextlib.closing(connection):
            data = (
                body if isinstance(body, bytes) else json.dumps(body) if body is not None else None
            )
            connection.request(method, path, data)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, (method, path, answer.status, said)
            return json.loads(said)

    def answers(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return bool(self.call("GET", "/system"))
        return False


@contextlib.contextmanager
def orthanc(
    folder: Path, modalities: Mapping[str, tuple[str, int]], **more: object
) -> Iterator[Orthanc]:
    """One with its data in ``folder``, that knows these AE titles and ports of 127.0.0.1 by name.
    ``more``: of its configuration."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        words = "Orthanc is not installed (apt install orthanc)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        port, http_port = one.getsockname()[1], other.getsockname()[1]
    folder.mkdir(exist_ok=True)
    configuration = {
        "StorageDirectory": "stored",
        "IndexDirectory": "stored",
        "Plugins": [],
        "DicomPort": port,
        "HttpPort": http_port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {
            name: [title, "127.0.0.1", there] for name, (title, there) in modalities.items()
        },
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "orthanc.json"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            running = Orthanc(port, http_port)
            eventually(lambda: process.poll() is not None or running.answers())
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            yield running
        finally:
            process.kill()
            process.wait()
