"""Debian's Orthanc with orthanc-dicomweb as a client of ours."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import bcrypt
import pydicom
import pytest

from tests.support.archives import PYDICOM_FILES, instances_in, new_archive
from tests.support.browser import unavailable
from tests.support.orthanc import orthanc
from tests.support.web import web

pytest.importorskip("uvicorn")
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
FILES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm")


def digest(path: Path) -> tuple[str, str]:
    one = pydicom.dcmread(path)
    return str(one.SOPInstanceUID), hashlib.sha256(one.PixelData).hexdigest()


def test_orthanc_stores_searches_and_retrieves(tmp_path: Path) -> None:
    if not Path(PLUGIN).exists():
        unavailable("orthanc-dicomweb is not installed (apt install orthanc-dicomweb)")
    root = new_archive(tmp_path / "archive")
    users = tmp_path / "users"
    users.write_bytes(b"orthanc:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    more = ("--web-stow", "--reserve", "0", "--web-users", str(users))
    with web(root, tmp_path, *more) as ours:
        server = [f"{ours.url}/dicom-web/", "orthanc", "secret"]
        configuration = {
            "Plugins": [PLUGIN],
            "DicomWeb": {"Enable": True, "Servers": {"ours": server}},
        }
        with orthanc(tmp_path / "orthanc", {}, **configuration) as peer:
            sent = {}
            for name in FILES:
                data = (PYDICOM_FILES / name).read_bytes()
                sent[peer.call("POST", "/instances", data)["ID"]] = digest(PYDICOM_FILES / name)
            answer = peer.call("POST", "/dicom-web/servers/ours/stow", {"Resources": list(sent)})
            assert answer["InstancesCount"] == str(len(FILES))
            stored = {digest(Path(root, one)) for one in instances_in(root)}
            assert stored == set(sent.values())

            basic = base64.b64encode(b"orthanc:secret").decode()
            listed = ours.get("/dicom-web/studies", Authorization=f"Basic {basic}").json
            studies = [one["0020000D"]["Value"][0] for one in listed]
            by_peer = peer.call("POST", "/dicom-web/servers/ours/get",
                                {"Uri": "/studies", "Arguments": {"PatientID": "*"}})  # fmt: skip
            assert {one["0020000D"]["Value"][0] for one in by_peer} == set(studies)

            for one in sent:
                peer.call("DELETE", f"/instances/{one}")
            resources = {"Resources": [{"Study": study} for study in studies]}
            answer = peer.call("POST", "/dicom-web/servers/ours/retrieve", resources)
            assert json.dumps(answer)
            back = peer.call("GET", "/instances")
            assert set(back) == set(sent)
            for one in back:
                count = peer.call("GET", f"/instances/{one}/attachments/dicom/size")
                assert int(count) > 100
