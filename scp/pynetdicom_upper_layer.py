"""Reading and writing PDUs beneath pynetdicom's state machine. See ``pynetdicom_seam``."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from plainpacs.scp.dimse import Message, MessageReader, ProtocolError

_LOG = logging.getLogger("plainpacs.scp")

WAIT = 1.0
"""Seconds after which every wait looks around, and that a peer has to close after an end."""

# A-ASSOCIATE-RQ is the only PDU beside P-DATA that is long: 128 contexts with all syntaxes.
_LONGEST_OTHER_PDU = 1 << 20
_P_DATA = 0x04
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_PDU_TYPES = range(0x01, 0x08)
_WAITING_MESSAGES = 2
_ENDED = "Sta13"
_ESTABLISHED = "Sta6"
_EXPECTED_EVENTS = ("Evt12", "Evt16")  # A-RELEASE-RQ, A-ABORT


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer has to keep to. Times in seconds, lengths in bytes."""

    pdu_timeout: float
    """For a PDU, from its first byte; and for an association to be requested."""
    idle_timeout: float
    announced_pdu: int

    @property
    def longest_pdu(self) -> int:
        # Some senders count the PDU's own header, or that of a value, as outside the limit.
        return self.announced_pdu + 64


class Bell:
    """Wakes the thread of an association: a message, an end, or something to stop for."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        self._rung.set()

    def wait(self, seconds: float) -> None:
        self._rung.wait(seconds)
        self._rung.clear()


class RingingQueue(queue.Queue[Any]):
    def __init__(self, bell: Bell) -> None:
        super().__init__()
        self._bell = bell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._bell.ring()


class Socket(AssociationSocket):
    """Reads and writes with a deadline; waits for the socket and for a wake-up together."""

    def __init__(self, assoc: Association, client: socket.socket, limits: Limits) -> None:
        super().__init__(assoc, client_socket=client)
        self._limits = limits
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._deadline = 0.0
        self._pipe_lock = threading.Lock()
        self._pipe_open = True

    @property
    def is_open(self) -> bool:
        return self.socket is not None and self.socket.fileno() >= 0

    def wake(self) -> None:
        """Ends a wait in ``readable``, now or the next one."""
        with self._pipe_lock, contextlib.suppress(BlockingIOError):
            if self._pipe_open:
                os.write(self._write_end, b"\0")

    def readable(self, seconds: float, *, heed_peer: bool = True) -> bool:
        """Waits until the peer sent something or left, or ``wake``, or ``seconds`` are over."""
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        client = self.socket
        if heed_peer and client is not None and client.fileno() >= 0:
            poll.register(client.fileno(), select.POLLIN)
        happened = [fd for fd, _ in poll.poll(seconds * 1000)]
        if self._read_end in happened:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read_end, 4096)
        return any(fd != self._read_end for fd in happened)

    def begin(self, seconds: float) -> None:
        """From now, ``seconds`` for all that ``receive`` is to get."""
        self._deadline = time.monotonic() + seconds
        # Senders that leave Nagle's algorithm on (DCMTK's, pynetdicom's) hold the data set back
        # until the command is acknowledged, which Linux puts off for 40 ms. The option wears off.
        if _QUICKACK is not None and self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def receive(self, length: int) -> bytearray:
        """``length`` bytes, fewer when the peer closed. Raises OSError, TimeoutError included."""
        client = self.socket
        if client is None:
            return bytearray()
        # Room grows with what comes, not with the length that a peer merely claims.
        received = bytearray(min(length, 1 << 20))
        have = 0
        while have < length:
            client.settimeout(max(self._deadline - time.monotonic(), 0.001))
            if have == len(received):
                received.extend(bytes(min(length - have, len(received))))
            with memoryview(received) as view:
                got = client.recv_into(view[have:])
            if not got:
                break
            have += got
        del received[have:]
        return received

    def discard(self) -> bool:
        """Drops some of what has come; whether the peer closed."""
        try:
            return self.socket is None or not self.socket.recv(1 << 16)
        except OSError:
            return True

    def send(self, bytestream: bytes) -> None:
        """Sends all, or ends the association when the peer does not take it in time."""
        try:
            if self.socket is not None:
                self.socket.settimeout(self._limits.pdu_timeout)
                self.socket.sendall(bytestream)
        except OSError:
            self.event_queue.put("Evt17")

    def release(self) -> None:
        """Closes everything; nothing may follow."""
        self._shutdown_socket()
        with self._pipe_lock:
            if self._pipe_open:
                self._pipe_open = False
                os.close(self._read_end)
                os.close(self._write_end)


class UpperLayer(DULServiceProvider):
    """The upper layer: reads PDUs for the state machine, and P-DATA straight into messages."""

    socket: Socket

    def __init__(self, assoc: Association, bell: Bell, limits: Limits) -> None:
        super().__init__(assoc)
        self._bell = bell
        self._limits = limits
        self.inbox: queue.Queue[Message] = RingingQueue(bell)
        self.to_user_queue = RingingQueue(bell)
        self._run_loop_delay = 0  # it waits in _is_transport_event
        self._reader = MessageReader()
        self.fault = ""
        """Why we aborted, when the peer broke the protocol."""

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:
            # The state machine raises on events that cannot be in its state, such as a second
            # end of a connection that ended already.
            _LOG.debug("upper layer ended: %s", error, exc_info=True)
            self.fault = self.fault or f"{type(error).__name__} in the upper layer"
        finally:
            self._bell.ring()

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self.socket.wake()

    def kill_dul(self) -> None:
        super().kill_dul()
        self.socket.wake()

    def _is_transport_event(self) -> bool:
        if not self.socket.is_open:
            self.event_queue.put("Evt17")
            return True
        ended = self.state_machine.current_state == _ENDED
        # What a peer sends while it is owed answers waits in its own buffers.
        heed = ended or self.inbox.qsize() < _WAITING_MESSAGES
        patience = WAIT if self.event_queue.empty() else 0.0
        if self.socket.readable(patience, heed_peer=heed):
            if ended:
                self._drain()
            else:
                self._read_pdu_data()
            return True
        if ended and patience and not self._kill_thread:
            self.socket.close()
        return False

    def _drain(self) -> None:
        """Nothing a peer sends after the end counts but that it closes."""
        if self.socket.discard():
            self.event_queue.put("Evt17")

    def _read_pdu_data(self) -> None:
        """Reads one PDU and queues its event (PS3.8 9.2.2; Evt17: connection lost, Evt19: an
        invalid PDU). P-DATA goes to the messages without the state machine's help."""
        self.socket.begin(self._limits.pdu_timeout)
        try:
            header = self.socket.receive(6)
            if len(header) < 6:
                self.event_queue.put("Evt17")
                return
            kind, length = header[0], int.from_bytes(header[2:6], "big")
            longest = self._limits.longest_pdu if kind == _P_DATA else _LONGEST_OTHER_PDU
            if kind not in _PDU_TYPES or length > longest:
                self._invalid(f"a PDU of type {kind} and {length} bytes")
                return
            body = self.socket.receive(length)
        except TimeoutError:
            seconds = self._limits.pdu_timeout
            self._invalid(f"a PDU did not arrive within {seconds:g} s (--pdu-timeout)")
            return
        except OSError:
            self.event_queue.put("Evt17")
            return
        if len(body) < length:
            self.event_queue.put("Evt17")
        elif kind == _P_DATA and self.state_machine.current_state == _ESTABLISHED:
            self._take(body)
        else:
            self._take_other(header + body)

    def _take(self, field: bytearray) -> None:
        try:
            for message in self._reader.take(field):
                self.inbox.put(message)
        except ProtocolError as error:
            self._invalid(str(error))

    def _take_other(self, encoded: bytearray) -> None:
        try:
            pdu, event = self._decode_pdu(encoded)
            if event == "Evt6":
                # Done again by the state machine, whose thread an error would end.
                pdu.to_primitive()
        except Exception as error:
            # pynetdicom's decoders raise whatever they stumble over, assertions included.
            self._invalid(f"a PDU of type {encoded[0]} that cannot be read ({error})")
            return
        if self.state_machine.current_state == _ESTABLISHED and event not in _EXPECTED_EVENTS:
            self.fault = f"a PDU of type {encoded[0]} within an association"
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)

    def _invalid(self, what: str) -> None:
        self.fault = self.fault or what
        self.event_queue.put("Evt19")
