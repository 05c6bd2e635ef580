"""Sending: contexts, conversion of every real file, files that are large, cut or gone."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from functools import cache
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from plainpacs.archive.dicom import flatten
from plainpacs.archive.dicom.part10 import file_meta
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node
from plainpacs.scp.storage import instance_file
from plainpacs.scp.storage import reencode as reencoding
from plainpacs.scp.storage.contexts import MOST_CONTEXTS, batches
from plainpacs.scp.storage.convert import CannotConvert, Converter, can_become
from plainpacs.scp.storage.instance_file import File, Outgoing
from plainpacs.scp.storage.reencode import Memory, reencoded
from plainpacs.scp.storage.store_scu import Step, deliver
from tests.support.archives import PYDICOM_FILES
from tests.support.peer import CT, EVRLE, IVRLE, MR, data_set, element
from tests.support.receiver import Running, Start

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")

BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
MOST = 600_000
"""Bytes of the real files that are converted, for the time that others take to read them."""
LIMITS = Limits(pdu_timeout=5.0, idle_timeout=10.0, announced_pdu=1 << 16)


@cache
def real_files(folders: tuple[Path, ...]) -> tuple[tuple[Path, str], ...]:
    """Those that can be read as instances, each once, with their transfer syntaxes."""
    found: dict[bytes, tuple[Path, str]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.stat().st_size < MOST:
                try:
                    syntax = instance_file.of_file(str(path)).transfer_syntax
                except UnreadableDataSet:
                    continue
                digest = hashlib.sha256(path.read_bytes()).digest()
                found.setdefault(digest, (path, syntax))
    return tuple(found.values())


def written(path: Path, data: bytes, syntax: str = EVRLE, sop: str = "1.2.3.1.1.1") -> str:
    path.write_bytes(file_meta(CT, sop, syntax) + data)
    return str(path)


def converted(path: str | Path, target: str) -> bytes:
    with Converter() as converter, File(str(path)) as file:
        return b"".join(converter.convert(file, target))


# --- contexts -------------------------------------------------------------------------------------


def one(number: int, sop_class: str, syntax: str) -> Outgoing:
    return Outgoing(f"/nowhere/{number}", sop_class, f"1.2.{number}", syntax)


def test_each_syntax_has_a_context_and_what_it_can_become() -> None:
    given = [one(1, CT, JPEG), one(2, MR, IVRLE), one(3, CT, EVRLE), one(4, CT, "1.2.3.4")]
    (batch,) = batches(given)
    assert batch.instances == given
    assert [(c.abstract_syntax, c.transfer_syntax) for c in batch.contexts] == [
        *((CT, [syntax]) for syntax in (JPEG, EVRLE, "1.2.3.4", IVRLE)),
        *((MR, [syntax]) for syntax in (IVRLE, EVRLE)),
    ]
    (private,) = batches([one(1, CT, "1.2.3.4")])
    assert [c.transfer_syntax for c in private.contexts] == [["1.2.3.4"]]
    assert batches([]) == []


def test_no_association_has_more_than_128_contexts() -> None:
    given = [one(n, f"1.2.3.{n % 70}", EVRLE) for n in range(140)]
    given += [one(n, CT, f"1.9.{n}") for n in range(300)]
    found = batches(given)
    assert all(len(batch.contexts) <= MOST_CONTEXTS for batch in found)
    assert sorted(i for batch in found for i in batch.instances) == sorted(given)
    for batch in found:
        proposed = {(c.abstract_syntax, c.transfer_syntax[0]) for c in batch.contexts}
        assert all((i.sop_class, i.transfer_syntax) in proposed for i in batch.instances)


# --- conversion -----------------------------------------------------------------------------------


def leaves(data: bytes, syntax: str) -> list[tuple[tuple[int, ...], bytes]]:
    """Every element with its value; those about the encoding and empty ends left out."""
    found = flatten.DataSet(data, syntax)
    return [(leaf.path, bytes(found.data[leaf.start : leaf.end])) for leaf in found]


def test_values_of_real_files_stay_as_they_are(real_folders: tuple[Path, ...]) -> None:
    tried = 0
    for path, syntax in real_files(real_folders):
        if syntax not in (EVRLE, IVRLE, DEFLATED):
            continue
        with File(str(path)) as file:
            data = b"".join(map(bytes, file.data_set()))
        try:
            before = leaves(data, syntax)
        except UnreadableDataSet:
            continue  # broken: it may be refused, or be converted as far as it goes
        for target in (EVRLE, IVRLE):
            after = converted(path, target)
            assert leaves(after, target) == before, (path, target)
            again = b"".join(reencoded(Memory(after), little_endian=True, explicit=True))
            assert leaves(again, EVRLE) == before, path
            tried += 1
    assert tried > 50


def test_what_pydicom_reads_stays_the_same(real_folders: tuple[Path, ...]) -> None:
    """VRs and sequences too, and big endian."""
    tried, refused = 0, 0
    for path in small_files(real_folders, 60):
        before = read_by_pydicom(path.read_bytes())
        if before is None:
            continue
        for target in (EVRLE, IVRLE):
            try:
                data = converted(path, target)
            except CannotConvert:  # it is cut short
                refused += 1
                continue
            after = read_by_pydicom(file_meta(CT, "1.2.3", target) + data)
            assert after is not None, (path, target)
            compare(before, after, f"{path} {target}", explicit=target == EVRLE)
            tried += 1
    assert tried > 50
    assert refused < tried / 10


def small_files(folders: tuple[Path, ...], most: int) -> list[Path]:
    """Uncompressed ones, so many in each transfer syntax, without those made up to be broken."""
    found = []
    for wanted in (EVRLE, IVRLE, BIG, DEFLATED):
        paths = [path for path, syntax in real_files(folders) if syntax == wanted]
        sound = [path for path in paths if "fuzz" not in str(path)]
        found += sorted(sound, key=lambda path: path.stat().st_size)[:most]
    return found


def read_by_pydicom(content: bytes) -> Dataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(io.BytesIO(content), force=True)
            str(found)  # reads every value
        except Exception:
            return None  # pydicom raises whatever it stumbles over in broken files
    return found


def compare(before: Dataset, after: Dataset, where: str, *, explicit: bool) -> None:
    tags = [tag for tag in before.keys() if tag.element and tag != 0x00080001]  # noqa: SIM118 - a data set's
    assert [tag for tag in after.keys() if tag.element] == tags, where  # noqa: SIM118 - as above
    for tag in tags:
        old, new = before[tag], after[tag]
        if old.VR == "SQ":
            assert len(old.value) == len(new.value), (where, tag)
            for mine, yours in zip(old.value, new.value, strict=True):
                compare(mine, yours, where, explicit=explicit)
        elif tag == 0x7FE00010 and not before.is_little_endian:
            swapped = old.value
            if old.VR == "OW":
                swapped = b"".join(swapped[i : i + 2][::-1] for i in range(0, len(swapped), 2))
            assert swapped == new.value, where
        elif tag.is_private and not before.is_little_endian:
            continue  # where it is UN, pydicom takes it for big endian, against PS3.5 6.2.2
        elif old.VR == new.VR:
            assert str(old.value) == str(new.value), (where, tag)
        elif explicit:
            assert {old.VR, new.VR} == {"OB", "OW"} or "UN" in (old.VR, new.VR), (where, tag)


@pytest.mark.parametrize("target", [EVRLE, IVRLE])
def test_signed_values_sequences_in_un_and_long_values(target: str) -> None:
    inner = struct.pack("<HHL", 0x0010, 0x0020, 4) + b"ABCD"
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner
    items += struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    source = b"".join(
        (
            struct.pack("<HHL", 0x0008, 0x0060, 2) + b"CT",
            struct.pack("<HHL", 0x0009, 0x0010, 4) + b"MINE",
            struct.pack("<HHL", 0x0009, 0x1001, 0xFFFFFFFF) + items,
            struct.pack("<HHL", 0xFFFE, 0xE0DD, 0),
            struct.pack("<HHL", 0x0028, 0x0103, 2) + b"\1\0",
            struct.pack("<HHL", 0x0028, 0x0106, 2) + b"\xff\xff",
            struct.pack("<HHLHHH", 0x0028, 0x3002, 6, 35_000, 0, 16),
            struct.pack("<HHL", 0x0028, 0x3006, 70_000) + bytes(70_000),
            struct.pack("<HHL", 0x6000, 0x3000, 4) + b"\1\2\3\4",
            bytes(16),
        )
    )
    explicit = target == EVRLE
    data = b"".join(reencoded(Memory(source), little_endian=True, explicit=explicit))
    found = read_by_pydicom(file_meta(CT, "1.2.3", target) + data)
    assert found is not None
    assert found[0x00280106].VR == "SS"
    assert found.SmallestImagePixelValue == -1
    assert found[0x60003000].value == b"\1\2\3\4"
    if explicit:
        assert found[0x60003000].VR == "OW"
        assert data.count(b"UN\0\0\xff\xff\xff\xff" + items) == 1
    else:
        assert data == source[:-16]


def test_big_endian_is_turned_round_across_pieces(tmp_path: Path) -> None:
    pixels = os.urandom(600_000)
    data = b"".join(
        (
            struct.pack(">HH2sH", 0x0008, 0x0016, b"UI", 26) + CT.encode() + b"\0",
            struct.pack(">HH2sHH", 0x0028, 0x0010, b"US", 2, 300),
            struct.pack(">HH2sHd", 0x0018, 0x9074, b"FD", 8, 1.5),
            struct.pack(">HH2sHHH", 0x0020, 0x9165, b"AT", 4, 0x0018, 0x9074),
            struct.pack(">HH2sHL", 0x7FE0, 0x0010, b"OW", 0, len(pixels)) + pixels,
        )
    )
    path = written(tmp_path / "big", data, BIG)
    turned = converted(path, EVRLE)
    found = read_by_pydicom(file_meta(CT, "1.2.3", EVRLE) + turned)
    assert found is not None
    assert (found.Rows, found[0x00189074].value, found[0x00209165].value) == (300, 1.5, 0x00189074)
    assert found.PixelData == struct.pack("<300000H", *struct.unpack(">300000H", pixels))


def nested(depth: int) -> bytes:
    head = struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    return (head + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (data_set()[:-10], "ends within"),
        (data_set()[:-70], "ends within"),
        (nested(1000), "nested too deeply"),
        (element(0x0008, 0x1140, b"SQ", b"\1\2\3\4\5\6\7\x08"), "item belongs"),
        (struct.pack("<HHL", 0xFFFE, 0xE000, 0), "element belongs"),
        (
            struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
            + struct.pack("<HHLHHL", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE0DD, 0),
            "fragments",
        ),
        (
            struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 8)
            + struct.pack("<HHL", 0xFFFE, 0xE000, 200)
            + data_set(),
            "longer than what it lies in",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_beforehand(data: bytes, words: str) -> None:
    with pytest.raises(CannotConvert, match=words):
        reencoded(Memory(data), little_endian=True, explicit=False)


def test_millions_of_elements_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reencoding, "MOST_ELEMENTS", 1000)
    empty = struct.pack("<HH2sH", 0x0008, 0x0060, b"CS", 0)
    with pytest.raises(CannotConvert, match="too many"):
        reencoded(Memory(empty * 2000), little_endian=True, explicit=False)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=-15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    path = written(tmp_path / "bomb", bomb, DEFLATED)
    with pytest.raises(CannotConvert, match="too large"):
        converted(path, EVRLE)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    length = 256 << 20
    head = data_set(size=0)[:-12] + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, length)
    with path.open("wb") as file:
        file.write(file_meta(CT, "1.2.3", EVRLE) + head)
        file.truncate(file.tell() + length)
    tracemalloc.start()
    try:
        with Converter() as converter, File(str(path)) as file:
            sizes = [sum(map(len, file.data_set()))]
            sizes.append(sum(map(len, converter.convert(file, IVRLE))))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert min(sizes) > length


# --- decompression --------------------------------------------------------------------------------


COMPRESSED = PYDICOM_FILES / "MR_small_RLE.dcm"


def test_pixels_are_decompressed_and_nothing_else_changes() -> None:
    path = COMPRESSED
    before = pydicom.dcmread(path)
    for target in (EVRLE, IVRLE):
        after = read_by_pydicom(file_meta(MR, "1.2.3", target) + converted(path, target))
        assert after is not None
        assert (after.pixel_array == before.pixel_array).all()
        assert after.SOPInstanceUID == before.SOPInstanceUID
        rest = [tag for tag in before.keys() if tag != 0x7FE00010]  # noqa: SIM118 - a data set's
        assert [str(before[tag]) for tag in rest] == [str(after[tag]) for tag in rest]


def test_a_decoder_that_dies_takes_one_instance_along(tmp_path: Path) -> None:
    broken = str(tmp_path / "broken")
    damaged = pydicom.dcmread(COMPRESSED)
    damaged.PixelData = encapsulate([b"\xff" * 100])
    damaged.save_as(broken)
    with Converter() as converter:
        for _ in range(2):
            with File(broken) as file, pytest.raises(CannotConvert, match="decompressed"):
                converter.convert(file, EVRLE)
            with File(str(COMPRESSED)) as file:
                assert sum(map(len, converter.convert(file, EVRLE))) > 8192
            assert converter._decoder is not None
            converter._decoder._process.kill()  # as a crash would


def test_a_data_set_that_is_left_is_not_taken_for_the_next() -> None:
    with Converter() as converter:
        with File(str(COMPRESSED)) as file:
            half = converter.convert(file, EVRLE)
            next(half)
            half.close()  # type: ignore[attr-defined]  # a generator
            whole = b"".join(converter.convert(file, EVRLE))
        assert whole == converted(COMPRESSED, EVRLE)


def test_what_would_be_huge_is_left_compressed(tmp_path: Path) -> None:
    huge = pydicom.dcmread(COMPRESSED)
    huge.NumberOfFrames = 100_000
    huge.save_as(tmp_path / "huge")
    with pytest.raises(CannotConvert, match="too large"):
        converted(tmp_path / "huge", EVRLE)


def test_what_can_become_what() -> None:
    assert can_become(JPEG, EVRLE)
    assert can_become(BIG, IVRLE)
    assert not can_become("1.2.840.10008.1.2.4.102", EVRLE)  # MPEG-4
    assert not can_become(EVRLE, BIG)
    assert not can_become(EVRLE, JPEG)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "a", data_set())
    assert instance_file.of_file(path) == Outgoing(
        path, CT, "1.2.3.1.1.1", EVRLE, "1.2.3.1", "1.2.3.1.1"
    )
    bare = tmp_path / "bare"
    bare.write_bytes(data_set())
    assert instance_file.of_file(str(bare)).transfer_syntax == EVRLE
    (tmp_path / "text").write_text("no DICOM" * 40)
    with pytest.raises(UnreadableDataSet):
        instance_file.of_file(str(tmp_path / "text"))


def test_attributes_far_behind_are_found(tmp_path: Path) -> None:
    long = element(0x0009, 0x0010, b"LO", b"MINE") + element(0x0009, 0x1001, b"OB", bytes(1 << 20))
    data = data_set()
    at = data.index(b"\x10\0\x10\0PN")
    path = written(tmp_path / "a", data[:at] + long + data[at:])
    assert instance_file.of_file(path).study == "1.2.3.1"


def test_a_deflated_data_set_is_sent_even(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=-15)
    deflated = packer.compress(data_set()) + packer.flush()
    deflated += bytes(1 - len(deflated) % 2)  # odd
    path = written(tmp_path / "a", deflated, DEFLATED)
    with File(path) as file:
        assert b"".join(map(bytes, file.data_set())) == deflated + b"\0"


# --- to a node ------------------------------------------------------------------------------------


@pytest.fixture
def node(start: Start) -> tuple[Running, Node]:
    running = start()
    return running, Node("DRDCM", "127.0.0.1", running.port)


def test_each_is_told_what_became_of_it(node: tuple[Running, Node], tmp_path: Path) -> None:
    running, where = node
    large = data_set("1.2.3.1.1.4", size=9_000_000)
    good = instance_file.of_file(
        written(tmp_path / "1", data_set("1.2.3.1.1.1"), sop="1.2.3.1.1.1")
    )
    gone = instance_file.of_file(
        written(tmp_path / "2", data_set("1.2.3.1.1.2"), sop="1.2.3.1.1.2")
    )
    text = good._replace(path=str(tmp_path / "3"), sop_instance="1.2.3.1.1.3")
    big = instance_file.of_file(written(tmp_path / "4", large, sop="1.2.3.1.1.4"))
    other = good._replace(sop_instance="1.2.3.1.1.5")
    palette = good._replace(sop_class="1.2.840.10008.5.1.4.39.1")
    (tmp_path / "2").unlink()
    (tmp_path / "3").write_text("no DICOM" * 40)
    given = [good, gone, text, big, other, palette, good]
    found = list(deliver(where, "TESTER", given, limits=LIMITS))
    assert [sent.instance for sent in found] == given
    assert [(sent.step, sent.status) for sent in found] == [
        (Step.STATUS, 0),
        (Step.FILE, None),
        (Step.FILE, None),
        (Step.STATUS, 0),
        (Step.STATUS, 0xA900),
        (Step.CONTEXT, None),
        (Step.STATUS, 0),
    ]
    assert found[3].size == len(large)
    stored = {path.stem: path.read_bytes() for path in running.instances()}
    assert sorted(stored) == ["1.2.3.1.1.1", "1.2.3.1.1.4"]
    assert stored["1.2.3.1.1.4"].endswith(large)


def test_a_file_that_becomes_shorter_ends_the_association_and_not_the_rest(
    node: tuple[Running, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = node
    large = written(tmp_path / "1", data_set("1.2.3.1.1.1", size=9_000_000), sop="1.2.3.1.1.1")
    small = written(tmp_path / "2", data_set("1.2.3.1.1.2"), sop="1.2.3.1.1.2")
    given = [instance_file.of_file(large), instance_file.of_file(small)]
    pread = os.pread

    def cutting(fd: int, length: int, at: int) -> bytes:
        if at > 5_000_000:
            os.truncate(large, 5_000_000)
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", cutting)
    found = list(deliver(where, "TESTER", given, limits=LIMITS))
    assert [(sent.step, sent.status) for sent in found] == [(Step.FILE, None), (Step.STATUS, 0)]


def test_nobody_there_is_said_of_each(tmp_path: Path) -> None:
    given = [instance_file.of_file(written(tmp_path / "1", data_set()))] * 3
    found = list(deliver(Node("X", "127.0.0.1", 9), "TESTER", given, limits=LIMITS))
    assert [sent.step for sent in found] == [Step.ASSOCIATION] * 3
    assert "connect: Connection refused" in found[0].why


def test_closing_ends_it_in_order(
    node: tuple[Running, Node], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running, where = node
    given = [instance_file.of_file(written(tmp_path / "1", data_set()))] * 3
    results = deliver(where, "TESTER", given, limits=LIMITS)
    with caplog.at_level("INFO"):
        assert next(results).status == 0
        results.close()  # type: ignore[attr-defined]  # a generator
        running.stop()
    assert "association ended: TESTER at 127.0.0.1 to DRDCM: released; 1 stored" in caplog.text
