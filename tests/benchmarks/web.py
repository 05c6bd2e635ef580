"""DICOMweb beside Orthanc's: ``python -m tests.benchmarks.web [--studies N] [--slices N]``.

One archive, N small studies and a CT of many slices, made here; the same files in Debian's Orthanc
with orthanc-dicomweb (``apt install orthanc orthanc-dicomweb``). A client of plain HTTP over kept
connections asks both in turn; each figure is the median, and the ratio is Orthanc's time by ours.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, file_meta
from tests.support.archives import CT_IMAGE_STORAGE, new_archive
from tests.support.orthanc import orthanc
from tests.support.web import Web, web

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
STUDY, SERIES = "2.25.4711.1", "2.25.4711.1.1"
ANY = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
WHOLE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
SIDE = 512


def element(tag: int, vr: str, value: bytes) -> bytes:
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in ("OW", "SQ"):
        return head + struct.pack("<HL", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def instance(study: str, series: str, uid: str, number: int, side: int, name: str) -> bytes:  # noqa: PLR0917 - of one image
    """A CT image with about as many elements as a scanner writes."""
    row = struct.pack(f"<{side}h", *((number * 7 + x) % 2000 - 500 for x in range(side)))
    texts = [element(0x00190000 | 0x1000 + n, "LO", b"private value %d" % n) for n in range(60)]
    parts = [
        element(0x00080016, "UI", CT_IMAGE_STORAGE.encode()),
        element(0x00080018, "UI", uid.encode()),
        element(0x00080020, "DA", b"2024%02d%02d" % (number % 12 + 1, number % 28 + 1)),
        element(0x00080030, "TM", b"101500"),
        element(0x00080060, "CS", b"CT"),
        element(0x00081030, "LO", b"Thorax"),
        element(0x00100010, "PN", name.encode()),
        element(0x00100020, "LO", f"P{number:05}".encode()),
        element(0x00180050, "DS", b"1.0"),
        element(0x00190010, "LO", b"PRIVATE"),
        *texts,
        element(0x0020000D, "UI", study.encode()),
        element(0x0020000E, "UI", series.encode()),
        element(0x00200011, "IS", b"1"),
        element(0x00200013, "IS", str(number + 1).encode()),
        element(0x00200032, "DS", f"-200\\-200\\{number}".encode()),
        element(0x00200037, "DS", b"1\\0\\0\\0\\1\\0"),
        element(0x00280002, "US", struct.pack("<H", 1)),
        element(0x00280004, "CS", b"MONOCHROME2"),
        element(0x00280010, "US", struct.pack("<H", side)),
        element(0x00280011, "US", struct.pack("<H", side)),
        element(0x00280030, "DS", b"0.8\\0.8"),
        element(0x00280100, "US", struct.pack("<H", 16)),
        element(0x00280101, "US", struct.pack("<H", 16)),
        element(0x00280102, "US", struct.pack("<H", 15)),
        element(0x00280103, "US", struct.pack("<H", 1)),
        element(0x00281050, "DS", b"40"),
        element(0x00281051, "DS", b"400"),
        element(0x7FE00010, "OW", row * side),
    ]
    return file_meta(CT_IMAGE_STORAGE, uid, EXPLICIT_LITTLE_ENDIAN) + b"".join(parts)


def made(folder: Path, studies: int, slices: int) -> None:
    folder.mkdir()
    # The CT has one date: its number stands elsewhere.
    for number in range(slices):
        one = instance(STUDY, SERIES, f"{SERIES}.{number + 1}", number, SIDE, "Eight^Hundred")
        one = one.replace(b"2024%02d%02d" % (number % 12 + 1, number % 28 + 1), b"20240228", 1)
        one = one.replace(f"P{number:05}".encode(), b"P00000", 1)
        (folder / f"ct{number}").write_bytes(one)
    for number in range(studies):
        study = f"2.25.4711.2.{number}"
        one = instance(study, f"{study}.1", f"{study}.1.1", number, 16, f"Doe{number % 777}^J")
        (folder / f"s{number}").write_bytes(one)


class Client:
    """One kept connection to a base of DICOMweb."""

    def __init__(self, port: int, base: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._base = base

    def get(self, path: str, accept: str = "application/dicom+json", gzip: bool = False) -> bytes:
        headers = {"Accept": accept} | ({"Accept-Encoding": "gzip"} if gzip else {})
        self._connection.request("GET", self._base + path, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body[:200])
        return body

    def post(self, bodies: Sequence[bytes]) -> None:
        parts = [
            b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in bodies
        ]
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        self._connection.request(
            "POST",
            self._base + "/studies",
            b"".join(parts) + b"--b--\r\n",
            {"Content-Type": kind, "Accept": "application/dicom+json"},
        )
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (answer.status, body[:200])


def timed(client: Client, path: str, times: int, gzip: bool = False) -> float:
    """Milliseconds, the median."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        client.get(path, gzip=gzip)
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def rate(port: int, base: str, paths: Sequence[str], accept: str, connections: int) -> float:
    """Milliseconds an answer, of so many connections at once."""
    left: Iterator[str] = iter(paths)
    lock = threading.Lock()

    def run() -> None:
        client = Client(port, base)
        while True:
            with lock:
                path = next(left, None)
            if path is None:
                return
            client.get(path, accept)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1000 * (time.perf_counter() - began) / len(paths)


def resident(server: Web) -> float:
    """Megabytes of the server and its children, shared pages counted by share."""
    total = 0
    pids = [server.process.pid]
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        pids += [int(one) for one in (task / "children").read_text().split()]
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1000


def measured(port: int, base: str, folder: Path, slices: int, label: str) -> dict[str, float]:
    client = Client(port, base)
    series = f"/studies/{STUDY}/series/{SERIES}"
    frames = [f"{series}/instances/{SERIES}.{n + 1}/frames/1" for n in range(slices)]
    rendered = [one.replace("/frames/1", "/rendered") for one in frames[:: max(1, slices // 60)]]
    rate(port, base, rendered[:4], "image/jpeg", 2)  # the processes that draw are running then
    found = {
        "metadata, first": timed(client, f"{series}/metadata", 1, gzip=True),
        "metadata, again": timed(client, f"{series}/metadata", 5, gzip=True),
        "QIDO 101 newest": timed(client, "/studies?limit=101", 9),
        "QIDO 101 at half": timed(client, "/studies?limit=101&offset=500", 5),
        "QIDO PatientID": timed(client, "/studies?PatientID=P00345", 9),
        "QIDO all": timed(client, "/studies?limit=10000", 2),
        "QIDO instances": timed(client, f"{series}/instances?limit=1000", 3),
        "frame, 1 connection": rate(port, base, frames[: slices // 2], ANY, 1),
        "frame, 8 connections": rate(port, base, frames, ANY, 8),
        "rendered, 4": rate(port, base, rendered, "image/jpeg", 4),
    }
    began = time.perf_counter()
    client = Client(port, base)
    client.get(f"/studies/{STUDY}", WHOLE)
    found["whole study"] = 1000 * (time.perf_counter() - began)
    for name, side, count, batch in (
        ("STOW small, 1", 16, 100, 1),
        ("STOW small, 20", 16, 300, 20),
        ("STOW CT, 10", SIDE, 60, 10),
    ):
        study = f"2.25.99.{side}.{batch}"
        files = [
            instance(study, f"{study}.1", f"{study}.1.{n}", 1, side, "Stow") for n in range(count)
        ]
        client = Client(port, base)
        began = time.perf_counter()
        for at in range(0, count, batch):
            client.post(files[at : at + batch])
        found[name] = 1000 * (time.perf_counter() - began) / count
    print(label, {name: round(value, 1) for name, value in found.items()}, flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--studies", type=int, default=5000)
    options.add_argument("--slices", type=int, default=800)
    options.add_argument("--alone", action="store_true", help="without Orthanc")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        made(folder / "files", chosen.studies, chosen.slices)
        root = new_archive(folder / "archive")
        program = [sys.executable, "-P", "-m", "plainpacs"]
        subprocess.run([*program, "import", str(folder / "files")], cwd=root, check=True)
        subprocess.run([*program, "index", "--once"], cwd=root, check=True)
        server = stack.enter_context(web(root, folder, "--web-stow", "--reserve", "0"))
        ours = measured(server.port, "/dicom-web", folder, chosen.slices, "plainpacs")
        print(f"resident: {resident(server):.0f} MB", flush=True)
        if chosen.alone:
            return
        more = {
            "Plugins": [PLUGIN],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True},
            "AuthenticationEnabled": False,
            "SyncStorageArea": True,
        }
        other = stack.enter_context(orthanc(folder / "orthanc", {}, **more))
        for file in sorted((folder / "files").iterdir()):
            other.call("POST", "/instances", file.read_bytes())
        theirs = measured(other._http_port, "/dicom-web", folder, chosen.slices, "Orthanc")
    print(json.dumps({name: round(theirs[name] / ours[name], 2) for name in ours}, indent=1))


if __name__ == "__main__":
    main()
