"""Findings of the fuzzer, each by hand as small as it goes; and a short run of the fuzzer itself.

The long run, and one case again: see ``fuzzing``.
"""

from __future__ import annotations

import os
import re
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from plainpacs.archive.dicom.charset import MOST_ESCAPES, character_set
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN, file_meta, read_part10
from plainpacs.archive.errors import InvalidUID, UnreadableDataSet
from plainpacs.archive.store.manifest import Provenance
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.identity import UNDATED, as_name, month_of
from tests.fuzzing.__main__ import MOST_GROWTH, MOST_SECONDS, Case, Cases, run
from tests.fuzzing.checks import Finding, Importer, look_through
from tests.fuzzing.differential import run as differ
from tests.support.archives import MODALITY, data_set, instances_in, left_behind, new_archive

EXPLICIT, BIG, DEFLATED = EXPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
LONG_UID = "1." * 32766 + "123"  # 65,535 characters: more by one than a value of even length has


def deflated_before_zeros(head: bytes, megabytes: int) -> bytes:
    """``head`` and so many megabytes of NULs as a raw deflate stream, made at once."""
    parts = [_deflate(part, zlib.Z_FULL_FLUSH) for part in (head, bytes(1 << 20))]
    return parts[0] + parts[1] * megabytes + _deflate(b"", zlib.Z_FINISH)


def _deflate(part: bytes, ending: int) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(part) + deflater.flush(ending)


def element(tag: int, vr: str, value: bytes, order: str = "<") -> bytes:
    head = struct.pack(f"{order}HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in ("SQ", "OB", "UN"):
        return head + struct.pack(f"{order}HI", 0, len(value)) + value
    return head + struct.pack(f"{order}H", len(value)) + value


def item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def seconds(data: bytes, syntax: str = EXPLICIT, *, whole: bool = False) -> float:
    """Of processor time, to read the header or refuse it."""
    began = time.thread_time()
    with suppress(UnreadableDataSet):
        read_header(data, syntax, whole=whole)
    return time.thread_time() - began


# --- findings -------------------------------------------------------------------------------------


def test_a_sop_class_uid_too_long_for_the_file_meta_is_unreadable(tmp_path: Path) -> None:
    # struct.error, answered 0110
    with Archive.open(new_archive(tmp_path / "a"), sync=False) as archive:
        with pytest.raises(UnreadableDataSet, match="longer than 64"):
            archive.store(data_set(SOPClassUID=LONG_UID[:65534]), EXPLICIT, MODALITY)
        [own] = left_behind(archive.root)
        assert os.listdir(tmp_path / "a" / ".plainpacs" / "incoming" / own) == ["lock"]
        assert instances_in(archive.root) == []


def test_a_transfer_syntax_too_long_to_be_one_is_none(tmp_path: Path) -> None:
    # struct.error when the file needs File Meta of ours, and a line of 64 KB when it does not
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", 65535) + LONG_UID.encode()
    whole = file_meta("1.2.3", "1.2.3.4.5", EXPLICIT)
    at = whole.index(struct.pack("<HH2s", 2, 0x10, b"UI"))
    end = at + 8 + 20
    for meta in (bytes(128) + b"DICM" + syntax, whole[:at] + syntax + whole[end:]):
        found = read_part10(meta + data_set())
        assert (found.whole, found.transfer_syntax) == (False, EXPLICIT)
        path = tmp_path / "file"
        path.write_bytes(meta + data_set())
        with Archive.open(new_archive(tmp_path / str(len(meta))), sync=False) as archive:
            fd = os.open(path, os.O_RDONLY)
            archive.import_file(fd, Provenance(origin="import"))
            os.close(fd)
            assert instances_in(archive.root) == ["202401/1.2.3/1.2.3.4/1.2.3.4.5.dcm"]


def test_hostile_names_and_dates_are_not_remembered() -> None:
    # the caches of judged names and dates grew to 1 GB and 64 MB
    tracemalloc.start()
    for number in range(200):
        with pytest.raises(InvalidUID):
            as_name("StudyInstanceUID", f"{number:065000}")
        assert month_of(f"{number:065000}") == UNDATED
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_big_endian_is_read_as_quickly_as_little() -> None:
    # 0.9 s for 100,000 elements; a megabyte of them took more than a second
    tiny = element(0x00091000, "LO", b"", ">") * 100_000
    assert seconds(tiny, BIG) < 0.6
    after = element(0x00411000, "LO", b"", ">") * 100_000
    assert seconds(after, BIG, whole=True) < 0.6


def test_elements_in_doubt_are_few() -> None:
    data = element(0x00080018, "UI", b"1.2.3\0") + struct.pack("<HHI", 9, 0x1000, 0) * 99_000
    assert seconds(data) < 0.8
    assert read_header(data[: 14 + 8 * 10_000], EXPLICIT) == {"SOPInstanceUID": "1.2.3"}


@pytest.mark.parametrize("vr", ["OB", "UN"])
@pytest.mark.parametrize("length", range(4))
def test_a_delimiter_cut_short_is_not_looked_for_again_and_again(vr: str, length: int) -> None:
    # 8 s, and it came by C-STORE: case 418341 of seed number 1
    content = b"abcd" + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)[: 4 + length]
    data = element(0x00080018, "UI", b"1.2.3\0") + element(0x00091001, vr, content)
    open_ended = data.replace(struct.pack("<I", len(content)), b"\xff" * 4)
    assert open_ended != data
    began = time.thread_time()
    for whole in (True, False):
        with pytest.raises(UnreadableDataSet, match="cut short"):
            read_header(open_ended, EXPLICIT, whole=whole)
    assert time.thread_time() - began < 0.5
    assert read_header(open_ended + bytes(4 - length), EXPLICIT) == {"SOPInstanceUID": "1.2.3"}


def test_a_flood_of_escapes_is_not_followed() -> None:
    # 0.03 s and more for each value, of which there may be a thousand
    tags = (0x00081030, 0x0008103E, 0x00100020)
    assert seconds(b"".join(element(tag, "LO", b"\x1b$B" * 21_000) for tag in tags)) < 0.05
    flood = b"\x1b-F" * MOST_ESCAPES
    assert character_set([]).decode(flood + b"\xe1") == "\N{GREEK SMALL LETTER ALPHA}"
    beyond = character_set([]).decode(flood + b"\x1b-F\xe1\x1b")
    assert beyond == "\ufffd-F\N{LATIN SMALL LETTER A WITH ACUTE}\ufffd"


def test_no_more_requests_are_decoded_than_are_kept() -> None:
    # 1.5 s for twenty of them, and so on
    request = item(element(0x00401001, "SH", b"\x1b" * 65534))
    assert seconds(element(0x00400275, "SQ", request * 40)) < 0.3


def test_no_more_references_and_requests_are_held_than_may_be_kept() -> None:
    # as much memory as the data set has
    uid = item(element(0x00081155, "UI", b"1" * 65534))
    request = item(element(0x00401001, "SH", b"1" * 65534))
    for data in (element(0x00081140, "SQ", uid * 800), element(0x00400275, "SQ", request * 800)):
        tracemalloc.start()
        attributes = read_header(data, EXPLICIT)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        [values] = attributes.values()
        assert len(values) in (1, 16)
        assert peak < 20 << 20


def test_a_deflate_bomb_is_refused_early_and_inflated_in_small_parts() -> None:
    # 180 MB at once; 3.2 s for a bomb of a megabyte, 13 s for one of four
    for tag, words in ((0x00091001, "cut short"), (0x7FE00010, "inflates to more than")):
        head = element(tag, "OB", b"")[:8] + struct.pack("<I", 400 << 20)
        data = deflated_before_zeros(head, 400)
        tracemalloc.start()
        began = time.thread_time()
        with pytest.raises(UnreadableDataSet, match=words):
            read_header(data, DEFLATED, whole=True)
        assert time.thread_time() - began < 2
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 45 << 20


def test_what_deflates_well_is_an_instance_all_the_same() -> None:
    head = data_set(PixelData=None) + element(0x7FE00010, "OB", b"")[:8]
    data = deflated_before_zeros(head + struct.pack("<I", 100 << 20), 100)
    assert read_header(data, DEFLATED, whole=True)["PatientID"] == "P1"
    with pytest.raises(UnreadableDataSet):
        read_header(data[:-1000], DEFLATED, whole=True)


# --- the fuzzer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(real_folders: tuple[Path, ...]) -> Cases:
    return Cases(1)


def test_a_short_run_finds_nothing(cases: Cases, tmp_path: Path) -> None:
    tally = run(cases, range(4000), str(tmp_path))
    assert tally.findings == []
    assert tally.cases == 4000
    kinds = Counter(outcome.partition(":")[0] for outcome in tally.outcomes.elements())
    assert kinds["data set"] > 2000
    assert min(kinds["file"], kinds["import"]) > 400
    for outcome in ("data set: read", "file: read", "import: stored", "import: conflict"):
        assert tally.outcomes[outcome] > 10, tally.outcomes


@pytest.mark.usefixtures("real_folders")
def test_valid_data_sets_are_read_as_pydicom_reads_them() -> None:
    read, findings = differ(1, range(400))
    assert findings == []
    assert len(read) == 3
    assert sum(read.values()) == 400


def test_a_case_can_be_had_again(cases: Cases) -> None:
    again = Cases(1)
    assert [cases.case(number) for number in range(200)] == [again.case(n) for n in range(200)]
    assert cases.case(7) != Cases(2).case(7)


def _raises(case: Case, _: Importer) -> str:
    raise struct.error(case.seed)


def _takes_long(*_: object) -> str:
    began = time.process_time()
    while time.process_time() - began < MOST_SECONDS + 0.1:
        pass
    return ""


def test_faults_are_found(cases: Cases, tmp_path: Path) -> None:
    held: list[bytes] = []

    def keeps(*_: object) -> str:
        held.append(b"x" * (MOST_GROWTH // 4))
        return ""

    tally = run(cases, range(3, 5), str(tmp_path), checked=_raises, keep=str(tmp_path))
    assert len(tally.findings) == 2
    assert tally.findings[0].startswith("case 3, ")
    assert "struct.error" in tally.findings[0]
    assert (tmp_path / "case-3").read_bytes() == cases.case(3).content
    [finding] = run(cases, range(1), str(tmp_path), checked=_takes_long).findings
    assert re.search(r": \d\.\d s$", finding)
    [finding] = run(cases, range(20), str(tmp_path), checked=keeps).findings
    assert finding.startswith("memory grew")


DAMAGE = {
    "a line without its file": lambda root: next(root.glob("2*/*/*/*.dcm")).unlink(),
    "a file without its line": lambda root: next(root.glob("2*/*/*.jsonl")).unlink(),
    "a stranger": lambda root: (root / "202401" / "1.2.3" / "1.2.3.4" / "x.tmp").touch(),
    "a torn line": lambda root: next(root.glob("2*/*/*.jsonl")).write_bytes(b'{"file\n'),
    "unfinished work": lambda root: (root / ".plainpacs" / "incoming" / "k.1").mkdir(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_in_a_tree_is_found(what: str, tmp_path: Path) -> None:
    with Archive.open(new_archive(tmp_path / "a"), sync=False) as archive:
        archive.store(data_set(), EXPLICIT, MODALITY)
    look_through(archive.root)
    DAMAGE[what](tmp_path / "a")
    with pytest.raises(Finding):
        look_through(archive.root)
