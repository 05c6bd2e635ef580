"""``on_conflict = replace``: other bytes are published, and what was there is lost at no moment."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import orjson
import pytest

from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, LONGEST_META, read_part10
from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive, Provenance, StoreOutcome
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.root import locked, stamp
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import (
    MODALITY,
    data_set,
    left_behind,
    manifest_lines,
    new_archive,
    part10,
    store,
    tree,
)
from tests.support.steps import killed_at

PATH = "202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm"
ASIDE = ".plainpacs/conflicts/202401/1.2.3/1.2.3.4"
FIRST = data_set()
SECOND = data_set(PatientName="Other^One")
ALIKE = data_set(PatientName="Eod^Enaj")  # of the same length as the first
CORRECTING = Provenance("QC9", "DRDCM", "10.0.0.9")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return new_archive(tmp_path / "a")


def opened(path: str, **options: Any) -> Archive:
    return Archive.open(path, on_conflict="replace", **options)


def body(file: Path) -> bytes:
    raw = file.read_bytes()
    return raw[read_part10(raw[:LONGEST_META]).dataset_offset :]


def published(path: str) -> bytes:
    return body(Path(path, PATH))


def aside(path: str) -> list[bytes]:
    """The data sets kept aside."""
    folder = Path(path, ASIDE)
    return sorted(body(file) for file in folder.iterdir()) if folder.exists() else []


def lines(path: str) -> list[dict[str, Any]]:
    return [orjson.loads(raw) for raw in manifest_lines(path)]


def aside_lines(path: str) -> list[dict[str, Any]]:
    folder = Path(path, ASIDE).parent
    files = folder.glob("*.jsonl")
    return [orjson.loads(raw) for file in files for raw in file.read_bytes().splitlines()]


def send(archive: Archive, raw: bytes, provenance: Provenance = CORRECTING) -> Any:
    return archive.store(raw, EXPLICIT_LITTLE_ENDIAN, provenance)


def test_the_new_one_is_published_and_the_old_one_kept_aside(path: str) -> None:
    with opened(path) as archive:
        assert send(archive, FIRST, MODALITY).outcome is StoreOutcome.STORED
        old = os.open(Path(path, PATH), os.O_RDONLY)
        inode = os.fstat(old).st_ino
        stored = send(archive, SECOND)
        assert (stored.outcome, stored.path) == (StoreOutcome.CONFLICT, PATH)
        assert os.listdir(Path(path, ".plainpacs/pending")) == ["202401~1.2.3"]
    with open(old, "rb") as file:  # who has it open reads on
        assert file.read().endswith(FIRST)
    facts = Path(path, PATH).stat()
    assert published(path) == SECOND
    assert (facts.st_mode & 0o777, facts.st_nlink) == (0o444, 1)
    [kept] = Path(path, ASIDE).iterdir()
    assert (body(kept), kept.stat().st_ino, kept.stat().st_nlink) == (FIRST, inode, 1)
    digest = blake3.blake3(EXPLICIT_LITTLE_ENDIAN.encode() + b"\0" + FIRST).hexdigest()
    assert kept.name == f"1.2.3.4.5~{digest}"
    [line] = aside_lines(path)
    assert (line["file"], line["calling_ae"], line["PatientName"]) == (kept.name, "CT1", "Doe^Jane")
    assert (line["bytes"], line["stored"]) == (
        kept.stat().st_size,
        stamp(kept.stat().st_mtime_ns),
    )
    first, second = lines(path)
    assert (first["calling_ae"], second["calling_ae"]) == ("CT1", "QC9")
    assert second["stored"] == stamp(facts.st_mtime_ns)
    assert left_behind(path) == []


def test_the_same_instance_again_changes_nothing(path: str) -> None:
    with opened(path) as archive:
        send(archive, FIRST)
        send(archive, SECOND)
        before = tree(path, internal=True)
        assert send(archive, SECOND, MODALITY).outcome is StoreOutcome.DUPLICATE
        assert tree(path, internal=True) == before


def test_a_variant_that_comes_again_is_published_again(path: str) -> None:
    with opened(path) as archive:
        for raw in (FIRST, SECOND, FIRST, SECOND, ALIKE, FIRST):
            send(archive, raw)
            assert published(path) == raw
    assert aside(path) == sorted([SECOND, ALIKE])


def test_what_was_kept_aside_before_the_setting_was_changed(path: str) -> None:
    with Archive.open(path) as archive:
        send(archive, FIRST)
        send(archive, SECOND)
    assert (published(path), aside(path)) == (FIRST, [SECOND])
    with opened(path) as archive:
        send(archive, SECOND)
    assert (published(path), aside(path)) == (SECOND, [FIRST])


def test_without_sync(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(fd: int) -> None:
        raise AssertionError("a sync")

    with opened(path, sync=False) as archive:
        send(archive, FIRST)
        monkeypatch.setattr(durable, "sync_file", never)
        monkeypatch.setattr(durable, "sync_folder", never)
        send(archive, SECOND)
        monkeypatch.undo()
    assert (published(path), aside(path)) == (SECOND, [FIRST])


@pytest.mark.parametrize("damage", [b"", b"GIF89a", b"half"])
def test_a_damaged_file_is_kept_aside_too(path: str, damage: bytes) -> None:
    with opened(path) as archive:
        send(archive, FIRST)
        file = Path(path, PATH)
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:300] if damage == b"half" else damage)
        broken = file.read_bytes()
        send(archive, SECOND)
        assert published(path) == SECOND
        [kept] = Path(path, ASIDE).iterdir()
        assert kept.read_bytes() == broken
        send(archive, FIRST)
        assert published(path) == FIRST


def test_spooled_and_imported_ones_replace_too(path: str, tmp_path: Path) -> None:
    source = tmp_path / "corrected"
    source.write_bytes(part10(PatientName="Third^One"))
    with opened(path) as archive:
        send(archive, FIRST)
        with archive.spool(
            EXPLICIT_LITTLE_ENDIAN,
            MODALITY,
            sop_class="1.2.840.10008.5.1.4.1.1.2",
            sop_instance="1.2.3.4.5",
        ) as spool:
            spool.write(SECOND)
            spool.store()
        assert published(path) == SECOND
        [done] = import_all(archive, sources([str(source)]))
        assert done.stored
    assert Path(path, PATH).read_bytes() == source.read_bytes()
    assert aside(path) == sorted([FIRST, SECOND])


def test_what_another_archive_kept_aside_does_not_replace(path: str, tmp_path: Path) -> None:
    other = new_archive(tmp_path / "b")
    with Archive.open(other) as archive:
        send(archive, SECOND)
        send(archive, ALIKE)
    with opened(path) as archive:
        send(archive, FIRST)
        list(import_all(archive, sources([other])))
    assert published(path) == SECOND, "what the other one published"
    assert aside(path) == sorted([FIRST, ALIKE])


# --- the indexes ----------------------------------------------------------------------------------


def study_json(path: str) -> bytes:
    return Path(path, "202401/1.2.3/study.json").read_bytes()


@pytest.mark.parametrize("second", [SECOND, ALIKE], ids=["another length", "the same length"])
def test_the_index_is_that_of_a_full_rebuild(path: str, second: bytes) -> None:
    with opened(path) as archive, Indexer.open(path) as indexer:
        send(archive, FIRST)
        indexer.once()
        before = study_json(path)
        send(archive, second)
        indexer.once()
        indexed = study_json(path)
    assert indexed != before
    name = orjson.loads(indexed)["PatientName"]
    assert name == ("Other^One" if second is SECOND else "Eod^Enaj")
    with Indexer.open(path) as indexer:
        indexer.once(full=True)
    assert study_json(path) == indexed
    # Without manifests nothing but the time of storing and the provenance can differ.
    for manifest in Path(path, "202401/1.2.3").glob("*.jsonl"):
        manifest.unlink()
    with Indexer.open(path) as indexer:
        indexer.once(full=True)
    assert study_json(path) == indexed


def test_a_replacement_is_found_without_its_marker(path: str) -> None:
    with opened(path) as archive:
        send(archive, FIRST)
    with Indexer.open(path) as indexer:
        indexer.once()
    with opened(path) as archive:
        send(archive, ALIKE)
    shutil.rmtree(Path(path, ".plainpacs/pending"))
    with Indexer.open(path) as indexer:
        indexer.once()
    assert b"Eod^Enaj" in study_json(path)


def test_two_versions_of_one_millisecond_are_told_apart(path: str) -> None:
    """An import brings the time of storing along: two of one length may have the same."""
    moment = 1_700_000_000_000_000_000
    dated = Provenance("CT1", "DRDCM", "10.0.0.5", "c-store", moment)
    with opened(path) as archive:
        for raw in (FIRST, ALIKE, FIRST, ALIKE):
            send(archive, raw, dated)
            mtime = Path(path, PATH).stat().st_mtime_ns
            assert [line for line in lines(path) if line["stored"] == stamp(mtime)]
    with Indexer.open(path) as indexer:
        indexer.once()
    assert b"Eod^Enaj" in study_json(path)


# --- two at once ----------------------------------------------------------------------------------


def test_many_at_once_lose_nothing(path: str) -> None:
    """Two receivers, eight threads, each with bytes of its own, some twice."""
    bodies = [data_set(PatientName=f"Name^{number}") for number in range(16)]
    with opened(path) as one, opened(path) as other:
        ready = threading.Barrier(8)

        def sending(turn: int) -> None:
            ready.wait()
            for raw in (*bodies[2 * turn : 2 * turn + 2], bodies[0]):
                send((one, other)[turn % 2], raw)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(sending, range(8)))
    assert published(path) in bodies
    assert sorted({published(path), *aside(path)}) == sorted(bodies)
    assert len(aside(path)) == 15
    mtime = Path(path, PATH).stat().st_mtime_ns
    [line] = [line for line in lines(path) if line["stored"] == stamp(mtime)]
    assert line["blake3"] == blake3.blake3(Path(path, PATH).read_bytes()).hexdigest()


def test_one_that_replaces_and_one_that_keeps(path: str) -> None:
    bodies = [data_set(PatientName=f"Name^{number}") for number in range(12)]
    with opened(path) as one, Archive.open(path) as other:
        ready = threading.Barrier(4)

        def sending(turn: int) -> None:
            ready.wait()
            for raw in bodies[3 * turn : 3 * turn + 3]:
                send((one, other)[turn % 2], raw)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sending, range(4)))
    assert sorted({published(path), *aside(path)}) == sorted(bodies)


def test_a_reader_finds_a_whole_file_at_every_moment(path: str) -> None:
    stop = threading.Event()
    seen: set[bytes] = set()
    bodies = [FIRST, SECOND, ALIKE]

    def reading() -> None:
        while not stop.is_set():
            seen.add(published(path))

    with opened(path) as archive:
        send(archive, FIRST)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(reading)
            for number in range(60):
                send(archive, bodies[number % 3])
            stop.set()
            done.result()
    assert seen <= set(bodies)
    assert len(seen) > 1


# --- failures and kills ---------------------------------------------------------------------------

PRIMITIVES = (
    *("create", "write", "set_time", "sync_file", "sync_folder", "link", "rename", "unlink"),
    *("touch", "open_to_append", "make_folder"),
)


def steps(path: str) -> int:
    """How many primitives a replacement calls."""
    calls = 0
    with opened(path) as archive:
        send(archive, FIRST)
        with pytest.MonkeyPatch.context() as patch:

            def counting(real: Callable[..., Any]) -> Callable[..., Any]:
                def primitive(*args: Any, **kwargs: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    return real(*args, **kwargs)

                return primitive

            for name in PRIMITIVES:
                patch.setattr(durable, name, counting(getattr(durable, name)))
            send(archive, SECOND)
    return calls


def check_nothing_lost(path: str, acknowledged: bool) -> None:
    """Both versions are somewhere known, and the final name holds one of them, whole."""
    bodies = {published(path), *aside(path)}
    assert published(path) in (FIRST, SECOND)
    assert FIRST in bodies
    if acknowledged:
        assert published(path) == SECOND


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_every_step_loses_nothing(number: int, tmp_path: Path) -> None:
    wanted = steps(new_archive(tmp_path / "count"))
    assert wanted >= 15
    refused = 0
    for step in range(wanted):
        path = new_archive(tmp_path / f"a{step}")
        with opened(path) as archive:
            send(archive, FIRST)
            calls = itertools.count()

            def failing(real: Callable[..., Any], calls: Iterator[int], step: int) -> Any:
                def primitive(*args: Any, **kwargs: Any) -> Any:
                    if next(calls) == step:
                        raise OSError(number, os.strerror(number))
                    return real(*args, **kwargs)

                return primitive

            acknowledged = True
            with pytest.MonkeyPatch.context() as patch:
                for name in PRIMITIVES:
                    patch.setattr(durable, name, failing(getattr(durable, name), calls, step))
                try:
                    send(archive, SECOND)
                except StorageUnavailable:
                    acknowledged = False
                    refused += 1
            check_nothing_lost(path, acknowledged)
        with opened(path) as archive:  # a failed sync holds until a restart
            send(archive, SECOND)
        assert (published(path), aside(path)) == (SECOND, [FIRST])
        with Indexer.open(path) as indexer:
            indexer.once()
        assert b"Other^One" in study_json(path)
        assert left_behind(path) == []
    assert refused >= wanted - 5


def correct(path: str, told: Path) -> None:
    with opened(path) as archive:
        archive.store(ALIKE, EXPLICIT_LITTLE_ENDIAN, Provenance("QC9", "DRDCM", "10.0.0.9"))
        told.touch()


@pytest.mark.timeout(300)
def test_killed_at_every_step_nothing_is_lost(memory: Path) -> None:
    path = new_archive(memory / "a")
    with opened(path) as archive:
        send(archive, FIRST)
    with Indexer.open(path) as indexer:
        indexer.once()
    stops = 0
    for step in range(1000):
        copy = str(memory / "copy")
        subprocess.run(["cp", "-a", path, copy], check=True)
        told = memory / f"told{step}"
        killed = killed_at(step, partial(correct, copy, told))
        acknowledged = told.exists()
        assert published(copy) in (FIRST, ALIKE)
        assert FIRST in {published(copy), *aside(copy)}
        assert published(copy) == ALIKE or not acknowledged
        # Who starts next clears up; the index is that of what lies there.
        now = published(copy)
        with Indexer.open(copy) as indexer:
            indexer.once()
        assert (b"Eod^Enaj" in study_json(copy)) == (now == ALIKE), f"killed at {step}"
        indexed = study_json(copy)
        with Indexer.open(copy) as indexer:
            indexer.once(full=True)
        assert study_json(copy) == indexed
        assert left_behind(copy) == []
        with opened(copy) as archive:  # the sender tries again
            send(archive, ALIKE)
        assert (published(copy), aside(copy)) == (ALIKE, [FIRST])
        shutil.rmtree(copy)
        if not killed:
            break
        stops += 1
    assert stops >= 15


# --- beside others --------------------------------------------------------------------------------


def test_what_was_changed_by_hand_in_the_very_moment_is_refused(path: str) -> None:
    with opened(path) as archive:
        send(archive, FIRST)
        stranger = Path(path, "stranger")
        stranger.write_bytes(part10(PatientName="By^Hand"))

        def link(name: str, to: str, *, folder: int, to_folder: int) -> None:
            os.link(name, to, src_dir_fd=folder, dst_dir_fd=to_folder)
            if to.endswith(".second"):
                os.replace(stranger, Path(path, PATH))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "link", link)
            with pytest.raises(StorageUnavailable, match="in this moment"):
                send(archive, SECOND)
        assert b"By^Hand" in published(path)
        send(archive, SECOND)
    assert published(path) == SECOND
    assert len(aside(path)) == 2


def test_a_file_that_is_not_what_its_name_says_stops_it(path: str) -> None:
    with opened(path) as archive:
        send(archive, FIRST)
        digest = blake3.blake3(EXPLICIT_LITTLE_ENDIAN.encode() + b"\0" + FIRST).hexdigest()
        squatter = Path(path, ASIDE, f"1.2.3.4.5~{digest}")
        squatter.parent.mkdir(parents=True)
        squatter.write_bytes(b"something else")
        with pytest.raises(StorageUnavailable, match="does not hold what its name says"):
            send(archive, SECOND)
        assert published(path) == FIRST
        squatter.unlink()
        send(archive, SECOND)
    assert (published(path), aside(path)) == (SECOND, [FIRST])


def test_removed_while_it_waits_for_the_lock(path: str) -> None:
    """Whoever takes a file away holds the lock: what comes after is stored as new, or refused."""
    with opened(path) as archive:
        send(archive, FIRST)
        root = os.open(path, os.O_RDONLY)
        with ThreadPoolExecutor(1) as pool:
            with locked(root, layout.REPLACING_LOCK):
                done = pool.submit(send, archive, SECOND)
                Path(path, PATH).unlink()
            os.close(root)
            try:
                done.result(timeout=20)
            except StorageUnavailable:
                send(archive, SECOND)
    assert published(path) == SECOND


def test_an_ordinary_store_asks_for_no_lock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no conflict costs the same whatever the setting is: the same system calls."""

    def calls_of(archive: Archive) -> list[str]:
        calls: list[str] = []
        with monkeypatch.context() as patch:

            def spy(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
                def called(*args: Any, **kwargs: Any) -> Any:
                    calls.append(name)
                    return real(*args, **kwargs)

                return called

            for name in PRIMITIVES:
                patch.setattr(durable, name, spy(name, getattr(durable, name)))
            store(archive, SOPInstanceUID="1.9")
            store(archive, SOPInstanceUID="1.9")
        return calls

    with Archive.open(path) as archive:
        store(archive)
        keeping = calls_of(archive)
    other = new_archive(Path(path).with_name("b"))
    with opened(other) as archive:
        store(archive)
        assert calls_of(archive) == keeping
    assert not Path(other, layout.REPLACING_LOCK).exists()
