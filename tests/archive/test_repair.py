"""Damage, finding, repair, clean: the table of ``damages``. And killed at every step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click.testing
import orjson
import pytest

from plainpacs.archive.app.cli import root as plainpacs
from plainpacs.archive.verify.repair import LEFT
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import instances_in, left_behind, tree
from tests.support.damage import DAMAGES, SERIES, VICTIM, Damage, change, flipped, index, make, node
from tests.support.steps import killed_at

PLAINPACS = (sys.executable, "-m", "plainpacs")
each = pytest.mark.parametrize("name", DAMAGES)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("damage") / "template")


@pytest.fixture
def path(template: Path, memory: Path) -> Path:
    """A fresh copy of the archive, times kept."""
    return copied(template, memory / "a")


def copied(source: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", source, to], check=True)
    return to


def run(path: Path, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """The exit status of a command on the archive, and its results."""
    command = [arguments[0], "-a", str(path), "--format", "jsonl", *arguments[1:]]
    done = click.testing.CliRunner().invoke(plainpacs, command)
    assert done.exit_code in (0, 1), (done.output, done.exception)
    return done.exit_code, [orjson.loads(line) for line in done.stdout.splitlines()]


def kinds(path: Path, *options: str) -> set[str]:
    status, found = run(path, "verify", *options)
    assert status == any(finding["severity"] == "damage" for finding in found)
    return {finding["kind"] for finding in found}


def derived(path: Path) -> dict[str, str]:
    """Every index, but for what is of use where it was written alone."""
    ours = ("study.json", "studies.jsonl")
    return {
        name: digest
        for name, digest in tree(path, internal=True).items()
        if name.endswith(ours) or name.startswith(".plainpacs/instances/")
    }


def rebuilt(path: Path, beside: Path) -> dict[str, str]:
    """The indexes that a full rebuild makes of the same tree."""
    copy = copied(path, beside)
    with Indexer.open(str(copy)) as indexer:
        indexer.once(full=True)
    found = derived(copy)
    shutil.rmtree(copy)
    return found


def contents(path: Path) -> set[str]:
    """The digests of all instances, wherever they are kept."""
    return {
        digest
        for name, digest in tree(path, internal=True).items()
        if name.endswith(".dcm") or "~" in name
    }


def test_an_archive_that_nothing_happened_to_is_clean(path: Path, tmp_path: Path) -> None:
    assert kinds(path) == kinds(path, "--fast") == set()
    assert run(path, "repair") == (0, [])
    assert derived(path) == rebuilt(path, tmp_path / "b")


@each
def test_damage_is_found_repaired_and_clean(name: str, path: Path, tmp_path: Path) -> None:
    damage = DAMAGES[name]
    damage.do(path)
    assert kinds(path) == damage.found
    assert kinds(path, "--fast") == damage.fast
    before, all_before = tree(path, internal=True), contents(path)
    planned = run(path, "repair")
    idle = ("note", LEFT)
    assert planned[0] == any((one["severity"], one["repair"]) != idle for one in planned[1])
    assert tree(path, internal=True) == before, "nothing is changed without --apply"

    status, done = run(path, "repair", "--apply")
    assert status == bool(damage.left - {"file-meta-disagrees"})
    assert [one["path"] for one in done] == sorted_as(planned[1], done)
    assert all(one["repair"] for one in done)
    assert kinds(path) == damage.left
    assert derived(path) == rebuilt(path, tmp_path / "b")
    assert contents(path) >= all_before, "nothing is lost"
    assert left_behind(path) == []

    again = tree(path, internal=True)
    run(path, "repair", "--apply")
    assert without_notes(tree(path, internal=True)) == without_notes(again), "nothing more to do"


def sorted_as(planned: list[dict[str, str]], done: list[dict[str, str]]) -> list[str]:
    """The same findings, in the order in which they were mended."""
    wanted = sorted((one["kind"], one["path"]) for one in planned)
    assert sorted((one["kind"], one["path"]) for one in done) == wanted
    return [one["path"] for one in done]


def without_notes(files: dict[str, str]) -> dict[str, str]:
    beside = (".plainpacs/seen/", ".plainpacs/audit/", ".plainpacs/node.")
    return {name: digest for name, digest in files.items() if not name.startswith(beside)}


def test_what_is_left_can_be_sent_again(path: Path) -> None:
    """A damaged instance is kept aside, so that the good one is stored, and all is as before."""
    good = Path(path, VICTIM).read_bytes()
    change(Path(path, VICTIM), flipped)
    run(path, "repair", "--apply")
    assert VICTIM not in instances_in(path)
    Path(path, VICTIM).write_bytes(good)
    index(path)
    assert kinds(path) == {"conflict-waiting"}


def test_file_meta_is_restored_to_the_byte(path: Path) -> None:
    good = Path(path, VICTIM).read_bytes()
    DAMAGES["the_file_meta_is_changed"].do(path)
    assert Path(path, VICTIM).read_bytes() != good
    run(path, "repair", "--apply")
    assert Path(path, VICTIM).read_bytes() == good


def test_a_conflict_says_why_it_is_there(path: Path) -> None:
    change(Path(path, VICTIM), flipped)
    run(path, "repair", "--apply")
    _, found = run(path, "verify")
    [words] = [one["words"] for one in found if one["kind"] == "conflict-waiting"]
    assert words.startswith("kept aside: digest-differs")


def test_a_moved_instance_keeps_who_sent_it(path: Path) -> None:
    DAMAGES["a_study_has_another_name"].do(path)
    run(path, "repair", "--apply")
    manifest = Path(path, "202401/1.0", f"1.0.0.{node(path)}.jsonl")
    assert {orjson.loads(line)["calling_ae"] for line in manifest.read_bytes().splitlines()} == {
        "CT1"
    }


def test_only_what_is_named_is_repaired(path: Path) -> None:
    change(Path(path, VICTIM), flipped)
    other = Path(path, SERIES, "1.0.9.2.dcm")
    change(other, flipped)
    _, done = run(path, "repair", "--apply", "1.0.9.0")
    assert {one["path"] for one in done} == {VICTIM}
    assert other.exists()
    assert not Path(path, VICTIM).exists()


def test_an_indexer_at_work_makes_the_indexes_again(path: Path) -> None:
    import threading

    with Indexer.open(str(path)) as indexer:
        thread = threading.Thread(target=indexer.run)
        thread.start()
        try:
            DAMAGES["much_at_once"].do(path)
            status, _ = run(path, "repair", "--apply")
        finally:
            indexer.stop()
            thread.join()
    assert status == 1
    assert kinds(path) == {"missing-file", "conflict-waiting"}


def test_a_read_only_copy_is_not_repaired(path: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting is for root")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mounts, not even to root")
    change(Path(path, VICTIM), flipped)
    script = f"mount --bind '{path}' '{path}' && mount -o remount,bind,ro '{path}' && exec \"$@\""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *PLAINPACS, "repair", "--apply", "-a", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "cannot write" in done.stderr


# --- killed anywhere ----------------------------------------------------------------------------


def killed_in_repair(path: Path, step: int) -> bool:
    """Whether a repair was killed before ``step``, or came to its end before."""
    arguments = ["repair", "--apply", "-a", str(path)]
    return killed_at(step, lambda: click.testing.CliRunner().invoke(plainpacs, arguments))


def steps() -> Iterator[int]:
    """Every one of those at which it mends, and some of the rest: starting and indexing, which
    have tests of their own."""
    yield from range(20, 80)
    yield from range(80, 1000, 40)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        "a_bit_of_the_pixels_is_flipped",
        "an_instance_has_another_name",
        "an_instance_is_copied_to_another_series",
        "another_version_lies_in_another_series",
        "the_file_meta_is_changed",
        "the_file_meta_is_longer",
        "an_import_had_the_file_meta_of_another",
    ],
)
def test_killed_anywhere_a_second_repair_finishes(name: str, path: Path, memory: Path) -> None:
    damage: Damage = DAMAGES[name]
    damage.do(path)
    before = contents(path)
    stops = 0
    for step in steps():
        copy = copied(path, memory / "copy")
        if not killed_in_repair(copy, step):
            break
        stops += 1
        assert contents(copy) >= before, f"lost at step {step}"
        run(copy, "repair", "--apply")
        assert kinds(copy) == damage.left, f"killed at step {step}"
        assert contents(copy) >= before
        assert derived(copy) == rebuilt(copy, memory / "b"), f"killed at step {step}"
        shutil.rmtree(copy)
    assert stops >= 60
    print(f"\n{name}: killed {stops} times")
