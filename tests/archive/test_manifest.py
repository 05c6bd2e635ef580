from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.archive.store.manifest import encoded, lines_in
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.tree import durable
from plainpacs.archive.tree.publisher import Publisher

PATH = "202401/1.2/1.2.3.ab.jsonl"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ManifestWriter]:
    root = durable.open_folder(str(tmp_path))
    writer = ManifestWriter(Publisher(root))
    yield writer
    writer.close()
    os.close(root)


def test_a_torn_tail_is_closed_first(writer: ManifestWriter, tmp_path: Path) -> None:
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(b'{"file":"1.dcm"}\n{"file":"2.d')
    writer.append(PATH, b'{"file":"3.dcm"}\n')
    writer.append(PATH, b'{"file":"4.dcm"}\n')
    lines = (tmp_path / PATH).read_bytes().split(b"\n")
    assert lines == [
        b'{"file":"1.dcm"}',
        b'{"file":"2.d',
        b'{"file":"3.dcm"}',
        b'{"file":"4.dcm"}',
        b"",
    ]


def test_a_short_write_is_not_continued(
    writer: ManifestWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write

    def short(fd: int, buffers: Any) -> int:
        return real(fd, [memoryview(buffers[0])[:5]])

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", short)
        with pytest.raises(OSError, match="short write") as caught:
            writer.append(PATH, b'{"file":"1.dcm"}\n')
        assert caught.value.errno == errno.ENOSPC
    whole = encoded({"file": "2.dcm"})
    writer.append(PATH, whole)
    data = (tmp_path / PATH).read_bytes()
    assert data == b'{"fil\n' + whole
    assert [line["file"] for line, _ in lines_in(data)] == ["2.dcm"]


def test_a_manifest_removed_meanwhile_is_made_again(writer: ManifestWriter, tmp_path: Path) -> None:
    writer.append(PATH, b"{}\n")
    (tmp_path / PATH).unlink()
    writer.append(PATH, b'{"file":"2.dcm"}\n')
    assert (tmp_path / PATH).read_bytes() == b'{"file":"2.dcm"}\n'
    shutil.rmtree(tmp_path / "202401")
    writer.append(PATH, b'{"file":"3.dcm"}\n')
    assert (tmp_path / PATH).read_bytes() == b'{"file":"3.dcm"}\n'


def test_flush_syncs_what_was_appended(
    writer: ManifestWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(durable, "sync_file", synced.append)
    writer.append(PATH, b"{}\n")
    writer.append(PATH, b"{}\n")
    assert synced == []
    writer.flush()
    assert len(synced) == 1
    writer.flush()
    assert len(synced) == 1


def test_more_manifests_than_are_kept_open(writer: ManifestWriter, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        writer.append(f"202401/1.2/{number}.ab.jsonl", b"{}\n")
    assert len(os.listdir("/proc/self/fd")) < before + 200
    assert len(list(tmp_path.glob("202401/1.2/*.jsonl"))) == 300


GARBAGE = st.one_of(
    st.binary(max_size=30).filter(lambda raw: b"\n" not in raw and not raw.startswith(b"{")),
    st.sampled_from([b"", b"\0" * 40, b'{"file":', b'{"file":1}', b"[1]", b"{}", b'{"fil\0', b"{"]),
)


@given(st.lists(st.one_of(GARBAGE, st.integers(0, 99))))
def test_every_line_that_parses_is_read_and_nothing_else(items: list[bytes | int]) -> None:
    raw = b"\n".join(
        b'{"file":"%d.dcm","removed":"2024-02-28T02:38:10.123Z"}' % item
        if isinstance(item, int)
        else item
        for item in items
    )
    wanted = [f"{item}.dcm" for item in items if isinstance(item, int)]
    assert [line["file"] for line, _ in lines_in(raw)] == wanted
