"""The primitives that change files, and what is made of them for derived files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from plainpacs.archive.tree import durable


def test_write_all_goes_on_after_short_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write
    monkeypatch.setattr(
        durable, "write", lambda fd, buffers: real(fd, [memoryview(buffers[0])[:3]])
    )
    fd = os.open(tmp_path / "x", os.O_CREAT | os.O_WRONLY)
    assert durable.write_all(fd, [b"", b"abcdefgh", bytearray(b"ij"), memoryview(b"klmn")]) == 14
    os.close(fd)
    assert (tmp_path / "x").read_bytes() == b"abcdefghijklmn"


def test_replace_file_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".plainpacs/indexing").mkdir(parents=True)
    root = durable.open_folder(str(tmp_path))
    durable.replace_file(root, "a.json", b"old")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_file", fail)
        with pytest.raises(OSError, match="bad disk"):
            durable.replace_file(root, "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert list((tmp_path / ".plainpacs/indexing").iterdir()) == []
    durable.replace_file(root, "a.json", [b"ne", b"w"])
    assert (tmp_path / "a.json").read_bytes() == b"new"
    os.close(root)


def test_append_lines_closes_a_torn_tail(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"whole\nto")
    root = durable.open_folder(str(tmp_path))
    durable.append_lines(root, "x", b"next\n")
    durable.append_lines(root, "x", b"last\n")
    os.close(root)
    assert (tmp_path / "x").read_bytes() == b"whole\nto\nnext\nlast\n"


def test_touch_will_do_with_what_is_there(tmp_path: Path) -> None:
    root = durable.open_folder(str(tmp_path))
    durable.touch("x", folder=root)
    durable.touch("x", folder=root)
    os.close(root)
    assert (tmp_path / "x").stat().st_size == 0
