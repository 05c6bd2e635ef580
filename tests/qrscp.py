"""DCMTK's dcmqrscp as a process: an archive to query and retrieve from."""

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
from peer import dcmtk
from support import eventually


@contextlib.contextmanager
def dcmqrscp(folder: Path, destinations: Mapping[str, int], *options: str) -> Iterator[int]:
    """The port of 127.0.0.1 where it listens, as QR; ``destinations`` are ports by AE title."""
    own = os.path.dirname(sys.executable)  # where pynetdicom puts programs of such names
    path = [one for one in os.get_exec_path() if os.path.realpath(one) != own]
    program = shutil.which("dcmqrscp", path=os.pathsep.join(path))
    if program is None:
        words = "dcmqrscp of DCMTK is not installed (apt install dcmtk)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    (folder / "stored").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    hosts = "".join(
        f"h{there} = ({ae}, 127.0.0.1, {there})\n" for ae, there in destinations.items()
    )
    (folder / "cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {folder / 'stored'} RW (500, 1024mb) ANY\nAETable END\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(folder / "cfg"), *options],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            eventually(
                lambda: dcmtk("echoscu", "-aec", "QR", "127.0.0.1", str(port)).returncode == 0
            )
            yield port
        finally:
            process.kill()
            process.wait()
