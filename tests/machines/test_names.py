"""Unfinished files in folders that several machines write to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.archives import new_archive

REPLACE = """
import os, sys
from plainpacs.archive.tree import durable, root
path, name = sys.argv[1:]
here = root.open_root(path)
want = name.encode() * 20000
assert os.getpid() < 5, os.getpid()
for number in range(150):
    durable.replace_file(here, f"{name}.json", want)
    with open(f"{path}/{name}.json", "rb") as file:
        assert file.read() == want, f"another process' bytes, at {number}"
    root.file_system_now(here)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="two containers are imitated with unshare, as root",
)
def test_containers_whose_processes_have_the_same_numbers(tmp_path: Path) -> None:
    path = new_archive(tmp_path / "a")
    alone = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REPLACE, path]
    running = [
        subprocess.Popen([*alone, name], stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    said = [one.communicate(timeout=60)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    assert list((tmp_path / "a/.plainpacs/indexing").iterdir()) == []
