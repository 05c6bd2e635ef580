"""Who may ask: Host names, users, other sites' pages; and the headers that every answer has.

A page of another site can make a browser send requests here with the user's own rights. So a Host
that is not ours is refused (DNS rebinding), nothing is shared with other origins unless they are
listed, and what changes something must come from a page of ours.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import bcrypt
from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plainpacs.archive.errors import BadSettings

log = logging.getLogger("plainpacs.scp")

LONGEST_ADDRESS = 8192
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_VERIFIED_SECONDS = 300.0
_FAILURES = 10
_FAILURE_SECONDS = 60.0
_MOST_ADDRESSES = 10_000
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_CSP = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; sandbox"
_EXPOSED = "Warning, Content-Location, ETag, Content-Range"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Rules:
    """``hosts``: names besides those of this machine's loopback; ``users``: a file of
    ``name:bcrypt`` lines as ``htpasswd -B`` writes; ``user_header``: of a proxy among ``proxies``,
    which has checked who it is; ``origins``: of other sites whose pages may read."""

    hosts: tuple[str, ...] = ()
    users: str = ""
    user_header: str = ""
    proxies: tuple[Network, ...] = ()
    origins: tuple[str, ...] = ()


class Users:
    """The file of users, read again when it changes. Raises BadSettings."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, float] = OrderedDict()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._checking: dict[bytes, asyncio.Future[bool]] = {}
        self._facts = (0, 0)
        self._known: dict[str, bytes] = {}
        self._read()

    def _read(self) -> None:
        try:
            facts = os.stat(self._path)
            if (facts.st_mtime_ns, facts.st_size) == self._facts:
                return
            with open(self._path, "rb") as file:
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise BadSettings(f"cannot read the users in {self._path}: {error.strerror}") from None
        known = {}
        for line in lines:
            name, colon, hashed = line.strip().partition(":")
            if colon and name and not name.startswith("#"):
                if not hashed.startswith(("$2a$", "$2b$", "$2y$")):
                    raise BadSettings(
                        f"{self._path}: the password of {name} is not bcrypt; "
                        f"set it with: htpasswd -B {self._path} {name}"
                    )
                known[name] = hashed.encode()
        self._known = known
        self._facts = (facts.st_mtime_ns, facts.st_size)
        self._verified.clear()

    def is_barred(self, peer: str) -> bool:
        """Whether too many passwords from there were wrong a moment ago."""
        count, since = self._failed.get(peer, (0, 0.0))
        return count >= _FAILURES and time.monotonic() - since < _FAILURE_SECONDS

    async def name_of(self, header: str, peer: str) -> str:
        """The user whose password the Authorization header has; empty when there is none."""
        kind, _, encoded = header.partition(" ")
        if kind.lower() != "basic":
            return ""
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return ""
        try:
            self._read()
        except BadSettings as error:
            log.warning("%s", error)
        key = hmac.digest(self._key, f"{name}\0{password}".encode(), hashlib.sha256)
        until = self._verified.get(key)
        if until is not None and time.monotonic() < until:
            return name
        checking = self._checking.get(key)
        if checking is None:  # of the many requests that a browser makes at once, the first
            if self.is_barred(peer):
                return ""
            self._count(peer)  # before it is judged, so that many at once are not all judged
            checking = asyncio.ensure_future(self._check(name, password, key, peer))
            self._checking[key] = checking
            checking.add_done_callback(lambda _: self._checking.pop(key, None))
        return name if await asyncio.shield(checking) else ""

    def _count(self, peer: str) -> None:
        count, since = self._failed.pop(peer, (0, 0.0))
        fresh = time.monotonic() - since < _FAILURE_SECONDS
        self._failed[peer] = (count + 1 if fresh else 1, time.monotonic())
        while len(self._failed) > _MOST_ADDRESSES:
            self._failed.popitem(last=False)

    async def _check(self, name: str, password: str, key: bytes, peer: str) -> bool:
        # For a name that is not there, too, it takes as long as for one that is.
        hashed = self._known.get(name) or next(iter(self._known.values()), _NOBODY)
        if not await to_thread.run_sync(_matches, password, hashed) or name not in self._known:
            log.warning("refused: a wrong user name or password from %s", peer)
            return False
        self._verified[key] = time.monotonic() + _VERIFIED_SECONDS
        self._failed.pop(peer, None)
        while len(self._verified) > 1000:
            self._verified.popitem(last=False)
        return True


_NOBODY = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(5))


def _matches(password: str, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password.encode()[:72], hashed)
    except ValueError:
        return False


@dataclass
class Access:
    """The rules, around an application."""

    rules: Rules
    users: Users | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @classmethod
    def by(cls, rules: Rules) -> Access:
        """Reads the users. Raises BadSettings."""
        return cls(rules, Users(rules.users) if rules.users else None)

    def origin(self, request: Request) -> str:
        """The origin by which the client knows us: ``http://127.0.0.1:8042``."""
        host = request.headers.get("host", "localhost")
        scheme = request.url.scheme
        if self._is_proxy(request.client.host if request.client else ""):
            scheme = request.headers.get("x-forwarded-proto", scheme)
            host = request.headers.get("x-forwarded-host", host)
        return f"{'https' if scheme == 'https' else 'http'}://{host}"

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self.rules.proxies)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind the rules."""

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            headers = Headers(scope=scope)
            peer = scope["client"][0] if scope.get("client") else ""
            refusal = await self._refusal(scope, headers, peer)

            async def guarded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._add_headers(MutableHeaders(scope=message), headers)
                await send(message)

            if refusal is not None:
                await refusal(scope, receive, guarded)
            elif _is_preflight(scope, headers):
                await self._preflight(headers)(scope, receive, guarded)
            else:
                await app(scope, receive, guarded)

        return checked

    async def _refusal(self, scope: Scope, headers: Headers, peer: str) -> Response | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_ADDRESS:
            return _words(414, "the address is too long")
        hosts = [headers.get("host", "")]
        if self._is_proxy(peer) and "x-forwarded-host" in headers:
            hosts.append(headers["x-forwarded-host"])
        for host in hosts:
            if not is_ours(host, self.rules.hosts):
                return _words(421, "this server has another name; add this one with --web-hosts")
        if scope["method"] not in _SAFE and not self._from_our_page(headers, hosts[-1]):
            return _words(403, "a page of another site may change nothing here")
        if _is_preflight(scope, headers):
            return None
        user = await self._user(headers, peer)
        if user is None:
            if self.users is not None and self.users.is_barred(peer):
                return _words(429, "too many wrong passwords; wait a minute", {"Retry-After": "60"})
            challenge = {"WWW-Authenticate": 'Basic realm="plainpacs", charset="UTF-8"'}
            words = "sign in with your user name and password"
            return _words(401, words, challenge if self.users is not None else None)
        scope.setdefault("state", {})["user"] = user
        return None

    async def _user(self, headers: Headers, peer: str) -> str | None:
        """Who it is; empty where nobody need say so; None for nobody who may read."""
        if self.rules.user_header and self._is_proxy(peer):
            return headers.get(self.rules.user_header) or None
        if self.users is not None:
            return await self.users.name_of(headers.get("authorization", ""), peer) or None
        return None if self.rules.user_header else ""

    def _from_our_page(self, headers: Headers, host: str) -> bool:
        """Programs send neither header; browsers do, and no page can make them leave it out."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if origin in self.rules.origins and origin:
            return True
        if site is not None and site not in ("same-origin", "none"):
            return False
        return origin is None or origin.partition("://")[2] == host

    def _add_headers(self, answer: MutableHeaders, asked: Headers) -> None:
        for name, value in _HEADERS.items():
            answer.setdefault(name, value)
        answer.setdefault("Content-Security-Policy", _CSP)
        answer.setdefault("Cache-Control", "no-store")
        origin = asked.get("origin", "")
        if origin and origin in self.rules.origins:
            answer["Access-Control-Allow-Origin"] = origin
            answer["Access-Control-Allow-Credentials"] = "true"
            answer["Access-Control-Expose-Headers"] = _EXPOSED
            answer["Cross-Origin-Resource-Policy"] = "cross-origin"
            answer.add_vary_header("Origin")

    def _preflight(self, headers: Headers) -> Response:
        if headers.get("origin") not in self.rules.origins:
            return _words(403, "pages of that site may not read here; see --web-origins")
        allowed = {
            "Access-Control-Allow-Methods": "GET, HEAD, POST, OPTIONS",
            "Access-Control-Allow-Headers": "Authorization, Accept, Content-Type, Range",
            "Access-Control-Max-Age": "600",
        }
        return Response(status_code=204, headers=allowed)


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def is_ours(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header names this server.

    >>> is_ours("localhost:8042", ()), is_ours("evil.example", ()), is_ours("[::1]", ())
    (True, False, True)
    """
    name = host.lower()
    if not name.endswith("]"):
        before, colon, port = name.rpartition(":")
        if colon and (port.isdecimal() or not port):
            name = before
    return name in _LOOPBACK or name in {one.lower() for one in names}


def _words(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(words + "\n", status, headers)
