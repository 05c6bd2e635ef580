"""Senders that never rest: byte by byte over sockets, and DCMTK's storescu."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import subprocess
import threading
from pathlib import Path

from tests.benchmarks.receiving.receivers import dcmtk
from tests.soak.ledger import Instance, Ledger, Study
from tests.support.peer import (
    ABORT,
    ACCEPT,
    CT,
    EVRLE,
    Peer,
    associate_rq,
    command,
    context_item,
    element,
    message,
    pdu,
)

_SIZES = (2_000, 30_000, 30_000, 130_000, 520_000)
_LARGE = 6 << 20
_REQUEST = associate_rq(context_item(1, CT, [EVRLE]))
_PAUSE_WHEN_FULL = 0.3
_FILES_OF_STORESCU = 12


class _Ended(Exception):
    """The association is over, by our own doing."""


class Sender(threading.Thread):
    """Sends study after study until ``stopping`` is set; notes every answer."""

    def __init__(self, ledger: Ledger, port: int, number: int, stopping: threading.Event) -> None:
        super().__init__(name=f"sender {number}", daemon=True)
        self._ledger = ledger
        self._port = port
        self._stopping = stopping
        self._rng = random.Random(number)
        self._again: list[Instance] = []
        self._next_study()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._associate()
            except _Ended:
                self._ledger.count("senders aborted")
            except TimeoutError:
                self._ledger.count("no answer in 20 s")
            except (OSError, AssertionError, struct.error, IndexError, KeyError):
                # Killed, stopping, or not there yet.
                self._ledger.count("connections lost")
                self._stopping.wait(0.1)

    def _associate(self) -> None:
        with Peer(self._port, _REQUEST) as peer:
            if peer.answer[0] != ACCEPT:
                self._ledger.count("associations not accepted")
                self._stopping.wait(0.2)
                return
            for _ in range(self._rng.randrange(1, 60)):
                if self._stopping.is_set():
                    break
                self._send_one(peer)
            peer.release()
        self._ledger.count("associations released")

    def _send_one(self, peer: Peer) -> None:
        what = self._rng.random()
        promised = [one for one in self._study.instances.values() if one.promised]
        if what < 0.02:
            self._abort_in_the_middle(peer)
        elif what < 0.05 and promised:
            self._send(peer, self._rng.choice(promised), "duplicates answered 0000")
        elif what < 0.06 and promised:
            self._send_variant(peer, self._rng.choice(promised))
        elif self._again and what < 0.5:
            instance = self._again[0]
            if self._send(peer, instance):
                self._again.remove(instance)
        else:
            instance = self._planned()
            self._again.append(instance)  # until it is answered
            if self._send(peer, instance):
                self._again.remove(instance)

    def _planned(self) -> Instance:
        if self._left == 0:
            self._ledger.close(self._study)
            self._again.clear()
            self._next_study()
        self._left -= 1
        size = _LARGE if self._rng.random() < 0.004 else self._rng.choice(_SIZES)
        return self._ledger.planned(self._study, self._left, size)

    def _next_study(self) -> None:
        self._study: Study = self._ledger.new_study()
        self._left = self._rng.randrange(5, 80)

    def _send(self, peer: Peer, instance: Instance, more: str = "") -> bool:
        """Whether it was promised."""
        status = peer.store(instance.data_set(), sop=instance.sop)
        if self._is_promise(status):
            self._ledger.promised(instance)
            if more:
                self._ledger.count(more)
        return status == 0

    def _send_variant(self, peer: Peer, instance: Instance) -> None:
        data = instance.data_set(b"VARIANT ")
        if self._is_promise(peer.store(data, sop=instance.sop)):
            self._ledger.promised_variant(self._study, instance, data)

    def _is_promise(self, status: int) -> bool:
        if status == 0xA700:
            self._ledger.count("answered A700")
            self._stopping.wait(_PAUSE_WHEN_FULL * self._rng.random())
        elif status:
            self._ledger.count(f"answered {status:04X}")
            self._ledger.find(f"a good instance was answered {status:04X}")
        return status == 0

    def _abort_in_the_middle(self, peer: Peer) -> None:
        instance = self._planned()
        whole = message(1, command(1, CT.encode(), instance.sop.encode()), instance.data_set())
        peer.send(whole[: self._rng.randrange(1, len(whole))])
        match self._rng.randrange(3):
            case 0:
                peer.send(pdu(ABORT))
            case 1:
                gone = struct.pack("ii", 1, 0)  # a reset instead of an end
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, gone)
        raise _Ended


class Storescu(threading.Thread):
    """DCMTK's own sender, with the same files again until it got an answer or gives them up."""

    def __init__(self, ledger: Ledger, port: int, folder: Path, stopping: threading.Event) -> None:
        super().__init__(name="storescu", daemon=True)
        self._ledger = ledger
        self._port = port
        self._folder = folder
        self._stopping = stopping
        self._program = dcmtk("storescu")
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        if self._program is None:
            self._ledger.count("storescu is not installed")
            return
        while not self._stopping.is_set():
            study = self._ledger.new_study()
            files = [self._file(study, number) for number in range(_FILES_OF_STORESCU)]
            waiting = dict(files)
            for _ in range(3):
                if waiting and not self._stopping.is_set():
                    self._send(waiting)
            self._ledger.close(study)
            for path, _ in files:
                Path(path).unlink()

    def end(self) -> None:
        """It need not finish what it is at."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _file(self, study: Study, number: int) -> tuple[str, Instance]:
        instance = self._ledger.planned(study, number, 60_000)
        instance.digest = b""
        meta = [(0x0002, CT), (0x0003, instance.sop), (0x0010, EVRLE), (0x0012, "1.2.3")]
        body = b"".join(element(2, tag, b"UI", uid.encode()) for tag, uid in meta)
        length = element(2, 0, b"UL", struct.pack("<L", len(body)))
        path = self._folder / f"{instance.sop}.dcm"
        path.write_bytes(bytes(128) + b"DICM" + length + body + instance.data_set())
        return str(path), instance

    def _send(self, waiting: dict[str, Instance]) -> None:
        """Takes what was promised out of ``waiting``."""
        assert self._program is not None
        self._process = subprocess.Popen(
            [self._program, "-v", "-nh", "-aec", "DRDCM", "127.0.0.1", str(self._port), *waiting],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            said, _ = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
            self._ledger.count("storescu waited 60 s")
        sending = ""
        for line in said.splitlines():
            if found := re.search(r"Sending file: (\S+)", line):
                sending = found[1]
            elif "Received Store Response (Success)" in line and sending in waiting:
                self._ledger.promised(waiting.pop(sending))
                self._ledger.count("of these to storescu")
            elif "Received Store Response" in line:
                refused = "Resources" in line
                self._ledger.count("answered A700" if refused else "storescu got another answer")
                if not refused:
                    self._ledger.find(f"storescu: {line.strip()}")
        if waiting:
            self._stopping.wait(0.3)
