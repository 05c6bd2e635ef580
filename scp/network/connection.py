"""A connection to a peer, on which nothing waits longer than it may, nor beyond a stop.

Waiting is by ``poll``, because ``select`` fails from file descriptor 1024 on.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from plainpacs.archive.buffer import Buffer

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_GRACE_SECONDS = 1.0
_SCRATCH_BYTES = 1 << 16
_MOST_BUFFERS = 512  # for one system call: the least that systems have as IOV_MAX is 1,024


class Stopping(Exception):
    """The receiver stops: there is nothing more to wait for."""


class Transport(Protocol):
    """What an association reads from and answers on: a ``Connection``, or one with TLS over it."""

    @property
    def stopping(self) -> int: ...
    def receive(self, into: memoryview) -> int | None: ...
    def wait(self, seconds: float) -> None: ...
    def send(self, data: bytes, seconds: float) -> None: ...
    def send_all(self, buffers: Sequence[Buffer], seconds: float) -> None: ...
    def await_close(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class Connection:
    """Owns the connected socket ``peer``. ``stopping`` is a descriptor that is readable from the
    moment on that the receiver stops; negative when nothing stops it.
    """

    def __init__(self, peer: socket.socket, stopping: int) -> None:
        self._socket = peer
        self._stopping = stopping
        peer.setblocking(False)
        # An answer is one small segment: it must not wait for the acknowledgement of another.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._incoming = select.poll()
        self._incoming.register(peer, select.POLLIN)
        if stopping >= 0:
            self._incoming.register(stopping, select.POLLIN)

    @property
    def stopping(self) -> int:
        return self._stopping

    def receive(self, into: memoryview) -> int | None:
        """How many bytes came: 0 when the peer closed, None when there are none yet.

        Raises OSError when the connection broke.
        """
        try:
            return self._socket.recv_into(into)
        except BlockingIOError:
            return None

    def wait(self, seconds: float) -> None:
        """Waits until the peer sends or closes. Raises TimeoutError, Stopping, OSError."""
        # Senders that leave Nagle's algorithm on (DCMTK's, pynetdicom's) hold the data set back
        # until the command is acknowledged, which Linux puts off for 40 ms. The option wears off.
        if _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        self._wait(self._incoming, seconds)

    def _wait(self, poll: select.poll, seconds: float) -> None:
        happened = poll.poll(max(seconds, 0.0) * 1000)
        if not happened:
            raise TimeoutError
        if any(fd == self._stopping for fd, _ in happened):
            raise Stopping

    def send(self, data: bytes, seconds: float) -> None:
        """Sends all of ``data``. Raises TimeoutError when the peer does not take it in time, which
        is soon once the receiver stops; and OSError.
        """
        with contextlib.suppress(BlockingIOError):
            sent = self._socket.send(data)
            if sent == len(data):
                return
            data = data[sent:]
        self._send_rest([memoryview(data)], seconds)

    def send_all(self, buffers: Sequence[Buffer], seconds: float) -> None:
        """Sends all of ``buffers``, of bytes, without copying them together; as ``send``."""
        self._send_rest([buffer for buffer in buffers if len(buffer)], seconds)

    def _send_rest(self, rest: list[Buffer], seconds: float) -> None:
        deadline = 0.0
        heed_stop = True
        at = 0
        while at < len(rest):
            try:
                sent = self._socket.sendmsg(rest[at : at + _MOST_BUFFERS])
            except BlockingIOError:
                sent = 0
            went = sent > 0
            while at < len(rest) and sent >= len(rest[at]):
                sent -= len(rest[at])
                at += 1
            if went:
                if sent:
                    rest[at] = memoryview(rest[at])[sent:]
                continue
            deadline = deadline or time.monotonic() + seconds
            outgoing = select.poll()
            outgoing.register(self._socket, select.POLLOUT)
            if heed_stop and self._stopping >= 0:
                outgoing.register(self._stopping, select.POLLIN)
            try:
                self._wait(outgoing, deadline - time.monotonic())
            except Stopping:
                heed_stop = False
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)

    def await_close(self, seconds: float) -> None:
        """Drops all that comes until the peer closes, for ``seconds`` or less in a stop.

        Closing first, with bytes unread, would take back what was sent last.
        """
        scratch = memoryview(bytearray(_SCRATCH_BYTES))
        deadline = time.monotonic() + seconds
        heed_stop = True
        with contextlib.suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                got = self.receive(scratch)
                if got == 0:
                    return
                if got is not None:
                    continue
                try:
                    self.wait(left)
                except Stopping:
                    if heed_stop:
                        heed_stop = False
                        self._incoming.unregister(self._stopping)
                        deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)

    def close(self) -> None:
        self._socket.close()
