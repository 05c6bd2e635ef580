"""OHIF on the files of this archive: its npm package as it is, below ``/ohif/``.

What it was built for is changed in the bytes that are sent: the paths it was built for, its
configuration, which is ours, and the service worker, which would load a script from elsewhere.
Nothing that it needs comes from another host, and its policy would not allow it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import mimetypes
import os
import re
import threading

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from plainpacs.archive.errors import BadSettings
from plainpacs.scp.web.media import takes_gzip

BASE = "/ohif"
_VERSIONS = "npm pack @ohif/app@3.13.2 && tar xzf ohif-app-3.13.2.tgz"
_HASHED = re.compile(r"\.[0-9a-f]{16,}\.|^[0-9a-f]{16,}\.")
_INLINE = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
_ROOTED = re.compile(rb'((?:src|href|content)=")/(?!/)')
_COMPRESSED = (".js", ".css", ".wasm", ".json", ".svg", ".map")
_TYPES = {".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm"}
_ISOLATED = {
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_CONFIGURATION = """\
window.config = {
  routerBasename: '/ohif', extensions: [], modes: [], showStudyList: true,
  customizationService: [{'ohif.tours': {$set: []}}],
  maxNumberOfWebWorkers: 3, showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false, showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  maxNumRequests: {interaction: 100, thumbnail: 5, prefetch: 25},
  defaultDataSourceName: 'plainpacs',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'plainpacs',
    configuration: {
      friendlyName: 'plainpacs', name: 'plainpacs',
      wadoUriRoot: '/wado', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      qidoSupportsIncludeField: true, supportsFuzzyMatching: true, supportsWildcard: true,
      imageRendering: 'wadors', thumbnailRendering: 'thumbnail', thumbnailRequestStrategy: 'fetch',
      enableStudyLazyLoad: true, staticWado: false, singlepart: 'bulkdata,video,pdf',
      bulkDataURI: {enabled: true}, omitQuotationForMultipartRequest: true
    }
  }]
};
"""


class Ohif:
    """The package below the folder ``path``. Thread-safe. Raises BadSettings."""

    def __init__(self, path: str) -> None:
        self._folder = _folder_of(path)
        self._files = {
            os.path.relpath(os.path.join(folder, name), self._folder): os.path.join(folder, name)
            for folder, _, names in os.walk(self._folder)
            for name in names
        }
        self._sent: dict[str, bytes] = {}
        self._lock = threading.Lock()
        with open(self._files["index.html"], "rb") as file:
            index = file.read()
        index = _ROOTED.sub(rb"\1" + BASE.encode() + b"/", index)
        self._index = index.replace(b'PUBLIC_URL="/"', f'PUBLIC_URL="{BASE}/"'.encode()).replace(
            b"PUBLIC_URL = '/'", f"PUBLIC_URL = '{BASE}/'".encode()
        )
        self._policy = _policy(self._index)

    def answer(self, request: Request) -> Response:
        """A file of the package; for an address within the viewer, its page."""
        name = request.path_params.get("path", "")
        if name == "app-config.js":
            return Response(_CONFIGURATION, 200, _ISOLATED, _TYPES[".js"])
        if name == "init-service-worker.js":
            return Response("", 200, _ISOLATED, _TYPES[".js"])
        if name in self._files and name != "index.html":
            return self._file(request, name)
        if "." in name.rpartition("/")[2]:
            raise HTTPException(404, "OHIF has no such file")
        headers = {
            **_ISOLATED,
            "Content-Security-Policy": self._policy,
            "Cache-Control": "no-cache",
        }
        return Response(self._index, 200, headers, "text/html; charset=utf-8")

    def _file(self, request: Request, name: str) -> Response:
        ending = os.path.splitext(name)[1]
        kind = _TYPES.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        lasting = "max-age=31536000, immutable" if _HASHED.search(name) else "no-cache"
        headers = {**_ISOLATED, "Cache-Control": lasting}
        headers["Content-Security-Policy"] = self._policy
        if ending not in _COMPRESSED:
            return FileResponse(self._files[name], 200, headers, kind)
        packed = self._packed(name, ending)
        headers["Vary"] = "Accept-Encoding"
        if takes_gzip(request):
            headers["Content-Encoding"] = "gzip"
            return Response(packed, 200, headers, kind)
        return Response(gzip.decompress(packed), 200, headers, kind)

    def _packed(self, name: str, ending: str) -> bytes:
        """The file as it is sent, compressed; made once."""
        with self._lock:
            packed = self._sent.get(name)
            if packed is None:
                with open(self._files[name], "rb") as file:
                    data = file.read()
                if ending == ".js":
                    data = data.replace(b'__webpack_require__.p = "/"', _PUBLIC_PATH)
                elif ending == ".css":
                    data = re.sub(rb"url\((['\"]?)/(?!/)", rb"url(\1" + BASE.encode() + b"/", data)
                elif name == "manifest.json":
                    data = data.replace(b'"/', f'"{BASE}/'.encode())
                packed = self._sent[name] = gzip.compress(data, 5, mtime=0)
            return packed


_PUBLIC_PATH = f'__webpack_require__.p = "{BASE}/"'.encode()


def _folder_of(path: str) -> str:
    for below in ("", "dist", "package/dist"):
        folder = os.path.join(os.path.abspath(path), below)
        if os.path.isfile(os.path.join(folder, "index.html")):
            return folder
    raise BadSettings(f"there is no OHIF in {path} (no index.html); fetch it with: {_VERSIONS}")


def _policy(index: bytes) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode()}'"
        for one in _INLINE.findall(index)
    )
    return (
        # Its decoders, and what reads a SEG, make functions out of text.
        f"default-src 'none'; script-src 'self' 'unsafe-eval' 'wasm-unsafe-eval' {hashes}; "
        "worker-src 'self' blob:; connect-src 'self' blob: data:; img-src 'self' blob: data:; "
        "style-src 'self' 'unsafe-inline'; font-src 'self' data:; manifest-src 'self'; "
        "media-src 'self' blob:; frame-src 'self' blob:; object-src 'self' blob:; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
