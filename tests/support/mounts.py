"""File systems of a test's own: for root, where mounting is allowed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def may_mount(where: Path) -> None:
    """Skips the test where nothing can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting is for root")
    where.mkdir(exist_ok=True)
    tried = ["mount", "-t", "tmpfs", "none", where]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mounts, not even to root")
    subprocess.run(["umount", where], check=True)


@contextlib.contextmanager
def mounted(*arguments: str | Path, at: Path) -> Iterator[Path]:
    """What ``mount *arguments at`` mounts, until the end, whoever still uses it."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, at], check=True, capture_output=True)
    try:
        yield at
    finally:
        # `ismount` cannot tell a bind mount within one file system. Mounted twice, it goes twice.
        unmount = ["umount", "-l", at]
        while subprocess.run(unmount, capture_output=True, check=False).returncode == 0:
            pass


@contextlib.contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    may_mount(at)
    with mounted("-t", "tmpfs", "-o", options, "none", at=at):
        yield at
