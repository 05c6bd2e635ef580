"""How fast a study is retrieved, beside DCMTK's dcmqrscp and Orthanc.

    python -m tests.benchmarks.retrieve [--instances N] [--rounds N] [--pdu BYTES] [--dir DIR]

One study of CT-like instances (800 of 526 KB) is sent to each server. Then they take turns in
giving it, by C-GET over the same association and by C-MOVE over one of the server's, to two sorts
of clients: ours, which skips what comes, so that it is the servers that are compared; and DCMTK's
getscu and movescu, which write files, as a user would see it. These take longer for an instance
than any of the servers, so that with them all servers look much alike. Timed is the whole of
DCMTK's process; what it wrote is counted and removed. Ratios are those within one round, and their
median counts.

TCP_NODELAY=1 is in the environment of all. ``--pdu``: the longest that clients take, 16384 by
DCMTK's default. What is not installed is left out. Exit status 1 says that issue 6's limits were
not held: with our client 1.0 of dcmqrscp and 2 of Orthanc, with DCMTK's 1.0 of dcmqrscp.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.receiving import machine
from tests.benchmarks.receiving.data import CT, QUARTERS, Sent, make
from tests.benchmarks.receiving.receivers import (
    Failed,
    Orthanc,
    Plainpacs,
    Receiver,
    Running,
    dcmtk,
    environment,
    free_ports,
    running,
)
from tests.benchmarks.retrieve_client import get, move

_DESTINATION = "MOVESCU"
_HEAD = 4096
_LIMITS = {
    **{(way, "dcmqrscp"): 1.0 for way in ("get", "move", "getscu", "movescu")},
    **{(way, "orthanc"): 2.0 for way in ("get", "move")},
}


class OrthancWithRetrieves(Orthanc):
    def __init__(self, destination: int) -> None:
        super().__init__()
        self._destination = destination

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        found = super().command(folder, port, second_port)
        configuration = folder / "orthanc.json"
        own = json.loads(configuration.read_text())
        own["DicomModalities"] = {"client": [_DESTINATION, "127.0.0.1", self._destination]}
        for what in ("Get", "Move", "Find"):
            own[f"DicomAlwaysAllow{what}"] = True
        configuration.write_text(json.dumps(own))
        return found


class Dcmqrscp(Receiver):
    def __init__(self, destination: int) -> None:
        super().__init__("dcmqrscp", "DCMTK dcmqrscp", dcmtk("dcmqrscp"))
        self._destination = destination

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        assert self.program
        configuration = folder / "dcmqrscp.cfg"
        configuration.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
            f"HostTable BEGIN\nclient = ({_DESTINATION}, 127.0.0.1, {self._destination})\n"
            "HostTable END\nVendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
            f"DRDCM {folder / 'stored'} RW (10, 8192mb) ANY\nAETable END\n"
        )
        return [self.program, "-c", str(configuration)]


# --- the study ------------------------------------------------------------------------------------


def one_study(folder: Path, count: int) -> tuple[Sent, str]:
    """The instances, all of one study, and its UID."""
    sent = make(folder, CT, count)
    studies = [_study_of(path) for path in sorted(folder.glob("*/*/*"))]
    first, *others = sorted(set(studies))
    assert len(others) < QUARTERS
    for path in sent.files:
        with path.open("r+b") as file:
            head = file.read(_HEAD)
            for other in others:
                head = head.replace(other, first)
            file.seek(0)
            file.write(head)
    return sent, first.decode()


def _study_of(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    at = head.index(b"\x20\0\x0d\0UI")
    return head[at + 8 : at + 8 + head[at + 6]].rstrip(b"\0")


def fill(at: Running, receiver: Receiver, sent: Sent) -> None:
    done = client("storescu", "-aec", "DRDCM", "+sd", "+r", "127.0.0.1", str(at.port),
                  str(sent.folder))  # fmt: skip
    if done.returncode:
        raise Failed(f"{receiver.title}: storescu: {done.stderr.decode(errors='replace')[-300:]}")
    receiver.come_to_rest(at)


# --- retrieving -----------------------------------------------------------------------------------


def client(tool: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    program = dcmtk(tool)
    if program is None:
        raise Failed(f"{tool} is not installed (apt install dcmtk)")
    return subprocess.run(
        [program, *arguments], env=environment(), check=False, capture_output=True, timeout=600
    )


def retrieved(tool: str, at: Running, study: str, folder: Path, flags: Sequence[str]) -> float:
    """Seconds. Raises Failed unless everything came."""
    out = folder / "out"
    out.mkdir()
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
    began = time.perf_counter()
    done = client(tool, "-S", "-aet", _DESTINATION, "-aec", "DRDCM", *flags, "-od", str(out),
                  *keys, "127.0.0.1", str(at.port))  # fmt: skip
    seconds = time.perf_counter() - began
    came = sum(entry.stat().st_size > CT.side**2 * 2 for entry in os.scandir(out))
    shutil.rmtree(out)
    if done.returncode:
        raise Failed(f"{tool}: {done.stderr.decode(errors='replace')[-300:]}")
    if came != at_all(folder):
        raise Failed(f"{tool}: {came} instances came of {at_all(folder)}")
    return seconds


def counted(options: argparse.Namespace, retrieve: Callable[[], int]) -> float:
    """Seconds. Raises Failed unless everything came."""
    began = time.perf_counter()
    came = retrieve()
    seconds = time.perf_counter() - began
    if came != options.instances:
        raise Failed(f"{came} instances came of {options.instances}")
    return seconds


def at_all(folder: Path) -> int:
    return sum(1 for _ in (folder / "sent").glob("*/*/*"))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds by client and server."""
    (destination,) = free_ports(1)
    sent, study = one_study(folder / "sent", options.instances)
    nodes = ("--nodes", f"{_DESTINATION}@127.0.0.1:{destination}", "--sync", "off")
    servers: list[Receiver] = [
        Plainpacs("plainpacs", "plainpacs", nodes, indexer=True),
        Dcmqrscp(destination),
        OrthancWithRetrieves(destination),
    ]
    pdu = ("-pdu", str(options.pdu))
    to_movescu = ("+P", str(destination), "-aem", _DESTINATION, *pdu)
    ways: dict[str, Callable[[Running], float]] = {
        "get": lambda at: counted(options, lambda: get(at.port, study, _DESTINATION, options.pdu)),
        "move": lambda at: counted(
            options, lambda: move(at.port, study, _DESTINATION, destination, options.pdu)
        ),
        "getscu": lambda at: retrieved("getscu", at, study, folder, ("+B", *pdu)),
        "movescu": lambda at: retrieved("movescu", at, study, folder, to_movescu),
    }
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    with contextlib.ExitStack() as stack:
        at: dict[str, Running] = {}
        for server in servers:
            if server.program is None:
                say(f"{server.title} is left out: it is not installed")
                continue
            place = folder / server.name
            place.mkdir()
            at[server.name] = stack.enter_context(running(server, place))
            say(f"filling {server.title}")
            fill(at[server.name], server, sent)
        for number in range(options.rounds):
            for way, measured in ways.items():
                for name, server_at in at.items():
                    seconds = measured(server_at)
                    say(f"round {number + 1}, {way}, {name}: {seconds:.2f} s")
                    found[way].setdefault(name, []).append(seconds)
    return found


# --- results --------------------------------------------------------------------------------------


def report(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> bool:
    """Prints a table; whether the limits hold."""
    table = Table(title=f"{options.instances} instances of {CT.name}, {options.rounds} rounds")
    for title in ("way", "server", "seconds, median (range)", "MB/s", "ratio, median (range)"):
        table.add_column(title, justify="left" if title in ("way", "server") else "right")
    held = True
    megabytes = options.instances * CT.side**2 * 2 / 1e6
    for way, servers in found.items():
        ours = servers["plainpacs"]
        for name, seconds in servers.items():
            middle = statistics.median(seconds)
            ratios = [theirs / own for own, theirs in zip(ours, seconds, strict=True)]
            ratio = statistics.median(ratios)
            held = held and ratio >= _LIMITS.get((way, name), 0.0)
            table.add_row(
                way,
                name,
                f"{middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
                f"{megabytes / middle:.0f}",
                f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if seconds is not ours
                else "1",
            )  # fmt: skip
    Console(width=100).print(table)
    return held


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> int:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.retrieve", description=words)
    parser.add_argument("--instances", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pdu", type=int, default=16384, help="longest PDU the clients take")
    parser.add_argument("--dir", help="where everything lies while it runs (the temporary folder)")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="plainpacs-retrieve-", dir=options.dir) as place:
        folder = Path(place)
        for name, value in machine.description(folder):
            print(f"{name}: {value}")
        try:
            held = report(measure(options, folder), options)
        except Failed as failed:
            say(str(failed))
            return 3
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
