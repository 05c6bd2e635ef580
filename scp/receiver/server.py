"""Listening: connections are accepted in one thread, and each gets a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import threading
from collections.abc import Callable

from plainpacs.scp.network.connection import Connection
from plainpacs.scp.receiver.admission import Admissions

_LOG = logging.getLogger("plainpacs.scp")

_BACKLOG = 128
_PAUSE_MILLISECONDS = 200
_HESITATION_MILLISECONDS = 2
"""Time for a process with fewer connections to take the next."""
_MOST_IDLE = 4
"""Threads that wait for the next connection, because to start one takes longer than to wake it."""

_Given = queue.SimpleQueue[socket.socket | None]
"""The next connection of an idle thread; None when there will be none."""


def listen(bind: str, port: int) -> socket.socket:
    """A socket that listens on ``bind`` (a name or address), or on all addresses when empty:
    those of IPv4 and of IPv6, where the system has both. Raises OSError.
    """
    if not bind:
        with contextlib.suppress(OSError):
            return _listening(("::", port), socket.AF_INET6, both=True)
        bind = "0.0.0.0"
    family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
    return _listening(address[:2], family, both=False)  # type: ignore[arg-type]  # host and port


def _listening(address: tuple[str, int], family: int, *, both: bool) -> socket.socket:
    listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    listener.setblocking(False)
    return listener


class Server:
    """Serves each connection to ``listener`` with ``serve(connection, address)`` in a thread.

    Takes the socket over. Nothing is accepted before ``start``.
    """

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[Connection, str], None],
        most_connections: int,
        admissions: Admissions,
    ) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._serve = serve
        self.most_connections = most_connections
        """May be changed at any time, as may ``most_from_one``."""
        self.most_from_one = most_connections
        self._admissions = admissions
        self._full = False
        # Readable, for all who wait for it, once its other end is closed.
        self._stopping, self._stop = os.pipe()
        self._living: dict[socket.socket, str] = {}
        """The connections, and the address of each."""
        self._threads: set[threading.Thread] = set()
        self._idle: list[_Given] = []
        self._stops = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept_all, name="listener", daemon=True)

    @property
    def is_accepting(self) -> bool:
        """Whether the thread that accepts lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Accepts connections from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Accepts no more, and returns when every connection ended. Once; also when not started.

        What waits for a peer ends at once, or within a second where something is to be said yet.
        """
        os.close(self._stop)
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        with self._lock:
            self._stops = True
            threads = list(self._threads)
            for idle in self._idle:
                idle.put(None)
        for thread in threads:
            thread.join()
        os.close(self._stopping)

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._stopping, select.POLLIN)
        pause = select.poll()
        pause.register(self._stopping, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while all(fd != self._stopping for fd, _ in poll.poll()):
            if self._admissions.is_busier():
                pause.poll(_HESITATION_MILLISECONDS)
            try:
                self._accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # another process has it, or it went away again
            except Exception as error:
                # No descriptors, memory or threads left: it will pass, and those who live go on.
                _LOG.warning("connection not accepted: %s", error)
                pause.poll(_PAUSE_MILLISECONDS)

    def _accept(self) -> None:
        peer, address = self._listener.accept()
        try:
            name = _shown(str(address[0]))
            if self._has_room(name):
                self._begin(peer, name)
                return
        except BaseException:
            peer.close()
            raise
        peer.close()

    def _has_room(self, address: str) -> bool:
        with self._lock:
            count = len(self._living)
            of_them = sum(peer == address for peer in self._living.values())
        if count >= self.most_connections:
            words, flag = f"{count} connections are open", "--max-associations N"
        elif of_them >= self.most_from_one:
            words, flag = f"{of_them} of its connections are open", "--max-associations-per-peer N"
        else:
            self._full = False
            return True
        if not self._full:  # said once, until there is room again
            self._full = True
            _LOG.warning(
                "connections refused: somebody at %s: %s already; flag to accept more: %s",
                address,
                words,
                flag,
            )
        return False

    def _begin(self, peer: socket.socket, address: str) -> None:
        # A handshake (TLS) is in the thread too: nobody else waits for it.
        with self._lock:
            self._living[peer] = address
            idle = self._idle.pop() if self._idle else None
        self._admissions.opened()
        if idle is not None:
            idle.put(peer)
            return
        thread = threading.Thread(target=self._work, args=(peer,), daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._threads.discard(thread)
            self._forget(peer)
            raise

    def _work(self, peer: socket.socket | None) -> None:
        """One connection after another, as long as there are some for this thread."""
        given: _Given = queue.SimpleQueue()
        thread = threading.current_thread()
        while peer is not None:
            thread.name = f"association from {self._living[peer]}"
            self._run(peer)
            thread.name = "waits for a connection"
            with self._lock:
                waits = not self._stops and len(self._idle) < _MOST_IDLE
                if waits:
                    self._idle.append(given)
            peer = given.get() if waits else None
        with self._lock:
            self._threads.discard(thread)

    def _run(self, peer: socket.socket) -> None:
        address = self._living[peer]
        try:
            self._serve(Connection(peer, self._stopping), address)
        except OSError as error:  # the peer was gone before it began
            _LOG.debug("connection failed: somebody at %s: %s", address, error)
        except Exception:
            _LOG.exception("connection failed: somebody at %s", address)
        finally:
            peer.close()
            self._forget(peer)

    def _forget(self, peer: socket.socket) -> None:
        self._admissions.closed()
        with self._lock:
            self._living.pop(peer, None)


def _shown(address: str) -> str:
    """An IPv4 address as such also when it came by way of IPv6; no zone."""
    return address.removeprefix("::ffff:").partition("%")[0]
