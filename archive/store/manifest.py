"""The sidecar manifests of the series: one JSON line per stored instance, only ever appended to.

A manifest can be made again from the ``.dcm`` files, so a line that was lost is no instance lost.
Readers take every line that parses and skip the rest, wherever it stands.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import orjson

from plainpacs.archive.tree import durable
from plainpacs.archive.tree.publisher import Folder, Publisher
from plainpacs.archive.tree.root import stamp

Line = dict[str, Any]
Kept = TypeVar("Kept")
"""A line in the form in which it is kept in memory."""

log = logging.getLogger(__name__)

ORIGIN_C_STORE = "c-store"
ORIGIN_IMPORT = "import"
ORIGIN_RECOVERED = "recovered"
DIGESTS = ("blake3", "sha256")

# What a line says that is no attribute of the instance.
_OWN = {"file", "bytes", "dataset_offset", "stored", "transfer_syntax", "removed", "restored"}
_OWN |= {"calling_ae", "called_ae", "peer", "origin", "reason", *DIGESTS}

_OPEN_MANIFESTS = 128
_LOOK_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an instance came from. AE titles without padding; ``peer`` is a network address.

    ``stored`` is nanoseconds since 1970, when it is known from elsewhere (another archive).
    """

    calling_ae: str = ""
    called_ae: str = ""
    peer: str = ""
    origin: str = ORIGIN_C_STORE
    stored: int | None = None


class FileFacts(NamedTuple):
    """What a manifest line says of the file itself. ``stored`` as in ``root.stamp``."""

    file: str
    size: int
    dataset_offset: int
    digest_name: str
    digest: str
    stored: str
    transfer_syntax: str


def line_of(facts: FileFacts, provenance: Provenance, attributes: dict[str, Any]) -> bytes:
    """The manifest line, newline included."""
    line: Line = {
        "file": facts.file,
        "bytes": facts.size,
        "dataset_offset": facts.dataset_offset,
        facts.digest_name: facts.digest,
        "stored": facts.stored,
        "transfer_syntax": facts.transfer_syntax,
    }
    for name in ("calling_ae", "called_ae", "peer"):
        if value := getattr(provenance, name):
            line[name] = value
    line["origin"] = provenance.origin
    line.update(attributes)
    return encoded(line)


def said_by(line: Line, name: str) -> tuple[FileFacts, Provenance, dict[str, Any]] | None:
    """What ``line_of`` was given, of the file ``name``; None when the line does not say all."""
    digest = next((one for one in DIGESTS if isinstance(line.get(one), str)), "")
    size, offset = line.get("bytes"), line.get("dataset_offset")
    stored, syntax = line.get("stored"), line.get("transfer_syntax")
    if not (digest and isinstance(size, int) and isinstance(offset, int)):
        return None
    if not (isinstance(stored, str) and isinstance(syntax, str)):
        return None
    calling_ae, called_ae, peer, origin = (
        str(line.get(key) or "") for key in ("calling_ae", "called_ae", "peer", "origin")
    )
    return (
        FileFacts(name, size, offset, digest, line[digest], stored, syntax),
        Provenance(calling_ae, called_ae, peer, origin),
        {key: value for key, value in line.items() if key not in _OWN},
    )


def encoded(line: Line) -> bytes:
    """``line`` as it stands in a manifest, newline included."""
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def lines_in(data: bytes) -> Iterator[tuple[Line, bytes]]:
    """Every line of a manifest that is one, with its bytes; removals included."""
    for raw in data.split(b"\n"):
        if raw[:1] != b"{":
            continue
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("file"), str):
            yield line, raw


def removal_in_force(lines: Iterable[Line]) -> str | None:
    """When the instance was removed, of which ``lines`` are all there are, from every node.

    None when none of them is a removal, or it was stored or restored since: a removal is in force
    when its stamp is later than every ``stored`` and ``restored``.
    """
    removed = kept = ""
    for line in lines:
        removed = max(removed, _stamp_in(line, "removed"))
        kept = max(kept, _stamp_in(line, "stored"), _stamp_in(line, "restored"))
    return removed if removed > kept else None


def later_than(lines: Iterable[Line]) -> str:
    """The stamp of now; where that is no later than what ``lines`` say, the one after theirs."""
    latest = max(
        (_stamp_in(line, key) for line in lines for key in ("stored", "restored", "removed")),
        default="",
    )
    now = stamp(time.time_ns())
    if now > latest:
        return now
    try:
        moment = datetime.fromisoformat(latest)
    except ValueError:  # no stamp of ours
        return now
    return stamp(round(moment.timestamp() * 1000 + 1) * 1_000_000)


def _told(line: Line) -> tuple[object, str, bool]:
    return line.get("bytes"), _stamp_in(line, "stored"), line.get("origin") == ORIGIN_RECOVERED


def best_line(lines: Iterable[Line], size: int, mtime: int) -> Line | None:
    """Of the ``lines`` for one file the one that counts; None when none is valid.

    ``size`` in bytes and ``mtime`` in nanoseconds are the file's. See ``best_of``.
    """
    return best_of(lines, size, mtime, _told, orjson.dumps)


def best_of(
    lines: Iterable[Kept],
    size: int,
    mtime: int,
    told: Callable[[Kept], tuple[object, str, bool]],
    raw: Callable[[Kept], bytes],
) -> Kept | None:
    """``best_line`` of lines kept in another form: ``told`` returns a line's ``bytes`` and
    ``stored``, and whether it was recovered; ``raw`` returns the line itself.

    A line is valid when its ``bytes`` is the file's size. Of several valid lines, one whose
    ``stored`` is the file's mtime counts; then one that is not ``recovered``; then the latest; then
    the one with the greatest bytes.
    """
    valid = []
    for line in lines:
        its_size, stored, recovered = told(line)
        if its_size == size and stored:
            valid.append((line, stored, recovered))
    if len(valid) < 2:  # as nearly always
        return valid[0][0] if valid else None
    written = stamp(mtime)
    return max(valid, key=lambda one: (one[1] == written, not one[2], one[1], raw(one[0])))[0]


def _stamp_in(line: Line, key: str) -> str:
    # Stamps have one form (``root.stamp``), so that the order of the text is that of time.
    value = line.get(key)
    return value if isinstance(value, str) else ""


class ManifestWriter:
    """Appends lines to the manifests of one node. Thread-safe.

    Keeps the last used manifests open; ``flush`` makes what was appended durable.
    """

    def __init__(self, publisher: Publisher, *, sync: bool = True) -> None:
        self._publisher = publisher
        self._sync = sync
        self._open: OrderedDict[str, _Manifest] = OrderedDict()
        self._looked = 0.0
        self._lock = threading.Lock()

    def append(self, path: str, line: bytes) -> None:
        """Adds ``line`` to the manifest at ``path`` in one write. Raises OSError.

        A short write is not continued: the next line begins on a line of its own.
        """
        self._append(path, line)

    def append_durably(self, path: str, lines: bytes) -> None:
        """As ``append``, and when this returns they outlive a power loss. Raises OSError."""
        self._append(path, lines).sync()

    def _append(self, path: str, line: bytes) -> _Manifest:
        for last in (False, True):
            manifest = self._manifest(path)
            try:
                manifest.append(line)
            except _Vanished:
                with self._lock:
                    if self._open.get(path) is manifest:
                        del self._open[path]
                self._publisher.forget(path.rpartition("/")[0])
                if last:
                    raise OSError(errno.ESTALE, "the manifest keeps vanishing", path) from None
            else:
                return manifest
        raise AssertionError("the last turn returns or raises")

    def _manifest(self, path: str) -> _Manifest:
        where, _, name = path.rpartition("/")
        folder = self._publisher.folder(where)
        with self._lock:
            manifest = self._open.get(path)
            # The folder was opened anew: what was open may lie in one that was moved away.
            if manifest is None or manifest.folder is not folder:
                manifest = _Manifest(folder, name)
                self._open[path] = manifest
            self._open.move_to_end(path)
            old = self._open.popitem(last=False)[1] if len(self._open) > _OPEN_MANIFESTS else None
        if old and self._sync:
            old.flush()
        return manifest

    def flush(self) -> None:
        """Syncs what was appended since the last flush; a failure is logged, never raised."""
        with self._lock:
            manifests = list(self._open.values()) if self._sync else []
        for manifest in manifests:
            manifest.flush()
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            self._let_go()

    def _let_go(self) -> None:
        """Closes what a purge replaced: as long as it is open, what was purged is on the disk."""
        with self._lock:
            for path in [path for path, one in self._open.items() if one.vanished()]:
                del self._open[path]

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._open.clear()


class _Vanished(Exception):
    """The open manifest has no name in the tree any more."""


class _Manifest:
    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self._name = name
        self._lock = threading.Lock()
        self._unsynced = False
        self._fd = durable.open_to_append(name, folder=folder.fd)
        self._torn = not durable.ends_with_newline(self._fd)

    def vanished(self) -> bool:
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:  # ESTALE: gone from the server of a network file system
            return True

    def append(self, line: bytes) -> None:
        with self._lock:
            if self.vanished():
                raise _Vanished
            data = b"\n" + line if self._torn else line
            self._torn = True
            self._unsynced = True
            if durable.write(self._fd, [data]) != len(data):
                raise OSError(errno.ENOSPC, "short write")
            self._torn = False

    def flush(self) -> None:
        try:
            self.sync()
        except OSError as error:
            log.warning("cannot sync manifest %s: %s", self._name, error.strerror)

    def sync(self) -> None:
        with self._lock:
            if not self._unsynced:
                return
            self._unsynced = False
            durable.sync_file(self._fd)
            durable.sync_folder(self.folder.fd)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)
        if fd is not None:
            os.close(fd)
