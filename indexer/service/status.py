"""What is in an archive and what runs on it, for ``plainpacs status``. Reads only."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any

import orjson

from plainpacs.archive.store.free_space import Reserve
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked, open_root
from plainpacs.indexer.hooks.journal import HookJournal
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import count
from plainpacs.indexer.query import search
from plainpacs.indexer.query.query import Query

_LAST = 5
_SERVICE = "service."


@dataclass(slots=True)
class Status:
    """Numbers and sizes in bytes; None where it may not be known (a copy without ``.plainpacs``).

    ``reserve``: below which the service at work refuses to store; None when none is at work.
    ``services``: the notes of the receivers, each with ``running``. ``failed_hooks``: of each study
    of which a command failed for good ``kind``, ``month``, StudyInstanceUID, how many are
    ``failing``, and ``exit`` and ``time`` of the last.
    """

    archive: str
    studies: int = 0
    series: int = 0
    instances: int = 0
    bytes: int = 0
    pending: int | None = None
    conflicts: int | None = None
    commitments: int | None = None
    free: int = 0
    reserve: int | None = None
    indexer_running: bool = False
    last_stored: list[dict[str, str]] = field(default_factory=list)
    failed_hooks: list[dict[str, Any]] = field(default_factory=list)
    services: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def status_of(path: str, note: Note) -> Status:
    """The status of the archive at ``path``. Raises NotAnArchive."""
    status = Status(path, free=shutil.disk_usage(path).free)
    last: list[tuple[str, str]] = []
    for found in search.studies(path, Query(), note):
        record = orjson.loads(found.line)
        status.studies += 1
        status.series += count(record, "NumberOfStudyRelatedSeries")
        status.instances += count(record, "NumberOfStudyRelatedInstances")
        status.bytes += count(record, "bytes")
        last.append((str(record.get("last_stored", "")), found.study))
        if len(last) > 1000:  # of a million studies, these are enough to hold
            last = nlargest(_LAST, last)
    last.sort(reverse=True)
    status.last_stored = [{"time": t, "StudyInstanceUID": study} for t, study in last[:_LAST]]
    status.pending = count_pending(path)
    status.conflicts = _count_conflicts(path)
    status.commitments = _count_commitments(path)
    root = open_root(path)
    try:
        status.indexer_running = is_locked(root, layout.INDEXER_LOCK)
        status.services = _services(path, root)
        status.failed_hooks = _failed_hooks(root)
        status.reserve = _reserve(root, status.services)
    finally:
        os.close(root)
    return status


def _failed_hooks(root: int) -> list[dict[str, Any]]:
    """The studies whose commands failed for good."""
    book = HookJournal(root)
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for kind, study in book.failed():
            failing = book.read(study).failing(kind)
            last = max(failing, key=lambda failure: failure.time, default=None)
            found.append(
                {
                    "kind": kind.value,
                    "month": study[0],
                    "StudyInstanceUID": study[1],
                    "failing": len(failing),
                    "exit": last.exit if last else None,
                    "time": last.time if last else None,
                }
            )
    return found


def count_pending(path: str) -> int | None:
    names: set[str] = set()
    try:
        for folder in (layout.PENDING, layout.INDEXING):
            names.update(os.listdir(os.path.join(path, folder)))
    except FileNotFoundError:
        return len(names)
    except OSError:
        return None
    return sum(1 for name in names if layout.study_of_pending(name))


def _count_conflicts(path: str) -> int | None:
    """Files kept aside, by their names: ``<SOP>~<digest>``."""
    top = os.path.join(path, layout.CONFLICTS)
    if not os.access(os.path.dirname(top), os.X_OK | os.R_OK):
        return None
    return sum("~" in name for _, _, names in os.walk(top) for name in names)


def _count_commitments(path: str) -> int | None:
    """The requests for storage commitment that wait, by their names."""
    try:
        names = os.listdir(os.path.join(path, layout.COMMITMENTS))
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return sum("~" in name for name in names)


def _services(path: str, root: int) -> list[dict[str, Any]]:
    try:
        names = sorted(os.listdir(os.path.join(path, layout.INTERNAL)))
    except OSError:
        return []
    notes = []
    for name in names:
        if not name.startswith(_SERVICE) or not name.endswith(".json"):
            continue
        node = name.removeprefix(_SERVICE).removesuffix(".json")
        try:
            with open(os.path.join(path, layout.INTERNAL, name), "rb") as file:
                note = orjson.loads(file.read())
        except (OSError, orjson.JSONDecodeError):
            continue
        if isinstance(note, dict):
            lock = f"{layout.INTERNAL}/node.{node}"
            # Whoever writes holds its node; on a copy nobody does.
            running = is_locked(root, lock, shared=True) and _alive(note.get("pid"))
            notes.append({"node": node, "running": running, **note})
    return notes


def _reserve(root: int, services: list[dict[str, Any]]) -> int | None:
    """The reserve that a service at work keeps free, in bytes."""
    for service in services:
        if service["running"]:
            with contextlib.suppress(ValueError):
                return Reserve.parse(str(service.get("reserve"))).bytes_of(os.fstatvfs(root))
    return None


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
