"""A small file system that really fills up, made for a run and taken away after it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HARDLY_ANY = 1 << 20
KINDS = ("ext4", "tmpfs", "none")


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder on it, and what ``plainpacs serve`` needs to be told so that it ends at ``size``."""

    kind: str
    folder: Path
    size: int

    def is_full(self) -> bool:
        """Whether there is hardly a byte left."""
        there = os.statvfs(self.folder)
        return there.f_bavail * there.f_frsize < _HARDLY_ANY

    def reserve(self, start: int) -> list[str]:
        """The flag for what is to stay free: nothing, or, at every other start, the default.

        Where nothing else limits the folder, the reserve has to.
        """
        if self.kind != "none":
            return [] if start % 2 else ["--reserve", "0"]
        there = os.statvfs(self.folder)
        free = there.f_bavail * there.f_frsize
        used = sum(path.stat().st_size for path in self.folder.rglob("*.dcm"))
        return ["--reserve", str(max(0, free + used - self.size))]


def best_kind() -> str:
    """The most real one that we may make: mounting takes root."""
    return "ext4" if os.geteuid() == 0 else "none"


@contextlib.contextmanager
def volume(kind: str, place: Path, megabytes: int) -> Iterator[Volume]:
    """Raises CalledProcessError where it cannot be made."""
    folder = place / "volume"
    folder.mkdir()
    if kind == "none":
        yield Volume(kind, folder, megabytes << 20)
        return
    if kind == "ext4":
        image = place / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(folder))
    else:
        _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder))
    try:
        yield Volume(kind, folder, megabytes << 20)
    finally:
        _unmount(folder)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    for _ in range(50):
        done = subprocess.run(["umount", str(folder)], check=False, capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.2)  # something that was killed still has a file open
    _run("umount", "-l", str(folder))
