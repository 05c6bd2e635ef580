"""A sender that opens one association for each instance, as many modalities do.

    python sender.py PORT CONTEXTS FOLDER

DCMTK's clients keep one association, and starting one of them for each instance would measure the
start of processes. This opens an association proposing CONTEXTS presentation contexts, sends one
file of FOLDER in PDUs as DCMTK cuts them, releases, closes; and so on for each. It prints how many
seconds that took, reading the files included, its own start not. Any answer but success ends it.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path

import wire
from pynetdicom import StoragePresentationContexts

_CT = b"1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT, _IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
_TITLES = b"ANY-SCP".ljust(16) + b"SENDER".ljust(16)


def request(count: int) -> bytes:
    """An A-ASSOCIATE-RQ of ``count`` contexts: like storescu, two for each storage SOP Class.

    One for each transfer syntax, so that the receiver has no choice; context 1 is CT, explicit.
    """
    known = (str(context.abstract_syntax).encode() for context in StoragePresentationContexts)
    classes = [_CT, *(uid for uid in known if uid != _CT)]
    wanted = [(uid, syntax) for uid in classes for syntax in (_EXPLICIT, _IMPLICIT)][:count]
    contexts = b"".join(
        wire.item(
            0x20,
            bytes((2 * at + 1, 0, 0, 0)) + wire.item(0x30, uid) + wire.item(0x40, syntax),
        )
        for at, (uid, syntax) in enumerate(wanted)
    )
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
                raise SystemExit("the receiver does not take CT in Explicit VR Little Endian")
        if kind == 0x50:
            for inner, number in wire.items(value, 0):
                if inner == 0x51:
                    longest = min(longest, int.from_bytes(number, "big") or longest)
    return longest


def command(sop_instance: bytes) -> bytes:
    """A C-STORE-RQ (PS3.7 9.3.1.1)."""
    elements = (
        wire.command_element(0x0002, _CT + b"\0")
        + wire.command_element(0x0100, struct.pack("<H", 1))
        + wire.command_element(0x0110, struct.pack("<H", 1))
        + wire.command_element(0x0700, bytes(2))
        + wire.command_element(0x0800, struct.pack("<H", 1))
        + wire.command_element(0x1000, sop_instance + b"\0" * (len(sop_instance) % 2))
    )
    return wire.pdu(wire.P_DATA, wire.pdv(1, 3, wire.command_set(elements)))


def send(port: int, asked: bytes, path: Path) -> None:
    """One association with one instance in it."""
    part10 = path.read_bytes()
    data = memoryview(part10)[144 + int.from_bytes(part10[140:144], "little") :]
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(asked)
        step = longest_pdu(receive(peer, wire.ASSOCIATE_AC)) - 6
        peer.sendall(command(path.name.encode()))
        for at in range(0, len(data), step):
            last = at + step >= len(data)
            peer.sendall(wire.pdu(wire.P_DATA, wire.pdv(1, 2 if last else 0, data[at : at + step])))
        answered = wire.command_elements(receive(peer, wire.P_DATA)[6:])
        if answered[0x0900] != bytes(2):
            raise SystemExit(f"{path.name} was refused: {answered[0x0900].hex()}")
        peer.sendall(wire.pdu(wire.RELEASE_RQ, bytes(4)))
        receive(peer, wire.RELEASE_RP)


def main() -> None:
    port, contexts, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    asked = request(contexts)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    began = time.perf_counter()
    for path in files:
        send(port, asked, path)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
