"""Sending to, searching and pulling from DCMTK's and pynetdicom's, Orthanc, our own receiver."""

from __future__ import annotations

from pathlib import Path

import pydicom.data
import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive
from tests.support.archives import new_archive
from tests.support.commands import Run, at, data_sets, empty, run
from tests.support.orthanc import orthanc
from tests.support.qrscp import dcmqrscp, storescp
from tests.support.queries import index
from tests.support.receiver import Start

__all__ = ["empty", "run"]  # the fixtures

pytestmark = pytest.mark.filterwarnings("ignore:::pynetdicom", "ignore:::pydicom")

# In several transfer syntaxes, as CT, MR, SC, SR, plan and ECG.
NAMES = (
    *("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "reportsi.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "image_dfl.dcm", "rtplan.dcm", "MR_small_RLE.dcm"),
)


@pytest.fixture
def real(tmp_path: Path) -> str:
    """An archive of real instances."""
    path = new_archive(tmp_path / "real")
    base = Path(pydicom.data.__file__).parent / "test_files"
    with Archive.open(path) as archive:
        found = list(import_all(archive, sources([str(base / name) for name in NAMES])))
    assert all(one.stored for one in found)
    return path


def pulled(run: Run, node: str, root: str, *arguments: str) -> dict[str, tuple[str, bytes]]:
    """All that the node has, after a second run that finds nothing missing."""
    done = run("pull", node, "-a", root, "StudyInstanceUID=*", "--jobs", "3", *arguments)
    assert done.code == 0, done.err
    done = run("pull", node, "-a", root, "StudyInstanceUID=*", *arguments)
    assert "0 are missing" in done.err
    return data_sets(root)


def listed(run: Run, node: str) -> set[str]:
    return set(run("find", node, "--level", "instance", "--format", "uids").out.split())


def assert_the_same(came: dict[str, tuple[str, bytes]], sent: dict[str, tuple[str, bytes]]) -> None:
    assert came.keys() == sent.keys()
    for uid, (syntax, data) in came.items():
        assert syntax == sent[uid][0]
        # A fragment has an even length, a deflated data set may have an odd one.
        assert data in (sent[uid][1], sent[uid][1] + b"\0"), uid


def test_our_own_receiver(run: Run, start: Start, real: str, empty: str) -> None:
    other = start()
    assert run("send", at(other.port), real).code == 0
    index(other)
    assert listed(run, at(other.port)) == data_sets(real).keys()
    assert_the_same(pulled(run, at(other.port), empty), data_sets(real))


def test_orthanc(run: Run, start: Start, real: str, empty: str, tmp_path: Path) -> None:
    ours = start(aet=("OURS",))
    with orthanc(tmp_path / "orthanc", {"ours": ("OURS", ours.port)}) as other:
        node = at(other.port, "ORTHANC")
        done = run("send", node, "-a", real, real)
        assert done.code == 0, done.err
        assert listed(run, node) == data_sets(real).keys()
        got = pulled(run, node, empty)
        moved = pulled(run, node, str(ours.root), "--via", "move", "--move-to", "OURS")
        assert run("find", node, "compressed", "--format", "uids").code == 0
    # Orthanc writes data sets anew.
    for came in (got, moved):
        assert came.keys() == data_sets(real).keys()
    assert {uid: one[0] for uid, one in got.items()} == (
        {uid: one[0] for uid, one in data_sets(real).items()}
    )


def test_dcmqrscp(run: Run, start: Start, real: str, empty: str, tmp_path: Path) -> None:
    ours = start(aet=("OURS",))
    with dcmqrscp(tmp_path / "qr", {"OURS": ours.port}) as port:
        node = at(port, "QR")
        sent = run("send", node, "-a", real, real)
        stored = listed(run, node)
        assert sent.code == (0 if stored == data_sets(real).keys() else 1)
        assert len(stored) >= 5
        got = pulled(run, node, empty)
        moved = pulled(run, node, str(ours.root), "--via", "move", "--move-to", "OURS")
        found = run("find", node, "PatientID=?*", "Modality=CT", "--level", "series")
        assert found.code == 0, found.err
    assert got.keys() == stored
    # It writes data sets anew, the same way each time.
    assert got == moved


def test_storescp(run: Run, real: str, tmp_path: Path) -> None:
    with storescp(tmp_path / "bits", "+xa", "+B") as port:  # as they come, in any transfer syntax
        done = run("send", at(port, "STORESCP"), "-a", real, real)
    assert done.code == 0, done.err
    came = {}
    for path in (tmp_path / "bits").iterdir():
        raw = path.read_bytes()
        read = read_part10(raw[: 1 << 20])
        came[read.sop_instance] = read.transfer_syntax, raw[read.dataset_offset :]
    assert_the_same(came, data_sets(real))
    with storescp(tmp_path / "plain") as port:  # it takes uncompressed ones alone
        done = run("send", at(port, "STORESCP"), "-a", real, real)
    assert done.code == 0, done.err
    assert len(list((tmp_path / "plain").iterdir())) == len(came)


def test_storescp_of_pynetdicom(run: Run, real: str) -> None:
    came: dict[str, tuple[str, bytes]] = {}

    def take(event: evt.Event) -> int:
        raw = event.request.DataSet.getvalue()
        came[event.request.AffectedSOPInstanceUID] = event.context.transfer_syntax, raw
        return 0x0000

    entity = AE("ANY")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)]
    )
    assert server is not None
    try:
        node = at(server.server_address[1], "ANY")
        assert run("echo", node).code == 0
        done = run("send", node, "-a", real, real)
    finally:
        server.shutdown()
    assert done.code == 0, done.err
    assert_the_same(came, data_sets(real))
