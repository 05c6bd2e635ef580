"""Requests and files that ask too much, or what cannot be: each has its answer, and no other
waits for it."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41

from plainpacs.archive.dicom.part10 import file_meta
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import PYDICOM_FILES, eventually, new_archive, store
from tests.support.web import Web, web

pytest.importorskip("uvicorn")
CT = "1.2.840.10008.5.1.4.1.1.2"
OLD, VIDEO, MANY = "1.2.31", "1.2.32", "1.2.33"


def imported(archive: Archive, folder: Path, data: bytes) -> None:
    path = folder / "x.dcm"
    path.write_bytes(data)
    with path.open("rb") as file:
        archive.import_file(file.fileno(), Provenance(origin="import"))


def element(group: int, number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", group, number, len(value)) + value


def with_group_lengths(study: str, side: int = 8) -> bytes:
    """In Implicit VR, as old scanners write it: each group says how long it is, also the last."""
    pixels = element(0x7FE0, 0x10, bytes(range(64)) * (side * side // 32))
    uid = f"{study}.1.1"
    body = b"".join(
        (
            element(0x0008, 0x16, CT.encode()),
            element(0x0008, 0x18, uid.encode()),
            element(0x0020, 0x0D, study.encode()),
            element(0x0020, 0x0E, f"{study}.1".encode()),
            *(
                element(0x0028, number, struct.pack("<H", value))
                for number, value in ((2, 1), (0x10, side), (0x11, side), (0x100, 16))
            ),
            element(0x7FE0, 0, struct.pack("<L", len(pixels))),
            pixels,
        )
    )
    return file_meta(CT, uid, "1.2.840.10008.1.2") + body


def video(folder: Path) -> bytes:
    made = pydicom.dcmread(PYDICOM_FILES / "CT_small.dcm")
    made.StudyInstanceUID, made.SeriesInstanceUID = VIDEO, f"{VIDEO}.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{VIDEO}.1.1"
    made.NumberOfFrames = 300
    made.file_meta.TransferSyntaxUID = MPEG4HP41
    made.PixelData = encapsulate([b"ab" * 1000], fragments_per_frame=4, has_bot=False)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.save_as(folder / "video", enforce_file_format=True)
    return (folder / "video").read_bytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    root = new_archive(folder / "archive")
    with Archive.open(root) as archive:
        imported(archive, folder, with_group_lengths(OLD))
        imported(archive, folder, video(folder))
        store(archive)
        for number in range(1, 9):
            store(archive, StudyInstanceUID=MANY, SeriesInstanceUID=f"{MANY}.1",
                  SOPInstanceUID=f"{MANY}.1.{number}", NumberOfFrames="100000")  # fmt: skip
    with Indexer.open(root) as indexer:
        indexer.once()
    return root


@pytest.fixture(scope="module")
def server(root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(root, tmp_path_factory.mktemp("log"), "--web-stow") as running:
        yield running


def below(study: str) -> str:
    return f"/dicom-web/studies/{study}/series/{study}.1/instances/{study}.1.1"


def test_pixels_behind_a_group_length_are_found(server: Web) -> None:
    pixels = bytes(range(64)) * 2
    octets = "application/octet-stream"
    assert server.get(below(OLD) + "/frames/1", octets).body == pixels
    assert server.get(below(OLD) + "/bulkdata/7FE00010", octets).body == pixels
    (header,) = server.get(below(OLD) + "/metadata").json
    assert header["7FE00010"]["BulkDataURI"].endswith("/bulkdata/7FE00010")


def test_a_video_is_handed_out_in_parts(server: Web) -> None:
    whole = server.get(below(VIDEO) + "/rendered", "video/mp4")
    assert (whole.status, whole.body) == (200, b"ab" * 1000)
    part = server.get(below(VIDEO) + "/rendered", Range="bytes=499-502")
    assert (part.status, part.body) == (206, b"baba")
    assert part.headers["content-range"] == "bytes 499-502/2000"


@pytest.mark.parametrize(
    ("span", "status", "body"),
    [
        ("bytes=0-1", 206, b"ab"),
        ("bytes=-3", 206, b"bab"),
        ("bytes=1998-9999999", 206, b"ab"),
        ("bytes=2000-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=5-2", 200, None),
        ("bytes=-", 200, None),
        ("bytes=0-1,3-4", 200, None),
        ("bytes=\u00b2-", 200, None),
        ("lines=0-1", 200, None),
        (f"bytes={'9' * 30}-", 200, None),
    ],
)
def test_ranges(server: Web, span: str, status: int, body: bytes | None) -> None:
    answer = server.get(below(VIDEO) + "/rendered", Range=span)
    assert answer.status == status
    if body is not None:
        assert answer.body == body


def peak_megabytes(server: Web) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def test_many_frames_are_never_held_at_once(root: str, server: Web, tmp_path: Path) -> None:
    large = "1.2.34"
    with Archive.open(root) as archive:
        imported(archive, tmp_path, with_group_lengths(large, 512))
    before = peak_megabytes(server)
    frames = ",".join(["1"] * 400)
    connection = socket.create_connection(("127.0.0.1", server.port))
    with contextlib.closing(connection):
        url = f"{below(large)}/frames/{frames}"
        accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
        connection.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n"
                           "Connection: close\r\n\r\n".encode())  # fmt: skip
        size = 0
        while part := connection.recv(1 << 20):
            size += len(part)
    assert size > 400 * 512 * 512 * 2
    assert peak_megabytes(server) < before + 60


def test_a_page_is_no_longer_than_its_instances(server: Web) -> None:
    page = server.get(f"/studies/{MANY}/series/{MANY}.1?image=799999")
    assert page.status == 200
    assert len(page.body) < 10_000
    assert b"799999 / 800000" in page.body
    assert f"{MANY}.1.8/frames/99999/rendered".encode() in page.body


def test_a_person_is_answered_by_a_page(server: Web) -> None:
    for path in ("/studies/1.2.999", "/studies/1.2.3/series/9.9", "/nowhere", "/studies/..x"):
        answer = server.get(path, "text/html,*/*;q=0.8")
        assert answer.status in (400, 404)
        assert b"List of studies" in answer.body
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    plain = server.get("/dicom-web/studies/1.2.999/metadata", "text/html,*/*;q=0.8")
    assert plain.body == b"there is no such study here\n"


def test_a_disk_that_went_away_is_said_in_words(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    with Archive.open(root) as archive:
        store(archive)
    with web(root, tmp_path) as running:
        listed = running.get("/").body
        assert b"Not all of this archive is indexed" in listed
        assert b"plainpacs index --once -a " in listed
        Path(root).rename(tmp_path / "elsewhere")
        for path in ("/", "/studies/1.2.3", "/studies/1.2.3/series/1.2.3.4"):
            answer = running.get(path, "text/html")
            assert answer.status == 503, path
            assert b"Its disk may not be mounted" in answer.body
        for path in ("/dicom-web/studies", "/dicom-web/studies/1.2.3/metadata",
                     "/dicom-web/studies/1.2.3/rendered"):  # fmt: skip
            assert running.get(path).status == 503, path
        (tmp_path / "elsewhere").rename(root)
        assert running.get("/studies/1.2.3").status == 200
    assert "Traceback" not in running.log.read_text()


def test_what_was_removed_between_two_requests_is_missing(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    with Archive.open(root) as archive:
        store(archive)
        store(archive, StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.4.1",
              SOPInstanceUID="1.2.4.1.1")  # fmt: skip
    with Indexer.open(root) as indexer:
        indexer.once()
    base = "/dicom-web/studies/1.2.3"
    one = f"{base}/series/1.2.3.4/instances/1.2.3.4.5"
    with web(root, tmp_path) as running:
        assert len(running.get("/dicom-web/studies").json) == 2
        assert running.get(f"{base}/metadata").status == 200
        Path(root, "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm").unlink()
        for path in (f"{base}/metadata", f"{one}/frames/1", f"{one}/rendered", base, one):
            assert running.get(path).status == 404, path
        thumbnail = running.get(f"{base}/thumbnail")
        assert (thumbnail.status, thumbnail.headers["content-type"]) == (404, "image/png")
        assert running.get("/").status == 200
        assert running.get("/dicom-web/studies").status == 200


def test_links_lead_nowhere(root: str, server: Web, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(Path(root, "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm").read_bytes())
    link = Path(root, "202401/1.2.3/1.2.3.4/1.2.3.4.66.dcm")
    link.symlink_to(tmp_path / "secret")
    base = "/dicom-web/studies/1.2.3/series/1.2.3.4"
    for path in ("", "/frames/1", "/metadata", "/rendered", "/thumbnail"):
        answer = server.get(f"{base}/instances/1.2.3.4.66{path}")
        assert answer.status in (404, 503), path
    assert len(server.get(f"{base}/metadata").json) == 1
    link.unlink()


def said(server: Web, data: bytes, *, more: bytes = b"") -> bytes:
    """The beginning of what is answered to these bytes; empty when the connection is closed."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
        connection.settimeout(20)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            while more:
                connection.sendall(more)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(1 << 16)
        return b""


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"HTTP/1.1 421"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 421"),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", b"HTTP/1.1 421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: x\r\n\r\n", b"HTTP/1.1 200"),
        (b"DELETE /dicom-web/studies/1.2.3 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 405"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"HTTP/1.1 400"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 414"),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /static/..%2f..%2fpage.py HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nAccept: ;;;\r\n\r\n",
         b"HTTP/1.1 400"),
        (b"GET /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nAccept: a/b;q=x\r\n\r\n",
         b"HTTP/1.1 400"),
        (b"GET /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nAccept: */*;q=nan\r\n\r\n",
         b"HTTP/1.1 400"),
        (b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
         b"Content-Encoding: gzip\r\nContent-Type: application/dicom\r\n\r\nx", b"HTTP/1.1 415"),
        (b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
         b"Origin: https://evil.example\r\nContent-Type: application/dicom\r\n\r\nx",
         b"HTTP/1.1 403"),
        (b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\n"
         b"Content-Length: 99999999999999\r\nContent-Type: application/dicom\r\n\r\nx",
         b"HTTP/1.1 413"),
    ],
)  # fmt: skip
def test_what_a_browser_would_not_send(server: Web, data: bytes, answer: bytes) -> None:
    assert said(server, data).startswith(answer)


def test_a_head_without_end_is_cut_off(server: Web) -> None:
    data = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
    assert said(server, data, more=b"x" * 4096) == b""
    assert server.get("/").status == 200


def test_heads_of_parts_without_end_are_refused(server: Web) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    for head in (b"X: " + b"y" * 100_000, b"X: y\r\n" * 1000):
        body = b"--b\r\n" + head + b"\r\n\r\nz\r\n--b--\r\n"
        assert server.post("/dicom-web/studies", body, kind).status == 400
    many = b"--b\r\n\r\nz\r\n" * 10_001 + b"--b--\r\n"
    assert server.post("/dicom-web/studies", many, kind).status == 413


def test_a_browser_signs_in_with_many_requests_and_guesses_are_few(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    users = tmp_path / "users"
    users.write_bytes(b"jane:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(10)) + b"\n")

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"jane:{password}".encode()).decode()

    with web(root, tmp_path, "--web-users", str(users)) as running, ThreadPoolExecutor(40) as many:

        def status(password: str) -> int:
            return running.get("/", Authorization=basic(password)).status

        assert set(many.map(status, ["secret"] * 40)) == {200}
        guesses = list(many.map(status, [f"guess{number}" for number in range(40)]))
        assert 429 in guesses
        assert {401, 429} >= set(guesses)
        assert running.log.read_text().count("a wrong user name or password") <= 10
        assert status("secret") == 200, "who is signed in is not shut out by others' guesses"


def test_names_in_any_character_set_are_shown(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "archive")
    charsets = PYDICOM_FILES.parent / "charset_files"
    names = {}
    with Archive.open(root) as archive:
        for number, path in enumerate(sorted(charsets.glob("*.dcm"))):
            one = pydicom.dcmread(path)
            one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.50.{number}", f"1.2.50.{number}.0"
            one.StudyDate = "20240131"
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.50.{number}.1"
            one.save_as(tmp_path / "y.dcm")
            imported(archive, tmp_path, (tmp_path / "y.dcm").read_bytes())
            names[one.StudyInstanceUID] = str(one.get("PatientName", ""))
    with Indexer.open(root) as indexer:
        indexer.once()
    assert len(names) > 10
    with web(root, tmp_path) as running:
        for study in running.get("/dicom-web/studies?limit=500").json:
            uid = study["0020000D"]["Value"][0]
            groups = study.get("00100010", {}).get("Value", [{}])[0]
            found = "=".join(
                groups.get(one, "") for one in ("Alphabetic", "Ideographic", "Phonetic")
            )
            assert found.rstrip("=") == names[uid].rstrip("="), uid
            assert study["00080005"]["Value"] == ["ISO_IR 192"]
        assert running.get("/").status == 200
        for uid in names:
            assert running.get(f"/studies/{uid}").status == 200


def test_a_client_that_stops_reading_holds_nobody_up(server: Web, root: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.sendall(b"GET /dicom-web/studies/1.2.3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert server.get("/").status == 200
    eventually(lambda: server.get("/dicom-web/studies").status == 200)
