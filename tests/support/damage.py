"""The damage table: what may happen to an archive, what ``verify`` says of it, and what is left to
say once it was repaired. An archive of these tests is made by ``make``."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store.forbidden import forbid
from plainpacs.archive.store.manifest import ORIGIN_IMPORT
from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Target, present
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import MODALITY, new_archive, part10, store

STUDY = "202401/1.0"
SERIES = f"{STUDY}/1.0.0"
VICTIM = f"{SERIES}/1.0.9.0.dcm"
OTHER_SERIES = f"{STUDY}/1.0.1"
IMPORTED = "202401/1.7/1.7.0/1.7.9.0.dcm"
STALE = "stale-index"
KEPT = "conflict-waiting"


def make(path: Path) -> Path:
    """An archive of three studies in two months, six instances each, and one that was imported."""
    root = new_archive(path)
    with Archive.open(root, sync=False) as archive:
        for number in range(18):
            study = number % 3
            store(
                archive,
                StudyInstanceUID=f"1.{study}",
                SeriesInstanceUID=f"1.{study}.{number // 3 % 2}",
                SOPInstanceUID=f"1.{study}.9.{number // 3}",
                StudyDate=f"2024{1 + study % 2:02}05",
            )
        bring(archive, part10(**_imported()))
    index(path)
    return path


def _imported() -> dict[str, str]:
    return {"StudyInstanceUID": "1.7", "SeriesInstanceUID": "1.7.0", "SOPInstanceUID": "1.7.9.0"}


def bring(archive: Archive, data: bytes) -> None:
    """Imports a file of these bytes."""
    source = Path(archive.root, "..", "source")
    source.write_bytes(data)
    fd = os.open(source, os.O_RDONLY)
    archive.import_file(fd, Provenance(origin=ORIGIN_IMPORT))
    os.close(fd)
    source.unlink()


def index(path: Path) -> None:
    with Indexer.open(str(path)) as indexer:
        indexer.once()


def node(path: Path) -> str:
    return str(json.loads(Path(path, "plainpacs.json").read_text())["node"])


def change(file: Path, edit: Callable[[bytes], bytes]) -> None:
    """Changes a file in place, as a program does that should not."""
    data = edit(file.read_bytes())
    file.chmod(0o644)
    file.write_bytes(data)
    file.chmod(0o444)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def without(data: bytes, words: str) -> bytes:
    """The lines that do not hold ``words``."""
    return b"".join(line for line in data.splitlines(True) if words.encode() not in line)


@dataclass(frozen=True)
class Damage:
    """``found``: what verify says; ``fast``: what it says with --fast, if that is another thing;
    ``left``: what it says after the repair."""

    do: Callable[[Path], object]
    found: frozenset[str]
    left: frozenset[str]
    fast: frozenset[str]


DAMAGES: dict[str, Damage] = {}


def damage(
    *found: str, left: tuple[str, ...] = (), fast: tuple[str, ...] | None = None
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(do: Callable[[Path], object]) -> Callable[[Path], object]:
        quick = found if fast is None else fast
        DAMAGES[do.__name__] = Damage(do, frozenset(found), frozenset(left), frozenset(quick))
        return do

    return add


# --- files --------------------------------------------------------------------------------------


@damage("missing-file", STALE, left=("missing-file",))
def a_file_is_gone(path: Path) -> None:
    Path(path, VICTIM).unlink()


@damage("missing-file", STALE, left=("missing-file",))
def a_series_is_gone(path: Path) -> None:
    shutil.rmtree(Path(path, SERIES))


@damage(STALE)
def a_study_is_gone_with_its_manifests(path: Path) -> None:
    shutil.rmtree(Path(path, STUDY))


@damage("size-differs", STALE, left=("missing-file", KEPT))
def a_file_is_cut_short(path: Path) -> None:
    change(Path(path, VICTIM), lambda data: data[:-20])


@damage("size-differs", left=("missing-file", KEPT))
def a_file_is_cut_short_and_its_line_made_again(path: Path) -> None:
    change(Path(path, VICTIM), lambda data: data[:-20])
    Path(path, ".plainpacs/pending/202401~1.0").touch()
    index(path)


@damage("size-differs", STALE, left=("missing-file", KEPT))
def a_file_is_emptied(path: Path) -> None:
    change(Path(path, VICTIM), lambda data: b"")


@damage("digest-differs", left=("missing-file", KEPT), fast=())
def a_bit_of_the_pixels_is_flipped(path: Path) -> None:
    change(Path(path, VICTIM), flipped)


@damage("digest-differs", left=("missing-file", KEPT), fast=())
def a_file_is_zeroed(path: Path) -> None:
    change(Path(path, VICTIM), lambda data: bytes(len(data)))


@damage("digest-differs", left=("missing-file", KEPT), fast=())
def an_imported_file_is_changed(path: Path) -> None:
    change(Path(path, IMPORTED), flipped)


@damage("file-without-line", STALE)
def a_manifest_is_gone(path: Path) -> None:
    Path(path, STUDY, f"1.0.0.{node(path)}.jsonl").unlink()


@damage("file-without-line", STALE)
def a_line_is_torn(path: Path) -> None:
    manifest = Path(path, STUDY, f"1.0.0.{node(path)}.jsonl")
    manifest.write_bytes(manifest.read_bytes()[:-100])


def _edit_line(path: Path, edit: Callable[[bytes], bytes], *, checked: bool = True) -> None:
    """Edits the line of ``VICTIM``; not ``checked``: those of its series have no checksums then,
    as those of earlier versions."""
    manifest = Path(path, STUDY, f"1.0.0.{node(path)}.jsonl")
    lines = manifest.read_bytes().splitlines()
    if not checked:
        lines = [re.sub(rb',"crc32":"[0-9a-f]{8}"', b"", line) for line in lines]
    own = f'"{Path(VICTIM).name}"'.encode()
    edited = [edit(line) if own in line else line for line in lines]
    assert edited != lines
    manifest.write_bytes(b"".join(line + b"\n" for line in edited))


def _flip_digest(line: bytes) -> bytes:
    return re.sub(rb'("blake3":"[0-9a-f]{20})(.)', lambda m: m[1] + flipped_digit(m[2]), line)


def flipped_digit(digit: bytes) -> bytes:
    return b"0" if digit != b"0" else b"1"


@damage("damaged-line", STALE)
def a_digit_of_the_digest_in_its_line_is_another(path: Path) -> None:
    _edit_line(path, _flip_digest)


@damage("damaged-line", STALE)
def a_key_of_its_line_is_misspelt(path: Path) -> None:
    _edit_line(path, lambda line: line.replace(b'"stored"', b'"storde"'))


@damage("damaged-line", STALE)
def a_date_in_its_line_is_a_number(path: Path) -> None:
    _edit_line(path, lambda line: re.sub(rb'"StudyDate":"[^"]*"', b'"StudyDate":5', line))


@damage("damaged-line", STALE)
def a_letter_of_a_name_in_its_line_is_another(path: Path) -> None:
    _edit_line(path, lambda line: line.replace(b'"PatientName":"', b'"PatientName":"X'))


@damage("damaged-line", STALE)
def an_older_line_has_its_size_as_text(path: Path) -> None:
    _edit_line(
        path, lambda line: re.sub(rb'"bytes":([0-9]+)', rb'"bytes":"\1"', line), checked=False
    )


@damage("damaged-line", STALE)
def an_older_line_has_values_of_other_types(path: Path) -> None:
    edits = {rb'"StudyDate":"[^"]*"': b'"StudyDate":5', rb'"Modality":"[^"]*"': b'"Modality":[{}]'}

    def edit(line: bytes) -> bytes:
        for pattern, value in edits.items():
            line = re.sub(pattern, value, line)
        return line

    _edit_line(path, edit, checked=False)


@damage("damaged-line", STALE)
def an_older_line_lacks_when_it_was_stored(path: Path) -> None:
    _edit_line(path, lambda line: line.replace(b'"stored"', b'"storde"'), checked=False)


@damage("damaged-line")
def an_older_line_has_no_digest(path: Path) -> None:
    _edit_line(path, lambda line: line.replace(b'"blake3"', b'"blake4"'), checked=False)


@damage("damaged-line", STALE)
def an_older_line_has_another_date(path: Path) -> None:
    _edit_line(
        path, lambda line: line.replace(b'"StudyDate":"2024', b'"StudyDate":"2023'), checked=False
    )


@damage("line-disagrees", left=("line-disagrees",), fast=())
def an_older_line_has_another_digest(path: Path) -> None:
    _edit_line(path, _flip_digest, checked=False)


@damage("line-disagrees", STALE, left=("line-disagrees",))
def an_older_line_has_an_absurd_size(path: Path) -> None:
    def edit(line: bytes) -> bytes:
        return re.sub(rb'"bytes":[0-9]+', b'"bytes":999999999999999999', line)

    _edit_line(path, edit, checked=False)


@damage("missing-file", STALE, left=("missing-file",))
def its_line_is_damaged_and_it_is_gone(path: Path) -> None:
    Path(path, VICTIM).unlink()
    _edit_line(path, lambda line: line.replace(b'"stored"', b'"storde"'))


@damage("file-without-line")
def a_file_is_brought_by_hand(path: Path) -> None:
    uids = {"StudyInstanceUID": "1.0", "SeriesInstanceUID": "1.0.0", "SOPInstanceUID": "1.0.9.77"}
    Path(path, SERIES, "1.0.9.77.dcm").write_bytes(part10(StudyDate="20240105", **uids))


@damage("unreadable", left=(KEPT,))
def rubbish_lies_among_the_instances(path: Path) -> None:
    Path(path, SERIES, "1.0.9.77.dcm").write_bytes(b"rubbish" * 100)


@damage("unreadable", left=(KEPT,))
def an_empty_file_lies_among_the_instances(path: Path) -> None:
    Path(path, SERIES, "1.0.9.77.dcm").touch()


@damage()
def foreign_files_and_torn_lines_are_nothing(path: Path) -> None:
    for name in ("._1.0.9.0.dcm", ".DS_Store", "T1.nii"):
        Path(path, SERIES, name).write_bytes(b"x")
    with Path(path, STUDY, f"1.0.0.{node(path)}.jsonl").open("ab") as file:
        file.write(b'\0\0{"file":"1.0.9.0.dc')


# --- places -------------------------------------------------------------------------------------


@damage("wrong-place", STALE, "missing-index")
def a_study_is_moved_to_another_month(path: Path) -> None:
    Path(path, "203001").mkdir()
    Path(path, STUDY).rename(Path(path, "203001/1.0"))


@damage("wrong-place", "missing-index")
def a_study_is_moved_and_indexed_there(path: Path) -> None:
    Path(path, "203001").mkdir()
    Path(path, STUDY).rename(Path(path, "203001/1.0"))
    shutil.rmtree(Path(path, ".plainpacs/seen"))
    index(path)
    Path(path, "203001/studies.jsonl").unlink()


@damage("wrong-place", STALE)
def a_study_has_another_name(path: Path) -> None:
    Path(path, STUDY).rename(Path(path, "202401/1.77"))


@damage("wrong-place", "two-places")
def an_instance_is_copied_to_another_series(path: Path) -> None:
    shutil.copy2(Path(path, VICTIM), Path(path, OTHER_SERIES, "1.0.9.0.dcm"))


@damage("wrong-place", "missing-file", STALE)
def an_instance_has_another_name(path: Path) -> None:
    Path(path, VICTIM).rename(Path(path, SERIES, "1.0.9.77.dcm"))


@damage("wrong-place", "two-places", left=(KEPT,))
def another_version_lies_in_another_series(path: Path) -> None:
    shutil.copy2(Path(path, VICTIM), Path(path, OTHER_SERIES, "1.0.9.0.dcm"))
    change(Path(path, OTHER_SERIES, "1.0.9.0.dcm"), flipped)


@damage("two-places", left=("two-places",))
def an_instance_came_with_two_dates(path: Path) -> None:
    with Archive.open(str(path)) as archive:
        store(archive, MODALITY, SOPInstanceUID="1.0.9.0", StudyInstanceUID="1.0",
              SeriesInstanceUID="1.0.0", StudyDate="20240707")  # fmt: skip
    index(path)


# --- File Meta Information ----------------------------------------------------------------------


@damage("wrong-file-meta", left=(KEPT,), fast=())
def the_file_meta_is_changed(path: Path) -> None:
    change(Path(path, VICTIM), lambda data: data.replace(b"PLAINPACS_F1", b"SOMETHING_01"))


@damage("wrong-file-meta", STALE, left=(KEPT,))
def the_file_meta_is_longer(path: Path) -> None:
    added = b"\2\0\x02\1OB\0\0\4\0\0\0\1\2\3\4"
    change(Path(path, VICTIM), lambda data: data.replace(b"PLAINPACS_F1", b"PLAINPACS_F1" + added))


@damage("wrong-file-meta", left=(KEPT,))
def the_file_meta_is_longer_and_the_line_made_again(path: Path) -> None:
    the_file_meta_is_longer(path)
    Path(path, ".plainpacs/pending/202401~1.0").touch()
    index(path)


@damage("file-meta-disagrees", left=("file-meta-disagrees",), fast=())
def an_import_had_the_file_meta_of_another(path: Path) -> None:
    uids = {"StudyInstanceUID": "1.7", "SeriesInstanceUID": "1.7.0"}
    data = part10(SOPInstanceUID="1.7.9.5", **uids)
    with Archive.open(str(path)) as archive:
        bring(archive, data.replace(b"1.7.9.5\0", b"1.7.9.6\0", 1))
    index(path)


# --- what was removed, kept aside, not finished -------------------------------------------------


def _remove(path: Path, *, then: Callable[[Removal, Path], object]) -> None:
    with Removal.open(str(path)) as removal:
        [entry] = removal.remove(present(removal.root, [Target(*_names(VICTIM))]))
        then(removal, Path(path, entry.path))
    index(path)


def _names(path: str) -> list[str]:
    return path.removesuffix(".dcm").split("/")


@damage()
def an_instance_is_removed(path: Path) -> None:
    _remove(path, then=lambda removal, entry: None)


@damage("removed-reappeared", left=("removed-reappeared",))
def a_removed_instance_is_brought_back(path: Path) -> None:
    _remove(path, then=lambda removal, entry: shutil.copy2(entry, Path(path, VICTIM)))


@damage()
def a_removed_instance_is_sent_again(path: Path) -> None:
    _remove(path, then=lambda removal, entry: None)
    with Archive.open(str(path)) as archive:
        store(archive, MODALITY, SOPInstanceUID="1.0.9.0", StudyInstanceUID="1.0",
              SeriesInstanceUID="1.0.0", StudyDate="20240105")  # fmt: skip
    index(path)


@damage("removed-reappeared")
def a_forbidden_instance_is_there(path: Path) -> None:
    root = open_root(str(path))
    forbid(root, ["1.0.9.0"])
    os.close(root)


@damage(KEPT, left=(KEPT,))
def other_bytes_came_under_a_stored_uid(path: Path) -> None:
    with Archive.open(str(path)) as archive:
        store(archive, MODALITY, SOPInstanceUID="1.0.9.0", StudyInstanceUID="1.0",
              SeriesInstanceUID="1.0.0", StudyDate="20240105", PixelData=b"xx")  # fmt: skip


@damage("incoming-rubbish")
def a_receiver_was_killed(path: Path) -> None:
    folder = Path(path, f".plainpacs/incoming/{node(path)}.0123456789ab")
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "0").write_bytes(part10()[:100])
    os.link(Path(path, VICTIM), folder / "1")


# --- indexes ------------------------------------------------------------------------------------


@damage("missing-index")
def a_study_json_is_gone(path: Path) -> None:
    Path(path, STUDY, "study.json").unlink()


@damage(STALE)
def a_study_json_is_another(path: Path) -> None:
    shutil.copy(Path(path, "202401/1.2/study.json"), Path(path, STUDY, "study.json"))


@damage("missing-index")
def a_catalogue_is_gone(path: Path) -> None:
    Path(path, "202401/studies.jsonl").unlink()


@damage(STALE)
def a_catalogue_lacks_a_study(path: Path) -> None:
    file = Path(path, "202401/studies.jsonl")
    file.write_bytes(without(file.read_bytes(), '"1.0"'))


@damage(STALE)
def a_catalogue_says_something_else(path: Path) -> None:
    file = Path(path, "202401/studies.jsonl")
    file.write_bytes(file.read_bytes().replace(b"Doe^Jane", b"Doe^John"))


@damage(STALE)
def a_catalogue_has_a_study_that_is_not_there(path: Path) -> None:
    with Path(path, "202401/studies.jsonl").open("ab") as file:
        file.write(b'{"StudyInstanceUID":"1.77","bytes":1}\n')


@damage("missing-index")
def the_shards_are_gone(path: Path) -> None:
    shutil.rmtree(Path(path, ".plainpacs/instances"))


@damage(STALE, "missing-index")
def a_shard_is_lost_and_another_names_what_is_not_there(path: Path) -> None:
    first, second, *_ = sorted(Path(path, ".plainpacs/instances").iterdir())
    first.unlink()
    with second.open("ab") as file:
        file.write(b'{"SOPInstanceUID":"1.77","path":"202401/1.7/1.7.7/1.77.dcm"}\n')


@damage("missing-index")
def every_index_is_gone(path: Path) -> None:
    for index_file in [*path.glob("*/*/study.json"), *path.glob("*/studies.jsonl")]:
        index_file.unlink()
    shutil.rmtree(Path(path, ".plainpacs/instances"))
    shutil.rmtree(Path(path, ".plainpacs/seen"))


@damage("file-without-line", "digest-differs", "missing-file", STALE, "missing-index",
        left=("missing-file", KEPT), fast=("file-without-line", "missing-file", STALE,
                                           "missing-index"))  # fmt: skip
def much_at_once(path: Path) -> None:
    a_bit_of_the_pixels_is_flipped(path)
    Path(path, SERIES, "1.0.9.2.dcm").unlink()
    Path(path, STUDY, f"1.0.1.{node(path)}.jsonl").unlink()
    a_catalogue_is_gone(path)
