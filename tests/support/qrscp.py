"""DCMTK's dcmqrscp and storescp as processes: an archive to query, and one that only receives."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.archives import eventually
from tests.support.peer import dcmtk


@contextlib.contextmanager
def dcmqrscp(folder: Path, destinations: Mapping[str, int], *options: str) -> Iterator[int]:
    """The port of 127.0.0.1 where it listens, as QR; ``destinations`` are ports by AE title."""
    (folder / "stored").mkdir(parents=True)
    port = _free_port()
    hosts = "".join(
        f"h{there} = ({ae}, 127.0.0.1, {there})\n" for ae, there in destinations.items()
    )
    (folder / "cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {folder / 'stored'} RW (500, 1024mb) ANY\nAETable END\n"
    )
    with _running("dcmqrscp", folder, port, "QR", "-c", str(folder / "cfg"), *options):
        yield port


@contextlib.contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """The port of 127.0.0.1 where DCMTK's storescp listens, which stores into ``folder``."""
    folder.mkdir(parents=True)
    port = _free_port()
    with _running("storescp", folder, port, "STORESCP", *options, "-od", str(folder), str(port)):
        yield port


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _running(tool: str, folder: Path, port: int, title: str, *arguments: str) -> Iterator[None]:
    own = os.path.dirname(sys.executable)  # where pynetdicom puts programs of such names
    path = [one for one in os.get_exec_path() if os.path.realpath(one) != own]
    program = shutil.which(tool, path=os.pathsep.join(path))
    if program is None:
        words = f"{tool} of DCMTK is not installed (apt install dcmtk)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    with folder.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
        )
        try:
            eventually(
                lambda: dcmtk("echoscu", "-aec", title, "127.0.0.1", str(port)).returncode == 0
            )
            yield
        finally:
            process.kill()
            process.wait()
