"""A DICOM peer that can say anything, byte by byte; and DCMTK's, where it is installed.

It shares no code with what it tests.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys

import pytest

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
WORKLIST = "1.2.840.10008.5.1.4.31"
VERIFICATION = "1.2.840.10008.1.1"
HANGING_PROTOCOL = "1.2.840.10008.5.1.4.38.1"
EVRLE = "1.2.840.10008.1.2.1"
IVRLE = "1.2.840.10008.1.2"
APPLICATION = "1.2.840.10008.3.1.1.1"
STUDY, SERIES, SOP = "1.2.3.1", "1.2.3.1.1", "1.2.3.1.1.1"

ACCEPT, REJECT, DATA, RELEASE_RQ, RELEASE_RP, ABORT = 2, 3, 4, 5, 6, 7


def element(group: int, number: int, vr: bytes, value: bytes, padding: bytes = b"\0") -> bytes:
    """An element in Explicit VR Little Endian."""
    value += padding * (len(value) % 2)
    head = struct.pack("<HH", group, number) + vr
    if vr in (b"OW", b"OB", b"SQ", b"UN"):
        return head + struct.pack("<HL", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def data_set(
    sop: str = SOP, series: str = SERIES, study: str = STUDY, sop_class: str = CT, size: int = 64
) -> bytes:
    """A small instance, as the bytes of its data set."""
    return b"".join(
        (
            element(0x0008, 0x0016, b"UI", sop_class.encode()),
            element(0x0008, 0x0018, b"UI", sop.encode()),
            element(0x0008, 0x0020, b"DA", b"20240131"),
            element(0x0008, 0x0060, b"CS", b"CT", b" "),
            element(0x0010, 0x0010, b"PN", b"SECRET^NAME", b" "),
            element(0x0010, 0x0020, b"LO", b"SECRETID", b" "),
            element(0x0020, 0x000D, b"UI", study.encode()),
            element(0x0020, 0x000E, b"UI", series.encode()),
            element(0x7FE0, 0x0010, b"OW", (bytes(range(256)) * (size // 256 + 1))[:size]),
        )
    )


def command_element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def us(value: int) -> bytes:
    return struct.pack("<H", value)


def command(
    code: int = 1,
    sop_class: bytes | None = CT.encode(),
    sop: bytes | None = SOP.encode(),
    message_id: int | None = 7,
    data: bool = True,
) -> bytes:
    """A command set; None leaves an element out."""
    body = b""
    if sop_class is not None:
        body += command_element(0x0002, sop_class + b"\0" * (len(sop_class) % 2))
    body += command_element(0x0100, us(code))
    if message_id is not None:
        body += command_element(0x0110, us(message_id))
    body += command_element(0x0700, us(0)) + command_element(0x0800, us(1 if data else 0x0101))
    if sop is not None:
        body += command_element(0x1000, sop + b"\0" * (len(sop) % 2))
    return command_element(0x0000, struct.pack("<L", len(body))) + body


def pdu(kind: int, body: bytes = b"\0\0\0\0") -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def pdv(context_id: int, header: int, fragment: bytes) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context_id, header) + fragment


def message(
    context_id: int, command_set: bytes, data: bytes | None, longest: int = 1 << 16
) -> bytes:
    """The PDUs of a message, the data set cut so that no PDU is longer than ``longest``."""
    sent = pdu(DATA, pdv(context_id, 3, command_set))
    if data is not None:
        step = longest - 6
        pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            sent += pdu(DATA, pdv(context_id, 2 if last else 0, piece))
    return sent


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def context_item(context_id: int, abstract: str | None, syntaxes: list[str]) -> bytes:
    body = struct.pack(">BBBB", context_id, 0, 0, 0)
    if abstract is not None:
        body += item(0x30, abstract.encode())
    return item(0x20, body + b"".join(item(0x40, uid.encode()) for uid in syntaxes))


def associate_rq(
    contexts: bytes,
    *,
    called: str = "DRDCM",
    calling: str = "TESTER",
    application: str = APPLICATION,
    user: bytes | None = None,
    version: int = 1,
) -> bytes:
    if user is None:
        user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4")
    body = struct.pack(">HH", version, 0) + called.encode().ljust(16) + calling.encode().ljust(16)
    body += bytes(32) + item(0x10, application.encode()) + contexts
    return pdu(1, body + (item(0x50, user) if user else b""))


CONTEXTS = [(1, CT, [EVRLE]), (3, VERIFICATION, [IVRLE]), (5, WORKLIST, [IVRLE]), (7, MR, [EVRLE])]


class Peer:
    """A connection to the receiver. ``answer`` is the PDU that answered the association."""

    def __init__(
        self,
        port: int,
        request: bytes | None = None,
        *,
        called: str = "DRDCM",
        calling: str = "TESTER",
        application: str = APPLICATION,
        to: str = "127.0.0.1",
        source: str = "",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
    ) -> None:
        """``source``: the address to come from. ``tls``: how to speak it, if at all.
        ``receive_buffer``: bytes that the system takes for us before we read them."""
        come_from = (source, 0) if source else None
        self.socket = socket.create_connection((to, port), timeout=20, source_address=come_from)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket)
        self.answer: tuple[int, bytes] = (0, b"")
        if request is None:
            contexts = b"".join(context_item(*c) for c in CONTEXTS)
            request = associate_rq(
                contexts, called=called, calling=calling, application=application
            )
        if request:
            self.send(request)
            self.answer = self.receive()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, sent: bytes) -> None:
        self.socket.sendall(sent)

    def receive(self) -> tuple[int, bytes]:
        """The next PDU; (0, b"") at the end of the connection."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        return head[0], self._exactly(int.from_bytes(head[2:], "big"))

    def _exactly(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            try:
                more = self.socket.recv(length - len(got))
            except ConnectionResetError:
                return b""
            if not more:
                return b""
            got += more
        return got

    def results(self) -> dict[int, tuple[int, str]]:
        """Context id to result and transfer syntax, of the A-ASSOCIATE-AC."""
        kind, body = self.answer
        assert kind == ACCEPT
        found = {}
        at = 68
        while at < len(body):
            item_kind, _, length = struct.unpack_from(">BBH", body, at)
            if item_kind == 0x21:
                inner = body[at + 4 : at + 4 + length]
                found[inner[0]] = (inner[2], inner[8:].decode())
            at += 4 + length
        return found

    def response(self) -> dict[int, bytes]:
        """The elements of the next response's command set."""
        kind, body = self.receive()
        assert kind == DATA, (kind, body)
        at, elements = 6, {}
        while at < len(body):
            _, number, length = struct.unpack_from("<HHL", body, at)
            elements[number] = body[at + 8 : at + 8 + length]
            at += 8 + length
        assert int.from_bytes(elements[0], "little") == len(body) - 6 - 12
        return elements

    def status(self) -> int:
        return int.from_bytes(self.response()[0x0900], "little")

    def store(
        self,
        data: bytes | None,
        context_id: int = 1,
        longest: int = 1 << 16,
        sop_class: str = CT,
        sop: str = SOP,
    ) -> int:
        told = command(1, sop_class.encode(), sop.encode(), data=data is not None)
        self.send(message(context_id, told, data, longest))
        return self.status()

    def echo(self) -> int:
        self.send(message(3, command(0x30, VERIFICATION.encode(), None, data=False), None))
        return self.status()

    def release(self) -> None:
        self.send(pdu(RELEASE_RQ))
        assert self.receive()[0] == RELEASE_RP
        self.socket.close()


def dcmtk(tool: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs a program of DCMTK. Where it is not installed the test is skipped; in CI it fails."""
    # pynetdicom puts programs of the same names, but other usage, beside our interpreter.
    own = os.path.dirname(sys.executable)
    folders = [folder for folder in os.get_exec_path() if os.path.realpath(folder) != own]
    path = shutil.which(tool, path=os.pathsep.join(folders))
    if path is None:
        words = f"{tool} of DCMTK is not installed (apt install dcmtk)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    # Without it DCMTK's clients wait 40 ms for each answer; the limits are for its own defects.
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run(
        [path, *arguments],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env=environment,
    )
