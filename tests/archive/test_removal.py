"""Taking out and bringing back: what is where afterwards, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.errors import InUse, PlainpacsError, StorageUnavailable
from plainpacs.archive.removal import trash
from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store.manifest import best_line, encoded, later_than, removal_in_force
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.archive.tree import durable
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.index import catalogue, instance_shards, lookup
from plainpacs.indexer.service import refresh, removal
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import (
    MODALITY,
    data_set,
    instances_in,
    left_behind,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.promises import data_set_of, delete_derived, derived
from tests.support.steps import at_step, killed_at

STUDY, SERIES = "1.2.3", "1.2.3.4"
FILE = f"202401/{STUDY}/{SERIES}/1.2.3.4.5.dcm"


@pytest.fixture
def path(memory: Path) -> str:
    """Two studies: 1.2.3 has two series of two instances, 1.2.9 one instance."""
    path = new_archive(memory / "a")
    fill(path)
    return path


def fill(path: str) -> None:
    with Archive.open(path) as archive:
        for series in (SERIES, "1.2.3.6"):
            for number in (5, 6):
                store(archive, SeriesInstanceUID=series, SOPInstanceUID=f"{series}.{number}")
        store(archive, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", SOPInstanceUID="1.9")
    once(path)


def once(path: str) -> None:
    with Indexer.open(path) as indexer:
        indexer.once()


def remove(path: str, *uids: str, **how: Any) -> removal.Removed:
    return removal.remove(path, removal.find(path, uids, quiet), **how)


def quiet(_: str) -> None:
    pass


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli.root, list(arguments), **options)


def in_trash(path: str) -> dict[str, str]:
    """SOP Instance UID → path of what is in the trash."""
    found = (p for p in Path(path, ".plainpacs/trash").rglob("*~*") if p.is_file())
    return {p.name.partition("~")[0]: str(p.relative_to(path)) for p in found}


def listed(path: str) -> set[str]:
    found: set[str] = set()
    for file in Path(path).glob("*/studies.jsonl"):
        found |= {study for study, _, _ in catalogue.live(file.read_bytes())}
    return found


def lines_for(path: str, name: str = "1.2.3.4.5.dcm") -> list[dict[str, Any]]:
    lines = [orjson.loads(raw) for raw in manifest_lines(path)]
    return [line for line in lines if line["file"] == name]


def in_force(path: str, name: str = "1.2.3.4.5.dcm") -> bool:
    return removal_in_force(lines_for(path, name)) is not None


def check_indexes(path: str) -> None:
    """They say what a fresh rebuild says."""
    assert os.listdir(Path(path, ".plainpacs/pending")) == []
    before = derived(path)
    delete_derived(path)
    with Indexer.open(path) as indexer:
        indexer.once(full=True)
    assert derived(path) == before
    assert not list(Path(path, ".plainpacs").glob("dirty.*"))
    assert left_behind(path) == []


# --- what is where ------------------------------------------------------------------------------


def test_a_study_goes_into_the_trash_and_comes_back(path: str) -> None:
    before, indexes = tree(path), derived(path)
    bytes_before = {p: Path(path, p).read_bytes() for p in instances_in(path)}
    removed = remove(path, STUDY)
    assert len(removed.entries) == 4
    assert instances_in(path) == ["202401/1.2.9/1.2.9.1/1.9.dcm"]
    assert listed(path) == {"1.2.9"}
    assert instance_shards.find(path, SERIES) == instance_shards.find(path, "1.2.3.4.5") == []
    assert not Path(path, "202401", STUDY, "study.json").exists()
    assert sorted(os.listdir(Path(path, "202401", STUDY))) == sorted(
        Path(name).name for name in before if name.endswith(".jsonl") and STUDY + "/" in name
    )
    assert not [p for p in Path(path, ".plainpacs").rglob("*") if p.name.endswith(".dcm")]
    assert set(in_trash(path)) == {"1.2.3.4.5", "1.2.3.4.6", "1.2.3.6.5", "1.2.3.6.6"}
    assert in_force(path)
    check_indexes(path)

    done, unknown = removal.restore(path, [STUDY])
    assert {one.stored.outcome for one in done if one.stored} == {StoreOutcome.STORED}
    assert (len(done), unknown) == (4, [])
    assert {p: Path(path, p).read_bytes() for p in instances_in(path)} == bytes_before
    assert os.listdir(Path(path, ".plainpacs/trash")) == []
    assert not in_force(path)
    assert derived(path) == indexes, "study.json too: stored is when it was stored first"
    check_indexes(path)


def test_what_came_back_keeps_its_provenance(path: str) -> None:
    [was] = lines_for(path)
    remove(path, "1.2.3.4.5")
    for manifest in Path(path, "202401", STUDY).glob("*.jsonl"):
        manifest.unlink()  # the trash has it as well
    removal.restore(path, ["1.2.3.4.5"])
    [now] = lines_for(path)
    assert now.pop("restored") > was["stored"]
    assert now.pop("crc32") != was.pop("crc32")
    assert now == was
    assert Path(path, FILE).stat().st_nlink == 1


def test_an_instance_without_any_line_comes_back_too(path: str) -> None:
    with Indexer.open(path):  # so that nobody heals it
        for manifest in Path(path, "202401", STUDY).glob("*.jsonl"):
            manifest.unlink()
        remove(path, "1.2.3.4.5")
        Path(path, ".plainpacs/trash/202401", STUDY).joinpath(
            next(p.name for p in Path(path, ".plainpacs/trash/202401", STUDY).glob("*.jsonl"))
        ).unlink()
        removal.restore(path, ["1.2.3.4.5"])
    line = lines_for(path)[-1]
    assert (line["origin"], line["PatientName"]) == ("recovered", "Doe^Jane")


def test_rubbish_goes_and_stays_where_it_is(path: str) -> None:
    Path(path, FILE).chmod(0o644)
    Path(path, FILE).write_bytes(b"no DICOM")
    remove(path, "1.2.3.4.5")
    [one], _ = removal.restore(path, ["1.2.3.4.5"])
    assert "not DICOM" in one.error
    assert set(in_trash(path)) == {"1.2.3.4.5"}


@pytest.mark.parametrize(
    ("uid", "gone"), [(STUDY, 4), (SERIES, 2), ("1.2.3.4.5", 1), ("1.9", 1), ("1.2.9.1", 1)]
)
def test_a_study_a_series_or_an_instance(path: str, uid: str, gone: int) -> None:
    assert len(remove(path, uid).entries) == gone
    assert len(in_trash(path)) == gone
    assert len(instances_in(path)) == 5 - gone
    check_indexes(path)
    removal.restore(path, [uid])
    assert len(instances_in(path)) == 5
    check_indexes(path)


def test_it_may_be_removed_again_and_again(path: str) -> None:
    for _ in range(3):
        remove(path, "1.2.3.4.5")
        with Archive.open(path) as archive:
            assert store(archive).outcome is StoreOutcome.STORED
        assert not in_force(path)
    entries = sorted(Path(path, ".plainpacs/trash/202401", STUDY, SERIES).iterdir())
    assert len(entries) == 3
    stamps = [line["removed"] for line in lines_for(path) if "removed" in line]
    assert stamps == sorted(set(stamps))
    for left in (2, 1, 0):
        [one], _ = removal.restore(path, ["1.2.3.4.5"])
        assert one.stored
        assert one.stored.outcome is StoreOutcome.DUPLICATE
        assert len(in_trash(path)) == min(left, 1)
    assert os.listdir(Path(path, ".plainpacs/trash")) == []


def test_other_bytes_stored_meanwhile_win(path: str) -> None:
    was = Path(path, FILE).read_bytes()
    remove(path, "1.2.3.4.5")
    with Archive.open(path) as archive:
        assert store(archive, PatientName="Other^One").outcome is StoreOutcome.STORED
    now = Path(path, FILE).read_bytes()
    done = run("restore", "-a", path, "1.2.3.4.5")
    assert done.exit_code == 0
    assert "1 kept aside" in done.stderr
    assert Path(path, FILE).read_bytes() == now
    [variant] = [p for p in Path(path, ".plainpacs/conflicts").rglob("*~*") if p.suffix != ".jsonl"]
    assert variant.read_bytes() == was
    assert in_trash(path) == {}


def test_a_clock_that_was_ahead(path: str) -> None:
    """The removal is after what it removes, whatever the clocks say; restoring is after it."""
    ahead = "2999-12-31T23:59:59.999Z"
    [manifest] = Path(path, "202401", STUDY).glob(f"{SERIES}.*.jsonl")
    line = lines_for(path)[0] | {"stored": ahead}
    with manifest.open("ab") as file:
        file.write(encoded(line))
    remove(path, "1.2.3.4.5")
    assert in_force(path)
    assert "30000101T000000.000Z" in in_trash(path)["1.2.3.4.5"]
    removal.restore(path, ["1.2.3.4.5"])
    assert not in_force(path)


def test_what_a_backup_brought_back_may_be_accepted(path: str) -> None:
    copy = Path(path, FILE).read_bytes()
    remove(path, "1.2.3.4.5")
    shutil.rmtree(Path(path, ".plainpacs/trash"))
    Path(path, FILE).write_bytes(copy)
    once(path)
    assert in_force(path)
    assert removal.restore(path, ["1.2.3.4.5"]) == ([], [])
    assert not in_force(path)
    assert removal.restore(path, ["1.2.3.4.5"]) == ([], ["1.2.3.4.5"])


def test_all_months_and_nodes(path: str) -> None:
    with Archive.open(path, node="n2") as archive:
        store(archive, StudyDate="20230101", SOPInstanceUID="1.7")
        store(archive, SOPInstanceUID="1.2.3.4.7")
    once(path)
    assert len(remove(path, STUDY).entries) == 6
    assert listed(path) == {"1.2.9"}
    check_indexes(path)
    assert len(removal.restore(path, [STUDY])[0]) == 6
    check_indexes(path)


def test_foreign_files_stay(path: str) -> None:
    folder = Path(path, "202401", STUDY, SERIES)
    (folder / "T1.nii").write_bytes(b"x")
    remove(path, STUDY)
    assert os.listdir(folder) == ["T1.nii"]


def test_one_removal_at_a_time(path: str) -> None:
    with Removal.open(path), pytest.raises(InUse, match="another removal is at work"):
        Removal.open(path)
    Removal.open(path).__exit__()


def test_with_an_indexer_at_work(path: str) -> None:
    with Indexer.open(path) as indexer:
        thread = threading.Thread(target=indexer.run)
        thread.start()
        try:
            remove(path, "1.2.9")
            pause = threading.Event()
            while listed(path) != {STUDY}:
                pause.wait(0.05)
        finally:
            indexer.stop()
            thread.join()


# --- the rules alone ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        ([{"stored": "2"}], None),
        ([{"stored": "2"}, {"removed": "3"}], "3"),
        ([{"removed": "3"}, {"stored": "2"}], "3"),
        ([{"stored": "3"}, {"removed": "3"}], None),
        ([{"stored": "2"}, {"removed": "3"}, {"stored": "4"}], None),
        ([{"stored": "2", "restored": "4"}, {"removed": "3"}], None),
        ([{"stored": "2", "restored": "3"}, {"removed": "3"}], None),
        ([{"stored": "2", "restored": "4"}, {"removed": "3"}, {"removed": "5"}], "5"),
        ([{"removed": "3", "purged": True}], "3"),
        ([{"removed": True, "stored": 7}], None),
    ],
)
def test_when_a_removal_is_in_force(lines: list[dict[str, Any]], expected: str | None) -> None:
    assert removal_in_force(lines) == expected


def test_later_than() -> None:
    assert later_than([{"stored": "2024-01-31T23:59:59.999Z"}]) > "2026"
    for key in ("stored", "restored", "removed"):
        assert later_than([{key: "2999-01-31T23:59:59.999Z"}]) == "2999-02-01T00:00:00.000Z"
    assert later_than([{"stored": "zzz"}, {"removed": 3}]) < "zzz"


def test_the_best_line() -> None:
    one = {"bytes": 5, "stored": "1970-01-01T00:00:00.001Z", "origin": "recovered"}
    two = {"bytes": 5, "stored": "1970-01-01T00:00:00.009Z"}
    assert best_line([one, two, {"bytes": 4}, {"removed": "x"}], 5, 1_000_000) == one
    assert best_line([one, two], 5, 0) == two
    assert best_line([one, two], 6, 0) is None


def test_names_in_the_trash() -> None:
    key = InstanceKey("undated", "1.2", "1.2.3", "1.2.3.4")
    entry = trash.entry(key, "2024-02-28T02:38:10.123Z")
    assert entry.path == ".plainpacs/trash/undated/1.2/1.2.3/1.2.3.4~20240228T023810.123Z"
    assert trash.removed(entry) == "2024-02-28T02:38:10.123Z"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("202401/1.2", Target("202401", "1.2")),
        ("undated/1.2/3", Target("undated", "1.2", "3")),
        ("202401/1.2/3/4.dcm", Target("202401", "1.2", "3", "4")),
        *((wrong, None) for wrong in ("202401", "2024/1", "202401/..", "202401/1/2/3", "", "/")),
        ("202401/1/2/3.dcm/4", None),
    ],
)
def test_targets(place: str, expected: Target | None) -> None:
    assert Target.at(place) == expected
    assert expected is None or expected.path == place


# --- the commands -------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(path: str) -> None:
    before = tree(path, internal=True)
    done = run("rm", "-a", path, "--dry-run", SERIES, "1.9")
    assert done.exit_code == 0
    assert [os.path.relpath(line, path) for line in done.stdout.splitlines()] == [
        FILE,
        FILE.replace("5.dcm", "6.dcm"),
        "202401/1.2.9/1.2.9.1/1.9.dcm",
    ]
    assert tree(path, internal=True) == before


def test_it_asks(path: str) -> None:
    before = tree(path, internal=True)
    done = run("rm", "-a", path, STUDY)
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert tree(path, internal=True) == before


@pytest.mark.parametrize(("answer", "left", "status"), [("y", 1, 0), ("n", 5, 1), ("", 5, 1)])
def test_it_asks_on_a_terminal(path: str, answer: str, left: int, status: int) -> None:
    done = subprocess.run(
        ["script", "-qec", f"plainpacs rm -a {path} {STUDY}", "/dev/null"],
        input=answer + "\n",
        env=os.environ | {"PATH": os.path.dirname(os.sys.executable) + ":" + os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Move this to the trash?" in done.stdout
    assert len(instances_in(path)) == left
    assert done.returncode == status


def test_what_it_says(path: str) -> None:
    done = run("rm", "-a", path, "--yes", STUDY)
    assert done.exit_code == 0
    assert "202401/1.2.3: 4 instances" in done.stderr
    assert f"4 instances moved to the trash, {path}/.plainpacs/trash" in done.stderr
    assert "plainpacs restore 1.2.3" in done.stderr
    assert "Doe" not in done.stderr
    done = run("rm", "-a", path, "--yes", STUDY)
    assert done.exit_code == 0
    assert "4 files are in the trash already" in done.stderr
    [record] = [orjson.loads(x) for x in run("restore", "-a", path, "--list").stdout.splitlines()]
    assert (record["StudyInstanceUID"], record["instances"], record["series"]) == (STUDY, 4, 2)
    assert record["PatientName"] == "Doe^Jane"
    assert record["removed"] > "2026"
    for form, words in (("table", "Doe, Jane"), ("csv", "removed,Study"), ("paths", "trash/2024")):
        assert words in run("restore", "-a", path, "--list", "--format", form).stdout
    assert orjson.loads(run("restore", "-a", path, "--list", "--format", "json").stdout)
    done = run("restore", "-a", path, STUDY)
    assert done.exit_code == 0
    assert "4 restored" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["rm", "9.9", "--yes"], 1, "no study, series or instance 9.9 here"),
        (["rm", "../x", "--yes"], 2, "neither a UID nor KEY=VALUE"),
        (["rm"], 2, "Missing argument"),
        (["restore", "2.9"], 1, "nothing of 2.9 is in the trash"),
        (["restore", "9.9"], 1, "nothing in the trash matches '9.9'"),
        (["restore"], 2, "name what to restore"),
        (["restore", "--list", "1"], 1, "nothing in the trash matches"),
        (["restore", "--list"], 1, ""),
    ],
)
def test_what_it_cannot_do(path: str, arguments: list[str], status: int, words: str) -> None:
    before = tree(path)
    done = subprocess.run(
        [os.sys.executable, "-m", "plainpacs", *arguments, "-a", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert words in done.stderr
    assert tree(path) == before


def test_what_is_known_is_removed_though_another_is_not(path: str) -> None:
    done = run("rm", "-a", path, "--yes", "9.9", "1.9")
    assert done.exit_code == 1
    assert set(in_trash(path)) == {"1.9"}


# --- receivers at work --------------------------------------------------------------------------


def test_only_what_was_listed_is_taken(path: str) -> None:
    """Removed by hand and stored again between listing and taking: it stays."""
    found = removal.find(path, [STUDY], quiet)
    os.unlink(Path(path, FILE))
    with Archive.open(path) as archive:
        assert store(archive).outcome is StoreOutcome.STORED
    assert len(removal.remove(path, found).entries) == 3
    assert instances_in(path)[0] == FILE
    assert not in_force(path)
    check_indexes(path)


def test_replaced_in_the_very_moment(path: str) -> None:
    """Another file takes the name just before the rename: it is put back."""
    found = removal.find(path, ["1.2.3.4.5"], quiet)
    other = part10(PatientName="Other^One")
    real = durable.rename

    def late(name: str, to: str, *, folder: int, to_folder: int) -> None:
        if name == "1.2.3.4.5.dcm":
            Path(path, FILE + "x").write_bytes(other)
            os.rename(Path(path, FILE + "x"), Path(path, FILE))
        real(name, to, folder=folder, to_folder=to_folder)

    durable.rename = late
    try:
        assert removal.remove(path, found).entries == []
    finally:
        durable.rename = real
    assert Path(path, FILE).read_bytes() == other
    assert in_trash(path) == {}
    once(path)
    assert not in_force(path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"PatientName": "Other^One"},
        {"SOPInstanceUID": "1.2.3.4.7"},
        {"SOPInstanceUID": "1.7", "SeriesInstanceUID": "1.2.3.9"},
    ],
    ids=["the same", "other bytes", "the same series", "another series"],
)
def test_a_receiver_at_every_step(path: str, memory: Path, changes: dict[str, str]) -> None:
    """What it answers 0000 while a removal is at work is there afterwards. The same instance may
    have been there still when it was sent again: then it was removed after that."""
    interleave(path, memory, lambda copy: remove(copy, STUDY), changes)


def interleave(
    path: str, memory: Path, action: Callable[[str], object], changes: dict[str, Any]
) -> int:
    uid = changes.get("SOPInstanceUID", "1.2.3.4.5")
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        outcomes: list[StoreOutcome] = []
        with Archive.open(copy) as archive:
            store(archive, SOPInstanceUID="1.2.3.4.8")  # so that it has the manifest open

            def meanwhile(_: str, archive: Archive = archive, done: Any = outcomes) -> None:
                done.append(store(archive, **changes).outcome)

            with at_step(step, meanwhile):
                action(copy)
        if not outcomes:
            shutil.rmtree(copy)
            break
        once(copy)
        here = {Path(p).stem for p in instances_in(copy)}
        [outcome] = outcomes
        if outcome is StoreOutcome.STORED:
            assert uid in here, f"stored at step {step}, and lost"
            assert not in_force(copy, f"{uid}.dcm"), f"at step {step}"
        elif outcome is StoreOutcome.CONFLICT:
            kept = [data_set_of(p.read_bytes()) for p in Path(copy).rglob("*~*") if p.is_file()]
            assert data_set(**changes) in kept
        for found in Path(copy, "202401").glob("*/study.json"):
            record = orjson.loads(found.read_bytes())
            names = [p for p in instances_in(copy) if f"/{record['StudyInstanceUID']}/" in p]
            assert record["NumberOfStudyRelatedInstances"] == len(names)
        if step % 4 == 0:
            check_indexes(copy)
        shutil.rmtree(copy)
    assert step > 20
    return step


@pytest.mark.timeout(300)
def test_removed_by_hand_and_stored_again_at_every_step(path: str, memory: Path) -> None:
    """Until the rename it is another file than was listed, so it stays, and may be there."""
    took = []
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        found = removal.find(copy, [SERIES], quiet)
        done: list[StoreOutcome] = []
        with Archive.open(copy) as archive:

            def meanwhile(_: str, archive: Archive = archive, done: Any = done) -> None:
                with contextlib.suppress(FileNotFoundError):
                    Path(archive.root, FILE).unlink()
                done.append(store(archive).outcome)

            with at_step(step, meanwhile):
                removal.remove(copy, found)
        once(copy)
        taken = "1.2.3.4.5" in in_trash(copy)
        if done:
            assert done == [StoreOutcome.STORED]
            assert Path(copy, FILE).exists(), f"at step {step}"
            assert not in_force(copy), f"at step {step}"
            took.append(taken)
        shutil.rmtree(copy)
        if not done:
            break
    assert took == sorted(took), "taken once it is too late to come between"
    assert took.count(False) > 20
    assert took.count(True)


@pytest.mark.timeout(60)
def test_senders_and_removals_at_once(path: str) -> None:
    """Whoever is answered STORED after the last removal began finds it there at the end."""
    stop = threading.Event()
    outcomes: list[StoreOutcome] = []

    def send(archive: Archive) -> None:
        while not stop.is_set():
            try:
                outcomes.append(store(archive).outcome)
            except StorageUnavailable:  # taken away while it was compared: A700, sent again
                continue

    with Archive.open(path) as archive:
        threads = [threading.Thread(target=send, args=(archive,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        removed = 0
        for _ in range(12):
            removed += len(remove(path, "1.2.3.4.5").entries)
        stop.set()
        for thread in threads:
            thread.join()
        store(archive)
    assert removed >= 10
    # Every one that was taken out was stored: no more in the trash than there were stores.
    stored = outcomes.count(StoreOutcome.STORED)
    assert stored in (removed - 1, removed)
    entries = list(Path(path, ".plainpacs/trash/202401", STUDY, SERIES).iterdir())
    assert len(entries) == removed
    assert Path(path, FILE).exists()
    assert {data_set_of(p.read_bytes()) for p in entries} == {data_set()}


def test_an_instance_not_answered_yet(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken between its link and its answer: it is answered, and in the trash."""
    real = durable.touch
    taken: list[int] = []

    def late(name: str, *, folder: int) -> None:
        if not taken and name == f"202401~{STUDY}":
            taken.append(0)
            taken[0] = len(remove(path, "1.2.3.4.7").entries)
        real(name, folder=folder)

    with Archive.open(path) as archive:
        monkeypatch.setattr(durable, "touch", late)
        assert store(archive, SOPInstanceUID="1.2.3.4.7").outcome is StoreOutcome.STORED
    assert taken == [1]
    assert set(in_trash(path)) == {"1.2.3.4.7"}
    entry = Path(path, in_trash(path)["1.2.3.4.7"])
    assert entry.stat().st_nlink == 1
    once(path)
    check_indexes(path)


# --- kills and failures -------------------------------------------------------------------------


def where(path: str) -> dict[str, set[str]]:
    """SOP Instance UID → where its bytes are: tree, trash, both. Fails on any that is not whole."""
    found: dict[str, set[str]] = {}
    for name in instances_in(path):
        found.setdefault(Path(name).stem, set()).add("tree")
    for uid, name in in_trash(path).items():
        found.setdefault(uid, set()).add("trash")
        raw = Path(path, name).read_bytes()
        assert f"{uid}".encode() in raw
        assert len(raw) == len(Path(path, name).read_bytes())
    return found


def killed_everywhere(
    path: str, memory: Path, action: Callable[[str], object], check: Callable[[str], None]
) -> int:
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        killed = killed_at(step, partial(action, copy))
        if killed:
            check(copy)
            if step % 4 == 0:
                check_indexes(copy)
        shutil.rmtree(copy)
        if not killed:
            return step
    raise AssertionError("it never ended")


@pytest.mark.timeout(300)
def test_killed_at_every_step_of_a_removal(path: str, memory: Path) -> None:
    def check(copy: str) -> None:
        found = where(copy)
        assert len(found) == 5
        assert all(len(places) == 1 for places in found.values())
        remove(copy, STUDY)
        once(copy)
        assert {u for u, places in where(copy).items() if places == {"tree"}} == {"1.9"}

    assert killed_everywhere(path, memory, lambda copy: remove(copy, STUDY), check) > 50


@pytest.mark.timeout(300)
def test_killed_at_every_step_of_a_restore(path: str, memory: Path) -> None:
    remove(path, STUDY)
    once(path)

    def check(copy: str) -> None:
        assert len(where(copy)) == 5
        removal.restore(copy, [STUDY])
        once(copy)
        assert all(places == {"tree"} for places in where(copy).values())
        assert os.listdir(Path(copy, ".plainpacs/trash")) == []
        assert not in_force(copy)

    steps = killed_everywhere(path, memory, lambda copy: removal.restore(copy, [STUDY]), check)
    assert steps > 50


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("doing", ["remove", "restore"])
def test_a_failure_at_every_step(path: str, memory: Path, doing: str, number: int) -> None:
    if doing == "restore":
        remove(path, SERIES)
    action: Callable[[str], object] = (
        (lambda copy: remove(copy, SERIES))
        if doing == "remove"
        else lambda copy: removal.restore(copy, [SERIES])
    )

    def fail(_: str) -> None:
        raise OSError(number, os.strerror(number))

    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        with at_step(step, fail) as steps, contextlib.suppress(OSError, PlainpacsError):
            action(copy)
        assert len(where(copy)) == 5
        ended = steps() <= step
        action(copy)
        once(copy)
        kept = {uid for uid, places in where(copy).items() if places == {"trash"}}
        assert kept == ({"1.2.3.4.5", "1.2.3.4.6"} if doing == "remove" else set())
        if step % 4 == 0:
            check_indexes(copy)
        shutil.rmtree(copy)
        if ended:
            break
    assert step > 30


def test_lookups_do_not_walk_for_what_is_aside(path: str) -> None:
    remove(path, "1.2.3.4.5")
    said: list[str] = []
    found = removal.find(path, ["1.2.3.4.5"], said.append)
    assert (len(found.entries), said) == (1, [])
    assert lookup.places(path, "1.2.3.4.5", quiet) == []
    assert MODALITY.calling_ae == "CT1"


def test_an_indexer_that_cannot_is_not_waited_for_without_end(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "PATIENCE", 0.2)
    with (
        Indexer.open(path),  # which holds the lock, and does nothing
        pytest.raises(StorageUnavailable, match=r"did not bring 1 months up to date"),
    ):
        refresh.refresh(path, [("202401", "1.2.3")])
