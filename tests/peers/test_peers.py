"""Real clients send real files: pynetdicom's SCU, and DCMTK's storescu, dcmsend and echoscu."""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.identity import InstanceKey, is_name
from plainpacs.archive.tree.layout import instance_path
from plainpacs.scp.network.negotiation import is_storage, name_of
from plainpacs.scp.receiver.receiver import Receiver
from tests.support.archives import (
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    store,
)
from tests.support.peer import dcmtk

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")


@dataclass(frozen=True)
class Real:
    """A real Part 10 file, read by pydicom alone."""

    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    raw: bytes
    """The bytes of its data set."""
    filed: str
    """Where it belongs in the tree; empty when it cannot be filed."""


@cache
def real_files(folders: tuple[Path, ...]) -> tuple[Real, ...]:
    found: dict[bytes, Real] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.stat().st_size < 20_000_000:
                content = path.read_bytes()
                real = _real(path, content) if content[128:132] == b"DICM" else None
                if real is not None:
                    found.setdefault(hashlib.sha256(content).digest(), real)
    return tuple(found.values())


def _real(path: Path, content: bytes) -> Real | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
            meta = data.file_meta
            syntax = str(meta.TransferSyntaxUID)
            sop_class = str(data.get("SOPClassUID", "") or meta.MediaStorageSOPClassUID)
            uids = [
                str(data.get(keyword, "") or "")
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            ]
            date = data.get("StudyDate", "")
        except Exception:
            return None  # pydicom raises whatever it stumbles over in broken files
    if not is_storage(sop_class):
        return None
    filed = ""
    if all(map(is_name, uids)):
        filed = instance_path(InstanceKey.of(str(date or ""), *uids))
    offset = read_part10(content[: 1 << 20]).dataset_offset
    return Real(path, sop_class, uids[2] or "1.2.3", syntax, content[offset:], filed)


@dataclass(frozen=True)
class Running:
    root: Path
    port: int


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    root = new_archive(tmp_path / "archive")
    receiver = Receiver(Settings(port=0, bind="127.0.0.1"))
    with Archive.open(root, sync=False) as archive:
        receiver.start(archive)
        try:
            yield Running(Path(root), receiver.port)
        finally:
            receiver.stop()
    assert left_behind(root) == []


def data_sets_in(root: Path) -> dict[str, list[bytes]]:
    """Digest of each data set kept, by the path of its instance: first the one in the tree."""
    kept: dict[str, list[bytes]] = {}
    for path in instances_in(root):
        kept[path] = [_digest(root / path)]
    for aside in (root / ".plainpacs/conflicts").rglob("*~*"):
        name = str(aside.relative_to(root / ".plainpacs/conflicts")).partition("~")[0]
        kept[f"{name}.dcm"].append(_digest(aside))
    return kept


def _digest(path: Path) -> bytes:
    content = path.read_bytes()
    found = read_part10(content[: 1 << 20])
    return hashlib.sha256(found.transfer_syntax.encode() + content[found.dataset_offset :]).digest()


# --- pynetdicom -----------------------------------------------------------------------------------


def send_with_pynetdicom(association: Association, real: Real) -> int:
    """Sends the bytes as they are, which ``send_c_store`` does not do for a data set in memory."""
    [context] = [
        c
        for c in association.accepted_contexts
        if c.abstract_syntax == real.sop_class and c.transfer_syntax == [real.transfer_syntax]
    ]
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = real.sop_class
    request.AffectedSOPInstanceUID = real.sop_instance
    request.Priority = 2
    request.DataSet = BytesIO(real.raw)
    assert context.context_id is not None
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    assert response is not None
    assert isinstance(response.Status, int)
    return response.Status


def test_pynetdicom_sends_every_real_file_and_each_is_kept_byte_for_byte(
    running: Running, real_folders: tuple[Path, ...]
) -> None:
    reals = [
        r for r in real_files(real_folders) if pydicom.uid.UID(r.transfer_syntax).is_transfer_syntax
    ]
    pairs = {(r.sop_class, r.transfer_syntax) for r in reals}
    assert len(pairs) <= 128
    association = AE().associate(
        "127.0.0.1",
        running.port,
        ae_title="DRDCM",
        contexts=[build_context(*pair) for pair in sorted(pairs)],
    )
    assert association.is_established
    assert len(association.accepted_contexts) == len(pairs)
    unlike = {}
    # Its thread pauses for all of them: at each, it would take an answer in some thousand itself.
    association._reactor_checkpoint.clear()
    quiet = 0
    while quiet < 50:  # it may say so for the last time before it goes on once more
        quiet = quiet + 1 if association._is_paused else 0
        time.sleep(0.001)
    for real in reals:
        status = send_with_pynetdicom(association, real)
        if status != (0x0000 if real.filed else 0xC000):
            unlike[str(real.path)] = f"{status:04X}"
    association._reactor_checkpoint.set()
    association.release()
    assert unlike == {}
    sent: dict[str, set[bytes]] = {}
    for real in reals:
        if real.filed:
            digest = hashlib.sha256(real.transfer_syntax.encode() + real.raw).digest()
            sent.setdefault(real.filed, set()).add(digest)
    kept = data_sets_in(running.root)
    assert {path: set(digests) for path, digests in kept.items()} == sent
    assert all(len(digests) == len(set(digests)) for digests in kept.values())
    assert len(list(manifest_lines(running.root))) == len(sent)
    everything_can_be_read(running.root)


# --- DCMTK ----------------------------------------------------------------------------------------


def test_echoscu_is_answered(running: Running) -> None:
    assert dcmtk("echoscu", "-aec", "DRDCM", "127.0.0.1", str(running.port)).returncode == 0
    assert dcmtk("echoscu", "127.0.0.1", str(running.port)).returncode == 0, "ANY-SCP passes too"
    refused = dcmtk("echoscu", "-aec", "OTHER", "127.0.0.1", str(running.port))
    assert refused.returncode != 0
    assert "Called AE Title Not Recognized" in refused.stderr


def test_dcmsend_sends_every_real_file_it_can_and_all_can_be_read(
    running: Running, real_folders: tuple[Path, ...]
) -> None:
    reals = [r for r in real_files(real_folders) if r.filed]
    done = dcmtk(
        "dcmsend",
        *("-v", "-nh", "-nuc", "-dn", "-aec", "DRDCM", "127.0.0.1", str(running.port)),
        *(str(r.path) for r in reals),
    )
    said = done.stdout + done.stderr
    counts = {
        what: int(number)
        for what, number in re.findall(r"(SUCCESS|ERROR|NOT sent to the peer) +: (\d+)", said)
    }
    # It reads a few of the broken ones otherwise than they are, and says so itself.
    assert counts["SUCCESS"] >= 0.95 * len(reals)
    assert said.count("DataSetDoesNotMatchSOPClass") == counts.get("ERROR", 0)
    paths = instances_in(running.root)
    assert set(paths) <= {r.filed for r in reals}
    assert len({r.filed for r in reals}) - len(paths) <= counts.get("NOT sent to the peer", 0)
    everything_can_be_read(running.root)


PROPOSE = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.4.100": "-xm",
    "1.2.840.10008.1.2.4.102": "-xn",
}
"""storescu's flag to send in a transfer syntax."""


def test_storescu_sends_a_file_of_each_transfer_syntax_in_its_own(
    running: Running, real_folders: tuple[Path, ...]
) -> None:
    chosen: dict[str, Real] = {}
    for real in real_files(real_folders):
        broken = "fuzz" in str(real.path) or "truncated" in real.path.name
        if not real.filed or broken or real.transfer_syntax not in PROPOSE:
            continue
        if real.filed not in {one.filed for one in chosen.values()}:
            chosen.setdefault(real.transfer_syntax, real)
    failed = {}
    for uid, real in chosen.items():
        called = ("-R", PROPOSE[uid], "-aec", "DRDCM", "127.0.0.1", str(running.port))
        done = dcmtk("storescu", *called, str(real.path))
        if done.returncode != 0:
            failed[name_of(uid)] = done.stdout + done.stderr
    assert failed == {}
    kept = {
        path: read_part10((running.root / path).read_bytes()[: 1 << 20]).transfer_syntax
        for path in instances_in(running.root)
    }
    assert kept == {real.filed: uid for uid, real in chosen.items()}
    assert len(kept) >= 5


@pytest.mark.parametrize("client", ["storescu", "dcmsend"])
def test_a_series_folder_of_the_archive_is_sent_whole(
    running: Running, tmp_path: Path, client: str
) -> None:
    source = new_archive(tmp_path / "source")
    with Archive.open(source, sync=False) as archive:
        for number in range(1, 6):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}")
    arguments = ("-aec", "DRDCM", "127.0.0.1", str(running.port), "+sd", "+r")
    assert dcmtk(client, *arguments, f"{source}/202401/1.2.3/1.2.3.4").returncode == 0
    assert instances_in(running.root) == instances_in(source)


def everything_can_be_read(root: Path) -> None:
    """``dcmftest`` and pydicom read every instance in the tree."""
    paths = [str(root / path) for path in instances_in(root)]
    done = dcmtk("dcmftest", *paths)
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if "yes:" not in line]
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        assert meta.MediaStorageSOPInstanceUID == Path(path).stem
        assert meta.TransferSyntaxUID
