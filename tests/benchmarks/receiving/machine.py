"""What was measured on: the description without which no number means anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from tests.benchmarks.receiving import receivers


def description(folder: Path) -> list[tuple[str, str]]:
    """Names and values; ``folder`` is where the receivers store."""
    dcmtk, orthanc = receivers.dcmtk("storescu"), receivers.orthanc()
    peers = [receivers.version(path) for path in (dcmtk, orthanc) if path]
    peers = [re.sub(r"^\$dcmtk: \w+ v(\S+).*", r"DCMTK \1", words) for words in peers]
    peers = [re.sub(r"^/.*/", "", words) for words in peers]  # Orthanc says where it lies
    peers.append(f"pynetdicom {importlib.metadata.version('pynetdicom')}")
    return [
        ("processor", f"{_processor()}, {len(os.sched_getaffinity(0))} cores"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"),
        ("system", f"{_system()}, Linux {platform.release()}"),
        ("file system", file_system(folder)),
        ("Python", platform.python_version()),
        ("peers", ", ".join(peers)),
    ]


def file_system(folder: Path) -> str:
    """The type of the file system that has ``folder``."""
    real = folder.resolve()
    holding = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        where = where.replace(r"\040", " ")
        if real.is_relative_to(where):
            holding.append((len(where), kind))
    return max(holding)[1] if holding else "unknown"


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
