"""DICOMweb as programs use it: dicomweb-client, and plain HTTP where it must be exact."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import (
    eventually,
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.serve import Serve, is_alive
from tests.support.web import Web, web

pytest.importorskip("uvicorn")
client_of = pytest.importorskip("dicomweb_client.api")
FILES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "SC_rgb_rle_2frame.dcm")
HOSTILE = '<script>alert(1)</script>^"onerror=x'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = new_archive(tmp_path_factory.mktemp("web") / "archive")
    folder = Path(pydicom.data.__file__).parent / "test_files"
    with Archive.open(root) as archive:
        for name in FILES:
            with (folder / name).open("rb") as file:
                archive.import_file(file.fileno(), Provenance(origin="import"))
        store(archive, PatientName=HOSTILE, StudyInstanceUID="1.2.9", Modality=None,
              SeriesInstanceUID="1.2.9.1", SOPInstanceUID="1.2.9.1.1",
              PatientID="\u202eevil")  # fmt: skip
        for number in range(1, 4):
            store(archive, StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.8.1",
                  SOPInstanceUID=f"1.2.8.1.{number}", InstanceNumber=str(4 - number))  # fmt: skip
    with Indexer.open(root) as indexer:
        indexer.once()
    return root


@pytest.fixture(scope="module")
def server(root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(root, tmp_path_factory.mktemp("log")) as running:
        yield running


def uids(name: str) -> tuple[str, str, str]:
    path = Path(pydicom.data.__file__).parent / "test_files" / name
    ds = pydicom.dcmread(path)
    return str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)


def test_a_client_finds_and_reads_what_is_there(server: Web) -> None:
    client = client_of.DICOMwebClient(f"{server.url}/dicom-web")
    studies = client.search_for_studies()
    assert len(studies) == len({one["0020000D"]["Value"][0] for one in studies}) == 7
    assert len(client.search_for_studies(limit=2, offset=5)) == 2
    assert len(client.search_for_instances("1.2.8", limit=2, get_remaining=True)) == 3
    study, series, instance = uids("CT_small.dcm")
    ours = pydicom.dcmread(Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm")
    found = client.retrieve_instance(study, series, instance)
    assert np.array_equal(found.pixel_array, ours.pixel_array)
    (frame,) = client.retrieve_instance_frames(study, series, instance, [1])
    assert frame == ours.PixelData
    (header,) = client.retrieve_series_metadata(study, series)
    read = pydicom.Dataset.from_json(header, lambda *_: b"")
    assert read.PatientName == ours.PatientName
    assert read.PixelSpacing == ours.PixelSpacing
    picture = client.retrieve_instance_rendered(study, series, instance, media_types=("image/png",))
    assert picture.startswith(b"\x89PNG")


def test_a_compressed_frame_is_sent_as_stored_or_decoded(server: Web) -> None:
    study, series, instance = uids("JPEG2000.dcm")
    path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1"
    stored = server.get(path, 'multipart/related; type="image/jp2"')
    assert b"image/jp2; transfer-syntax=1.2.840.10008.1.2.4.9" in stored.body
    any_ = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    assert server.get(path, any_).status == 200
    decoded = server.get(path, "application/octet-stream")
    assert decoded.status == 200
    ours = pydicom.dcmread(Path(pydicom.data.__file__).parent / "test_files" / "JPEG2000.dcm")
    assert len(decoded.body) == ours.Rows * ours.Columns * ours.BitsAllocated // 8
    assert server.get(path, "image/gif").status == 406


def test_metadata_is_compressed_once_and_never_stale(root: str, server: Web) -> None:
    before = tree(root, internal=True)
    path = "/dicom-web/studies/1.2.8/series/1.2.8.1/metadata"
    first = server.get(path, Accept_Encoding="gzip")
    assert first.headers["content-encoding"] == "gzip"
    data = zlib.decompress(first.body, 31)
    assert b'"BulkDataURI":"http://127.0.0.1' in data
    again = server.get(path, If_None_Match=first.headers["etag"], Accept_Encoding="gzip")
    assert (again.status, again.body) == (304, b"")
    plain = server.get(path).json
    assert [one["00200013"]["Value"] for one in plain] == [[1], [2], [3]]
    assert tree(root, internal=True) == before, "nothing is at work here: nothing is written"
    with Archive.open(root) as archive:
        store(archive, StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.8.1",
              SOPInstanceUID="1.2.8.1.9", InstanceNumber="9")  # fmt: skip
        assert len(server.get(path).json) == 4
        (kept,) = Path(root, ".plainpacs/web").rglob("*.json.gz")
        assert b'"BulkDataURI":"instances/1.2.8.1.9/bulkdata/7FE00010"' in zlib.decompress(
            kept.read_bytes(), 31
        )
    Path(root, "202401/1.2.8/1.2.8.1/1.2.8.1.9.dcm").unlink()
    assert len(server.get(path).json) == 3
    pixels = path.replace("metadata", "instances/1.2.8.1.1/bulkdata/7FE00010")
    bulk = server.get(pixels, "application/octet-stream", Range="bytes=0-3")
    assert (bulk.status, bulk.body) == (206, b"\1\2\1\2")


def test_a_whole_study_is_what_lies_on_disk(root: str, server: Web) -> None:
    answer = server.get(
        "/dicom-web/studies/1.2.8", 'multipart/related; type="application/dicom"; transfer-syntax=*'
    )
    assert answer.status == 200
    assert len(answer.body) == int(answer.headers["content-length"])
    boundary = answer.headers["content-type"].rpartition("boundary=")[2].encode()
    parts = answer.body.split(b"--" + boundary)[1:-1]
    bodies = {part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts}
    assert bodies == {path.read_bytes() for path in Path(root, "202401/1.2.8/1.2.8.1").iterdir()}
    assert all(pydicom.dcmread(io.BytesIO(one)) for one in bodies)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dicom-web/studies?limit=abc", 400),
        ("/dicom-web/studies?StudyDate=2024-99", 400),
        ("/dicom-web/studies?PatientID=nobody", 204),
        ("/dicom-web/studies/..%2f..%2fetc/metadata", 404),
        ("/dicom-web/studies/1.2%00/metadata", 400),
        ("/dicom-web/studies/1.2.77/metadata", 404),
        ("/dicom-web/studies/1.2.77", 404),
        ("/dicom-web/studies/1.2.8/series/1.2.8.1/instances/1.2.8.1.1/frames/0", 400),
        ("/dicom-web/studies/1.2.8/series/1.2.8.1/instances/1.2.8.1.1/frames/x", 400),
        ("/dicom-web/studies/1.2.8/rendered?viewport=0,0", 400),
        ("/dicom-web/studies/1.2.9/thumbnail", 200),
        ("/" + "x" * 9000, 414),
        ("/wado?requestType=WADO&studyUID=1&seriesUID=2&objectUID=3", 404),
    ],
)
def test_bad_input_has_its_status(server: Web, path: str, status: int) -> None:
    answer = server.get(path)
    assert answer.status == status, answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_wado_uri_takes_a_frame_a_size_and_a_window(server: Web) -> None:
    study, series, instance = uids("SC_rgb_rle_2frame.dcm")
    base = f"/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}"
    small = server.get(f"{base}&frameNumber=2&rows=20&columns=20&contentType=image/png")
    assert max(Image.open(io.BytesIO(small.body)).size) == 20
    assert server.get(f"{base}&frameNumber=3").status == 404
    assert server.get(f"{base}&windowCenter=40").status == 400
    capabilities = server.get("/dicom-web/", method="OPTIONS")
    assert capabilities.headers["content-type"] == "application/vnd.sun.wadl+xml"
    paths = {one.get("path") for one in ElementTree.fromstring(capabilities.body).iter()}
    assert "/studies/{study}/series/{series}/metadata" in {f"/{path}" for path in paths}


def test_an_empty_modality_is_left_out(server: Web) -> None:
    (study,) = server.get("/dicom-web/studies?StudyInstanceUID=1.2.9").json
    assert "00080061" not in study
    assert study["00081190"]["Value"] == [f"{server.url}/dicom-web/studies/1.2.9"]


def test_the_page_escapes_what_came_with_an_instance(server: Web) -> None:
    for path in ("/", "/studies/1.2.9", "/studies/1.2.9/series/1.2.9.1"):
        answer = server.get(path)
        assert answer.status == 200
        text = answer.body.decode()
        assert "<script>alert" not in text
        assert '"onerror' not in text
        assert "\u202e" not in text
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert b"No study matches" in server.get("/?q=nobody").body


def test_other_sites_and_names_are_refused(server: Web) -> None:
    assert server.get("/", Host="evil.example").status == 421
    assert server.get("/", method="POST", Origin="http://evil.example").status == 403
    assert (
        "access-control-allow-origin" not in server.get("/", Origin="http://evil.example").headers
    )


def test_a_password_is_asked_for(root: str, tmp_path: Path) -> None:
    import base64

    import bcrypt

    users = tmp_path / "users"
    users.write_bytes(b"jane:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    with web(root, tmp_path, "--web-users", str(users)) as running:
        assert running.get("/").status == 401
        for password, status in (("secret", 200), ("wrong", 401)):
            basic = base64.b64encode(f"jane:{password}".encode()).decode()
            assert running.get("/", Authorization=f"Basic {basic}").status == status


def test_serve_starts_it_and_does_without_it(serve: Serve, tmp_path: Path) -> None:
    service = serve("--web", "0")
    port = eventually(lambda: re.search(r"look at it: http://127.0.0.1:([0-9]+)/", service.said))[1]
    running = Web(service.process, service.log, int(port))
    assert b"storescu" in running.get("/").body
    (child,) = service.children(b"web")
    os.kill(child, signal.SIGKILL)
    eventually(lambda: "the web server ended" in service.said)
    assert is_alive(service.process.pid)
    assert service.stop() == 0


def multipart(*bodies: bytes, kind: str = "application/dicom") -> tuple[bytes, str]:
    parts = [f"--b\r\nContent-Type: {kind}\r\n\r\n".encode() + one + b"\r\n" for one in bodies]
    return b"".join(parts) + b"--b--\r\n", 'multipart/related; type="application/dicom"; boundary=b'


def test_what_is_stored_is_what_was_sent(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    folder = Path(pydicom.data.__file__).parent / "test_files"
    with web(root, tmp_path, "--web-stow") as running:
        client = client_of.DICOMwebClient(f"{running.url}/dicom-web")
        sent = [pydicom.dcmread(folder / name) for name in ("CT_small.dcm", "JPEG2000.dcm")]
        answer = client.store_instances(sent)
        assert len(answer.ReferencedSOPSequence) == 2
        small, large = part10(), part10(SOPInstanceUID="1.2.3.4.6", PixelData=b"ab" * 400_000)
        stored = running.post("/dicom-web/studies", *multipart(small, b"no DICOM", large, small))
        assert stored.status == 202
        assert len(stored.json["00081199"]["Value"]) == 3
        (failed,) = stored.json["00081198"]["Value"]
        assert failed == {"00081197": {"vr": "US", "Value": [0xC000]}}
        assert running.post("/dicom-web/studies", *multipart(small)).status == 200
        other = running.post("/dicom-web/studies", *multipart(part10(PatientName="Other")))
        (kept,) = other.json["00081199"]["Value"]
        assert kept["00081196"]["Value"] == [0xB000]
        wrong = running.post("/dicom-web/studies/1.2.99", *multipart(part10(SOPInstanceUID="1.9")))
        assert wrong.status == 409
        assert wrong.json["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
        assert running.post("/dicom-web/studies", small, "application/dicom").status == 200
        assert running.post("/dicom-web/studies", b"x", "text/plain").status == 415
        assert running.post("/dicom-web/studies", b"x", "multipart/related").status == 400
        cut = multipart(part10(SOPInstanceUID="1.8"))[0][:-30]
        assert running.post("/dicom-web/studies", cut, multipart()[1]).status == 400
    assert {Path(one).stem for one in instances_in(root)} == {
        "1.2.3.4.5", "1.2.3.4.6", *(str(one.SOPInstanceUID) for one in sent)
    }  # fmt: skip
    assert not left_behind(root)
    assert all(b'"origin":"stow-rs"' in line for line in manifest_lines(root))
    path = Path(root, "202401/1.2.3/1.2.3.4/1.2.3.4.6.dcm").read_bytes()
    assert path[read_part10(path).dataset_offset :] == large[read_part10(large).dataset_offset :]


def test_nothing_is_stored_unless_told(server: Web) -> None:
    assert server.post("/dicom-web/studies", *multipart(part10())).status == 405


def test_who_reads_what_is_in_the_audit_log(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    with Archive.open(root) as archive, web(root, tmp_path) as running:
        store(archive)
        for _ in range(5):
            assert running.get("/dicom-web/studies/1.2.3/metadata").status == 200
        assert running.get("/dicom-web/studies/1.2.4/metadata").status == 404
        (log,) = Path(root, ".plainpacs/audit").iterdir()
        lines = [line for line in log.read_text().splitlines() if '"retrieved"' in line]
    assert len(lines) == 1
    assert '"StudyInstanceUID":"1.2.3"' in lines[0]
    assert '"peer":"127.0.0.1"' in lines[0]


def test_headers_are_made_when_a_study_settles(serve: Serve) -> None:
    service = serve("--web", "0", "--settle-seconds", "0.5")
    assert service.port
    with Archive.open(str(service.root)) as archive:
        store(archive)
    (made,) = eventually(lambda: list(Path(service.root, ".plainpacs/web").rglob("*.json.gz")))
    assert made.name == "1.2.3.4.json.gz"
    assert json.loads(zlib.decompress(made.read_bytes(), 31))[0]["00100010"]["Value"] == [
        {"Alphabetic": "Doe^Jane"}
    ]
    purge = [sys.executable, "-P", "-m", "plainpacs", "rm", "--purge", "--yes", "1.2.3"]
    subprocess.run(purge, cwd=service.root, check=True, capture_output=True)
    assert not made.exists()
    assert service.stop() == 0
