"""The month's catalogue: the last line counts, garbage is skipped, compaction changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainpacs.archive.errors import NotAnArchive
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import catalogue, file_cache
from plainpacs.indexer.index.study_record import SeriesRecord, StudyRecord
from tests.support.archives import new_archive

UIDS = st.sampled_from(["1.2", "1.2.3", "1.20", "2.1", "x-1"])
GOOD = st.builds(
    lambda uid, patient, removed: (
        catalogue.removal(uid)[:-1]
        if removed
        else orjson.dumps({"StudyInstanceUID": uid, "PatientID": patient})
    ),
    UIDS,
    st.sampled_from(["A", "B", "1.2", 'quo"te', "Jörg"]),
    st.booleans(),
)
GARBAGE = st.one_of(
    st.binary(max_size=60).filter(lambda data: b"\n" not in data),
    st.just(b"\0" * 40),
    st.just(b'{"StudyInstanceUID":"1.2","x":}'),
    st.just(b'{"StudyInstanceUID":"1.2"} {"StudyInstanceUID":"2.1"}'),
    st.just(b'{"StudyInstanceUID":"../../etc"}'),
    st.just(b'{"StudyInstanceUID": "1.2","spelled":"otherwise"}'),
    st.just(b'{"a":1,"StudyInstanceUID":"1.2"}'),
    st.builds(lambda line, at: line[: at % len(line)], GOOD, st.integers(0, 999)),  # torn
)
LINES = st.lists(st.one_of(GOOD, GOOD, GARBAGE), max_size=25)


def naive(lines: list[bytes]) -> dict[str, bytes]:
    """What counts, by the words of the contract."""
    found: dict[str, bytes] = {}
    for line in lines:
        try:
            record = orjson.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not line.startswith(b'{"StudyInstanceUID":"'):
            continue
        uid = record["StudyInstanceUID"]
        if "/" in uid or uid.startswith("."):
            continue
        found.pop(uid, None)
        if record.get("removed") is not True:
            found[uid] = line
    return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = open_root(new_archive(tmp_path / "a"))
    os.mkdir("202401", dir_fd=fd)
    yield fd
    os.close(fd)


def path_of(root: int, month: str = "202401") -> Path:
    return Path(os.readlink(f"/proc/self/fd/{root}")) / month / "studies.jsonl"


@given(LINES)
def test_the_last_whole_line_for_a_study_counts_whatever_lies_between(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    assert {study: line for study, _, line in catalogue.live(data)} == naive(lines)


@given(LINES, UIDS)
def test_the_last_line_of_one_study_is_that_of_reading_all(lines: list[bytes], uid: str) -> None:
    found = catalogue.last_line(b"\n".join(lines), uid)
    assert (found[2] if found else None) == naive(lines).get(uid)


def found_by(data: bytes, needles: list[bytes]) -> list[catalogue.Line]:
    return catalogue.live_at(data, catalogue.hits(data, needles))


SAID_OTHERWISE = st.lists(
    st.builds(
        lambda uid, patient: orjson.dumps({"StudyInstanceUID": uid, "PatientID": patient}),
        st.sampled_from(["1.2", "1.20", "2.1"]),
        st.sampled_from("AB"),
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize("few", [0, 4])
@given(
    st.one_of(LINES, SAID_OTHERWISE),
    st.sampled_from([b'"A"', b'"1.2"', b'"J\xc3\xb6rg"']),
    st.booleans(),
)
def test_searching_bytes_finds_what_reading_all_finds(
    few: int, lines: list[bytes], needle: bytes, tidy: bool
) -> None:
    if tidy:  # the first half is sorted
        half = len(lines) // 2
        lines = [*sorted(lines[:half]), *lines[half:]]
    data = b"\n".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "_FEW_HITS", few)
        found = {study: line for study, _, line in found_by(data, [needle])}
    everything = naive(lines)
    assert found.items() <= everything.items()
    assert found.keys() >= {study for study, line in everything.items() if needle in line}


def test_a_line_that_was_superseded_is_no_hit() -> None:
    data = (
        b'{"StudyInstanceUID":"1.2","PatientID":"old"}\n'
        b'{"StudyInstanceUID":"1.2","PatientID":"new"}\n'
    )
    assert [record for _, record, _ in found_by(data, [b'"old"'])] == [
        {"StudyInstanceUID": "1.2", "PatientID": "new"}
    ]


def test_many_hits_are_found_as_well() -> None:
    data = b"".join(b'{"StudyInstanceUID":"1.%d","PatientID":"P"}\n' % n for n in range(500))
    assert len(list(found_by(data, [b'"P"']))) == 500


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    fd = open_root(new_archive(tmp_path_factory.mktemp("shared") / "a"))
    os.mkdir("202401", dir_fd=fd)
    yield fd
    os.close(fd)


@settings(max_examples=40, deadline=None)
@given(lines=LINES)
def test_compaction_keeps_what_counts_sorted_and_does_it_once(
    shared_root: int, lines: list[bytes]
) -> None:
    path = path_of(shared_root)
    path.write_bytes(b"\n".join(lines))
    before = naive(lines)
    catalogue.compact(shared_root, "202401")
    compacted = path.read_bytes()
    assert compacted == b"".join(before[uid] + b"\n" for uid in sorted(before))
    identity = path.stat().st_ino
    assert catalogue.compact(shared_root, "202401") is False
    assert (path.read_bytes(), path.stat().st_ino) == (compacted, identity)


def test_appending_closes_a_torn_tail_first(root: int) -> None:
    path_of(root).write_bytes(b'{"StudyInstanceUID":"1.2"}\n{"StudyInst')
    catalogue.append(root, "202401", [b'{"StudyInstanceUID":"1.3"}\n', catalogue.removal("1.2")])
    data = path_of(root).read_bytes()
    assert data.split(b"\n")[1:3] == [b'{"StudyInst', b'{"StudyInstanceUID":"1.3"}']
    assert [study for study, _, _ in catalogue.live(data)] == ["1.3"]


def test_appending_nothing_makes_no_file(root: int) -> None:
    catalogue.append(root, "202401", [])
    assert not path_of(root).exists()
    assert catalogue.compact(root, "202401") is False
    assert not path_of(root).exists()


def test_rewriting_gives_what_compacting_the_same_lines_gives(root: int) -> None:
    lines = [b'{"StudyInstanceUID":"2","bytes":1}\n', b'{"StudyInstanceUID":"1"}\n']
    catalogue.append(root, "202401", lines)
    assert catalogue.compact(root, "202401") is True
    compacted = path_of(root).read_bytes()
    assert catalogue.rewrite(root, "202401", reversed(lines)) is False
    assert path_of(root).read_bytes() == compacted


def test_months_are_newest_first_and_foreign_folders_none(tmp_path: Path) -> None:
    for name in ("202401", "undated", "199912", "202402", "202413", "photos", ".plainpacs"):
        (tmp_path / name).mkdir()
    (tmp_path / "202403").write_bytes(b"a file")
    assert catalogue.months(str(tmp_path)) == ["202402", "202401", "199912", "undated"]
    with pytest.raises(NotAnArchive, match="cannot list"):
        catalogue.months(str(tmp_path / "away"))


def test_a_missing_catalogue_is_none_and_an_empty_one_empty(tmp_path: Path) -> None:
    assert catalogue.read(str(tmp_path), "202401") is None
    (tmp_path / "202401").mkdir()
    (tmp_path / "202401" / "studies.jsonl").touch()
    assert catalogue.read(str(tmp_path), "202401") == b""


def test_a_line_made_of_study_json_is_the_one_that_the_indexer_writes() -> None:
    record = StudyRecord(
        "1.2",
        {"PatientName": "Müller^Jörg", "AccessionNumber": "7"},
        {"AccessionNumber": ["7", "8"], "PatientID": ["A", "B"]},
        ("CT", "SR"),
        ("1.2.840.10008.5.1.4.1.1.2",),
        3,
        1234,
        "2024-01-31T10:00:00.000Z",
        "2024-01-31T10:00:01.000Z",
        (SeriesRecord("1.2.1", {"Modality": "CT"}, 3, 1234),),
    )
    read_back = orjson.loads(record.study_json())
    assert catalogue.line_of(read_back) + b"\n" == record.catalogue_line()


def test_a_glance_sees_what_reading_does_or_nothing() -> None:
    def line(uid: str, **values: str) -> bytes:
        return orjson.dumps({"StudyInstanceUID": uid, **values}) + b"\n"

    plain = {"PatientName": 'A"StudyDate":"19990101"', "StudyDate": "20240131", "StudyTime": "1011"}
    sound = line("1.2", **plain) + line("1.3", **plain)
    assert catalogue.glance(sound) == [
        ("1.2", "202401311011", line("1.2", **plain)[:-1]),
        ("1.3", "202401311011", line("1.3", **plain)[:-1]),
    ]
    assert catalogue.glance(b"") == []
    for unsound in (
        sound[:-1],
        sound[:-5] + b"\n",
        sound + sound,
        sound + b"\0\n",
        sound[:30] + sound,
        line("1.3", **plain) + line("1.2", **plain),
        sound + b'{"StudyInstanceUID":"1.4","removed":true}\n',
        line("../x", **plain),
        line("1.2", StudyDate="20240131"),
        line("1.2", StudyTime="1011"),
        line("1.2", StudyDate="2024.01.31", StudyTime="1011"),
        line("1.2", StudyDate="20240131", StudyTime="10:11"),
        b"garbage\n" + sound,
    ):
        assert catalogue.glance(unsound) is None, unsound


@given(st.binary(max_size=300))
def test_a_glance_at_anything(data: bytes) -> None:
    seen = catalogue.glance(data)
    assert seen is None or len(seen) == data.count(b"\n")


def test_a_compacted_catalogue_is_taken_as_it_is_and_no_other() -> None:
    def line(uid: str) -> bytes:
        return orjson.dumps({"StudyInstanceUID": uid, "PatientName": 'A"\n"removed":true}'}) + b"\n"

    sound = line("1.2") + line("1.3")
    assert catalogue.compacted(sound) == [b"1.2", b"1.3"]
    assert catalogue.compacted(b"") == []
    for unsound in (
        sound[:-1],
        sound[:-5] + b"\n",
        sound + sound,
        sound + b"\0\n",
        sound + b"\n",
        sound[:30] + sound,
        sound + sound[:30],
        line("1.3") + line("1.2"),
        sound + b'{"StudyInstanceUID":"1.4","removed":true}\n',
        line("../x"),
        line(".x"),
        b"garbage\n" + sound,
        b"garbage" + sound,
    ):
        assert catalogue.compacted(unsound) is None, unsound


@given(st.binary(max_size=300))
def test_anything_else_is_not_taken_for_compacted(data: bytes) -> None:
    studies = catalogue.compacted(data)
    assert studies is None or len(studies) == data.count(b"\n")


# --- remembering what was read --------------------------------------------------------------------


@pytest.fixture
def remembering(root: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose files were opened since."""
    opened: list[str] = []
    monkeypatch.setattr(catalogue, "_cache", None)
    catalogue.remember()
    really = file_cache._open

    def watched(path: str, folder: int | None = None) -> FileIO | None:
        opened.append(path)
        return really(path, folder)

    monkeypatch.setattr(file_cache, "_open", watched)
    return opened


def test_a_catalogue_that_stays_the_same_is_read_once(root: int, remembering: list[str]) -> None:
    above = str(path_of(root).parent.parent)
    assert catalogue.read(above, "202401") is None
    path_of(root).write_bytes(b"1\n")
    assert [catalogue.read(above, "202401") for _ in range(3)] == [b"1\n"] * 3
    assert len(remembering) == 2
    with path_of(root).open("ab") as file:
        file.write(b"2\n")
    assert catalogue.read(above, "202401") == b"1\n2\n"
    catalogue.rewrite(root, "202401", [b'{"StudyInstanceUID":"1.2"}\n'])
    assert catalogue.read(above, "202401") == b'{"StudyInstanceUID":"1.2"}\n'
    path_of(root).unlink()
    assert catalogue.read(above, "202401") is None


def test_no_more_is_remembered_than_there_is_room_for(
    root: int, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    above = path_of(root).parent.parent
    monkeypatch.setattr(catalogue, "_cache", None)
    monkeypatch.setattr(file_cache, "_MOST_REMEMBERED", 10)
    catalogue.remember()
    for month, size in (("202401", 6), ("202402", 6), ("202403", 4)):
        (above / month).mkdir(exist_ok=True)
        (above / month / "studies.jsonl").write_bytes(b"x" * size)
    for _ in range(2):
        for month, size in (("202401", 6), ("202402", 6), ("202403", 4)):
            assert catalogue.read(str(above), month) == b"x" * size
    assert [path.split("/")[-2] for path in remembering] == [
        *("202401", "202402", "202403"),
        "202402",
    ]
    (above / "202401" / "studies.jsonl").write_bytes(b"x" * 11)
    assert len(catalogue.read(str(above), "202401") or b"") == 11
    del remembering[:]
    for _ in range(2):
        assert catalogue.read(str(above), "202402") == b"x" * 6
    assert len(remembering) == 1, "what grew beyond the room has left some"
