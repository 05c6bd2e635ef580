"""``reindex --headers``: attributes read again from the files; who sent them, and when, is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import data_set, eventually, new_archive, store
from tests.support.commands import Run, run
from tests.support.peer import Peer
from tests.support.serve import Serve

__all__ = ["run"]  # the fixture

WANG = "王^小东".encode("gbk")


@pytest.fixture(autouse=True)
def _no_defaults_left() -> object:
    yield
    use_defaults(())


def lines_of(root: str) -> list[dict[str, object]]:
    [manifest] = Path(root).glob("[0-9]*/*/*.jsonl")
    found = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "crc32"} for line in found]


def study_of(root: str) -> dict[str, object]:
    [study] = Path(root).glob("[0-9]*/*/study.json")
    found: dict[str, object] = json.loads(study.read_text())
    return found


def test_another_default(tmp_path: Path, run: Run) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        store(archive, PatientName=WANG)
        store(archive, PatientName="Doe^Jane", SOPInstanceUID="1.2.3.4.6")
    assert run("-a", root, "reindex").code == 0
    before = lines_of(root)
    assert run("-a", root, "reindex", "--headers").code == 0
    assert lines_of(root) == before  # nothing is another
    assert run("-a", root, "reindex", "--headers", "--default-charset", "GBK").code == 0
    *same, new = lines_of(root)
    assert same == before
    assert new.pop("reread")
    assert new == before[0] | {"PatientName": "王^小东"}
    assert "王^小东" in study_of(root)["conflicting"]["PatientName"]  # type: ignore[index]  # of JSON
    # Back again: the latest reading counts, and a rebuild says the same.
    assert run("-a", root, "reindex", "--headers", "--default-charset", "BIG5").code == 0
    assert run("-a", root, "reindex", "--headers").code == 0
    assert len(lines_of(root)) == 5
    study = study_of(root)
    assert before[0]["PatientName"] in study["conflicting"]["PatientName"]  # type: ignore[index]  # of JSON
    assert run("-a", root, "reindex", "--full").code == 0
    assert study_of(root) == study
    assert run("-a", root, "verify").code == 0


def test_an_attribute_that_an_older_version_did_not_keep(tmp_path: Path, run: Run) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        store(archive, StudyDescription="Head")
    [manifest] = Path(root).glob("[0-9]*/*/*.jsonl")
    line = json.loads(manifest.read_text())
    del line["StudyDescription"], line["crc32"]
    manifest.write_text(json.dumps(line) + "\n")
    with Indexer.open(root) as indexer:
        indexer.once()
        assert "StudyDescription" not in study_of(root)
        assert indexer.once(headers=True) == 1
    assert study_of(root)["StudyDescription"] == "Head"
    assert lines_of(root)[-1]["calling_ae"] == "CT1"


def test_one_that_cannot_be_read_stays_as_it_is(tmp_path: Path, run: Run) -> None:
    root = new_archive(tmp_path / "a")
    with Archive.open(root) as archive:
        store(archive, PatientName=WANG)
    before = lines_of(root)
    [file] = Path(root).rglob("*.dcm")
    file.chmod(0o644)
    file.write_bytes(b"x" * file.stat().st_size)
    assert run("-a", root, "reindex", "--headers", "--default-charset", "GBK").code == 0
    assert lines_of(root) == before


def test_the_indexer_at_work_does_it(serve: Serve, run: Run) -> None:
    service = serve("--default-charset", "GBK")
    with Peer(service.port, calling="CT1") as peer:
        instance = data_set(PatientName=WANG, SOPInstanceUID="1.2.3.4.5")
        assert peer.store(instance, sop="1.2.3.4.5") == 0
        peer.release()
    root = str(service.root)
    [manifest] = Path(root).glob("[0-9]*/*/*.jsonl")
    line = json.loads(manifest.read_text()) | {"PatientName": "龍^wrong"}
    del line["crc32"]
    with manifest.open("a") as file:
        file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
    eventually(lambda: list(Path(root).glob("[0-9]*/*/study.json")))
    assert run("-a", root, "reindex", "--headers").code == 0
    assert study_of(root)["PatientName"] == "王^小东"
