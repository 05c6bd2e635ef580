"""How soon a received study is listed, and what following it costs.

    python -m tests.benchmarks.follow [SECONDS] [INSTANCES]

Sends instances of one study to `plainpacs serve` at an even pace (5,000 in 60 s), then measures the
time from the answer to the last one until `plainpacs ls` shows them all, and the processor time of
the indexer as a share of the receiver's. Asserts nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from tests.support.archives import data_set
from tests.support.peer import Peer

_TICKS = os.sysconf("SC_CLK_TCK")
_PIXELS = bytes(512 * 512 * 2)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def processes(pid: int) -> tuple[list[int], list[int]]:
    """The processes that receive, and the one that indexes, of the service ``pid``."""
    receiving, indexing = [pid], []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            (indexing if b"index" in words else receiving).append(child)
    return receiving, indexing


def times(pid: int) -> tuple[float, float]:
    """The processor time of receiving and of indexing so far."""
    receiving, indexing = processes(pid)
    return sum(map(cpu_seconds, receiving)), sum(map(cpu_seconds, indexing))


def listed(root: str) -> int:
    command = [sys.executable, "-m", "plainpacs", "ls", "-a", root]
    found = subprocess.run(command, capture_output=True, check=False).stdout
    return int(orjson.loads(found)["NumberOfStudyRelatedInstances"]) if found else 0


def main(seconds: float = 60.0, instances: int = 5000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/archive"
        command = [sys.executable, "-m", "plainpacs", "serve", "--create", root]
        server = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
        assert server.stderr
        port = None
        while port is None:
            match = re.search(r"port (\d+)", server.stderr.readline())
            port = match and int(match[1])
        try:
            measure(server.pid, root, port, seconds, instances)
        finally:
            server.send_signal(signal.SIGTERM)
            sys.stderr.write(server.communicate()[1])


def measure(pid: int, root: str, port: int, seconds: float, instances: int) -> None:
    time.sleep(3)  # until the indexer has started too
    with Peer(port) as sender:
        receiver, indexer = times(pid)
        began = time.monotonic()
        for number in range(instances):
            time.sleep(max(0.0, began + seconds * number / instances - time.monotonic()))
            uid = f"1.2.3.4.5.{number}"
            raw = data_set(SOPInstanceUID=uid, PixelData=_PIXELS)
            assert sender.store(raw, sop=uid) == 0
        sent = time.monotonic()
        while (there := listed(root)) < instances:
            time.sleep(0.05)
        done = time.monotonic()
        now = times(pid)
        sender.release()
    receiver, indexer = now[0] - receiver, now[1] - indexer
    print(f"{there} instances in {sent - began:.1f} s")
    print(f"listed by `ls` after the last answer:  {done - sent:.2f} s (its own start included)")
    print(f"processor time, receiver:              {receiver:.2f} s")
    print(f"processor time, indexer:               {indexer:.2f} s")
    print(f"indexer / receiver:                    {indexer / receiver:.3f}")


if __name__ == "__main__":
    main(*(float(a) if i == 0 else int(a) for i, a in enumerate(sys.argv[1:3])))
