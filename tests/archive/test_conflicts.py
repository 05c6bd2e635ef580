"""``plainpacs conflicts``: listing what is kept aside, and deciding it."""

from __future__ import annotations

import csv
import io
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app import cli
from plainpacs.archive.conflicts.pending_conflicts import variants
from plainpacs.archive.conflicts.resolve import Decider
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, LONGEST_META, read_part10
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store.publish import variant_digest
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import data_set, instances_in, left_behind, new_archive, store, tree
from tests.support.steps import killed_at

PATH = "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm"
FIRST = data_set()
SECOND = data_set(PatientName="Other^One")
THIRD = data_set(PixelData=b"\1\3" * 64)
MODALITY = Provenance("CT1", "DRDCM", "10.0.0.5")
TICK = 0.02  # more than a step of a file system's clock: it is clear which variant is the latest
CORRECTING = Provenance("QC9", "DRDCM", "10.0.0.9")


@pytest.fixture
def path(memory: Path) -> str:
    """An archive with one instance and two variants of it, and another instance."""
    path = new_archive(memory / "a")
    with Archive.open(path) as archive:
        archive.store(FIRST, EXPLICIT_LITTLE_ENDIAN, MODALITY)
        time.sleep(TICK)
        archive.store(SECOND, EXPLICIT_LITTLE_ENDIAN, CORRECTING)
        time.sleep(TICK)
        archive.store(THIRD, EXPLICIT_LITTLE_ENDIAN, CORRECTING)
        store(archive, SOPInstanceUID="1.2.3.4.6")
    index(path)
    return path


def index(path: str, *, full: bool = False) -> None:
    with Indexer.open(path) as indexer:
        indexer.once(full=full)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.root, list(arguments))


def listed(path: str, *arguments: str, status: int = 1) -> list[dict[str, Any]]:
    done = run("conflicts", "-a", path, "--format", "jsonl", *arguments)
    assert done.exit_code == status, done.output
    return [orjson.loads(line) for line in done.stdout.splitlines()]


def body(file: Path) -> bytes:
    raw = file.read_bytes()
    return raw[read_part10(raw[:LONGEST_META]).dataset_offset :]


def published(path: str) -> bytes:
    return body(Path(path, PATH))


def kept_in(path: str, top: str) -> list[bytes]:
    files = Path(path, top).rglob("1.2.3.4.5~*")
    return sorted(body(file) for file in files if file.is_file())


def aside(path: str) -> list[bytes]:
    return kept_in(path, layout.CONFLICTS)


def trashed(path: str) -> list[bytes]:
    return kept_in(path, layout.TRASH)


def study_json(path: str) -> bytes:
    return Path(path, "202401/1.2.3/study.json").read_bytes()


# --- listing --------------------------------------------------------------------------------------


def test_each_variant_is_listed_with_how_it_differs(path: str) -> None:
    before = tree(path, internal=True)
    header, pixels = listed(path)
    assert header["class"] == "header"
    assert (header["differing"], header["differing_count"]) == (["PatientName"], 1)
    assert (header["first_path"], header["first_calling_ae"]) == (PATH, "CT1")
    assert header["first_bytes"] == Path(path, PATH).stat().st_size
    assert header["second_calling_ae"] == "QC9"
    assert header["second_stored"] > header["first_stored"]
    assert header["second_path"].endswith(f"1.2.3.4.5~{header['digest']}")
    assert Path(path, header["second_path"]).is_file()
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    assert [header[uid] for uid in uids] == ["1.2.3", "1.2.3.4", "1.2.3.4.5"]
    assert (pixels["class"], pixels["differing_count"]) == ("pixels", 0)
    assert tree(path, internal=True) == before


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.3.4", "1.2.3.4.5"])
def test_by_the_uid_of_a_study_series_or_instance(path: str, uid: str) -> None:
    assert len(listed(path, uid)) == 2


def test_nothing_to_decide(path: str, tmp_path: Path) -> None:
    done = run("conflicts", "-a", path, "1.2.3.4.6")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no conflicts of these" in done.stderr
    done = run("conflicts", "-a", new_archive(tmp_path / "b"), "--format", "json")
    assert (done.exit_code, done.stdout) == (0, "[]\n")


def test_values_are_shown_only_when_asked_for(path: str) -> None:
    for form in ("table", "json", "jsonl", "csv", "paths"):
        done = run("conflicts", "-a", path, "--format", form)
        assert "Other" not in done.output
        assert "Doe" not in done.output
    [one] = listed(path, "-v")[0]["values"]
    assert one == {"name": "PatientName", "first": "Doe^Jane", "second": "Other^One"}
    assert "Other^One" in run("conflicts", "-a", path, "-v", "--format", "table").stdout


def test_values_are_harmless_on_a_terminal(path: str) -> None:
    with Archive.open(path) as archive:
        name = "Bad^\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}"
        store(archive, SOPInstanceUID="1.2.3.4.6", PatientName=name, SpecificCharacterSet=None)
    done = run("conflicts", "-a", path, "-v", "--format", "table", "1.2.3.4.6")
    assert "Bad^" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in done.stdout


def test_formats(path: str) -> None:
    assert len(orjson.loads(run("conflicts", "-a", path, "--format", "json").stdout)) == 2
    table = list(
        csv.DictReader(io.StringIO(run("conflicts", "-a", path, "--format", "csv").stdout))
    )
    assert [row["class"] for row in table] == ["header", "pixels"]
    assert table[0]["differing"] == "PatientName"
    paths = run("conflicts", "-a", path, "--format", "paths").stdout.splitlines()
    assert [body(Path(one)) for one in paths] == [SECOND, THIRD]
    text = run("conflicts", "-a", path, "--format", "table").stdout
    assert "header" in text
    assert "PatientName" in text


def test_a_variant_of_nothing_and_a_damaged_one(path: str) -> None:
    Path(path, PATH).unlink()
    assert [one["class"] for one in listed(path)] == ["alone", "alone"]
    with Archive.open(path) as archive:
        archive.store(FIRST, EXPLICIT_LITTLE_ENDIAN, MODALITY)
    variant = Path(path, listed(path)[0]["second_path"])
    variant.chmod(0o644)
    variant.write_bytes(variant.read_bytes()[:500])
    [damaged] = [one for one in listed(path) if one["class"] == "unreadable"]
    assert "cut short" in damaged["why"]


def test_one_instance_under_two_dates_and_two_studies(path: str) -> None:
    with Archive.open(path) as archive:
        store(archive, StudyDate="20200101", SOPInstanceUID="1.2.3.4.6")
        store(archive, StudyInstanceUID="1.9", SOPInstanceUID="1.2.3.4.6")
    for by in ("the shards", "the tree"):
        if by == "the shards":
            index(path)
        else:
            shutil.rmtree(Path(path, ".plainpacs/instances"))
        found = [one for one in listed(path) if one["class"] == "two-places"]
        assert [(one["first_path"], one["second_path"]) for one in found] == [
            ("202001/1.2.3/1.2.3.4/1.2.3.4.6.dcm", "202401/1.2.3/1.2.3.4/1.2.3.4.6.dcm"),
            ("202001/1.2.3/1.2.3.4/1.2.3.4.6.dcm", "202401/1.9/1.2.3.4/1.2.3.4.6.dcm"),
        ], by
    assert [one["class"] for one in listed(path, "1.2.3.4.6")] == ["two-places"] * 2
    assert [one["class"] for one in listed(path, "1.9")] == ["two-places"] * 2
    Path(path, "202001/1.2.3/1.2.3.4/1.2.3.4.6.dcm").unlink()
    Path(path, "202401/1.9/1.2.3.4/1.2.3.4.6.dcm").unlink()
    assert listed(path, "1.9", status=0) == []


def test_on_a_copy_that_may_not_be_written(path: str) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            Path(folder, name).chmod(0o444)
        Path(folder).chmod(0o555)
    before = tree(path, internal=True)
    try:
        assert len(listed(path)) == 2
        assert tree(path, internal=True) == before
    finally:
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o755)
    Path(path, ".plainpacs").rename(Path(path).with_name("away"))
    assert listed(path, status=0) == []


def test_what_is_listed_loads_nothing_heavy_when_there_is_nothing(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "b")
    script = (
        "import sys\nfrom plainpacs.archive.app import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    print(*(m for m in ('pydicom', 'rich', 'numpy') if m in sys.modules))"
    )
    command = [sys.executable, "-c", script, "conflicts", "-a", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- deciding -------------------------------------------------------------------------------------


def test_keep_first(path: str) -> None:
    before = tree(path)
    done = run("conflicts", "-a", path, "--keep", "first", "1.2.3")
    assert done.exit_code == 0, done.output
    assert "1 instances decided; 2 files are in the trash now" in done.stderr
    assert tree(path) == before
    assert (published(path), aside(path)) == (FIRST, [])
    assert trashed(path) == sorted([SECOND, THIRD])
    assert not list(Path(path, layout.CONFLICTS).iterdir()), "nothing is left of the folders"
    assert listed(path, status=0) == []
    assert run("conflicts", "-a", path, "--keep", "first", "1.2.3").exit_code == 1


def test_keep_second(path: str) -> None:
    variant = Path(path, listed(path)[1]["second_path"])
    mtime = variant.stat().st_mtime_ns
    done = run("conflicts", "-a", path, "--keep", "second", "1.2.3.4.5")
    assert done.exit_code == 0, done.output
    assert (published(path), aside(path)) == (THIRD, [])
    assert trashed(path) == sorted([FIRST, SECOND])
    facts = Path(path, PATH).stat()
    assert (facts.st_mtime_ns, facts.st_nlink) == (mtime, 1)
    assert stat.S_IMODE(facts.st_mode) == 0o444
    # Who sent it came with it.
    shown = orjson.loads(run("show", "-a", path, "1.2.3", "-v", "--format", "json").stdout)
    by_file = {one["file"]: one for one in shown["series"][0]["instances"]}
    assert by_file["1.2.3.4.5.dcm"]["calling_ae"] == "QC9"
    assert left_behind(path) == []
    assert listed(path, status=0) == []


def test_keep_second_by_digest(path: str) -> None:
    digest = listed(path)[0]["digest"]
    assert listed(path)[0]["class"] == "header"
    decide = ("conflicts", "-a", path, "--keep", "second", "--variant")
    for wrong in ("0000", "zz"):
        done = run(*decide, wrong, "1.2.3")
        assert done.exit_code == 1
        assert isinstance(done.exception, NoMatch)
    assert published(path) == FIRST
    assert run(*decide, digest[:10], "1.2.3").exit_code == 0
    assert (published(path), trashed(path)) == (SECOND, sorted([FIRST, THIRD]))


def test_a_study_is_decided_in_bulk(path: str) -> None:
    with Archive.open(path) as archive:
        for number in range(20):
            for name in ("Doe^Jane", "Other^One"):
                store(archive, SOPInstanceUID=f"1.2.9.{number}", PatientName=name)
            store(archive, StudyInstanceUID="1.7", SOPInstanceUID=f"1.7.{number}")
        store(archive, StudyInstanceUID="1.7", SOPInstanceUID="1.7.0", PatientName="Not^This")
    done = run("conflicts", "-a", path, "--keep", "second", "1.2.3")
    assert "21 instances decided" in done.stderr
    assert orjson.loads(study_json(path))["PatientName"] == "Other^One"
    index_now = study_json(path)
    index(path, full=True)
    assert study_json(path) == index_now
    assert [one["StudyInstanceUID"] for one in listed(path)] == ["1.7"]


def test_what_was_decided_can_be_brought_back(path: str) -> None:
    run("conflicts", "-a", path, "--keep", "second", "1.2.3")
    done = run("restore", "-a", path, "1.2.3.4.5")
    assert done.exit_code == 0, done.output
    [back] = listed(path)
    assert body(Path(path, back["second_path"])) in (FIRST, SECOND)
    assert published(path) == THIRD


def test_when_nothing_is_published(path: str) -> None:
    Path(path, PATH).unlink()
    done = run("conflicts", "-a", path, "--keep", "first", "1.2.3")
    assert done.exit_code == 1
    assert "nothing is published" in done.stderr
    assert aside(path) == sorted([SECOND, THIRD])
    assert run("conflicts", "-a", path, "--keep", "second", "1.2.3").exit_code == 0
    assert (published(path), trashed(path)) == (THIRD, [SECOND])
    assert len(instances_in(path)) == 2


def test_what_was_removed_and_is_published_again_is_no_finding(path: str) -> None:
    assert run("rm", "-a", path, "--yes", "1.2.3.4.5").exit_code == 0
    assert run("conflicts", "-a", path, "--keep", "second", "1.2.3").exit_code == 0
    found = run("verify", "-a", path, "--format", "jsonl")
    assert "removed-reappeared" not in found.stdout
    assert published(path) == THIRD


def test_what_is_forbidden_is_not_published(path: str) -> None:
    assert run("rm", "-a", path, "--yes", "--forbid", "1.2.3.4.5").exit_code == 0
    done = run("conflicts", "-a", path, "--keep", "second", "1.2.3.4.5")
    assert done.exit_code == 1
    assert "stays as it is" in done.stderr
    assert not Path(path, PATH).exists()
    assert THIRD in aside(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "first"], "needs UIDs, TERMs or --all"),
        (["--keep", "first", "--all", "1.2.3"], "--all means everything"),
        (["--yes", "1.2.3"], "go with --keep"),
        (["--keep", "third", "1.2.3"], "first"),
        (["--variant", "ab", "1.2.3"], "--variant"),
        (["--keep", "first", "--variant", "ab", "1.2.3"], "--variant"),
    ],
)
def test_wrong_usage(path: str, arguments: list[str], words: str) -> None:
    done = run("conflicts", "-a", path, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_one_decides_at_a_time(path: str) -> None:
    with Removal.open(path):
        done = run("conflicts", "-a", path, "--keep", "first", "1.2.3")
    assert "another removal is at work" in str(done.exception)
    assert aside(path) == sorted([SECOND, THIRD])


def test_while_an_indexer_is_at_work(path: str) -> None:
    with Indexer.open(path) as indexer:
        assert run("conflicts", "-a", path, "--keep", "second", "1.2.3").exit_code == 0
        indexer.once()
    now = study_json(path)
    index(path, full=True)
    assert study_json(path) == now


def test_what_a_killed_replacement_left_is_no_second_version(path: str) -> None:
    """The published file linked among the conflicts: the same file twice."""
    run("conflicts", "-a", path, "--keep", "first", "1.2.3")
    shutil.rmtree(Path(path, layout.TRASH, "202401"))
    with Archive.open(path) as archive:
        archive.store(SECOND, EXPLICIT_LITTLE_ENDIAN, MODALITY)
    [variant] = Path(path, layout.CONFLICTS).rglob("*~*")
    variant.unlink()
    with Path(path, PATH).open("rb", buffering=0) as file:
        digest = variant_digest(file)
    os.link(Path(path, PATH), variant.with_name(f"1.2.3.4.5~{digest}"))
    assert [one["class"] for one in listed(path)] == ["same"]
    assert run("conflicts", "-a", path, "--keep", "second", "1.2.3").exit_code == 0
    assert (published(path), aside(path), trashed(path)) == (FIRST, [], [])
    assert Path(path, PATH).stat().st_nlink == 1


# --- failures and kills ---------------------------------------------------------------------------

PRIMITIVES = (
    *("create", "write", "set_time", "sync_file", "sync_folder", "link", "rename", "unlink"),
    *("touch", "open_to_append", "make_folder", "remove_folder"),
)


def decide(path: str, keep: str) -> None:
    with Removal.open(path) as removal:
        waiting = variants(removal.root, [Target("202401", "1.2.3")])
        [some] = waiting.values()
        with Decider(removal) as decider:
            decider.keep_first(waiting) if keep == "first" else decider.keep_second(some)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("keep", "wanted"), [("first", FIRST), ("second", THIRD)])
def test_killed_at_every_step_the_same_command_finishes(
    path: str, memory: Path, keep: str, wanted: bytes
) -> None:
    everything = {FIRST, SECOND, THIRD}
    stops = 0
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        killed = killed_at(step, partial(decide, copy, keep))
        assert published(copy) in (FIRST, wanted)
        assert {published(copy), *aside(copy), *trashed(copy)} == everything, f"killed at {step}"
        index(copy)
        indexed = study_json(copy)
        index(copy, full=True)
        assert study_json(copy) == indexed
        # The same again; when it was all done but for the tidying, there is nothing to decide.
        again = run("conflicts", "-a", copy, "--keep", keep, "1.2.3")
        assert again.exit_code == 0 or not listed(copy, status=0), again.output
        assert published(copy) == wanted, f"killed at {step}"
        assert aside(copy) == []
        assert {published(copy), *trashed(copy)} == everything
        assert len(trashed(copy)) == 2, f"killed at {step}"
        assert left_behind(copy) == []
        assert Path(copy, PATH).stat().st_nlink == 1
        shutil.rmtree(copy)
        if not killed:
            break
        stops += 1
    assert stops >= (8 if keep == "first" else 25)


def test_a_failure_at_every_step_is_finished_by_the_same_again(path: str, memory: Path) -> None:
    step = 0
    while True:
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        left = step

        def failing(real: Callable[..., Any]) -> Callable[..., Any]:
            def primitive(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError(28, "No space left on device")
                return real(*args, **kwargs)

            return primitive

        with pytest.MonkeyPatch.context() as patch:
            for name in PRIMITIVES:
                patch.setattr(durable, name, failing(getattr(durable, name)))
            run("conflicts", "-a", copy, "--keep", "second", "1.2.3")
        everything = {published(copy), *aside(copy), *trashed(copy)}
        assert everything == {FIRST, SECOND, THIRD}, f"failed at {step}"
        again = run("conflicts", "-a", copy, "--keep", "second", "1.2.3")
        assert again.exit_code == 0 or not listed(copy, status=0), again.output
        assert (published(copy), aside(copy)) == (THIRD, [])
        shutil.rmtree(copy)
        if left >= 0:
            break
        step += 3
    assert step >= 30


def test_a_receiver_stores_meanwhile(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes that come while the decision is carried out are kept aside as ever."""
    late = data_set(PatientName="Late^One")
    root = open_root(path)
    real = durable.rename
    sent = False
    with Archive.open(path) as archive:

        def rename(name: str, to: str, *, folder: int, to_folder: int) -> None:
            nonlocal sent
            if not sent:
                sent = True
                archive.store(late, EXPLICIT_LITTLE_ENDIAN, MODALITY)
            real(name, to, folder=folder, to_folder=to_folder)

        monkeypatch.setattr(durable, "rename", rename)
        with Removal.open(path) as removal, Decider(removal) as decider:
            [waiting] = variants(root, [Target("202401", "1.2.3")]).values()
            decided = decider.keep_second(waiting)
    os.close(root)
    assert not decided.error
    assert published(path) == THIRD
    assert aside(path) == [late]
    assert trashed(path) == sorted([FIRST, SECOND])
