"""One run: a receiver is started, warmed up, sent to, looked into and stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid

from tests.benchmarks.receiving.cases import Case
from tests.benchmarks.receiving.data import Sent
from tests.benchmarks.receiving.processes import Memory, MemoryWatch, Processor, processor
from tests.benchmarks.receiving.receivers import (
    Failed,
    Receiver,
    dcmtk,
    environment,
    last_line,
    running,
)

_SENDER = Path(__file__).resolve().parent / "sender.py"
_STORAGE = sorted(
    str(value)
    for name, value in vars(uid).items()
    if name.endswith("Storage") and value.startswith("1.2.840.10008.5.1.4.1.1.")
)
_LONGEST_SECONDS = 600.0
_FILE_META_BYTES = 1000
"""Receivers write their own File Meta Information; no two are longer apart than that."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``missing`` instances were sent but are not there whole."""

    count: int
    bytes: int
    seconds: float
    processor: Processor
    memory: Memory
    missing: int

    @property
    def rate(self) -> float:
        """Instances per second."""
        return self.count / self.seconds


def run(case: Case, receiver: Receiver, warm: Sent, sent: Sent, folder: Path) -> Measured:
    """Sends to a receiver of its own in ``folder``, which is made and taken away.

    Raises Failed when the receiver cannot be started or a sender does not end well.
    """
    folder.mkdir()
    try:
        with running(receiver, folder, nodelay=case.receiver_nodelay) as at:
            # Many at once, so that where several processes receive each has had some.
            send([_storescu(at.port, series) for series in warm.series], folder)
            receiver.come_to_rest(at)
            before = processor(at.pid)
            with MemoryWatch(at.pid) as watch:
                commands = _commands(case, at.port, sent)
                seconds = send(commands, folder, nodelay=case.sender_nodelay)
                if case.contexts:
                    seconds = float(last_line(folder / "sender0"))
                receiver.come_to_rest(at)
            used = processor(at.pid).since(before)
            arrived = receiver.arrived(at)
            missing = sum(
                abs(arrived.get(uid, 0) - size) > _FILE_META_BYTES
                for uid, size in sent.sizes.items()
            )
            total = sum(sent.sizes.values())
            return Measured(len(sent.sizes), total, seconds, used, watch.peak, missing)
    except Failed as failed:
        raise Failed(f"{failed}; the receiver's last words: {last_line(folder / 'log')}") from None
    finally:
        shutil.rmtree(folder)
        os.sync()  # what one receiver left to be written does not slow down the next


def send(commands: list[list[str]], folder: Path, *, nodelay: bool = True) -> float:
    """Runs the senders at once; the seconds from their start until all have ended.

    What they say goes to ``sender0`` and so on in ``folder``. Raises Failed when one ends ill.
    """
    logs = [folder / f"sender{number}" for number in range(len(commands))]
    senders: list[subprocess.Popen[bytes]] = []

    def give_up() -> None:
        for one in senders:
            one.kill()

    # Not wait(timeout), which looks only every 50 ms.
    killer = threading.Timer(_LONGEST_SECONDS, give_up)
    killer.start()
    began = time.perf_counter()
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                senders.append(
                    subprocess.Popen(
                        command,
                        env=environment(nodelay=nodelay),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        codes = [one.wait() for one in senders]
        seconds = time.perf_counter() - began
    finally:
        killer.cancel()
        for one in senders:
            if one.poll() is None:
                one.kill()
                one.wait()
    for code, log in zip(codes, logs, strict=True):
        if code:
            raise Failed(f"a sender ended with {code}: {last_line(log)}")
    return seconds


def _sop_classes(first: str, count: int) -> list[str]:
    """Storage SOP Classes, that one at first."""
    others = [one for one in _STORAGE if one != first]
    return [first, *others][:count]


def _commands(case: Case, port: int, sent: Sent) -> list[list[str]]:
    if case.contexts:
        classes = _sop_classes(sent.kind.sop_class, case.contexts // 2)
        return [[sys.executable, str(_SENDER), str(port), str(sent.folder), *classes]]
    if not sent.whole:
        return [_storescu(port, *sent.files)]
    folders = [sent.folder] if case.senders == 1 else sent.quarters
    return [_storescu(port, one) for one in folders]


def _storescu(port: int, *what: Path) -> list[str]:
    """Sends files, or what lies in folders."""
    program = dcmtk("storescu")
    assert program
    return [program, "+sd", "+r", "127.0.0.1", str(port), *map(str, what)]
