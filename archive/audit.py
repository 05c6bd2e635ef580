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
import time

import orjson

from plainpacs.archive import layout
from plainpacs.archive.durable import Publisher
from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.manifest import ManifestWriter
from plainpacs.archive.root import is_locked, read_marker_at, stamp
from plainpacs.archive.writer import Writer

log = logging.getLogger(__name__)

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)


def record(to: Writer | int, event: str, **facts: object) -> None:
    """Writes, durably, that the user of this process did ``event`` (the command's name).

    ``to`` is the writer of a command that changes the archive; or the open root for one that only
    reads, and then the line is written only while something is at work on the archive: a copy is
    never written. ``facts`` are whatever JSON can hold, None left out, times and user not needed:
    StudyInstanceUID, SOPInstanceUID, counts. Raises nothing because of the log.
    """
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
    audit.write(event, user=login_name(), uid=os.getuid(), **facts)
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
        known = {name: value for name, value in facts.items() if value is not None}
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


def login_name() -> str:
    """Who logged in, also behind sudo; else the name of the user we run as, if it has one."""
    try:
        return os.getlogin()
    except OSError:  # no login: a service, a container
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return ""


def uid_or_none(value: str | None) -> str | None:
    """``value`` when it is spelled like a UID; anything else might be a patient's name."""
    return value if value and _UID.fullmatch(value) else None
