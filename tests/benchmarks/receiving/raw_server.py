"""The floor: receives instances, writes the bytes to files, answers 0000, and nothing else.

    python raw_server.py FOLDER

No header is read, no digest made, nothing synced, nothing checked. One thread per connection.
Prints its port, then serves until it is killed.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading

import wire

_BUFFER = 4 << 20
_FRAGMENTS = 500  # writev takes 1,024 pieces at most
_ANNOUNCED = 1 << 20


class Connection:
    """One association; ``serve`` returns when the peer has released it or gone away."""

    def __init__(self, peer: socket.socket, folder: str) -> None:
        self._socket = peer
        self._folder = folder
        self._buffer = memoryview(bytearray(_BUFFER + _ANNOUNCED + 12))
        self._start = self._end = 0
        self._pieces: list[memoryview] = []
        self._file = -1
        self._command: dict[int, bytes] = {}

    def serve(self) -> None:
        with self._socket:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                if not self._have(6):
                    return
                kind, length = struct.unpack_from(">BxL", self._buffer, self._start)
                if not self._have(6 + length):
                    return
                body = self._buffer[self._start + 6 : self._start + 6 + length]
                self._start += 6 + length
                if kind == wire.P_DATA:
                    self._take(body)
                elif kind == wire.ASSOCIATE_RQ:
                    self._socket.sendall(accepted(bytes(body)))
                elif kind == wire.RELEASE_RQ:
                    self._socket.sendall(wire.pdu(wire.RELEASE_RP, bytes(4)))
                else:
                    return

    def _have(self, length: int) -> bool:
        """Whether that many bytes lie at ``_start``, received if need be."""
        if self._start == self._end and not self._pieces:
            self._start = self._end = 0  # the memory that the processor still has at hand
        while self._end - self._start < length:
            if len(self._buffer) - self._start < max(length, _ANNOUNCED):
                self._write()
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            got = self._socket.recv_into(self._buffer[self._end :])
            if not got:
                return False
            self._end += got
        return True

    def _take(self, body: memoryview) -> None:
        at = 0
        while at < len(body):
            length, context, control = struct.unpack_from(">LBB", body, at)
            fragment = body[at + 6 : at + 4 + length]
            at += 4 + length
            if control & 1:
                self._command = wire.command_elements(bytes(fragment))
                name = self._command[0x1000].rstrip(b"\0").decode()
                self._file = os.open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o644)
                continue
            self._pieces.append(fragment)
            last = control & 2
            if last or len(self._pieces) == _FRAGMENTS:
                self._write()
            if last:
                os.close(self._file)
                self._socket.sendall(answer(context, self._command))

    def _write(self) -> None:
        pieces, self._pieces = self._pieces, []
        while pieces:
            written = os.writev(self._file, pieces)
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][written:]


def accepted(request: bytes) -> bytes:
    """The A-ASSOCIATE-AC that takes the first transfer syntax of every context."""
    contexts = b""
    for kind, value in wire.items(request, 68):
        if kind == 0x20:
            syntax = next(inner for found, inner in wire.items(value, 4) if found == 0x40)
            contexts += wire.item(0x21, bytes((value[0], 0, 0, 0)) + wire.item(0x40, syntax))
    return wire.associate(wire.ASSOCIATE_AC, contexts, longest=_ANNOUNCED, titles=request[4:36])


def answer(context: int, request: dict[int, bytes]) -> bytes:
    """The C-STORE-RSP with status 0000 (PS3.7 9.3.1.2)."""
    elements = (
        wire.command_element(0x0002, request[0x0002])
        + wire.command_element(0x0100, struct.pack("<H", 0x8001))
        + wire.command_element(0x0120, request[0x0110])
        + wire.command_element(0x0800, struct.pack("<H", 0x0101))
        + wire.command_element(0x0900, bytes(2))
        + wire.command_element(0x1000, request[0x1000])
    )
    return wire.pdu(wire.P_DATA, wire.pdv(context, 3, wire.command_set(elements)))


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            peer, _ = listening.accept()
            connection = Connection(peer, sys.argv[1])
            threading.Thread(target=connection.serve, daemon=True).start()


if __name__ == "__main__":
    main()
