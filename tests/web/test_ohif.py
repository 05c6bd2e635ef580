"""OHIF's package, served below ``/ohif/`` as it has to be: a small one of the same make."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from tests.support.archives import new_archive
from tests.support.commands import Run, run
from tests.support.web import web

pytest.importorskip("uvicorn")
__all__ = ["run"]
INLINE = 'window.PUBLIC_URL="/"'
INDEX = f'<script>{INLINE}</script><script src="/app.bundle.js"></script><a href="//x.example">'


def test_it_finds_its_files_and_nothing_else(tmp_path: Path) -> None:
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    (dist / "index.html").write_text(INDEX)
    (dist / "app.bundle.js").write_text('x; __webpack_require__.p = "/";')
    (dist / "app.css").write_text("a{b:url(/font.woff);c:url(//d)}")
    (dist / "init-service-worker.js").write_text("importScripts('https://elsewhere.example')")
    (dist / "app-config.js").write_text("https://demo.example")
    (dist / "0123456789abcdef0123.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret").write_text("no")
    root = new_archive(tmp_path / "archive")
    with web(root, tmp_path, "--ohif", str(tmp_path)) as running:
        for path in ("/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2", "/ohif/segmentation"):
            page = running.get(path)
            assert page.status == 200
            assert b'PUBLIC_URL="/ohif/"' in page.body
            assert b'src="/ohif/app.bundle.js"' in page.body
            assert b'href="//x.example"' in page.body
            changed = INLINE.replace('"/"', '"/ohif/"').encode()
            digest = base64.b64encode(hashlib.sha256(changed).digest()).decode()
            assert f"'sha256-{digest}'" in page.headers["content-security-policy"]
            assert page.headers["cross-origin-embedder-policy"] == "require-corp"
            assert (
                "'unsafe-inline'"
                not in page.headers["content-security-policy"].partition("style-src")[0]
            )
        worker = running.get("/ohif/app.bundle.js").headers["content-security-policy"]
        assert "script-src 'self'" in worker
        assert "sandbox" not in worker
        assert b'.p = "/ohif/"' in running.get("/ohif/app.bundle.js").body
        assert running.get("/ohif/app.css").body == b"a{b:url(/ohif/font.woff);c:url(//d)}"
        assert running.get("/ohif/init-service-worker.js").body == b""
        configuration = running.get("/ohif/app-config.js").body
        assert b"demo.example" not in configuration
        assert b"'/dicom-web'" in configuration
        wasm = running.get("/ohif/0123456789abcdef0123.wasm")
        assert wasm.headers["content-type"] == "application/wasm"
        assert "immutable" in wasm.headers["cache-control"]
        packed = running.get("/ohif/app.bundle.js", Accept_Encoding="gzip")
        assert packed.headers["content-encoding"] == "gzip"
        for path in ("/ohif/missing.js", "/ohif/../secret.txt", "/ohif/%2e%2e/%2e%2e/secret.txt"):
            assert running.get(path).status == 404


def test_a_folder_without_it_is_refused(tmp_path: Path, run: Run) -> None:
    root = new_archive(tmp_path / "archive")
    done = run("web", "--port", "0", "--ohif", tmp_path, root)
    assert done.code == 2
    assert "npm pack" in done.err


def test_others_may_not_read_without_a_password(tmp_path: Path, run: Run) -> None:
    root = new_archive(tmp_path / "archive")
    done = run("web", "--port", "0", "--bind", "0.0.0.0", root)
    assert done.code == 2
    assert "--web-users" in done.err
