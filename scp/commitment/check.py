"""Whether instances are kept safely: found by UID, read again, and hashed against what was stored.

For storage commitment (PS3.4 Annex J), after which the asker may delete its own copies. So nothing
counts as kept but what was read just now and is what its manifest line says; and nothing counts as
missing as long as something could not be looked at.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from plainpacs.archive.conflicts import pending_conflicts
from plainpacs.archive.dicom import part10
from plainpacs.archive.errors import PlainpacsError, UnreadableDataSet
from plainpacs.archive.store import set_aside
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import Line, digest_of
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey, is_month, is_name, strip_padding
from plainpacs.archive.tree.listing import instance_file
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Target
from plainpacs.archive.verify.finding import Severity
from plainpacs.archive.verify.instance import (
    Reader,
    examine,
    head_of,
    open_instance,
)
from plainpacs.archive.verify.study import Subject, stored_line
from plainpacs.indexer.index import instance_shards

_FEW_UIDS = 8
_WHOLE_SEARCH = threading.Lock()
"""One search of the whole tree at a time is load enough."""

Interrupted = Callable[[], bool]
"""Whether to stop looking; it may raise what is to end the looking too."""


class FailureReason(enum.IntEnum):
    """Failure Reason (0008,1197) (PS3.3 C.14.1.1); COMMITTED is ours, and never sent."""

    COMMITTED = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance that somebody wants to be sure of."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``words`` are for the log: no patient data."""

    reason: FailureReason
    words: str = ""


class PutOff(Exception):
    """It was interrupted."""


def judge(root: str, references: Sequence[Reference], interrupted: Interrupted) -> list[Verdict]:
    """A verdict for each reference, of the archive at ``root``.

    What the indexes do not know is searched for in the whole tree, which takes a while.
    Raises PutOff when ``interrupted``, OSError and PlainpacsError when nothing can be said.
    """
    fd = open_root(root)
    try:
        return _Judge(root, fd, interrupted).all(references)
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Search:
    """Where instances lie, as paths, by UID; ``incomplete``: a folder that could not be read."""

    found: dict[str, set[str]] = field(default_factory=dict)
    incomplete: str = ""


class _Judge:
    def __init__(self, root: str, fd: int, interrupted: Interrupted) -> None:
        self._root, self._fd = root, fd
        self._interrupted = interrupted
        self._reader = Reader()
        self._forbidden = Forbidden.load(fd)
        self._series = ""
        self._lines: set_aside.Lines = {}
        self._variants: dict[InstanceKey, list[set_aside.SetAside]] = {}

    def all(self, references: Sequence[Reference]) -> list[Verdict]:
        search = self._find({one.sop_instance for one in references})
        verdicts = []
        for one in references:
            self._go_on()
            verdicts.append(self._verdict(one, search))
        return verdicts

    def _go_on(self) -> None:
        if self._interrupted():
            raise PutOff

    # --- one instance -----------------------------------------------------------------------------

    def _verdict(self, reference: Reference, search: _Search) -> Verdict:
        places = sorted(search.found.get(reference.sop_instance, ()))
        if not places:
            if search.incomplete:
                words = f"it was not found, but {search.incomplete}"
                return Verdict(FailureReason.PROCESSING_FAILURE, words)
            return Verdict(FailureReason.NO_SUCH_OBJECT_INSTANCE, "there is no such instance")
        if len(places) > 1:
            words = "it lies in several studies or months; see `plainpacs conflicts`"
            return Verdict(FailureReason.PROCESSING_FAILURE, words)
        key = layout.key_of(places[0])
        assert key is not None, "the search takes nothing else"
        try:
            return self._of_place(reference, key)
        except (OSError, PlainpacsError) as error:
            words = getattr(error, "strerror", None) or str(error)
            return Verdict(FailureReason.PROCESSING_FAILURE, f"it cannot be read: {words}")

    def _of_place(self, reference: Reference, key: InstanceKey) -> Verdict:
        name = layout.instance_name(key.instance)
        path = layout.instance_path(key)
        file = instance_file(os.stat(path, dir_fd=self._fd, follow_symlinks=False))
        self._turn_to(key)
        lines = self._lines.get(name, [])
        line = stored_line(file, lines)
        if line is None or not digest_of(line)[0]:
            words = "no manifest has a digest for it; see `plainpacs verify`"
            return Verdict(FailureReason.PROCESSING_FAILURE, words)
        if self._sop_class(key, line) != reference.sop_class:
            words = "its SOP Class is another"
            return Verdict(FailureReason.CLASS_INSTANCE_CONFLICT, words)
        finding = examine(self._root, Subject(key, file, lines), self._reader, self._forbidden)
        if finding is not None and finding.severity is not Severity.NOTE:
            words = f"{finding.kind.value}; see `plainpacs verify`"
            return Verdict(FailureReason.PROCESSING_FAILURE, words)
        if self._is_disputed(key):
            words = "other bytes wait under its UID; see `plainpacs conflicts`"
            return Verdict(FailureReason.PROCESSING_FAILURE, words)
        # To ``examine``, what is gone in the meantime is nothing to report.
        os.stat(path, dir_fd=self._fd, follow_symlinks=False)
        return Verdict(FailureReason.COMMITTED)

    def _turn_to(self, key: InstanceKey) -> None:
        """Reads what there is about a series once: a request is mostly about few of them."""
        series = layout.series_folder(key)
        if series == self._series:
            return
        study = layout.study_folder(key.month, key.study)
        self._lines = set_aside.lines_of(self._fd, study, key.series)
        target = Target(key.month, key.study, key.series)
        self._variants = pending_conflicts.variants(self._fd, [target])
        self._series = series

    def _sop_class(self, key: InstanceKey, line: Line) -> str:
        known = line.get("SOPClassUID")
        if isinstance(known, str) and known:
            return strip_padding(known)
        fd = open_instance(self._root, key)
        try:
            return part10.read_part10(head_of(fd)).sop_class or ""
        except UnreadableDataSet:
            return ""
        finally:
            os.close(fd)

    def _is_disputed(self, key: InstanceKey) -> bool:
        """Whether a variant is kept aside that differs in more than its encoding: it may be the
        very one that the asker has."""
        variants = self._variants.get(key, ())
        if not variants:
            return False
        # Imported here as it is seldom needed, and large.
        from plainpacs.archive.conflicts.compare import ConflictClass, compare  # noqa: PLC0415

        harmless, path = (ConflictClass.SAME, ConflictClass.ENCODING), layout.instance_path(key)
        return any(compare(self._root, path, one.path).kind not in harmless for one in variants)

    # --- the search -------------------------------------------------------------------------------

    def _find(self, uids: Collection[str]) -> _Search:
        search = _Search()
        for uid in uids:
            folders = (os.path.dirname(path) for path in instance_shards.find(self._root, uid))
            self._look(search, folders, [uid])
        missing = {uid for uid in uids if uid not in search.found}
        for more in (self._beside(search), self._of_waiting_studies(search)):
            if missing:
                self._look(search, more, missing)
                missing = {uid for uid in missing if uid not in search.found}
        if missing:
            while not _WHOLE_SEARCH.acquire(timeout=0.5):
                self._go_on()
            try:
                self._look(search, self._everywhere(search), missing)
            finally:
                _WHOLE_SEARCH.release()
        return search

    def _look(self, search: _Search, folders: Iterable[str], uids: Collection[str]) -> None:
        """Looks for the instances ``uids`` in the series' ``folders``."""
        names = {layout.instance_name(uid): uid for uid in uids}
        for folder in folders:
            self._go_on()
            try:
                here = self._names_here(folder, names)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                search.incomplete = f"{folder} cannot be read: {error.strerror}"
                continue
            for name in here:
                if layout.key_of(f"{folder}/{name}") is not None:
                    search.found.setdefault(names[name], set()).add(f"{folder}/{name}")

    def _names_here(self, folder: str, names: Collection[str]) -> Iterable[str]:
        path = os.path.join(self._root, folder)
        if len(names) > _FEW_UIDS:
            return set(names).intersection(os.listdir(path))
        # Quicker than to list a large series. That the folder can be looked into counts too.
        return [name for name in names if _exists(os.path.join(path, name))]

    def _beside(self, search: _Search) -> list[str]:
        """The series that something was found in."""
        return sorted({os.path.dirname(path) for some in search.found.values() for path in some})

    def _of_waiting_studies(self, search: _Search) -> Iterator[str]:
        """The series of the studies that the indexes do not know yet as they are."""
        waiting: set[tuple[str, str]] = set()
        for folder in (layout.PENDING, layout.INDEXING):
            found = map(layout.study_of_pending, self._list(search, folder))
            waiting.update(study for study in found if study)
        for month, study in sorted(waiting):
            yield from self._series_of(search, layout.study_folder(month, study))

    def _everywhere(self, search: _Search) -> Iterator[str]:
        # The latest first: it is what is asked about, if the indexes are behind.
        for month in sorted(filter(is_month, os.listdir(self._root)), reverse=True):
            for study in filter(is_name, self._list(search, month)):
                yield from self._series_of(search, layout.study_folder(month, study))

    def _series_of(self, search: _Search, study: str) -> Iterator[str]:
        for name in self._list(search, study):
            # A manifest is spelled as no UID may be.
            if is_name(name):
                yield f"{study}/{name}"

    def _list(self, search: _Search, folder: str) -> list[str]:
        try:
            return os.listdir(os.path.join(self._root, folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            search.incomplete = f"{folder} cannot be read: {error.strerror}"
            return []


def _exists(path: str) -> bool:
    """As ``os.path.lexists``, but raises OSError when that cannot be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
