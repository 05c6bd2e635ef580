"""Chromium, for tests of pages: what it shows, says on its console, and asks for.

Where it is not installed the tests are skipped; in CI they fail. What comes from npm (OHIF,
axe-core) lies unpacked in $PLAINPACS_TEST_NPM, as ``.ci/run`` puts it there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--no-sandbox"),
    *("--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader"),
    "--enable-unsafe-swiftshader",
)


def unavailable(words: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


def from_npm(package: str) -> Path:
    """The folder of an npm package."""
    folder = Path(os.environ.get("PLAINPACS_TEST_NPM", "/nowhere"), package)
    if not folder.is_dir():
        unavailable(f"$PLAINPACS_TEST_NPM has no {package}")
    return folder


@dataclass
class Browser:
    """A page of a browser, and what went wrong in it. ``base``: where it may ask."""

    page: Any
    base: str
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def said(message: Any) -> None:
            if message.type == "error":
                self.faults.append(f"console: {message.text[:300]}")

        def answered(response: Any) -> None:
            if response.status >= 400:
                self.faults.append(f"{response.status} {response.url}")

        def asked(request: Any) -> None:
            if not request.url.startswith((self.base, "data:", "blob:")):
                self.faults.append(f"elsewhere: {request.url}")

        def dialog(opened: Any) -> None:
            self.faults.append(f"dialog: {opened.message}")
            opened.dismiss()

        self.page.on("console", said)
        self.page.on("response", answered)
        self.page.on("request", asked)
        self.page.on("dialog", dialog)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))

    def until(self, expression: str) -> None:
        """Waits until the page says so; its policy forbids Playwright's own way of waiting."""
        for _ in range(200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"still not so: {expression}")

    def open(self, path: str) -> None:
        self.page.goto(self.base + path, wait_until="load")


@contextlib.contextmanager
def browser(base: str, folder: Path, **options: Any) -> Iterator[Browser]:
    """A new profile in ``folder``. ``options``: of the context, as Playwright has them."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("Chromium is not installed (apt install chromium)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder / "profile"),
            executable_path=program,
            headless=True,
            args=list(FLAGS),
            chromium_sandbox=False,
            viewport=options.pop("viewport", {"width": 1200, "height": 800}),
            **options,
        )
        try:
            one = Browser(context.pages[0], base)
            one.watch()
            yield one
        finally:
            context.close()
