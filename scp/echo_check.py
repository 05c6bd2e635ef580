"""Is the service well? Asked by C-ECHO (PS3.4 Annex A), for health checks of containers.

``python -m plainpacs.scp.echo_check [HOST [PORT]]`` ends with 0 when it was answered with success,
else with 1 and why, on one line. It has the settings of the service from the same variables and
file (``PLAINPACS_PORT``, ``PLAINPACS_CONFIG`` …), and calls it by its first AE title, as the first
of the calling AE titles allowed, with TLS where the service has it.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
from collections.abc import Iterable

from plainpacs.archive.errors import BadSettings
from plainpacs.archive.part10 import IMPLEMENTATION_CLASS_UID
from plainpacs.archive.settings import Settings, load
from plainpacs.scp import pdu
from plainpacs.scp.dimse import COMMAND_BIT, LAST_BIT, CommandField
from plainpacs.scp.negotiation import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from plainpacs.scp.pdu import HEADER, PDU

_SECONDS = 5.0
_CONTEXT = 1
_NO_DATA_SET = 0x0101
_STATUS = 0x0900
_LONGEST_ANSWER = 1 << 16


class NotWell(Exception):
    """There was no C-ECHO answered with success, and why."""


def check(settings: Settings, host: str = "", port: int = 0) -> None:
    """Asks the service with these ``settings``. Raises NotWell, and OSError."""
    host = host or {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        settings.bind, settings.bind
    )
    with socket.create_connection((host, port or settings.port), timeout=_SECONDS) as plain:
        peer = _secured(plain, settings)
        calling = settings.calling_ae[0] if settings.calling_ae else "ECHOCHECK"
        peer.sendall(_associate(settings.aet[0], calling))
        kind, body = _receive(peer)
        if kind == PDU.ASSOCIATE_RJ:
            raise NotWell(f"rejected with {'/'.join(map(str, body[1:4]))}")
        if kind != PDU.ASSOCIATE_AC:
            raise NotWell(f"a PDU of type {kind} answered the request for an association")
        peer.sendall(pdu.data(_CONTEXT, bytes((COMMAND_BIT | LAST_BIT,)) + _echo()))
        kind, body = _receive(peer)
        if kind != PDU.P_DATA_TF or (status := _status(body[6:])) != 0:
            told = f"status {status:04X}" if kind == PDU.P_DATA_TF else f"a PDU of type {kind}"
            raise NotWell(f"{told} answered the C-ECHO")
        peer.sendall(HEADER.pack(PDU.RELEASE_RQ, 4) + bytes(4))
        _receive(peer)


def _secured(plain: socket.socket, settings: Settings) -> socket.socket:
    """With TLS where the service has it: encrypted, but whose certificate it is, is not asked."""
    if not settings.tls_cert:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # The service's own certificate serves as a client's, should it want one (--tls-verify).
    context.load_cert_chain(settings.tls_cert, settings.tls_key or settings.tls_cert)
    return context.wrap_socket(plain)


def _associate(called: str, calling: str) -> bytes:
    """An A-ASSOCIATE-RQ for Verification (PS3.8 9.3.2)."""
    context = bytes((_CONTEXT, 0, 0, 0)) + b"".join(
        (_item(0x30, VERIFICATION.encode()), _item(0x40, IMPLICIT_VR_LITTLE_ENDIAN.encode()))
    )
    user = _item(0x51, struct.pack(">L", 1 << 14)) + _item(0x52, IMPLEMENTATION_CLASS_UID.encode())
    body = b"".join(
        (
            struct.pack(">HH", 1, 0),
            called.encode().ljust(16),
            calling.encode().ljust(16),
            bytes(32),
            _item(0x10, b"1.2.840.10008.3.1.1.1"),
            _item(0x20, context),
            _item(0x50, user),
        )
    )
    return HEADER.pack(PDU.ASSOCIATE_RQ, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _echo() -> bytes:
    """The command set of a C-ECHO-RQ (PS3.7 9.3.5.1)."""
    uid = VERIFICATION.encode() + b"\0" * (len(VERIFICATION) % 2)
    numbers = ((0x0100, CommandField.C_ECHO_RQ), (0x0110, 1), (0x0800, _NO_DATA_SET))
    elements = _element(0x0002, uid) + b"".join(
        _element(number, struct.pack("<H", value)) for number, value in numbers
    )
    return _element(0, struct.pack("<L", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _status(command_set: bytes) -> int:
    at = 0
    while at + 8 <= len(command_set):
        _, number, length = struct.unpack_from("<HHL", command_set, at)
        if number == _STATUS:
            return int.from_bytes(command_set[at + 8 : at + 8 + length], "little")
        at += 8 + length
    raise NotWell("an answer without a status")


def _receive(peer: socket.socket) -> tuple[int, bytes]:
    """The type of the next PDU and what follows its header."""
    kind, length = HEADER.unpack(_exactly(peer, HEADER.size))
    if length > _LONGEST_ANSWER:
        raise NotWell(f"a PDU of {length} bytes")
    return kind, _exactly(peer, length)


def _exactly(peer: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        more = peer.recv(length - len(got))
        if not more:
            raise NotWell("the connection was closed")
        got += more
    return got


def main(arguments: Iterable[str]) -> int:
    """The exit status."""
    host, port = ([*arguments, "", ""])[:2]
    try:
        check(load({}, environ=os.environ), host, int(port or 0))
    except (NotWell, BadSettings, OSError, ValueError) as error:
        print(f"no C-ECHO: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
