"""How fast queries over the network are answered, beside Orthanc and DCMTK's dcmqrscp.

    python -m tests.benchmarks.find [--studies N] [--large N] [--rounds N] [--dir DIR]

Two parts. *Side by side*: instances, each a study of its own, are made and sent to each server with
storescu; then the servers take turns in being asked for all studies, and for those of one patient,
over an association that is there already. dcmqrscp holds 500 studies at most, so all three are
compared on as many, Orthanc on --studies besides. *Large*: an archive that has a catalogue of
--large studies alone (no other server can be filled with as many in reasonable time), against the
limits of issue 6: the first answer within 100 ms, one PatientID within 150 ms.

The client is our own, and reads no more of an answer than it takes to count it; it is the same for
all. TCP_NODELAY=1 is in the environment of all servers. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plainpacs.archive.dicom.identifier import EXPLICIT
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.archive.dicom.part10 import file_meta
from plainpacs.scp.network.dimse import CommandField
from tests.benchmarks.ls import make_archive, record
from tests.benchmarks.receiving import machine
from tests.benchmarks.receiving.receivers import (
    Failed,
    Orthanc,
    Plainpacs,
    Receiver,
    Running,
    dcmtk,
    environment,
    running,
)
from tests.support.dimse import Element
from tests.support.dimse import request as dimse_request
from tests.support.peer import ACCEPT, DATA, associate_rq, context_item, item, message

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MOST_IN_DCMQRSCP = 500
RETURNED = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyDescription", "StudyID"),
    *("AccessionNumber", "PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
)
_PENDING = (0xFF00, 0xFF01)


class OrthancWithQueries(Orthanc):
    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        found = super().command(folder, port, second_port)
        configuration = folder / "orthanc.json"
        own = json.loads(configuration.read_text()) | {"DicomAlwaysAllowFind": True}
        configuration.write_text(json.dumps(own))
        return found


class Dcmqrscp(Receiver):
    def __init__(self) -> None:
        super().__init__("dcmqrscp", "DCMTK dcmqrscp", dcmtk("dcmqrscp"))

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        assert self.program
        configuration = folder / "dcmqrscp.cfg"
        configuration.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
            "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
            f"DRDCM {folder / 'stored'} RW ({MOST_IN_DCMQRSCP}, 1024mb) ANY\nAETable END\n"
        )
        return [self.program, "-c", str(configuration)]


# --- the client -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """One query. Seconds from its first byte to the first answer, and to the end."""

    answers: int
    first: float
    all: float


class Client:
    """An association for queries of the Study Root model."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        longest = item(0x51, struct.pack(">L", 1 << 17)) + item(0x52, b"1.2.3.4")
        context = context_item(1, FIND, [EXPLICIT])
        self._socket.sendall(associate_rq(context, calling="BENCHMARK", user=longest))
        self._received = b""
        if self._pdu()[0] != ACCEPT:
            raise Failed("no association")

    def ask(self, **keys: str) -> Asked:
        identifier = {"QueryRetrieveLevel": "STUDY", **dict.fromkeys(RETURNED, ""), **keys}
        elements = {Element.AFFECTED_SOP_CLASS_UID: FIND, Element.PRIORITY: 0}
        command = dimse_request(CommandField.C_FIND_RQ, 1, elements, has_data_set=True)
        encoded = encode(identifier, EXPLICIT)
        sent = message(1, command, encoded)
        answers, first, began = 0, 0.0, time.perf_counter()
        self._socket.sendall(sent)
        while True:
            kind, body = self._pdu()
            if kind != DATA:
                raise Failed("the association ended")
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">LBB", body, at)
                if control & 1:
                    status = _status(body[at + 6 : at + 4 + length])
                    if status not in _PENDING:
                        if status:
                            raise Failed(f"status {status:04X}")
                        return Asked(answers, first, time.perf_counter() - began)
                    answers += 1
                    first = first or time.perf_counter() - began
                at += 4 + length

    def _pdu(self) -> tuple[int, bytes]:
        while len(self._received) < 6 or len(self._received) < 6 + self._length():
            got = self._socket.recv(1 << 18)
            if not got:
                raise Failed("the connection was closed")
            self._received += got
        end = 6 + self._length()
        found = self._received[0], self._received[6:end]
        self._received = self._received[end:]
        return found

    def _length(self) -> int:
        return int(struct.unpack_from(">L", self._received, 2)[0])

    def close(self) -> None:
        self._socket.close()


def _status(command: bytes) -> int:
    at = command.index(b"\0\0\0\x09\2\0\0\0")
    return int.from_bytes(command[at + 8 : at + 10], "little")


# --- what is asked --------------------------------------------------------------------------------


def make_instances(folder: Path, count: int) -> None:
    """Part 10 files of less than a kilobyte, each a study of its own."""
    chance = random.Random(6)
    folder.mkdir()
    for number in range(count):
        found = record(chance, number, f"2024{number % 12 + 1:02d}")
        uid = str(found["StudyInstanceUID"])
        values: dict[str, Any] = {key: found[key] for key in RETURNED}
        values |= {"SOPClassUID": CT, "SOPInstanceUID": f"{uid}.2", "SeriesInstanceUID": f"{uid}.1"}
        values |= {"Modality": "CT", "SeriesNumber": 1, "InstanceNumber": 1}
        data = encode(values, EXPLICIT)
        (folder / f"{number}.dcm").write_bytes(file_meta(CT, f"{uid}.2", EXPLICIT) + data)


def fill(at: Running, folder: Path, receiver: Receiver) -> None:
    storescu = dcmtk("storescu")
    if storescu is None:
        raise Failed("storescu, which fills the servers, is not installed (apt install dcmtk)")
    command = [storescu, "-aec", "DRDCM", "+sd", "127.0.0.1", str(at.port), str(folder)]
    done = subprocess.run(command, env=environment(), check=False, capture_output=True)
    if done.returncode:
        raise Failed(f"storescu: {done.stderr.decode(errors='replace')[-300:]}")
    receiver.come_to_rest(at)


QUESTIONS: tuple[tuple[str, dict[str, str]], ...] = (
    ("all studies", {}),
    ("one patient", {"PatientID": "PID0000100"}),
)
Times = dict[str, list[Asked]]


def side_by_side(
    chosen: Sequence[Receiver], folder: Path, studies: int, rounds: int
) -> dict[str, Times]:
    """By question, then by server: what came of each round. The servers take turns."""
    found: dict[str, Times] = {title: {} for title, _ in QUESTIONS}
    instances = folder / "instances"
    make_instances(instances, studies)
    with contextlib.ExitStack() as stack:
        clients = {}
        for server in chosen:
            place = folder / server.name
            place.mkdir()
            at = stack.enter_context(running(server, place))
            say(f"sending {studies} studies to {server.title}")
            fill(at, instances, server)
            clients[server.title] = stack.enter_context(contextlib.closing(Client(at.port)))
        for number in range(rounds + 1):
            for title, keys in QUESTIONS:
                for server, client in clients.items():
                    asked = client.ask(**keys)
                    if number:  # the first is to warm up
                        found[title].setdefault(server, []).append(asked)
    return found


def large(folder: Path, studies: int, rounds: int) -> Times:
    """By question: what came of each round, and of the first query of a process."""
    server = Plainpacs("plainpacs", "plainpacs", ("--receivers", "1"), indexer=False)
    patient = {"PatientID": f"PID{studies // 4:07d}"}
    found: Times = {}
    with running(server, folder) as at:
        make_archive(folder / "archive", studies)
        for number in range(rounds):
            with contextlib.closing(Client(at.port)) as client:
                title = "one PatientID" if number else "the first query of a process: one PatientID"
                found.setdefault(title, []).append(client.ask(**patient))
                found.setdefault("all studies", []).append(client.ask())
    return found


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def milliseconds(seconds: Sequence[float]) -> str:
    low, high = min(seconds) * 1000, max(seconds) * 1000
    return f"{statistics.median(seconds) * 1000:.1f} ({low:.1f}-{high:.1f})"


def print_side_by_side(found: dict[str, Times], studies: int, rounds: int) -> None:
    columns = ("answers", "first, ms", "all, ms", "answers/s", "plainpacs faster by")
    table = Table("", "server", *columns, title=f"{studies:,} studies, {rounds} rounds")
    for title, servers in found.items():
        ours = next(iter(servers.values()))
        for server, times in servers.items():
            ratios = [one.all / own.all for one, own in zip(times, ours, strict=True)]
            table.add_row(
                title,
                server,
                f"{times[0].answers:,}",
                milliseconds([one.first for one in times]),
                milliseconds([one.all for one in times]),
                f"{statistics.median(one.answers / one.all for one in times):,.0f}",
                "" if times is ours else f"{statistics.median(ratios):.2f}",
            )
    Console(width=120).print(table)


def print_large(found: Times, studies: int) -> None:
    limits = {"all studies": "first 100", "one PatientID": "all 150"}
    table = Table("", "answers", "first, ms", "all, ms", "limit, ms", title=f"{studies:,} studies")
    for title, times in found.items():
        first, whole = ([one.first for one in times], [one.all for one in times])
        row = (f"{times[0].answers:,}", milliseconds(first), milliseconds(whole))
        table.add_row(title, *row, limits.get(title, ""))
    Console(width=120).print(table)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.find", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--studies", type=int, default=5000, help="in the comparison with Orthanc alone (5000)")
    add("--large", type=int, default=100_000, help="in the catalogue of the large archive (100000)")
    add("--rounds", type=int, default=7, help="how often each is asked (7)")
    add("--dir", help="where data and archives lie while it runs (the temporary folder)")
    options = parser.parse_args(given)
    ours = Plainpacs("plainpacs", "plainpacs", ("--sync", "off"), indexer=True)
    peers: list[Receiver] = [Dcmqrscp(), OrthancWithQueries()]
    for server in peers:
        if server.program is None:
            say(f"{server.title} is left out: it is not installed")
    with tempfile.TemporaryDirectory(prefix="plainpacs-find-", dir=options.dir) as place:
        folder = Path(place)
        facts = machine.description(folder)
        rounds = options.rounds
        few = min(MOST_IN_DCMQRSCP, options.studies)
        for studies, others in ((few, peers), (options.studies, peers[1:])):
            part = folder / str(studies)
            part.mkdir(exist_ok=True)
            chosen = [ours, *(server for server in others if server.program is not None)]
            print_side_by_side(side_by_side(chosen, part, studies, rounds), studies, rounds)
            shutil.rmtree(part)
        part = folder / "large"
        part.mkdir()
        print_large(large(part, options.large, rounds), options.large)
    for name, value in facts:
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
