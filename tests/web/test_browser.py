"""The pages and OHIF as a person meets them, in Chromium."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import new_archive, store
from tests.support.browser import browser, from_npm
from tests.support.web import Web, web

pytest.importorskip("uvicorn")
HOSTILE = (
    "<script>alert(1)</script>",
    '"onerror=alert(1) x="',
    "javascript:alert(1)",
    "<svg onload=alert(1)>",
)
FILES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "color3d_jpeg_baseline.dcm")
FOLDER = Path(pydicom.data.__file__).parent / "test_files"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    root = new_archive(tmp_path_factory.mktemp("web") / "archive")
    with Archive.open(root) as archive:
        for name in FILES:
            if (FOLDER / name).exists():
                with (FOLDER / name).open("rb") as file:
                    archive.import_file(file.fileno(), Provenance(origin="import"))
        template = pydicom.dcmread(FOLDER / "CT_small.dcm")
        template.StudyInstanceUID, template.SeriesInstanceUID = "1.2.7", "1.2.7.1"
        for number in range(1, 4):
            template.SOPInstanceUID = f"1.2.7.1.{number}"
            template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
            template.InstanceNumber = number
            template.ImagePositionPatient = [0, 0, number]
            written = tmp_path_factory.mktemp("made") / "x.dcm"
            template.save_as(written)
            with written.open("rb") as file:
                archive.import_file(file.fileno(), Provenance(origin="import"))
        for number, text in enumerate(HOSTILE):
            store(archive, PatientName=text, PatientID=text, StudyDescription=text + "\u202e",
                  StudyInstanceUID=f"1.9.{number}", SeriesInstanceUID=f"1.9.{number}.1",
                  SOPInstanceUID=f"1.9.{number}.1.1", SpecificCharacterSet="ISO_IR 192",
                  Modality="CT" if number else "")  # fmt: skip
    with Indexer.open(root) as indexer:
        indexer.once()
    with web(root, tmp_path_factory.mktemp("log")) as running:
        yield running


def test_the_list_finds_and_opens_studies(server: Web, tmp_path: Path) -> None:
    with browser(server.url, tmp_path) as seen:
        page = seen.page
        seen.open("/")
        seen.until("[...document.images].every(one => one.complete && one.naturalWidth)")
        page.fill("input[name=q]", "compressedsamples ct1")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=compressedsamples**")
        assert page.locator("tbody tr").count() == 2
        page.locator("tbody a").first.click()
        page.wait_for_selector("ul.series img")
        assert seen.faults == []


def test_without_javascript_too(server: Web, tmp_path: Path) -> None:
    with browser(server.url, tmp_path, java_script_enabled=False) as seen:
        seen.open("/studies/1.2.7/series/1.2.7.1")
        seen.page.get_by_text("Next", exact=True).click()
        seen.page.wait_for_url("**image=2")
        assert "2 / 3" in seen.page.locator("#position").inner_text()
        assert seen.faults == []


def test_the_viewer_goes_by_keys_wheel_and_window(server: Web, tmp_path: Path) -> None:
    with browser(server.url, tmp_path) as seen:
        page = seen.page
        seen.open("/studies/1.2.7/series/1.2.7.1")
        at = page.locator("#position")
        for key, where in (("ArrowRight", "2 / 3"), ("End", "3 / 3"), ("Home", "1 / 3")):
            page.keyboard.press(key)
            seen.until(f"document.getElementById('position').textContent === '{where}'")
        before = page.locator("#image").screenshot()
        page.locator("#presets select").select_option("40,80")
        seen.until("document.getElementById('window').textContent.includes('80')")
        assert page.locator("#image").screenshot() != before
        page.locator("#image").hover()
        page.mouse.wheel(0, 100)
        seen.until("document.getElementById('position').textContent === '2 / 3'")
        shown = np.asarray(Image.open(io.BytesIO(page.locator("#image").screenshot())).convert("L"))
        assert shown.std() > 10
        assert at.inner_text() == "2 / 3"
        assert seen.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(server: Web, tmp_path: Path, scheme: str) -> None:
    rules = (from_npm("axe-core") / "axe.min.js").read_text()
    narrow = {"width": 320, "height": 640}
    with browser(
        server.url, tmp_path, viewport=narrow, color_scheme=scheme, bypass_csp=True
    ) as seen:
        for path in ("/", "/studies/1.2.7", "/studies/1.2.7/series/1.2.7.1", "/?q=nobody"):
            seen.open(path)
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= 320, path
            seen.page.evaluate(rules)
            found = seen.page.evaluate(
                "axe.run().then(r => r.violations.map(v => v.id + ' ' + v.nodes[0].html))"
            )
            assert found == [], path


def test_hostile_headers_are_text(server: Web, tmp_path: Path) -> None:
    with browser(server.url, tmp_path) as seen:
        seen.open("/")
        assert "<script>alert(1)</script>" in seen.page.locator("table").inner_text()
        assert "\u202e" not in seen.page.content()
        for number in range(len(HOSTILE)):
            seen.open(f"/studies/1.9.{number}")
        assert seen.faults == []


def test_ohif_shows_them(server: Web, tmp_path: Path) -> None:
    package = from_npm("ohif")
    archive = server.process.args[-1]  # type: ignore[index]  # it is a list
    with (
        web(str(archive), tmp_path, "--ohif", str(package)) as running,
        browser(running.url, tmp_path) as seen,
    ):
        seen.open("/ohif/")
        seen.page.get_by_text("<script>alert(1)</script>").first.wait_for()
        for study in ("1.2.7", str(pydicom.dcmread(FOLDER / "JPEG2000.dcm").StudyInstanceUID)):
            seen.open(f"/ohif/viewer?StudyInstanceUIDs={study}")
            canvas = seen.page.locator("canvas").first
            canvas.wait_for()
            for _ in range(60):
                image = Image.open(io.BytesIO(canvas.screenshot())).convert("L")
                if np.asarray(image).std() > 10:
                    break
                seen.page.wait_for_timeout(250)
            else:
                pytest.fail(f"{study}: nothing on the canvas")
        assert seen.page.evaluate("crossOriginIsolated")
        assert seen.faults == []
