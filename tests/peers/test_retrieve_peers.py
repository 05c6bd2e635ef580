"""Real peers retrieve real files: DCMTK's clients, pynetdicom, Orthanc, and plainpacs itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.archive.tree.root import create_archive
from plainpacs.scp.storage.convert import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from tests.peers.test_peers import real_files
from tests.scp.test_retrieve import STUDY_GET, fill, keys, move, mover
from tests.support.archives import PYDICOM_FILES, eventually
from tests.support.orthanc import orthanc
from tests.support.peer import EVRLE, dcmtk
from tests.support.receiver import Running, Start

RLE = "1.2.840.10008.1.2.5"

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, real_folders: tuple[Path, ...]) -> Path:
    """An archive of all real files that can be stored."""
    root = tmp_path_factory.mktemp("real") / "archive"
    create_archive(str(root))
    with Archive.open(str(root), sync=False) as archive:
        for one in real_files(real_folders):
            with contextlib.suppress(PlainpacsError):
                archive.store(one.raw, one.transfer_syntax, Provenance("CT1"))
    shutil.rmtree(root / ".plainpacs" / "conflicts")
    (root / ".plainpacs" / "conflicts").mkdir()
    return root


def put(real: Path, running: Running) -> dict[str, bytes]:
    """The real instances into a running archive; what is to come of each, by its UID."""
    for folder in real.glob("[0-9u]*"):
        shutil.copytree(folder, running.root / folder.name, copy_function=os.link)
    return data_sets(running)


def data_sets(running: Running) -> dict[str, bytes]:
    return {path.stem: data_set_of(path) for path in running.instances()}


def data_set_of(path: Path) -> bytes:
    """As it is sent: a deflated one has an even length (PS3.5 A.5)."""
    content = path.read_bytes()
    found = read_part10(content[: 1 << 20])
    data = content[found.dataset_offset :]
    odd = len(data) % 2 and found.transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    return data + b"\0" if odd else data


def studies(running: Running) -> list[str]:
    return sorted({path.parts[-3] for path in running.instances()})


def retrieve_all(source: Running, destination: str) -> list[str]:
    """Moves every study; the UIDs of the instances that failed."""
    failed: list[str] = []
    with mover(source.port) as peer:
        for study in studies(source):
            last = move(peer, keys("STUDY", StudyInstanceUID=study), destination)[-1]
            assert last.status in (0, 0xB000, 0xA702)
            assert len(last.failed) == last.counts[2]
            failed += last.failed
        peer.release()
    return failed


def test_everything_moves_from_plainpacs_to_plainpacs(start: Start, real: Path) -> None:
    destination = start(called_ae="any")
    source = start(nodes=(f"STORE@127.0.0.1:{destination.port}",))
    expected = put(real, source)
    assert retrieve_all(source, "STORE") == []
    assert data_sets(destination) == expected


@contextlib.contextmanager
def storescp(folder: Path, *flags: str) -> Iterator[int]:
    """DCMTK's, which forks for each association: one that crashes takes no other along."""
    dcmtk("storescp", "--version")  # which skips, or fails in CI, where it is not installed
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        ["/usr/bin/storescp", "--fork", "+B", *flags, "-od", str(folder), str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: listens(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def came(folder: Path) -> dict[str, bytes]:
    """What DCMTK wrote, by SOP Instance UID."""
    return {
        read_part10(path.read_bytes()[: 1 << 20]).sop_instance: data_set_of(path)
        for path in folder.iterdir()
    }


def test_everything_moves_to_storescp_as_it_is(start: Start, real: Path, tmp_path: Path) -> None:
    with storescp(tmp_path / "out", "+xa") as port:
        source = start(nodes=(f"STORE@127.0.0.1:{port}",))
        expected = put(real, source)
        failed = retrieve_all(source, "STORE")
    found = came(tmp_path / "out")
    kept = {(path.stem, data_set_of(path)) for path in source.instances()}
    changed = dict(found.items() - kept)
    for path in (tmp_path / "out").iterdir():  # JPEG Lossless other than of first order, for one
        assert (syntax_of(path) == EVRLE) or data_set_of(path) not in changed.values()
    assert len(changed) < 5
    assert found.keys() | set(failed) == expected.keys()
    # What DCMTK will not read: odd lengths, data sets that are cut short, private SOP Classes.
    assert len(failed) < len(expected) / 4


def test_what_storescp_does_not_take_is_decompressed(start: Start, tmp_path: Path) -> None:
    with storescp(tmp_path / "out") as port:
        source = start(nodes=(f"STORE@127.0.0.1:{port}",))
        compressed = PYDICOM_FILES / "MR_small_RLE.dcm"
        list(import_all(source.archive, sources([str(compressed)])))
        [kept] = source.instances()
        assert syntax_of(kept) == RLE
        with mover(source.port) as peer:
            last = move(
                peer,
                keys("IMAGE", StudyInstanceUID=kept.parts[-3], SOPInstanceUID=kept.stem),
            )[-1]
            peer.release()
    assert (last.status, last.counts) == (0, (None, 1, 0, 0))
    (written,) = (tmp_path / "out").iterdir()
    found = pydicom.dcmread(written)
    assert found.file_meta.TransferSyntaxUID == EVRLE
    assert (found.pixel_array == pydicom.dcmread(compressed).pixel_array).all()


def syntax_of(path: Path) -> str:
    return read_part10(path.read_bytes()[: 1 << 20]).transfer_syntax


# --- DCMTK ----------------------------------------------------------------------------------------


STUDY = "1.2.3.1"


def fill_study(running: Running) -> dict[str, bytes]:
    fill(running)
    return data_sets(running)


ASK = ("-aet", "VIEWER", "-aec", "DRDCM", "-S", "-k", "QueryRetrieveLevel=STUDY")


def test_getscu(start: Start, tmp_path: Path) -> None:
    source = start()
    expected = fill_study(source)
    out = tmp_path / "out"
    out.mkdir()
    asked = (*ASK, "-k", f"StudyInstanceUID={STUDY}", "+B", "-od", str(out))
    done = dcmtk("getscu", *asked, "127.0.0.1", str(source.port))
    assert done.returncode == 0, done.stderr
    found = came(out)
    assert len(found) == 8
    assert all(expected[uid] == data for uid, data in found.items())


def test_movescu_to_itself(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    source = start(nodes=(f"VIEWER@127.0.0.1:{port}",))
    expected = fill_study(source)
    out = tmp_path / "out"
    out.mkdir()
    asked = (*ASK, "-k", f"StudyInstanceUID={STUDY}", "-aem", "VIEWER", "+P", str(port))
    done = dcmtk("movescu", "-v", *asked, "-od", str(out), "127.0.0.1", str(source.port))
    assert done.returncode == 0, done.stderr
    assert sorted(came(out)) == sorted(uid for uid in expected if uid.startswith("1.2.3.1."))
    elsewhere = dcmtk(
        "movescu", "-v", *asked[:-4], "-aem", "ELSEWHERE", "127.0.0.1", str(source.port)
    )
    assert "MoveDestinationUnknown" in elsewhere.stderr


# --- pynetdicom -----------------------------------------------------------------------------------


def test_pynetdicom_gets_everything_in_its_own_syntax(start: Start, real: Path) -> None:
    source = start()
    expected = put(real, source)
    kinds: dict[tuple[str, str], list[str]] = {}
    for path in source.instances():
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        kind = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        kinds.setdefault(kind, []).append(path.parts[-3])
    found: dict[str, bytes] = {}

    def stored(event: Any) -> int:
        found[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0

    for some in (list(kinds)[at : at + 100] for at in range(0, len(kinds), 100)):
        classes = sorted({sop_class for sop_class, _ in some})
        requestor = AE(ae_title="VIEWER")
        association = requestor.associate(
            "127.0.0.1",
            source.port,
            contexts=[build_context(STUDY_GET)] + [build_context(*kind) for kind in some],
            ae_title="DRDCM",
            ext_neg=[build_role(sop_class, scp_role=True) for sop_class in classes],
            evt_handlers=[(evt.EVT_C_STORE, stored)],
        )
        assert association.is_established
        identifier = pydicom.Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.StudyInstanceUID = sorted({study for kind in some for study in kinds[kind]})
        *_, (last, _) = association.send_c_get(identifier, STUDY_GET)
        assert last.Status in (0, 0xB000)
        association.release()
    assert found == expected


# --- Orthanc --------------------------------------------------------------------------------------


def test_orthanc_queries_and_retrieves(start: Start, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", {}, DicomAet="ORTHANC") as peer:
        source = start(nodes=(f"ORTHANC@127.0.0.1:{peer.port}",))
        expected = fill_study(source)
        with contextlib.suppress(ValueError):  # it answers with nothing, which is no JSON
            peer.call("PUT", "/modalities/us", ["DRDCM", "127.0.0.1", source.port])
        asked = {"Level": "Study", "Query": {"StudyInstanceUID": STUDY}}
        query = peer.call("POST", "/modalities/us/query", asked)["ID"]
        assert len(peer.call("GET", f"/queries/{query}/answers")) == 1
        peer.call("POST", f"/queries/{query}/answers/0/retrieve", {"TargetAet": "ORTHANC"})
        found = peer.call("GET", "/instances?expand")
    uids = sorted(one["MainDicomTags"]["SOPInstanceUID"] for one in found)
    assert uids == sorted(uid for uid in expected if uid.startswith("1.2.3.1."))
