"""The audit log: who stored, read, removed or was refused. Written to and never changed.

``.plainpacs/audit/<yyyyMM>.<node>.jsonl``, one JSON object a line, appended in one write, the month
that of writing (UTC). It names UIDs, AE titles, network addresses and users of this machine; it
never has a patient's name or ID, nor a path outside the archive, which might contain one. It is a
record beside the archive: when it cannot be written nothing else fails, and the line that is
missing goes to the log.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.store.manifest_writer import ManifestWriter
from plainpacs.archive.store.publish import Stored, StoreOutcome
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.publisher import Publisher
from plainpacs.archive.tree.root import is_locked, read_marker_at, stamp

log = logging.getLogger(__name__)

_FILE = re.compile(r"[0-9]{6}\.[0-9a-z]{1,16}\.jsonl", re.ASCII)
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)


def record(to: Writer | AuditLog | int, event: str, **facts: object) -> None:
    """Writes, durably, that the user of this process did ``event`` (the command's name).

    ``to`` is the writer of a command that changes the archive, or its audit log, which is then to
    be flushed or closed; or the open root for a command that only reads, and then the line is
    written only while something is at work on the archive: a copy is never written. ``facts`` are
    what JSON can hold, None left out, time and user not needed: StudyInstanceUID, SOPInstanceUID,
    counts. Raises nothing because of the log.
    """
    if isinstance(to, AuditLog):
        to.write(event, user=login_name(), uid=os.getuid(), **facts)
        return
    try:
        if isinstance(to, Writer):
            root, node = to.root, to.node
        else:
            root, node = to, read_marker_at(to, "the archive").node
            if not is_locked(root, f"{layout.INTERNAL}/node.{node}", shared=True):
                return
    except (OSError, PlainpacsError) as error:
        log.warning("the audit log could not be found: %s", error)
        return
    audit = AuditLog(root, node)
    record(audit, event, **facts)
    audit.close()


class AuditLog:
    """Appends to the audit log of the archive open as ``root``. Thread-safe; close it.

    ``sync=False``: nothing is synced. Nothing here raises because of the log.
    """

    def __init__(self, root: int, node: str, *, sync: bool = True) -> None:
        self._node = node
        # A publisher of its own: an fsync that fails here is to refuse no store.
        self._lines = ManifestWriter(Publisher(root, sync=sync), sync=sync)

    def write(self, event: str, **facts: object) -> None:
        """Adds a line; ``facts`` that are None are left out."""
        now = stamp(time.time_ns())
        known = {name: _as_text(value) for name, value in facts.items() if value is not None}
        line = orjson.dumps({"time": now, "event": event, **known})
        path = f"{layout.AUDIT}/{now[:4]}{now[5:7]}.{self._node}{layout.MANIFEST_ENDING}"
        try:
            self._lines.append(path, line + b"\n")
        except (OSError, PlainpacsError) as error:
            log.warning(
                "the audit log could not be written: %s; it lacks: %s", error, line.decode()
            )

    def flush(self) -> None:
        """Makes durable what was written since the last flush."""
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


def entries(root: int, since: str = "") -> Iterator[dict[str, Any]]:
    """What the audit log of the archive open as ``root`` has, oldest first, of all nodes.

    ``since``: a time as plainpacs writes it; what was before is left out. Lines that do not parse
    are passed over. Raises OSError where it may not be read.
    """
    try:
        folder = durable.open_folder(layout.AUDIT, folder=root)
    except FileNotFoundError:
        return
    try:
        months: dict[str, list[str]] = {}
        for name in os.listdir(folder):
            if _FILE.fullmatch(name):
                months.setdefault(name[:6], []).append(name)
        for month in sorted(months):
            if month >= since[:7].replace("-", ""):
                found = [entry for name in months[month] for entry in _lines_of(folder, name)]
                found.sort(key=lambda entry: str(entry["time"]))
                yield from (entry for entry in found if str(entry["time"]) >= since)
    finally:
        os.close(folder)


def _lines_of(folder: int, name: str) -> Iterator[dict[str, Any]]:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        for line in file:
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(entry, dict) and "time" in entry and "event" in entry:
                yield entry


def login_name() -> str:
    """Who logged in, also behind sudo; else the name of the user we run as, if it has one."""
    try:
        return os.getlogin()
    except OSError:  # no login: a service, a container
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return ""


def _as_text(value: object) -> object:
    """What a system's name may have and JSON may not is replaced."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class StudyCounts:
    """How many instances came of which study since ``take`` was last called. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._studies: dict[str, Counter[str]] = {}

    def add(self, stored: Stored) -> None:
        with self._lock:
            counts = self._studies.get(stored.key.study)
            if counts is None:
                counts = self._studies[stored.key.study] = Counter()
            counts[COUNTED_AS[stored.outcome]] += 1

    def take(self) -> list[dict[str, object]]:
        """The facts of a line for each study: its UID, and how many of each outcome."""
        with self._lock:
            taken, self._studies = self._studies, {}
        return [{"StudyInstanceUID": study, **counts} for study, counts in taken.items()]


COUNTED_AS = {
    StoreOutcome.STORED: "stored",
    StoreOutcome.DUPLICATE: "duplicates",
    StoreOutcome.CONFLICT: "conflicts",
}


def uid_or_none(value: str | None) -> str | None:
    """``value`` when it is spelled like a UID; anything else might be a patient's name."""
    return value if value and _UID.fullmatch(value) else None
