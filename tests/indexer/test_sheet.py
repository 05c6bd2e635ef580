"""Contact sheets: what a tile shows of an image, what it says instead, and the command."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RLELossless,
)

from plainpacs.archive.app import cli
from plainpacs.archive.app.extras import how_to_install
from plainpacs.indexer.images.draw import draw
from plainpacs.indexer.images.presentation import of_frame, pixel_aspect, shown
from plainpacs.indexer.images.render import Picture, Renderer, Wanted
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import PYDICOM_FILES, new_archive, part10, tree

STUDY = "1.2.3"


def drawn(path: str, box: int) -> Picture:
    return draw(path, Wanted(box=(box, box), fill=True))


def image(pixels: Any, **attributes: Any) -> Dataset:
    """A data set with these pixels: (frames,) rows, columns (, samples)."""
    samples = np.asarray(pixels)
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.SOPInstanceUID = "1.2.3.4.5"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = STUDY, "1.2.3.4"
    ds.PatientName, ds.PatientID, ds.StudyDate, ds.Modality = "Doe^Jane", "P1", "20240131", "CT"
    ds.SamplesPerPixel = 3 if samples.ndim > 2 and samples.shape[-1] == 3 else 1
    shape = samples.shape[:-1] if ds.SamplesPerPixel == 3 else samples.shape
    if len(shape) == 3:
        ds.NumberOfFrames = shape[0]
    ds.Rows, ds.Columns = shape[-2:]
    ds.BitsAllocated = ds.BitsStored = samples.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(samples.dtype.kind == "i")
    ds.PhotometricInterpretation = "RGB" if ds.SamplesPerPixel == 3 else "MONOCHROME2"
    ds.PlanarConfiguration = 0
    ds.PixelData = samples.tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def written(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> str:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of them are wrong on purpose
        ds.save_as(path, enforce_file_format=True)
    return str(path)


def pixels_of(picture: Picture) -> Any:
    assert picture.data, picture.why
    whole = np.frombuffer(picture.data, np.uint8)
    return whole.reshape(picture.height, picture.width, 3)


def grey(
    path: Path, ds: Dataset, box: int = 2, syntax: str = ExplicitVRLittleEndian
) -> list[list[int]]:
    """What is shown, one value a pixel."""
    found = pixels_of(drawn(written(path / "x.dcm", ds, syntax), box))
    assert (found[..., 0] == found[..., 2]).all()
    return [[int(value) for value in row] for row in found[..., 0]]


# --- what is shown --------------------------------------------------------------------------------

CT = np.array([[-1024, 0], [40, 3000]], np.int16)


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        # PS3.3 C.11.2.1.2.1: x below c - 0.5 - (w-1)/2 is black, above c - 0.5 + (w-1)/2 white.
        ({"WindowCenter": 40, "WindowWidth": 81}, [[0, 2], [129, 255]]),
        ({"WindowCenter": [40, 500], "WindowWidth": [81, 2000]}, [[0, 2], [129, 255]]),
        ({"WindowCenter": 20, "WindowWidth": 1}, [[0, 0], [255, 255]]),
        (
            {"WindowCenter": 40, "WindowWidth": 80, "VOILUTFunction": "LINEAR_EXACT"},
            [[0, 0], [128, 255]],
        ),
        (
            {"WindowCenter": 40, "WindowWidth": 80, "VOILUTFunction": "SIGMOID"},
            [[0, 30], [128, 255]],
        ),
        # The window is of values after the rescale.
        (
            {"WindowCenter": 1064, "WindowWidth": 81, "RescaleSlope": 1, "RescaleIntercept": 1024},
            [[0, 2], [129, 255]],
        ),
        ({"WindowCenter": 40, "WindowWidth": 81, "PhotometricInterpretation": "MONOCHROME1"},
         [[255, 253], [126, 0]]),
        # What cannot be a window is none: then by what is there.
        ({"WindowCenter": 40, "WindowWidth": 0}, [[0, 65], [67, 255]]),
        ({"WindowCenter": 40}, [[0, 65], [67, 255]]),
        ({}, [[0, 65], [67, 255]]),
        ({"PixelPaddingValue": -1024}, [[0, 0], [3, 255]]),
    ],
)  # fmt: skip
def test_grey(tmp_path: Path, attributes: dict[str, Any], wanted: list[list[int]]) -> None:
    assert grey(tmp_path, image(CT, **attributes)) == wanted


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_lut_comes_before_a_window(tmp_path: Path, syntax: str) -> None:
    order = "<" if syntax == ExplicitVRLittleEndian else ">"
    lut = Dataset()
    lut.LUTDescriptor = [4, 10, 16]
    lut.LUTData = np.array([0, 4095, 2048, 1024], f"{order}u2").tobytes()
    pixels = np.array([[0, 10, 11], [12, 13, 99]], f"{order}u2")
    ds = image(pixels, WindowCenter=1, WindowWidth=2)
    ds.VOILUTSequence = [lut]
    assert grey(tmp_path, ds, 3, syntax) == [[0, 0, 255], [128, 64, 64]]


def test_eight_bits_without_a_window_are_shown_as_they_are(tmp_path: Path) -> None:
    assert grey(tmp_path, image(np.array([[3, 9], [100, 101]], np.uint8))) == [[3, 9], [100, 101]]


def test_labels_can_be_told_from_nothing(tmp_path: Path) -> None:
    assert grey(tmp_path, image(np.ones((2, 2), np.uint8), Modality="SEG")) == [[255] * 2] * 2
    assert grey(tmp_path, image(np.zeros((2, 2), np.uint8), Modality="SEG")) == [[0] * 2] * 2


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 99, 199]]], np.uint8)


def colour_images() -> Iterator[tuple[str, Dataset]]:
    yield "pixels", image(COLOURS)
    yield (
        "planes",
        image(COLOURS, PlanarConfiguration=1, PixelData=COLOURS.transpose(2, 0, 1).tobytes()),
    )
    wide = COLOURS.astype(np.uint16) * 257
    yield "16 bits", image(wide)
    ybr = pydicom.pixels.processing.convert_color_space(COLOURS, "RGB", "YBR_FULL")
    yield "YBR", image(ybr, PhotometricInterpretation="YBR_FULL")
    palette = image(np.array([[0, 1], [2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        entries = (COLOURS.reshape(4, 3)[:, channel].astype("<u2") * 257).tobytes()
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(palette, f"{name}PaletteColorLookupTableData", entries)
    yield "palette", palette


@pytest.mark.parametrize(("name", "ds"), list(colour_images()))
def test_colours(tmp_path: Path, name: str, ds: Dataset) -> None:
    found = pixels_of(drawn(written(tmp_path / "x.dcm", ds), 2)).astype(int)
    assert np.abs(found - COLOURS.astype(int)).max() <= 2, name


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({}, (60, 30)),
        ({"PixelSpacing": [2, 1]}, (60, 60)),
        ({"ImagerPixelSpacing": [4, 1]}, (30, 60)),
        ({"PixelAspectRatio": [1, 2]}, (60, 15)),
        ({"PixelSpacing": [1, 1], "PixelAspectRatio": [2, 1]}, (60, 30)),
        ({"PixelSpacing": [0, 1]}, (60, 30)),
        ({"PixelSpacing": [1000, 1]}, (60, 30)),
        ({"PixelSpacing": [3]}, (60, 30)),
    ],
)
def test_proportions(tmp_path: Path, attributes: dict[str, Any], size: tuple[int, int]) -> None:
    ds = image(np.zeros((10, 20), np.uint8), **attributes)
    picture = drawn(written(tmp_path / "x.dcm", ds), 60)
    assert (picture.width, picture.height) == size


def test_the_middle_frame_by_its_own_attributes(tmp_path: Path) -> None:
    frames = np.stack([np.full((2, 2), value, np.uint16) for value in (0, 100, 200, 300)])
    frames[2, 0, 1] = 0
    ds = image(frames)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = [1, 2]
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for centre in (1, 2, 200, 4):
        item, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 101
        item.FrameVOILUTSequence = [window]
        ds.PerFrameFunctionalGroupsSequence.append(item)
    path = written(tmp_path / "x.dcm", ds)
    assert pixel_aspect(of_frame(pydicom.dcmread(path), 2)) == 0.5
    found = pixels_of(drawn(path, 16))
    assert found.shape == (8, 16, 3)
    assert found[2::4, 4::8, 0].tolist() == [[129, 0], [129, 129]]


def test_a_deflated_image(tmp_path: Path) -> None:
    path = written(tmp_path / "x.dcm", image(CT), DeflatedExplicitVRLittleEndian)
    assert pixels_of(drawn(path, 2))[..., 0].tolist() == [[0, 65], [67, 255]]


# --- what is said instead -------------------------------------------------------------------------


def undecodable() -> Iterator[tuple[Dataset, str, str]]:
    some = np.zeros((2, 2), np.uint16)
    yield image(some, Rows=None, Columns=None), ExplicitVRLittleEndian, "it is no image"
    yield image(some, PixelData=None), ExplicitVRLittleEndian, "it has no pixel data"
    yield image(some, PixelData=b"\0\0"), ExplicitVRLittleEndian, "not as long"
    yield image(some, Rows=65535, Columns=65535), ExplicitVRLittleEndian, "65535 x 65535 pixels"
    yield image(some, Rows=0), ExplicitVRLittleEndian, "2 x 0 pixels"
    # Two thousand million bytes of rows, in a header alone.
    bomb = image(some, Rows=65535, Columns=2000)
    bomb.PixelData = pydicom.encaps.encapsulate([b"\1\0\0\0" + bytes(60) + b"\x81\0" * 9])
    yield bomb, RLELossless, "it cannot be decoded|bounds|damaged"
    yield image(some, BitsAllocated=77), ExplicitVRLittleEndian, "it cannot be decoded"
    broken = image(some)
    broken.PixelData = pydicom.encaps.encapsulate([b"no image at all"])
    yield broken, "1.2.840.10008.1.2.4.90", "damaged, or of a kind"
    yield broken, "1.2.840.10008.1.2.4.102", "no decoder for its transfer syntax"


def test_what_cannot_be_decoded_says_why(tmp_path: Path) -> None:
    with Renderer() as renderer:
        for number, (ds, syntax, why) in enumerate(undecodable()):
            try:
                path = written(tmp_path / f"{number}.dcm", ds, syntax)
            except (AttributeError, ValueError):  # what save_as will not write
                ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2"
                path = written(tmp_path / f"{number}.dcm", ds, syntax)
            picture = renderer.picture(path, 50)
            assert not picture.data
            assert any(part in picture.why for part in why.split("|")), (number, picture.why)
        (tmp_path / "torn").write_bytes(part10()[:200])
        (tmp_path / "empty").touch()
        for name in ("torn", "empty", "absent"):
            assert renderer.picture(str(tmp_path / name), 50).why
        good = renderer.picture(written(tmp_path / "good.dcm", image(CT)), 50)
        assert (good.width, good.height) == (50, 50)


def test_a_decoder_that_dies_takes_one_picture_with_it(tmp_path: Path) -> None:
    path = written(tmp_path / "good.dcm", image(CT))
    with Renderer() as renderer:
        assert renderer.picture(path, 10).data
        assert renderer._child
        os.kill(renderer._child.pid, signal.SIGKILL)
        renderer._child.wait()
        assert renderer.picture(path, 10).why == "it could not be decoded within bounds"
        assert renderer.picture(path, 10).data


def test_time_has_a_bound(tmp_path: Path) -> None:
    with Renderer(patience=-1) as renderer:
        picture = renderer.picture(written(tmp_path / "good.dcm", image(CT)), 10)
        assert "took all the time" in picture.why


def test_memory_has_a_bound(tmp_path: Path) -> None:
    """Five thousand million zeros, in 5 MB: the process that inflates them gives up."""
    import zlib

    path = tmp_path / "bomb.dcm"
    whole = Path(written(path, image(CT), DeflatedExplicitVRLittleEndian)).read_bytes()
    start = pydicom.dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    with path.open("wb") as file:
        file.write(whole[: 128 + 4 + 12 + start])
        chunk = bytes(1 << 24)
        for _ in range(300):
            file.write(packer.compress(chunk))
        file.write(packer.flush())
    with Renderer() as renderer:
        assert renderer.picture(str(path), 10).why == "it could not be decoded within bounds"


# --- real images ----------------------------------------------------------------------------------


def real_images() -> Iterator[Path]:
    for path in sorted(PYDICOM_FILES.rglob("*")):
        if path.is_file() and path.stat().st_size < 1 << 20:
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def test_every_image_that_pydicom_can_decode_is_shown() -> None:
    pytest.importorskip("gdcm")
    count = 0
    with Renderer() as renderer:
        for path in real_images():
            picture = renderer.picture(str(path), 60)
            assert bool(picture.data) != bool(picture.why)
            if not picture.data:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        pixel_array(path, index=0)
                    except Exception:  # whatever pydicom raises on what it cannot decode
                        continue
                    pytest.fail(f"{path.name}: {picture.why}")
            count += 1
    assert count > 40


@pytest.mark.filterwarnings("ignore")  # of pydicom, on real files
def test_real_images_are_shown_as_dcmtk_shows_them(tmp_path: Path) -> None:
    """Orientation, window and colours, wherever the file says how and DCMTK can decode it."""
    shutil.which("dcmj2pnm") or pytest.skip("DCMTK is not installed")
    count = 0
    for path in real_images():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        mono = str(header.get("PhotometricInterpretation", "")).startswith("MONO")
        if header.get("NumberOfFrames") or (mono and "WindowWidth" not in header):
            continue
        # Theirs pixel by pixel, ours in true proportions: theirs is stretched to ours.
        how = ["+Wi", "1"] if mono else []
        done = subprocess.run(
            ["dcmj2pnm", *how, "-a", "-S", "+op", str(path), str(tmp_path / "x.pnm")],
            check=False,
            capture_output=True,
        )
        if done.returncode:
            continue
        theirs = opened(tmp_path / "x.pnm").convert("RGB")
        try:
            ours = drawn(str(path), max(theirs.size) * 4)
        except (RuntimeError, ValueError):
            continue  # no decoder here, or pydicom sees less in the file than DCMTK
        size = ours.width, ours.height
        wanted = np.asarray(theirs.resize(size, Image.Resampling.NEAREST)).astype(int)
        assert np.abs(wanted - pixels_of(ours)).mean() < 3, path.name
        count += 1
    assert count > 10


def test_shown_takes_what_a_decoder_gives() -> None:
    """Shapes that images do not have are refused in words, not by an accident."""
    from plainpacs.indexer.images.presentation import NotShown

    header = Dataset()
    header.PhotometricInterpretation, header.BitsStored = "CMYK", 8
    with pytest.raises(NotShown, match="CMYK cannot be shown"):
        shown(np.zeros((2, 2, 4), np.uint8), header)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A study of three series: images, an object without pixels, and a broken image."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        ds = image(CT, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=number, SeriesNumber=2)
        ds.SeriesDescription = "lung"
        written(folder / f"{number}.dcm", ds)
    other = image(CT, SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1", Rows=None,
                  Columns=None, PixelData=None, Modality="SR")  # fmt: skip
    written(folder / "sr.dcm", other)
    broken = image(CT, SeriesInstanceUID="1.2.3.6", SOPInstanceUID="1.2.3.6.1", BitsAllocated=77)
    written(folder / "broken.dcm", broken)
    root = new_archive(tmp_path / "archive")
    assert CliRunner().invoke(cli.root, ["-a", root, "import", str(folder)]).exit_code == 0
    with Indexer.open(root) as indexer:
        indexer.once()
    return root


def opened(path: Path) -> Image.Image:
    page = Image.open(io.BytesIO(path.read_bytes()))
    page.load()
    return page


def run(root: str, *arguments: str) -> Any:
    return CliRunner().invoke(cli.root, ["-a", root, "sheet", *arguments])


def test_a_sheet(root: str, tmp_path: Path) -> None:
    before = tree(root, internal=True)
    done = run(root, STUDY, str(tmp_path / "s.png"))
    assert done.exit_code == 0, done.output
    assert "3 series, 2 without a picture" in done.output
    page = opened(tmp_path / "s.png")
    assert (page.format, page.info) == ("PNG", {})
    assert {path for path, digest in tree(root, internal=True).items()
            if before.get(path) != digest} == set()  # fmt: skip
    # The images come last: series without a number are first.
    left, top = 12 + 2 * 252, page.height - (240 + 12 + 2 * 18 + 6)
    middle = np.asarray(page)[top : top + 240, left : left + 240, 0]
    assert [int(middle[y, x]) for y in (60, 180) for x in (60, 180)] == [0, 65, 67, 255]
    named = run(root, STUDY, str(tmp_path / "n.png"), "--names")
    assert named.exit_code == 0
    assert opened(tmp_path / "n.png").height > page.height, "a line more"


def test_two_patients_look_alike_without_names(tmp_path: Path) -> None:
    pages = []
    for name in ("Doe^Jane", "Roe^Richard"):
        root = new_archive(tmp_path / name)
        path = written(tmp_path / "x.dcm", image(CT, PatientName=name, PatientID=name,
                                                 PatientBirthDate="19700101"))  # fmt: skip
        CliRunner().invoke(cli.root, ["-a", root, "import", path])
        with Indexer.open(root) as indexer:
            indexer.once()
        assert run(root, STUDY, str(tmp_path / f"{name}.png")).exit_code == 0
        assert run(root, STUDY, str(tmp_path / f"{name}.named.png"), "--names").exit_code == 0
        pages.append([(tmp_path / f"{name}{end}.png").read_bytes() for end in ("", ".named")])
    assert pages[0][0] == pages[1][0]
    assert pages[0][1] != pages[1][1]


def test_a_file_that_is_there_stays(root: str, tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    out.write_text("mine")
    done = run(root, STUDY, str(out))
    assert done.exit_code != 0
    assert "--force" in str(done.exception)
    assert out.read_text() == "mine"
    assert run(root, STUDY, str(out), "--force").exit_code == 0
    assert opened(out).width


def test_without_a_study_there_is_no_file(root: str, tmp_path: Path) -> None:
    done = run(root, "1.9", str(tmp_path / "s.png"))
    assert "no study, series or instance 1.9" in str(done.exception)
    assert run(root, STUDY, str(tmp_path / "s.jpg")).exit_code == 2
    assert sorted(os.listdir(tmp_path)) == ["archive", "in"]


@pytest.mark.parametrize("module", ["PIL", "numpy"])
def test_what_is_not_installed_is_named(root: str, tmp_path: Path, module: str) -> None:
    without = (
        f"import sys; sys.modules[{module!r}] = None; "
        "from plainpacs.archive.app.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, "sheet", "-a", root, STUDY, str(tmp_path / "s.png")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr == f"plainpacs: contact sheets need {module}: {how_to_install('pixels')}\n"
