"""OHIF on real studies of each kind, in Chromium: nothing goes wrong, and what it shows is what
is in the files."""

from __future__ import annotations

import base64
import io
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.service.indexer import Indexer
from tests.benchmarks.web import element, instance
from tests.support.archives import new_archive
from tests.support.browser import Browser, browser, from_npm
from tests.support.web import Web, web

pytest.importorskip("uvicorn")
FILES = {
    "xa": "RadicalImaging+Static-DICOMWeb/packages/static-wado-creator/dicom/jpeg8bit.dcm",
    "colour": "pydicom+pydicom/src/pydicom/data/test_files/examples_jpeg2k.dcm",
    "sr": "PantelisGeorgiadis+dcmjs-dimse/datasets/sr.dcm",
    "pdf": "PantelisGeorgiadis+dcmjs-dimse/datasets/pdf.dcm",
    "seg": "QIICR+dcmqi/data/segmentations/liver.dcm",
    "rtstruct": "dicompyler+dicompyler-core/tests/testdata/example_data/rtss.dcm",
    "rtct": "dicompyler+dicompyler-core/tests/testdata/example_data/ct.0.dcm",
    **{
        f"segct{number}": f"QIICR+dcmqi/data/segmentations/ct-3slice/0{number}.dcm"
        for number in (1, 2, 3)
    },
}
CT, SLICES, SIDE = "2.25.77", 800, 64
GREYS = (-100, -20, 60, 140)
"""Stored values of the quarters of each slice; the window is 40, 400."""

Array = np.ndarray[Any, Any]


def slice_of_four(number: int) -> bytes:
    data = instance(CT, f"{CT}.1", f"{CT}.1.{number + 1}", number, SIDE, "Eight^Hundred")
    half = SIDE // 2
    low, high = (
        struct.pack(f"<{SIDE}h", *[left] * half, *[right] * half)
        for left, right in (GREYS[:2], GREYS[2:])
    )
    pixels = element(0x7FE00010, "OW", low * half + high * half)
    date = b"2024%02d%02d" % (number % 12 + 1, number % 28 + 1)
    data = data[: -len(pixels)] + pixels
    data = data.replace(date, b"20240228", 1)
    return data.replace(f"P{number:05}".encode(), b"P00000", 1)


@pytest.fixture(scope="module")
def server(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    package = from_npm("ohif")
    folder = tmp_path_factory.mktemp("ohif")
    root = new_archive(folder / "archive")
    with Archive.open(root) as archive:
        for name in FILES.values():
            with (shared_data / name).open("rb") as file:
                archive.import_file(file.fileno(), Provenance(origin="import"))
        for number in range(SLICES):
            path = folder / "slice"
            path.write_bytes(slice_of_four(number))
            with path.open("rb") as file:
                archive.import_file(file.fileno(), Provenance(origin="import"))
    with Indexer.open(root) as indexer:
        indexer.once()
    with web(root, folder, "--ohif", str(package)) as running:
        yield running


@pytest.fixture
def seen(server: Web, tmp_path: Path) -> Iterator[Browser]:
    with browser(server.url, tmp_path) as opened:
        yield opened
        assert opened.faults == []


def study_of(shared_data: Path, name: str) -> str:
    return str(pydicom.dcmread(shared_data / FILES[name], stop_before_pixels=True).StudyInstanceUID)


def view(seen: Browser, study: str, more: str = "") -> None:
    seen.open(f"/ohif/viewer?StudyInstanceUIDs={study}{more}")


def canvases(seen: Browser) -> list[Array]:
    """What the viewer has drawn, without what lies over it: (rows, columns, 3)."""
    script = "[...document.querySelectorAll('canvas')].map(one => one.toDataURL())"
    urls = seen.page.evaluate(script)
    images = (Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in urls)
    return [np.asarray(one.convert("RGB")).astype(int) for one in images]


def drawn(seen: Browser, count: int = 1) -> list[Array]:
    """Waits for so many pictures that are not of one colour."""
    for _ in range(240):
        found = canvases(seen)
        if len(found) >= count and all(one.std() > 5 for one in found[:count]):
            return found
        seen.page.wait_for_timeout(250)
    pytest.fail("nothing is drawn")


def load(seen: Browser, name: str) -> None:
    """Opens what lies over the images: twice on its name, and yes."""
    seen.page.get_by_text(name, exact=True).first.dblclick()
    seen.page.get_by_role("button", name="Yes", exact=True).first.click()


def by_dcmtk(path: Path, *options: str) -> Array:
    """The picture that DCMTK makes."""
    program = shutil.which("dcmj2pnm")
    if program is None:
        pytest.skip("DCMTK is not installed (apt install dcmtk)")
    done = subprocess.run(
        [program, "+op", *options, str(path), str(path) + ".pnm"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(str(path) + ".pnm").convert("RGB")).astype(int)


def test_the_list(seen: Browser) -> None:
    seen.open("/ohif/")
    seen.page.get_by_text("Hundred, Eight").or_(seen.page.get_by_text("Eight")).first.wait_for()
    assert seen.page.get_by_text("RTSTRUCT").first.is_visible()


def test_a_stack_of_800_is_as_grey_as_dcmtk_says(seen: Browser, tmp_path: Path) -> None:
    frames: set[str] = set()
    seen.page.on("response", lambda one: frames.add(one.url) if "/frames/" in one.url else None)
    view(seen, CT)
    picture = drawn(seen)[0]
    (tmp_path / "slice").write_bytes(slice_of_four(0))
    theirs = by_dcmtk(tmp_path / "slice", "+Wi", "1")
    rows, columns = np.nonzero(picture.max(axis=2) > 20)
    top, left = rows.min(), columns.min()
    high, wide = rows.max() - top, columns.max() - left
    assert abs(high - wide) < 4, "a slice is square"
    for row in (1, 3):
        for column in (1, 3):
            ours = picture[top + high * row // 4, left + wide * column // 4]
            expected = theirs[SIDE * row // 4, SIDE * column // 4]
            assert abs(ours - expected).max() <= 2, (row, column, ours, expected)
    for _ in range(400):
        if len(frames) >= SLICES:
            return
        seen.page.wait_for_timeout(100)
    pytest.fail(f"{len(frames)} of {SLICES} frames were fetched")


def test_planes_across_the_stack(seen: Browser) -> None:
    view(seen, CT, "&hangingProtocolId=mpr")
    pictures = drawn(seen, 3)
    assert len(pictures) >= 3


def test_a_multi_frame_angiogram_is_what_dcmtk_decodes(
    seen: Browser, shared_data: Path, tmp_path: Path
) -> None:
    view(seen, study_of(shared_data, "xa"))
    picture = drawn(seen)[0]
    path = tmp_path / "xa"
    shutil.copy(shared_data / FILES["xa"], path)
    theirs = by_dcmtk(path, "+F", "1")
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    ours = Image.fromarray(picture[top : top + side, left : left + side].astype(np.uint8))
    small = (64, 64)
    expected = Image.fromarray(theirs.astype(np.uint8))
    both = [
        np.asarray(one.resize(small, Image.Resampling.BOX)).astype(int) for one in (ours, expected)
    ]
    assert abs(both[0] - both[1]).mean() <= 2


def test_jpeg_2000_in_colour(seen: Browser, shared_data: Path) -> None:
    view(seen, study_of(shared_data, "colour"))
    picture = drawn(seen)[0]
    assert (abs(picture[..., 0] - picture[..., 2]) > 60).sum() > 1000


def test_a_segmentation_lies_over_the_images(seen: Browser, shared_data: Path) -> None:
    view(seen, study_of(shared_data, "seg"))
    drawn(seen)
    load(seen, str(pydicom.dcmread(shared_data / FILES["seg"]).SeriesDescription))
    for _ in range(120):
        if (abs((one := canvases(seen)[0])[..., 0] - one[..., 2]) > 20).sum() > 5000:
            return
        seen.page.wait_for_timeout(250)
    pytest.fail("there is no colour over the images")


def test_contours_lie_over_the_images(seen: Browser, shared_data: Path) -> None:
    view(seen, study_of(shared_data, "rtstruct"))
    drawn(seen)
    load(seen, "RT Structure Set")
    seen.until("document.querySelectorAll('svg.svg-layer path').length > 100")


def test_a_report_is_text(seen: Browser, shared_data: Path) -> None:
    view(seen, study_of(shared_data, "sr"))
    seen.page.get_by_text("Discharge Summary").first.wait_for()


def test_a_document_is_handed_to_the_browser(server: Web, seen: Browser, shared_data: Path) -> None:
    """Chromium without a window shows none, so that its answer is what is judged."""
    one = pydicom.dcmread(shared_data / FILES["pdf"])
    view(seen, str(one.StudyInstanceUID))
    seen.page.get_by_text("PDF").first.wait_for()
    place = f"{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    answer = server.get(f"/dicom-web/studies/{place}/rendered", "application/pdf")
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.body.rstrip(b"\0") == one.EncapsulatedDocument.rstrip(b"\0")


@pytest.mark.parametrize("name", ["segct1", "rtct"])
def test_rendered_is_what_dcmtk_draws(
    server: Web, shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "one"
    shutil.copy(shared_data / FILES[name], path)
    one = pydicom.dcmread(path)
    place = f"{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    answer = server.get(f"/dicom-web/studies/{place}/rendered?window=40,400,linear", "image/png")
    ours = np.asarray(Image.open(io.BytesIO(answer.body)).convert("RGB")).astype(int)
    assert abs(ours - by_dcmtk(path, "+Ww", "40", "400")).max() <= 2
