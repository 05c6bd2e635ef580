"""A sender that opens one association for each instance, as many modalities do.

    python sender.py PORT FOLDER SOP_CLASS...

DCMTK's clients keep one association, and starting one of them for each instance would measure the
start of processes. This opens an association proposing the SOP Classes, each in two presentation
contexts as storescu does, sends one file of FOLDER (of the first SOP Class) in PDUs as DCMTK cuts
them, releases, closes; and so on for each. It prints how many seconds that took, reading the files
included, its own start not. Any answer but success ends it.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path

import wire

_EXPLICIT, _IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
_TITLES = b"ANY-SCP".ljust(16) + b"SENDER".ljust(16)


def request(classes: list[bytes]) -> bytes:
    """An A-ASSOCIATE-RQ with a context for each SOP Class and transfer syntax, so that the receiver
    has no choice. Context 1 is the first SOP Class, explicit."""
    proposed = [(uid, syntax) for uid in classes for syntax in (_EXPLICIT, _IMPLICIT)]
    contexts = b""
    for at, (uid, syntax) in enumerate(proposed):
        head = bytes((2 * at + 1, 0, 0, 0))
        contexts += wire.item(0x20, head + wire.item(0x30, uid) + wire.item(0x40, syntax))
    return wire.associate(wire.ASSOCIATE_RQ, contexts, longest=16384, titles=_TITLES)


def receive(peer: socket.socket, kind: int) -> bytes:
    """The body of the next PDU, which must be of that type."""
    head = peer.recv(6, socket.MSG_WAITALL)
    if len(head) < 6 or head[0] != kind:
        raise SystemExit(f"expected PDU type {kind}, got {head!r}")
    return peer.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)


def longest_pdu(accepted: bytes) -> int:
    """The longest PDU to send to a receiver that answered so; context 1 must have been taken."""
    longest = wire.LONGEST
    for kind, value in wire.items(accepted, 68):
        if kind == 0x21 and value[0] == 1:
            syntax = wire.items(value, 4)[0][1].rstrip(b"\0")
            if value[2] or syntax != _EXPLICIT:
                raise SystemExit(
                    "the receiver does not take the SOP Class in Explicit VR Little Endian"
                )
        if kind == 0x50:
            for inner, number in wire.items(value, 0):
                if inner == 0x51:
                    longest = min(longest, int.from_bytes(number, "big") or longest)
    return longest


def command(sop_class: bytes, sop_instance: bytes) -> bytes:
    """A C-STORE-RQ (PS3.7 9.3.1.1)."""
    elements = (
        wire.command_element(0x0002, _padded(sop_class))
        + wire.command_element(0x0100, struct.pack("<H", 1))
        + wire.command_element(0x0110, struct.pack("<H", 1))
        + wire.command_element(0x0700, bytes(2))
        + wire.command_element(0x0800, struct.pack("<H", 1))
        + wire.command_element(0x1000, _padded(sop_instance))
    )
    return wire.pdu(wire.P_DATA, wire.pdv(1, 3, wire.command_set(elements)))


def _padded(uid: bytes) -> bytes:
    return uid + b"\0" * (len(uid) % 2)


def send(port: int, asked: bytes, sop_class: bytes, path: Path) -> None:
    """One association with one instance in it."""
    part10 = path.read_bytes()
    data = memoryview(part10)[144 + int.from_bytes(part10[140:144], "little") :]
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(asked)
        step = longest_pdu(receive(peer, wire.ASSOCIATE_AC)) - 6
        peer.sendall(command(sop_class, path.name.encode()))
        for at in range(0, len(data), step):
            last = at + step >= len(data)
            peer.sendall(wire.pdu(wire.P_DATA, wire.pdv(1, 2 if last else 0, data[at : at + step])))
        answered = wire.command_elements(receive(peer, wire.P_DATA)[6:])
        if answered[0x0900] != bytes(2):
            raise SystemExit(f"{path.name} was refused: {answered[0x0900].hex()}")
        peer.sendall(wire.pdu(wire.RELEASE_RQ, bytes(4)))
        receive(peer, wire.RELEASE_RP)


def main() -> None:
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    classes = [uid.encode() for uid in sys.argv[3:]]
    asked = request(classes)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    began = time.perf_counter()
    for path in files:
        send(port, asked, classes[0], path)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
