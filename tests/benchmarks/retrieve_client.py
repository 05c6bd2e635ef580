"""A client of C-GET and C-MOVE that does no more with what comes than to count it.

So that it is the server that is measured: DCMTK's clients take longer for an instance than servers
do. It shares no code with what it measures but that which encodes requests.
"""

from __future__ import annotations

import socket
import struct
import threading

from plainpacs.archive.dicom.identifier import EXPLICIT
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.scp.network.dimse import CommandField
from tests.benchmarks.receiving.receivers import Failed
from tests.support.dimse import Element, command_set
from tests.support.dimse import request as dimse_request
from tests.support.peer import associate_rq, context_item, item

CT = "1.2.840.10008.5.1.4.1.1.2"
GET, MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
_PDU = struct.Struct(">BBL")
_VALUE = struct.Struct(">LBB")
_ACCEPT, _DATA, _RELEASE_RQ = 2, 4, 5
_RELEASE_RP = _PDU.pack(6, 0, 4) + bytes(4)
_ITEM = struct.Struct(">BBH")


def get(port: int, study: str, calling: str, longest_pdu: int) -> int:
    """How many instances came. Raises Failed unless the server says that this is all."""
    contexts = context_item(1, GET, [EXPLICIT]) + context_item(3, CT, [EXPLICIT])
    role = item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\0\1")
    with _connection(port) as peer:
        peer.sendall(associate_rq(contexts, calling=calling, user=_user(longest_pdu) + role))
        return _Conversation(peer).run(_asked(GET, CommandField.C_GET_RQ, study, {}))


def move(port: int, study: str, destination: str, own_port: int, longest_pdu: int) -> int:
    """As ``get``, to a destination of ours on ``own_port``."""
    stored: list[int] = []
    with socket.create_server(("127.0.0.1", own_port)) as listener:
        thread = threading.Thread(target=lambda: stored.append(_receive(listener, longest_pdu)))
        thread.start()
        with _connection(port) as peer:
            context = context_item(1, MOVE, [EXPLICIT])
            peer.sendall(associate_rq(context, calling=destination, user=_user(longest_pdu)))
            more = {Element.MOVE_DESTINATION: destination}
            _Conversation(peer).run(_asked(MOVE, CommandField.C_MOVE_RQ, study, more))
        thread.join(60)
    return sum(stored)


def _user(longest_pdu: int) -> bytes:
    return item(0x51, longest_pdu.to_bytes(4, "big")) + item(0x52, b"1.2.3.4")


def _connection(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=600)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def _asked(model: str, field: CommandField, study: str, more: dict[Element, str]) -> bytes:
    elements = {Element.AFFECTED_SOP_CLASS_UID: model, Element.PRIORITY: 0, **more}
    command = dimse_request(field, 1, elements, has_data_set=True)
    data = encode({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study}, EXPLICIT)
    return _message(1, command) + _message(1, data, 2)


def _message(context_id: int, fragment: bytes, control: int = 3) -> bytes:
    head = _PDU.pack(_DATA, 0, len(fragment) + 6)
    return head + _VALUE.pack(len(fragment) + 2, context_id, control) + fragment


def _receive(listener: socket.socket, longest_pdu: int) -> int:
    """Accepts one association, and everything on it."""
    peer, _ = listener.accept()
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conversation = _Conversation(peer)
        conversation.accept(longest_pdu)
        return conversation.run(b"")


class _Conversation:
    """One association. What comes of data sets is skipped."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._buffer = memoryview(bytearray(1 << 20))
        self._at = self._end = 0
        self._stored = 0
        self._command = b""

    def accept(self, longest_pdu: int) -> None:
        """Accepts every context, in its first transfer syntax."""
        self._need(_PDU.size)
        _, _, length = _PDU.unpack_from(self._buffer, self._at)
        self._need(_PDU.size + length)
        body = bytes(self._buffer[self._at + _PDU.size : self._at + _PDU.size + length])
        self._at += _PDU.size + length
        results, at = b"", 68
        while at < len(body):
            kind, _, size = _ITEM.unpack_from(body, at)
            if kind == 0x20:
                inner = body[at + 4 : at + 4 + size]
                syntax = inner[8 + int.from_bytes(inner[6:8], "big") :]
                syntax = syntax[: 4 + int.from_bytes(syntax[2:4], "big")]
                results += _ITEM.pack(0x21, 0, 4 + len(syntax)) + bytes((inner[0], 0, 0, 0))
                results += syntax
            at += 4 + size
        user = _ITEM.pack(0x51, 0, 4) + longest_pdu.to_bytes(4, "big")
        answer = bytes((0, 1, 0, 0)) + body[4:68] + results
        answer += _ITEM.pack(0x50, 0, len(user)) + user
        self._peer.sendall(_PDU.pack(_ACCEPT, 0, len(answer)) + answer)

    def run(self, asked: bytes) -> int:
        """Answers every C-STORE until the request is answered, or the peer releases."""
        while True:
            self._need(_PDU.size)
            kind, _, length = _PDU.unpack_from(self._buffer, self._at)
            self._at += _PDU.size
            if kind == _ACCEPT:
                self._skip(length)
                self._peer.sendall(asked)
            elif kind == _RELEASE_RQ:
                self._peer.sendall(_RELEASE_RP)
                return self._stored
            elif kind != _DATA:
                raise Failed(f"a PDU of type {kind} came")
            elif self._values(length):
                return self._stored

    def _values(self, left: int) -> bool:
        """Whether the last answer came."""
        while left:
            self._need(_VALUE.size)
            length, context_id, control = _VALUE.unpack_from(self._buffer, self._at)
            self._at += _VALUE.size
            left -= length + 4
            if control & 1:
                self._need(length - 2)
                self._command = bytes(self._buffer[self._at : self._at + length - 2])
                self._at += length - 2
                if self._is_last(self._command):
                    return True
                continue
            self._skip(length - 2)
            if control & 2:
                self._stored += 1
                self._peer.sendall(_message(context_id, _success(self._command)))
        return False

    def _is_last(self, command: bytes) -> bool:
        if not _number(command, 0x0100) & 0x8000:
            return False
        status = _number(command, 0x0900)
        if status not in (0, 0xFF00):
            raise Failed(f"status {status:04X}")
        return status == 0

    def _skip(self, length: int) -> None:
        while length:
            if self._at == self._end:
                self._receive()
            taken = min(length, self._end - self._at)
            self._at += taken
            length -= taken

    def _need(self, length: int) -> None:
        while self._end - self._at < length:
            self._receive()

    def _receive(self) -> None:
        if self._at == self._end:
            self._at = self._end = 0
        elif self._end == len(self._buffer):
            self._buffer[: self._end - self._at] = bytes(self._buffer[self._at : self._end])
            self._at, self._end = 0, self._end - self._at
        got = self._peer.recv_into(self._buffer[self._end :])
        if not got:
            raise Failed("the connection was closed")
        self._end += got


def _number(command: bytes, element: int) -> int:
    at = command.index(struct.pack("<HHL", 0, element, 2))
    return int.from_bytes(command[at + 8 : at + 10], "little")


def _success(command: bytes) -> bytes:
    elements: dict[Element, int | str] = {
        Element.COMMAND_FIELD: 0x8001,
        Element.MESSAGE_ID_BEING_RESPONDED_TO: _number(command, 0x0110),
        Element.AFFECTED_SOP_CLASS_UID: CT,
        Element.STATUS: 0,
    }
    return command_set(elements, has_data_set=False)
