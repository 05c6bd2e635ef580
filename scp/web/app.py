"""The addresses of the web server, and what answers each.

Handlers block, and run in threads; those that draw in threads of their own, so many at a time as
there are processes to draw in, and no more than ``_WAITING`` wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from xml.sax.saxutils import quoteattr

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.identity import is_name
from plainpacs.indexer.images.render import Renderers
from plainpacs.scp.web import frames, ohif, qido, retrieve, stow
from plainpacs.scp.web.access import Access
from plainpacs.scp.web.media import DICOM
from plainpacs.scp.web.metadata import Metadata
from plainpacs.scp.web.ohif import Ohif
from plainpacs.scp.web.page import Pages
from plainpacs.scp.web.places import Readers, Tree, unavailable
from plainpacs.scp.web.rendered import Rendered

BASE = "/dicom-web"
_WADL = "http://wadl.dev.java.net/2009/02"
_WAITING = 64
_THREADS = 16
_RENDERERS = 2
_FLUSH_SECONDS = 2.0

Handler = Callable[[Request], Response]
log = logging.getLogger("plainpacs.scp")

_STUDY, _SERIES, _INSTANCE = "/studies/{study}", "/series/{series}", "/instances/{instance}"
_OF_STUDY, _OF_SERIES, _OF_INSTANCE = (
    _STUDY,
    _STUDY + _SERIES,
    _STUDY + _SERIES + _INSTANCE,
)


class Site:
    """What the addresses share: the tree, and who may read it."""

    def __init__(
        self,
        tree: Tree,
        access: Access,
        archive: Archive | None = None,
        ohif: Ohif | None = None,
        storescu: str = "",
    ) -> None:
        """``archive``: what is stored into, if anything may be. ``storescu``: a command that sends
        to its receiver."""
        self._archive = archive
        self._ohif = ohif
        self.tree = tree
        self.access = access
        self.metadata = Metadata(tree)
        self.renderers = Renderers(_RENDERERS)
        self.rendered = Rendered(tree, self.renderers)
        self.pages = Pages(tree, has_ohif=ohif is not None, storescu=storescu)
        self._readers = Readers(tree)
        self._threads = CapacityLimiter(_THREADS)
        self._drawing = CapacityLimiter(_RENDERERS)

    def application(self) -> Any:
        """The ASGI application."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            flushing = asyncio.ensure_future(self._flush_now_and_then())
            try:
                yield
            finally:
                flushing.cancel()
                await anyio.to_thread.run_sync(self.rendered.end)

        app = Starlette(
            routes=[*self._dicomweb(), *self._people()],
            exception_handlers={
                HTTPException: self._problem,
                PlainpacsError: self._problem,
                OSError: self._problem,
                Exception: _unforeseen,
            },
            lifespan=lifespan,
        )
        return self.access.around(app)

    async def _flush_now_and_then(self) -> None:
        """Manifest and audit lines are synced every few seconds (design, section 3)."""
        while self._archive is not None:
            await asyncio.sleep(_FLUSH_SECONDS)
            await to_thread.run_sync(self._archive.flush)
            await to_thread.run_sync(self._archive.audit.flush)

    def _note(self, request: Request) -> None:
        """Into the audit log, who reads of which study."""
        study = request.path_params.get("study", "")
        if study and is_name(study):
            peer = request.client.host if request.client else ""
            self._readers.note(peer, getattr(request.state, "user", ""), study)

    def _base(self, request: Request) -> str:
        return self.access.origin(request) + BASE

    def _people(self) -> list[BaseRoute]:
        viewer = []
        if self._ohif is not None:
            answer = self._in_thread(self._ohif.answer)
            viewer = [_get(ohif.BASE + path, answer) for path in ("", "/", "/{path:path}")]
        pages: dict[str, Handler] = {
            "/": self.pages.studies,
            _OF_STUDY: self._seen(self.pages.study),
            _OF_SERIES: self.pages.series,
            "/static/{name}": self.pages.static,
        }
        return [*viewer, *(_get(path, self._in_thread(one)) for path, one in pages.items())]

    async def _problem(self, request: Request, error: Exception) -> Response:
        """For programs a line, for a person a page."""
        found = error if isinstance(error, HTTPException) else unavailable(error)
        headers = {"Cache-Control": "no-store", **(found.headers or {})}
        by_program = request.url.path.startswith((BASE, "/wado"))
        if by_program or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{found.detail}\n", found.status_code, headers)
        page = self.pages.problem(found)
        page.headers.update(headers)
        return page

    def _dicomweb(self) -> list[BaseRoute]:
        found: list[BaseRoute] = []
        for path, level in (
            ("/studies", Level.STUDY),
            ("/series", Level.SERIES),
            ("/instances", Level.INSTANCE),
            (_OF_STUDY + "/series", Level.SERIES),
            (_OF_STUDY + "/instances", Level.INSTANCE),
            (_OF_SERIES + "/instances", Level.INSTANCE),
        ):
            found.append(_get(BASE + path, self._search(level)))
        for path in (_OF_STUDY, _OF_SERIES, _OF_INSTANCE):
            found += [
                _get(BASE + path, self._read(lambda r, b: retrieve.answer(self.tree, r, b))),
                _get(f"{BASE}{path}/metadata", self._read(self.metadata.answer)),
                _get(f"{BASE}{path}/rendered", self._draw(self._seen(self.rendered.answer))),
                _get(f"{BASE}{path}/thumbnail", self._draw(self.rendered.thumbnail)),
            ]
        if self._archive is not None:
            found += [
                Route(BASE + path, self._store, methods=["POST"])
                for path in ("/studies", _OF_STUDY)
            ]
        numbers = f"{BASE}{_OF_INSTANCE}/frames/{{frames}}"
        bulk = f"{BASE}{_OF_INSTANCE}/bulkdata/{{tags:path}}"
        return [
            *found,
            _get(
                numbers,
                self._read(lambda r, b: frames.answer(self.tree, self.renderers, r, b)),
            ),
            _get(numbers + "/rendered", self._draw(self._seen(self.rendered.answer))),
            _get(numbers + "/thumbnail", self._draw(self.rendered.thumbnail)),
            _get(bulk, self._read(lambda r, b: frames.bulk_data(self.tree, r, b))),
            _get("/wado", self._in_thread(self._wado_uri)),
            Route(BASE + "/", self._capabilities, methods=["OPTIONS"]),
            Route(BASE + "/conformance", self._capabilities, methods=["GET", "OPTIONS"]),
        ]

    async def _capabilities(self, request: Request) -> Response:
        """What there is, as WADL (PS3.18 8.9)."""
        methods: dict[str, list[str]] = {}
        for route in self._dicomweb():
            if isinstance(route, Route) and "OPTIONS" not in (route.methods or ()):
                path = route.path.removeprefix(BASE + "/").replace(":path", "")
                methods.setdefault(path, []).extend(sorted(route.methods or ()))
        words = f'<application xmlns="{_WADL}"><resources base={quoteattr(self._base(request))}>'
        for path, names in methods.items():
            each = "".join(f'<method name="{name}"/>' for name in names)
            words += f"<resource path={quoteattr(path)}>{each}</resource>"
        words += "</resources></application>"
        headers = {"Allow": "GET, HEAD, OPTIONS"}
        return Response(words, 200, headers, "application/vnd.sun.wadl+xml")

    async def _store(self, request: Request) -> Response:
        assert self._archive is not None
        return await stow.answer(self._archive, request, self._base(request))

    def _search(self, level: Level) -> Callable[[Request], Awaitable[Response]]:
        return self._read(lambda request, base: qido.search(self.tree, request, level, base))

    def _wado_uri(self, request: Request) -> Response:
        place, kind = retrieve.wado_uri(self.tree, request)
        if kind == DICOM:
            syntax = request.query_params.get("transferSyntax", "")
            return retrieve.single(self.tree, request, place, syntax)
        return self.rendered.of_place(request, place, kind or "image/jpeg")

    # --- threads --------------------------------------------------------------------------------

    def _read(
        self, handler: Callable[[Request, str], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        def answer(request: Request) -> Response:
            found = handler(request, self._base(request))
            self._note(request)
            return found

        return self._in_thread(answer)

    def _in_thread(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            return await to_thread.run_sync(handler, request, limiter=self._threads)

        return run

    def _seen(self, handler: Handler) -> Handler:
        def answer(request: Request) -> Response:
            found = handler(request)
            self._note(request)
            return found

        return answer

    def _draw(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            if self._drawing.statistics().tasks_waiting >= _WAITING:
                raise HTTPException(503, "too many pictures are asked for", {"Retry-After": "2"})
            return await to_thread.run_sync(handler, request, limiter=self._drawing)

        return run


def _get(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, handler, methods=["GET"])


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("unforeseen: %s %s", request.method, type(error).__name__, exc_info=error)
    return PlainTextResponse("something went wrong here; the log of the server has it\n", 500)
