"""What a person means who names a study: in the module, and in every command that takes one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pydicom
import pytest

from plainpacs.archive.errors import BadQuery, NoMatch
from plainpacs.archive.store.store import Archive
from plainpacs.indexer.query import resolve
from plainpacs.indexer.query.resolve import Ambiguous
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import instances_in, new_archive, store
from tests.support.commands import Run, run

__all__ = ["run"]

JANE = "1.2.840.1.1000.77"
JOHN = "1.2.840.1.2000.78"
ROE = "1.2.840.2.3000.79"
STUDIES = {
    JANE: {"PatientName": "Doe^Jane", "PatientID": "P1", "Modality": "CT"},
    JOHN: {"PatientName": "Doe^John", "PatientID": "20240079", "Modality": "MR"},
    ROE: {"PatientName": "Roe^Rita", "PatientID": "12345678", "StudyDate": "20230505"},
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = new_archive(tmp_path_factory.mktemp("resolve") / "a")
    with Archive.open(path) as archive:
        for study, values in STUDIES.items():
            uids = {
                "StudyInstanceUID": study,
                "SeriesInstanceUID": f"{study}.5001",
                "SOPInstanceUID": f"{study}.5001.6001",
            }
            store(archive, **uids, **values)
    with Indexer.open(path) as indexer:
        indexer.once()
    return path


@pytest.fixture
def path(filled: str, tmp_path: Path) -> str:
    """A copy that may be changed."""
    copy = tmp_path / "copy"
    shutil.copytree(filled, copy, symlinks=True)
    return str(copy)


def nothing(_: str) -> None:
    raise AssertionError("there is nothing to say")


@pytest.mark.parametrize(
    ("texts", "uid"),
    [
        ([JANE], JANE),
        ([f" {JANE}\n"], JANE),
        (["1.2.840.1.1"], JANE),
        (["00.77"], JANE),
        (["…1000.77"], JANE),
        (["1.2.840.2…"], ROE),
        (["3000.79"], ROE),
        ([f"{ROE}.5001"], f"{ROE}.5001"),
        ([f"{ROE}.5001.6001"], f"{ROE}.5001.6001"),
        (["79.5001"], f"{ROE}.5001"),
        (["77.5001.6001"], f"{JANE}.5001.6001"),
        (["12345678"], ROE),  # a patient's ID
        (["3456"], ROE),
        (["jane"], JANE),
        (["doe", "Modality=MR"], JOHN),
        (["doe", "2000"], JOHN),
        (["StudyDate=-20231231"], ROE),
    ],
)
def test_one_is_meant(filled: str, texts: list[str], uid: str) -> None:
    assert resolve.one(filled, texts, nothing).uid == uid


@pytest.mark.parametrize(
    ("texts", "uids"),
    [
        (["1.2.840."], [JANE, JOHN, ROE]),
        (["1.2.840.1"], [JANE, JOHN]),
        (["doe"], [JANE, JOHN]),
        (["5001"], [f"{one}.5001" for one in STUDIES]),
    ],
)
def test_several_that_may_be_meant_are_named(
    filled: str, texts: list[str], uids: list[str]
) -> None:
    with pytest.raises(Ambiguous) as raised:
        resolve.one(filled, texts, nothing)
    assert sorted(one.uid for one in raised.value.candidates) == uids


def test_a_patients_id_that_is_part_of_anothers_uid_means_neither(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive, StudyInstanceUID="1.9.20240079", SeriesInstanceUID="8", SOPInstanceUID="9")
    with Indexer.open(path) as indexer:
        indexer.once()
    for ask in (resolve.one, resolve.some):
        with pytest.raises(Ambiguous) as raised:
            ask(path, ["20240079"], nothing)
        assert {one.uid for one in raised.value.candidates} == {"1.9.20240079", JOHN}


def test_no_study_and_what_cannot_be_meant(filled: str) -> None:
    heard: list[str] = []
    for texts in (["1.2.840.9"], ["9.9"], ["nobody"], ["Modality=US"], ["1.2"]):
        with pytest.raises(NoMatch) as raised:
            resolve.one(filled, texts, heard.append)
        assert not isinstance(raised.value, Ambiguous)
    with pytest.raises(BadQuery, match="either UIDs or terms"):
        resolve.some(filled, [JANE, "Modality=MR"], nothing)
    with pytest.raises(BadQuery, match="not a key"):
        resolve.some(filled, ["Patient=x"], nothing)


def test_series_and_instances_are_no_studies(filled: str) -> None:
    assert resolve.study(filled, [JANE], nothing) == JANE
    assert resolve.study(filled, ["00.77"], nothing) == JANE
    with pytest.raises(NoMatch, match=f"it lies in the study {JANE}"):
        resolve.study(filled, [f"{JANE}.5001"], nothing)


def test_several_are_meant(filled: str) -> None:
    heard: list[str] = []
    meant = resolve.some(filled, [ROE, "00.77", "1.2.840.9.9"], heard.append)
    assert [one.uid for one in meant.named] == [ROE, JANE]
    assert meant.unknown == ["1.2.840.9.9"]
    assert heard[0] == f"00.77 is taken to mean {JANE}"
    found = resolve.some(filled, ["PatientName=doe*"], nothing).named
    assert {one.uid: one.places for one in found} == {
        JOHN: (f"202401/{JOHN}",),
        JANE: (f"202401/{JANE}",),
    }


def test_nobody_to_ask_means_whole_uids_and_terms_alone(filled: str) -> None:
    for text in ("00.77", "1.2.840.1.1", "1.2.840.1.1000.7"):
        meant = resolve.some(filled, [text], nothing, whole=True)
        assert (meant.named, meant.unknown) == ([], [text])
    assert [one.uid for one in resolve.some(filled, [JANE], nothing, whole=True).named] == [JANE]
    named = resolve.some(filled, ["Modality=MR"], nothing, whole=True).named
    assert [one.uid for one in named] == [JOHN]
    with pytest.raises(BadQuery, match="neither a UID nor KEY=VALUE"):
        resolve.some(filled, ["Doe"], nothing, whole=True)


def test_what_is_known_elsewhere_alone(filled: str) -> None:
    elsewhere = lambda: {"7.7.7.4711", "7.7.7.4712"}  # noqa: E731 - as short as it is
    assert resolve.some(filled, ["4711"], lambda _: None, elsewhere=elsewhere).named[0].uid == (
        "7.7.7.4711"
    )
    with pytest.raises(Ambiguous):
        resolve.some(filled, ["7.7.7"], nothing, elsewhere=elsewhere)
    assert resolve.among("4712", elsewhere()) == ["7.7.7.4712"]
    assert resolve.among("4712", {"1.4712"}, elsewhere()) == ["1.4712"]
    assert resolve.among("471", elsewhere()) == []


def test_the_last_that_came(path: str) -> None:
    assert resolve.last(path, nothing).uid == ROE
    with Archive.open(path) as archive:
        store(archive, StudyInstanceUID=JANE, SOPInstanceUID="1.1", StudyDate="20240131")
    with Indexer.open(path) as indexer:
        indexer.once()
    assert resolve.last(path, nothing).uid == JANE
    # A line that counts no longer says that it came later.
    with Path(path, "202305/studies.jsonl").open("a") as catalogue:
        for line in ('"last_stored":"2999-01-01T00:00:00.000Z"', '"removed":true'):
            catalogue.write(f'{{"StudyInstanceUID":"{ROE}",{line}}}\n')
    assert resolve.last(path, nothing).uid == JANE


def test_the_last_of_none(tmp_path: Path) -> None:
    with pytest.raises(NoMatch):
        resolve.last(new_archive(tmp_path / "a"), nothing)


def test_a_copy_without_indexes_will_do(path: str) -> None:
    shutil.rmtree(Path(path, ".plainpacs"))
    for index in Path(path).glob("*/studies.jsonl"):
        index.unlink()
    heard: list[str] = []
    assert resolve.one(path, ["00.77"], heard.append).uid == JANE
    assert resolve.one(path, [f"{JANE}.5001"], heard.append).uid == f"{JANE}.5001"


# --- in the commands ------------------------------------------------------------------------------


def test_commands_that_read_take_parts_and_terms(run: Run, path: str, tmp_path: Path) -> None:
    at = ("-a", path)
    for named in (["00.77"], ["jane"], ["Modality=CT", "PatientID=P1"]):
        assert json.loads(run("show", *at, *named).out)["StudyInstanceUID"] == JANE
        assert run("path", *at, *named).out == f"{path}/202401/{JANE}\n"
        assert run("export", *at, *named, tmp_path / f"out-{named[0]}").code == 0
        assert run("verify", *at, "--fast", *named).code == 0
        assert "1 instances in 1 studies" in run("verify", *at, "--fast", *named).err
        assert run("repair", *at, "--fast", *named).code == 0
        assert run("conflicts", *at, *named).code == 0
        assert run("hooks", *at, *named).code == 0
    assert json.loads(run("show", *at, "--last").out)["StudyInstanceUID"] == ROE
    done = run("show", *at, "1.2.840.1")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        JANE,
        JOHN,
        "plainpacs: '1.2.840.1' may mean 2: give more of the UID, or more terms",
    ]
    assert run("show", *at).code == 2
    assert run("ls", *at, "--format", "uids", "doe").out.splitlines() == [JANE, JOHN]


def test_removing_asks_and_takes_no_part_without(run: Run, path: str) -> None:
    at = ("-a", path)
    assert len(instances_in(path)) == 3
    done = run("rm", *at, "00.77")
    assert done.code == 2
    assert "nobody to ask here" in done.err
    assert f"202401/{JANE}: 1 instance" in done.err
    for arguments in (["00.77", "--yes"], ["--last", "--yes"], ["jane", "--yes"]):
        assert run("rm", *at, *arguments).code in (1, 2)
    assert len(instances_in(path)) == 3
    assert run("rm", *at, "PatientName=doe*", "--yes").code == 0
    assert len(instances_in(path)) == 1
    assert run("rm", *at, "--dry-run", "--purge", "00.77").code == 0
    listed = run("restore", *at, "--list", "jane", "--format", "jsonl")
    assert json.loads(listed.out)["StudyInstanceUID"] == JANE
    assert run("restore", *at, "00.77").code == 0
    assert run("restore", *at, "Modality=MR").code == 0
    assert len(instances_in(path)) == 3


def test_purging_and_blocking_what_only_the_trash_has(run: Run, path: str) -> None:
    at = ("-a", path)
    assert run("rm", *at, JANE, "--yes", "--forbid").code == 0
    assert run("rm", *at, JANE, "--yes", "--purge").code == 0
    done = run("audit", *at, "00.77", "--event", "purge", "--format", "jsonl")
    assert [json.loads(line)["event"] for line in done.out.splitlines()] == ["purge"]
    assert run("forbidden", *at, "--lift", "4711").code == 1
    assert run("forbidden", *at, "--lift", "1000.77").code == 0
    assert run("forbidden", *at).code == 1


def test_deciding_conflicts_asks_unless_uids_are_whole(run: Run, path: str) -> None:
    with Archive.open(path) as archive:
        uids = {
            "StudyInstanceUID": JANE,
            "SeriesInstanceUID": f"{JANE}.5001",
            "SOPInstanceUID": f"{JANE}.5001.6001",
        }
        store(archive, **uids, **STUDIES[JANE], PixelData=b"\3\4" * 64)
    at = ("-a", path)
    table = run("conflicts", *at, "jane", "--format", "table").out
    assert "…1.1000.77" in table or JANE in table
    assert run("conflicts", *at, "--keep", "first", "jane").code == 2
    assert run("conflicts", *at, "--keep", "first", "--all").code == 2
    assert run("conflicts", *at, "roe").code == 0
    assert run("conflicts", *at, "jane").code == 1
    assert run("conflicts", *at, "--keep", "first", "--all", "--yes").code == 0
    assert run("conflicts", *at).code == 0
    assert not os.path.exists(Path(path, ".plainpacs/conflicts", "202401"))


def test_a_uid_is_that_of_the_study_unless_the_level_says_so(run: Run, path: str) -> None:
    """PS3.5 9.1 wants UIDs to be unique; senders that count from 1 in every study are about."""
    with Archive.open(path) as archive:
        store(archive, StudyInstanceUID=ROE, SeriesInstanceUID=JANE, SOPInstanceUID="2.1")
    with Indexer.open(path) as indexer:
        indexer.once()
    at = ("-a", path)
    assert run("path", *at, JANE).out == f"{path}/202401/{JANE}\n"
    assert run("path", *at, JANE, "--level", "series").out == f"{path}/202401/{ROE}/{JANE}\n"
    assert run("path", *at, "00.77", "--level", "series").out == f"{path}/202401/{ROE}/{JANE}\n"
    assert run("path", *at, f"{JANE}.5001", "--level", "study").code == 1
    assert run("path", *at, "Modality=MR", "--level", "series").code == 2
    for level, instances in ((), 1), (("--level", "series"), 1), (("--level", "study"), 1):
        out = Path(path).parent / f"out{len(level)}{level[-1:]}"
        assert run("export", *at, JANE, *level, out).code == 0
        exported = pydicom.dcmread(next(out.glob("P*/S*/S*/I*")))
        expected = ROE if "series" in level else JANE
        assert (exported.StudyInstanceUID, len(list(out.glob("P*/S*/S*/I*")))) == (
            expected,
            instances,
        )
    assert run("rm", *at, JANE, "--yes").code == 0
    assert len(instances_in(path)) == 3
    assert run("rm", *at, JANE, "--yes", "--level", "series").code == 0
    assert len(instances_in(path)) == 2
