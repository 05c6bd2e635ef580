"""The web server as a process: its socket, its limits, its end.

A client that is slow to say what it wants, or says too much of it, is cut off before any of this
program has heard of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from plainpacs.archive.app import logs
from plainpacs.archive.app.open_archive import open_archive
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.errors import BadSettings, InUse
from plainpacs.indexer.index import catalogue
from plainpacs.scp.network.tls import server_context
from plainpacs.scp.receiver.greeting import storescu_line
from plainpacs.scp.web.access import Access, Rules
from plainpacs.scp.web.app import Site
from plainpacs.scp.web.ohif import Ohif
from plainpacs.scp.web.places import Tree

log = logging.getLogger("plainpacs.scp")

_HEAD_SECONDS = 30.0
_LONGEST_HEAD = 64 << 10
_CONNECTIONS = 512
_IDLE_SECONDS = 30
_LAST_SECONDS = 5
_BEHIND_THE_RECEIVER = 10
"""How much nicer it is than who receives, where both run on one machine."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose requests' heads come within so many seconds, in so many bytes."""

    _head_bytes = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD and self._timer is None:
                self._wait_for_head()
        super().data_received(data)
        if self._in_head and self._head_bytes > _LONGEST_HEAD:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        if self._timer is None:
            self._wait_for_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._have_head()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(_HEAD_SECONDS, self._too_slow)

    def _have_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()


class _Server(uvicorn.Server):
    """Ends at a signal by returning, so that what is open is closed; uvicorn raises it again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        both = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in both]
        try:
            yield
        finally:
            for number, handler in zip(both, before, strict=True):
                signal.signal(number, handler)


def rules_of(settings: Settings) -> Rules:
    """Raises BadSettings when others than this machine could read without a password."""
    proxies = tuple(ipaddress.ip_network(one) for one in settings.web_proxies)
    if settings.web_user_header and not proxies:
        raise BadSettings("--web-user-header needs --web-proxies: the addresses it may come from")
    asked = settings.web_users or settings.web_user_header or settings.web_open == "on"
    if not asked and not _is_loopback(settings.web_bind):
        raise BadSettings(
            f"--web-bind {settings.web_bind} would show patients' data to everybody who reaches "
            "this machine: give --web-users FILE (made with htpasswd -B), or --web-open"
        )
    return Rules(
        settings.web_hosts,
        settings.web_users,
        settings.web_user_header.lower(),
        proxies,
        settings.web_origins,
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def listen(address: str, port: int) -> socket.socket:
    """Raises InUse, BadSettings."""
    try:
        family, _, protocol, _, where = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(
            family, socket.SOCK_STREAM, protocol
        )  # or asyncio sets no TCP_NODELAY
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_CONNECTIONS)
    except socket.gaierror as error:
        raise BadSettings(f"{address} is no address to listen on: {error.strerror}") from None
    except OSError as error:
        raise InUse(
            f"cannot listen on {address} port {port}: {error.strerror}; choose another --port"
        ) from None
    return listener


def serve(root: str, settings: Settings, parent: Iterator[object] | None = None) -> None:
    """Serves the archive at ``root`` until SIGTERM or SIGINT, or until its ``parent`` says nothing
    any more. Raises NotAnArchive, BadSettings, InUse, and with STOW-RS what ``Archive.open``
    raises."""
    logs.set_up(settings.log_level, settings.log_format)
    use_defaults(settings.default_charset)
    access = Access.by(rules_of(settings))
    tree = Tree(os.path.abspath(root))
    context = server_context(settings)
    ohif = Ohif(settings.ohif) if settings.ohif else None
    listener = listen(settings.web_bind, settings.web or 0)
    archive = open_archive(tree.path, settings) if settings.web_stow == "on" else None
    catalogue.remember()
    config = uvicorn.Config(
        Site(tree, access, archive, ohif, storescu_line(settings, settings.port)).application(),
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = _Server(config)
    if context is not None:
        _with_tls(config, context)
    port = listener.getsockname()[1]
    scheme = "https" if context is not None else "http"
    host = f"[{settings.web_bind}]" if ":" in settings.web_bind else settings.web_bind
    print(f"look at it: {scheme}://{host}:{port}/", file=sys.stderr, flush=True)
    if parent is not None:
        os.nice(_BEHIND_THE_RECEIVER)
        threading.Thread(target=_follow, args=(parent, server), daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        if archive is not None:
            archive.close()
        tree.close()


def _with_tls(config: uvicorn.Config, context: ssl.SSLContext) -> None:
    config.load()
    config.ssl = context


def _follow(parent: Iterator[object], server: uvicorn.Server) -> None:
    for _ in parent:  # what may change while we run is none of ours
        pass
    server.should_exit = True
