"""From the UIDs in a URL to instances in the tree: no text of a request ever becomes a path unread.

A UID is judged as one that arrives is; every file is opened relative to the root, and no link is
followed at its end.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.pixel_data import Header, read_header
from plainpacs.archive.errors import (
    NotAnArchive,
    PlainpacsError,
    StorageUnavailable,
    UnreadableDataSet,
)
from plainpacs.archive.store.audit import AuditLog
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import is_at_work, open_root, read_marker_at
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.series_metadata import Files
from plainpacs.scp.query_retrieve.retrieve_request import Wanted, instances
from plainpacs.scp.storage.instance_file import Outgoing

log = logging.getLogger("plainpacs.scp")

_STUDIES_REMEMBERED = 4096
_READERS_REMEMBERED = 10_000
_TOGETHER = 600.0


class Place(NamedTuple):
    """What a URL names: a study, a series of it, or an instance."""

    study: str
    series: str = ""
    instance: str = ""

    @property
    def level(self) -> Level:
        return Level.INSTANCE if self.instance else Level.SERIES if self.series else Level.STUDY

    @property
    def url(self) -> str:
        """Below the base of DICOMweb."""
        parts = zip(("studies", "series", "instances"), self, strict=True)
        return "".join(f"/{name}/{uid}" for name, uid in parts if uid)


def place_of(request: Request) -> Place:
    """Raises HTTPException 400 for what can be no UID."""
    uids = [request.path_params.get(name, "") for name in ("study", "series", "instance")]
    if not all(is_name(uid) for uid in uids if uid):
        raise HTTPException(400, "a UID in the address is not one")
    return Place(*uids)


class Opened(NamedTuple):
    """An instance's file, open for reading."""

    place: Place
    fd: int
    size: int
    mtime: int
    """In nanoseconds."""
    path: str

    def header(self, wanted: Container[int] | None = None) -> Header:
        """As ``read_header``. Raises HTTPException 406 when it cannot be read."""
        try:
            return read_header(self.fd, self.size, wanted)
        except (UnreadableDataSet, ValueError, OSError) as error:
            log.warning("%s cannot be read: %s", self.path, error)
            raise HTTPException(406, "the stored instance cannot be read") from None

    def close(self) -> None:
        os.close(self.fd)


class Tree:
    """The archive at ``path``, for reading. Thread-safe. Raises NotAnArchive."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.root = open_root(path)
        self._months: dict[str, list[str]] = {}
        self._forbidden = Forbidden()

    def close(self) -> None:
        os.close(self.root)

    def check(self) -> None:
        """Raises NotAnArchive when the folder is no archive any more: a disk that went away."""
        if not os.path.exists(os.path.join(self.path, layout.MARKER)):
            raise NotAnArchive(f"the archive {self.path} is not there: is its disk mounted?")

    def note(self, words: str) -> None:
        log.debug("%s", words)

    def months(self, study: str) -> list[str]:
        """The months in which the study lies."""
        return lookup.months_of(self.path, study)

    def listed(self, place: Place) -> list[Outgoing]:
        """The instances of a place, in their order. Raises HTTPException 404, 503."""
        uids = [frozenset([uid]) if uid else frozenset[str]() for uid in place]
        try:
            wanted = Wanted(place.level, frozenset(), *uids)
            found = [one for one in instances(self.path, wanted, self.note) if not one.fault]
        except (OSError, PlainpacsError) as error:
            raise unavailable(error) from None
        if not found:
            self.check()
            raise missing(place)
        return found

    def open(self, place: Place) -> Opened:
        """An instance's file. Raises HTTPException 404, 503."""
        study, series, instance = place
        self._check_allowed(place)
        known = self._months.get(study, [])
        for months in (known, None):
            for month in months if months is not None else self.months(study):
                path = (
                    f"{layout.study_folder(month, study)}/{series}/{layout.instance_name(instance)}"
                )
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.root)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise unavailable(error) from None
                if month not in known:
                    if len(self._months) > _STUDIES_REMEMBERED:
                        self._months.clear()
                    self._months[study] = [month, *known]
                facts = os.fstat(fd)
                return Opened(place, fd, facts.st_size, facts.st_mtime_ns, path)
        self.check()
        raise missing(place)

    def _check_allowed(self, place: Place) -> None:
        if self._refused().covers(*place):
            raise missing(place)

    def allowed(self, study: str, series: str, files: Files) -> Files:
        """Those of a series' files that are not forbidden. Raises HTTPException 503."""
        refused = self._refused()
        if not refused.since:
            return files
        names = {name: layout.instance_of(name) or "" for name in files}
        return {
            name: facts
            for name, facts in files.items()
            if not refused.covers(study, series, names[name])
        }

    def _refused(self) -> Forbidden:
        try:
            self._forbidden = self._forbidden.anew(self.root)
        except StorageUnavailable as error:
            raise unavailable(error) from None
        return self._forbidden

    def series_of(self, place: Place) -> Iterator[tuple[str, str]]:
        """(month, series) of each part of a study, or of the one series, that lies in the tree."""
        for month in self.months(place.study):
            folder = os.path.join(self.path, month, place.study)
            try:
                names = [place.series] if place.series else sorted(os.listdir(folder))
            except OSError:
                continue
            for series in names:
                if is_name(series) and os.path.isdir(os.path.join(folder, series)):
                    yield month, series


class Readers:
    """Who read which study, for the audit log: a line for each client and study in so many minutes,
    however many frames it asks for. Written only while something is at work on the archive.
    Thread-safe."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def note(self, peer: str, user: str, study: str) -> None:
        """``user``: who signed in, if anybody did. Raises nothing because of the log."""
        now = time.monotonic()
        with self._lock:
            before = self._known.pop((peer, user, study), None)
            fresh = before is not None and now - before < _TOGETHER
            self._known[peer, user, study] = before if fresh and before is not None else now
            while len(self._known) > _READERS_REMEMBERED:
                self._known.popitem(last=False)
        if fresh or not is_at_work(self._tree.root):
            return
        try:
            node = read_marker_at(self._tree.root, self._tree.path).node
        except PlainpacsError as error:
            log.warning("the audit log could not be found: %s", error)
            return
        audit = AuditLog(self._tree.root, node)
        audit.write(
            "retrieved", what="DICOMweb", peer=peer, web_user=user or None, StudyInstanceUID=study
        )
        audit.close()


def missing(place: Place) -> HTTPException:
    thing = {Level.STUDY: "study", Level.SERIES: "series", Level.INSTANCE: "instance"}[place.level]
    return HTTPException(404, f"there is no such {thing} here")


def unavailable(error: BaseException) -> HTTPException:
    """For the client in general words, for the log in those of the error."""
    log.warning("the archive cannot be read: %s", error)
    return HTTPException(503, "the archive cannot be read now", {"Retry-After": "10"})
