"""``verify`` beside receivers, on copies, in part, in pieces. What it finds: ``test_repair``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import blake3
import orjson
import pytest
from click.testing import CliRunner, Result

from plainpacs.archive.app.cli import root as plainpacs
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import encoded
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.layout import key_of
from plainpacs.archive.tree.targets import Target
from plainpacs.archive.verify.finding import FindingKind
from plainpacs.archive.verify.instance import Reader, examine
from plainpacs.archive.verify.study import look, promised, stored_line
from plainpacs.archive.verify.verify import Options, Verification
from plainpacs.indexer.commands.verify import checks
from tests.archive.test_copies import stores_going_on, tool
from tests.support.archives import (
    CT_IMAGE_STORAGE,
    MODALITY,
    instances_in,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.damage import (
    DAMAGES,
    SERIES,
    STUDY,
    VICTIM,
    bring,
    change,
    flipped,
    index,
    make,
    node,
)

COMMAND = (sys.executable, "-m", "plainpacs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "a")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(plainpacs, [str(one) for one in arguments])


def verify(path: Path, *arguments: str) -> Result:
    return run("verify", "-a", path, *arguments)


def found(path: Path, *arguments: str) -> list[dict[str, str]]:
    done = verify(path, "--format", "jsonl", *arguments)
    lines = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == any(one["severity"] == "damage" for one in lines), done.output
    return lines


def paths(path: Path, *arguments: str) -> list[str]:
    return [finding["path"] for finding in found(path, *arguments)]


def facts(path: Path) -> dict[str, tuple[str, int]]:
    return {
        name: (digest, os.stat(path / name).st_mtime_ns)
        for name, digest in tree(path, internal=True).items()
    }


# --- beside others ------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "whole"])
def test_what_goes_on_meanwhile_is_no_finding(path: Path, *, fast: bool) -> None:
    options = Options(fast=fast, threads=2)
    looked = 0
    with stores_going_on(str(path)):
        for _ in range(12):
            verification = Verification(str(path), options, checks(str(path), options))
            assert list(verification) == []
            looked = verification.progress.instances
    assert looked > 30


def test_a_file_that_is_being_received_is_no_finding(path: Path) -> None:
    second = Path(path, ".plainpacs/incoming/second")
    uids = {"StudyInstanceUID": "1.0", "SeriesInstanceUID": "1.0.0", "SOPInstanceUID": "1.0.9.77"}
    second.write_bytes(part10(StudyDate="20240105", **uids))
    os.link(second, Path(path, SERIES, "1.0.9.77.dcm"))
    assert found(path) == []
    second.unlink()
    assert [one["kind"] for one in found(path)] == ["file-without-line"]


def test_a_study_that_waits_to_be_indexed_is_no_finding(path: Path) -> None:
    with Archive.open(str(path)) as archive:
        store(archive, StudyInstanceUID="1.0", SeriesInstanceUID="1.0.0",
              SOPInstanceUID="1.0.9.88", StudyDate="20240105")  # fmt: skip
    assert found(path) == []
    Path(path, ".plainpacs/pending/202401~1.0").unlink()
    # The study's, the month's, and the shard's, which may have had nothing before.
    assert {one["kind"] for one in found(path)} - {"missing-index"} == {"stale-index"}


def test_nothing_is_written(path: Path) -> None:
    DAMAGES["much_at_once"].do(path)
    before = facts(path)
    assert found(path)
    verify(path, "--sums", "sha256")
    CliRunner().invoke(plainpacs, ["repair", "-a", str(path)])
    assert facts(path) == before


@pytest.mark.parametrize("lost", ["", ".plainpacs", ".plainpacs/incoming"])
def test_a_read_only_copy_is_verified(path: Path, tmp_path: Path, lost: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting is for root")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mounts, not even to root")
    if lost:
        shutil.rmtree(path / lost)
    script = f"mount --bind '{path}' '{path}' && mount -o remount,bind,ro '{path}' && exec \"$@\""
    command = ["unshare", "-m", "sh", "-c", script, "sh", *COMMAND, "verify", "-a", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    change(Path(path, VICTIM), flipped)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert VICTIM in done.stdout


def test_what_may_not_be_read_is_said(path: Path) -> None:
    """By another user: neither .plainpacs nor, here, one file and one study."""
    if os.geteuid() != 0:
        pytest.skip("giving files away is for root")
    subprocess.run(["chown", "-R", "65534:65534", path], check=True)
    Path(path, VICTIM).chmod(0)
    Path(path, "202401/1.2/1.2.0").chmod(0)
    # Root without its privileges: to these files, anybody.
    wrapped = (tool("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    done = subprocess.run(
        [*wrapped, *COMMAND, "verify", "--format", "jsonl", "-a", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert {(one["kind"], one["path"]) for one in lines} == {
        ("read-error", VICTIM),
        ("read-error", "202401/1.2"),
    }
    assert all("Permission denied" in one["words"] for one in lines)
    assert "conflicts may not be read: not looked at" in done.stderr


# --- in part ------------------------------------------------------------------------------------


def test_only_what_is_named(path: Path) -> None:
    change(Path(path, VICTIM), flipped)
    other = "202402/1.1/1.1.1/1.1.9.1.dcm"
    change(Path(path, other), flipped)
    assert paths(path, "1.0") == paths(path, "1.0.0") == paths(path, "1.0.9.0") == [VICTIM]
    assert paths(path, "1.0.1") == paths(path, "1.0.9.1") == []
    assert sorted(paths(path, "1.0", "1.1.9.1")) == [VICTIM, other]
    assert verify(path, "1.99").exit_code == 1
    assert verify(path, "../x").exit_code != 0


def test_a_missing_instance_can_be_named(path: Path) -> None:
    Path(path, VICTIM).unlink()
    assert VICTIM in paths(path, "1.0.9.0")


def test_only_what_was_stored_since(path: Path) -> None:
    change(Path(path, VICTIM), flipped)
    assert paths(path, "--since", "1h") == [VICTIM]
    old = time.time() - 86400 * 3
    for name in (VICTIM, SERIES, STUDY):
        os.utime(path / name, (old, old))
    assert paths(path, "--since", "1h") == []
    assert VICTIM in paths(path, "--since", "7d")
    done = verify(path, "--since", "someday")
    assert "--since someday" in str(done.exception)


def test_it_goes_on_where_it_was_interrupted(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    change(Path(path, VICTIM), flipped)
    later = "202402/1.1/1.1.1/1.1.9.1.dcm"
    change(Path(path, later), flipped)
    assert paths(path, "--resume", str(state)) == [VICTIM, later]
    assert orjson.loads(state.read_bytes())["after"] == "", "done: the next begins anew"
    state.write_bytes(orjson.dumps({"node": node(path), "after": STUDY}))
    Path(path, "202401/1.2/study.json").unlink()
    assert paths(path, "--resume", str(state)) == ["202401/1.2/study.json", later]
    state.write_bytes(orjson.dumps({"node": "other", "after": STUDY}))
    assert "is of another archive" in str(verify(path, "--resume", str(state)).exception)


def test_how_far_it_got_is_kept_when_it_is_interrupted(path: Path, tmp_path: Path) -> None:
    """By Ctrl-C, at a rate that takes minutes for it all."""
    with Archive.open(str(path)) as archive:
        for number in range(4):
            store(archive, StudyInstanceUID=f"1.0{number}", SOPInstanceUID=f"1.50.{number}",
                  PixelData=bytes(300_000), StudyDate="20990101")  # fmt: skip
    index(path)
    state = tmp_path / "state"
    command = [*COMMAND, "verify", "-a", path, "--resume", state, "--rate", "0.3", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not (state.exists() and b"209901" in state.read_bytes()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(2)
        _, words = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command again goes on" in words
    after = orjson.loads(state.read_bytes())["after"]
    assert re.fullmatch("209901/1.0[0123]", after)


def test_reading_is_held_back(path: Path) -> None:
    with Archive.open(str(path)) as archive:
        store(archive, PixelData=bytes(1_000_000))
    index(path)
    began = time.monotonic()
    assert verify(path, "--rate", "2").exit_code == 0
    assert time.monotonic() - began > 0.4


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "program"), [("blake3", "b3sum"), ("sha256", "sha256sum")])
@pytest.mark.parametrize("digest", ["blake3", "sha256"])
def test_lists_are_checked_by_other_programs(
    tmp_path: Path, name: str, program: str, digest: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt install {program})")
    path = Path(new_archive(tmp_path / "a"))
    with Archive.open(str(path), digest=digest) as archive:
        for number in range(5):
            store(archive, SOPInstanceUID=f"1.2.3.4.{number}")
    sums = tmp_path / "sums"
    done = verify(path, "--sums", name)
    assert done.exit_code == 0
    sums.write_text(done.stdout)
    command = [program, "-c", str(sums)]
    checked = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count(": OK") == 5
    change(Path(path, instances_in(path)[0]), flipped)
    checked = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    # A digest that is made for the list is only that of what was stored.
    done = verify(path, "--sums", name)
    assert done.exit_code == (name != digest)
    assert len(done.stdout.splitlines()) == 5 - (name != digest)


def test_a_list_is_of_what_is_there(path: Path) -> None:
    Path(path, VICTIM).unlink()
    Path(path, SERIES, "1.0.9.77.dcm").write_bytes(b"rubbish")
    done = verify(path, "--sums", "blake3")
    assert done.exit_code == 1
    listed = [line.split("  ")[1] for line in done.stdout.splitlines()]
    assert listed == [name for name in instances_in(path) if "1.0.9.77" not in name]
    assert f"{SERIES}/1.0.9.77.dcm is not listed" in done.stderr
    assert len(verify(path, "--sums", "blake3", "1.1").stdout.splitlines()) == 6


# --- in detail ----------------------------------------------------------------------------------


def test_findings_name_no_patient(path: Path) -> None:
    for name in ("the_file_meta_is_changed", "much_at_once", "an_instance_has_another_name"):
        DAMAGES[name].do(path)
    for arguments in ("--format", "table"), ("--format", "jsonl"), ("--sums", "blake3"):
        done = verify(path, *arguments)
        assert done.output
        assert not re.search("Doe|Jane|P1", done.output)


def test_the_table_says_what_to_do(path: Path) -> None:
    Path(path, VICTIM).unlink()
    done = verify(path, "1.0.9.0", "--format", "table")
    assert f"damage     missing-file         {VICTIM}\n    stored at 20" in done.stdout
    assert "bring it back from a backup" in done.stdout


def test_every_kind_is_documented() -> None:
    text = Path(__file__).resolve().parents[2].joinpath("archive/FORMAT.md").read_text()
    for kind in FindingKind:
        assert f"`{kind.value}`" in text


def test_every_kind_is_in_the_damage_table_or_tested_here() -> None:
    kinds = {kind for damage in DAMAGES.values() for kind in damage.found}
    assert kinds | {"read-error"} == {kind.value for kind in FindingKind}


def test_digests_are_the_same_in_pieces(tmp_path: Path) -> None:
    data = os.urandom(700_001)
    file = tmp_path / "file"
    file.write_bytes(data)
    fd = os.open(file, os.O_RDONLY)
    reader = Reader()
    assert reader.digest(fd, "blake3") == blake3.blake3(data).hexdigest()
    wanted = blake3.blake3(b"before" + data[1000:]).hexdigest()
    assert reader.digest(fd, "blake3", before=b"before", skip=1000) == wanted
    assert reader.bytes == 2 * len(data) - 1000
    os.close(fd)


def test_what_was_stored_is_told_from_what_was_read_again(path: Path) -> None:
    key = key_of(VICTIM)
    assert key
    change(Path(path, VICTIM), lambda data: data[:-20])
    Path(path, ".plainpacs/pending/202401~1.0").touch()
    index(path)
    seen = look(str(path), key.month, key.study)
    subject = seen.subject(key)
    file, lines = subject.file, subject.lines
    assert file
    assert [line["origin"] for line in lines] == ["c-store", "recovered"]
    assert [line["origin"] for line in promised(lines)] == ["c-store"]
    assert stored_line(file, lines) is None
    finding = examine(str(path), subject, Reader(), Forbidden(), thorough=False)
    assert finding
    assert finding.kind is FindingKind.SIZE_DIFFERS


def test_targets_meet_the_checks_of_their_study(path: Path) -> None:
    Path(path, STUDY, "study.json").unlink()
    options = Options(targets=(Target("202401", "1.0", "1.0.0"),))
    verification = Verification(str(path), options, checks(str(path), options))
    assert [finding.kind for finding in verification] == [FindingKind.MISSING_INDEX]
    assert verification.progress.instances == 3


def test_an_import_keeps_its_own_file_meta(path: Path) -> None:
    with Archive.open(str(path)) as archive:
        data = part10(SOPInstanceUID="1.8.9.1", StudyInstanceUID="1.8")
        bring(archive, data.replace(b"PLAINPACS_F1", b"OTHER_SYSTEM"))
    index(path)
    assert found(path) == []


def test_a_copy_has_none_of_the_unfinished_files_of_the_living(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with (
        Archive.open(str(path)) as archive,
        archive.spool(
            "1.2.840.10008.1.2.1", MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance="1.5"
        ),
    ):
        assert found(path) == []
        shutil.copytree(path, copy, symlinks=True)
    assert list(copy.glob(".plainpacs/incoming/*/*")), "it was copied with what was unfinished"
    assert found(copy) == []


@pytest.mark.parametrize("killed", [False, True], ids=["stored again", "by a backup"])
def test_restoring_once_ends_that_it_reappeared(path: Path, killed: bool) -> None:
    """Removed while the clock was ahead; there again, while the trash has it, too."""
    was = Path(path, VICTIM).read_bytes()
    [manifest] = Path(path, STUDY).glob("1.0.0.*.jsonl")
    uid = Path(VICTIM).stem
    with manifest.open("ab") as file:
        file.write(encoded({"file": f"{uid}.dcm", "restored": "2999-12-31T23:59:59.999Z"}))
    assert run("rm", "-a", path, "--yes", uid).exit_code == 0
    if killed:
        Path(path, VICTIM).parent.mkdir(exist_ok=True)
        Path(path, VICTIM).write_bytes(was)
    else:
        with Archive.open(str(path)) as archive:
            bring(archive, was)
    index(path)
    assert "removed-reappeared" in {one["kind"] for one in found(path)}
    assert run("restore", "-a", path, uid).exit_code == 0
    assert found(path) == []
    assert run("restore", "-a", path, uid).exit_code == 1, "nothing is left to be restored"
