"""Rebuilding the index of one study: its ``study.json``, catalogue line and instance lines."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.root import file_system_now
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.index.manifest_facts import (
    InstanceFacts,
    InstanceFile,
    ManifestFacts,
    StudyFiles,
    best_facts,
    read_manifest,
    study_files,
)
from plainpacs.indexer.index.recover_lines import LineRecovery
from plainpacs.indexer.index.split_studies import SplitStudies
from plainpacs.indexer.index.study_record import StudyRecord, record_of

log = logging.getLogger(__name__)

Study = tuple[str, str]
"""(month, StudyInstanceUID): the part of a study that lies in one month."""

_REMEMBERED = 200_000  # instances of the studies kept in memory between rebuilds
_SMALL_CATALOGUE = 4 << 20
_SMALL_SHARD = 256 << 10
"""Bytes below which tidying costs so little that it is always done: there are 256 shards."""
_REWRITTEN_AT_STOP = 64 << 20
"""Bytes of larger files that are rewritten all the same when all is to be tidy: below a second."""


class Rebuilt(NamedTuple):
    """``record``: None when the study has no instance (any more). ``waiting``: instances without
    a line whose receiver may still be at work; the study wants another look."""

    record: StudyRecord | None
    waiting: int


class Remade(NamedTuple):
    """A study's catalogue line (empty: no instance) and its (shard, line) pairs."""

    line: bytes
    places: list[tuple[str, bytes]]
    waiting: int


@dataclass(slots=True)
class _Memory:
    """What is known of a study from its last rebuild; only to save work."""

    manifests: dict[str, ManifestFacts] = field(default_factory=dict)
    places: set[tuple[str, str]] = field(default_factory=set)
    catalogue_line: bytes = b""


class Rebuilder:
    """Rebuilds studies of the archive open as ``root``; the one indexer alone uses it.

    ``touched_months`` and ``touched_shards`` (with bytes appended) are what compaction may tidy;
    ``gone`` are studies taken out whose instance lines may still stand in any shard.
    """

    def __init__(self, path: str, root: int, recovery: LineRecovery) -> None:
        self.path = path
        self.root = root
        self.several = SplitStudies(path, root)
        self._recovery = recovery
        self._known: OrderedDict[Study, _Memory] = OrderedDict()
        self._remembered = 0
        self.touched_months: dict[str, int] = {}
        self.touched_shards: dict[str, int] = {}
        self.gone: set[bytes] = set()
        self._wanted: set[str] = set()

    def rebuild(self, study: Study) -> Rebuilt:
        """Makes the study's derived files true. Raises OSError."""
        memory = self._known.pop(study, None)
        cold = memory is None
        self._remembered -= len(memory.places) if memory else 0
        memory = memory or _Memory()
        lines, waiting = self._read(study, memory)
        record = record_of(study[1], lines)
        if cold or record is None:
            self.several.note(study[1])
        if record is None:
            self._take_out(study, memory)
            return Rebuilt(None, waiting)
        self._write_study_json(study, record)
        line = record.catalogue_line()
        if line != memory.catalogue_line:
            catalogue.append(self.root, study[0], [line])
            self._touch_month(study[0], len(line))
            memory.catalogue_line = line
        self._update_places(study, memory, lines, cold)
        self._remember(study, memory)
        return Rebuilt(record, waiting)

    def remake(self, study: Study) -> Remade:
        """Writes the study's ``study.json``; its lines are for the caller. Raises OSError."""
        lines, waiting = self._read(study, _Memory())
        record = record_of(study[1], lines)
        if record is None:
            self._remove_study_json(study)
            return Remade(b"", [], waiting)
        self._write_study_json(study, record)
        places = self._place_lines(study, _places(lines), removed=False)
        return Remade(record.catalogue_line(), places, waiting)

    def left_in_shards(self, study: Study) -> bool:
        """Whether the study was taken out, but for its instance lines, which ``compact`` finds."""
        return layout.study_folder(*study).encode() in self.gone

    def forget(self) -> None:
        """Forgets what earlier rebuilds left in memory: every line is written again."""
        self._known.clear()
        self._remembered = 0

    # --- reading ------------------------------------------------------------------------------

    def _read(
        self, study: Study, memory: _Memory
    ) -> tuple[dict[str, dict[str, InstanceFacts]], int]:
        files = study_files(self.path, *study)
        self._read_manifests(study, files, memory)
        lines: dict[str, dict[str, InstanceFacts]] = {}
        missing: list[tuple[str, str, InstanceFile]] = []
        for series, present in files.instances.items():
            lines[series] = {}
            manifests = [memory.manifests[name] for name in files.manifests.get(series, ())]
            for name, file in present.items():
                best = _best(name, file, manifests)
                if best:
                    lines[series][name] = best
                else:
                    missing.append((series, name, file))
        waiting = self._recover(study, missing, memory, lines) if missing else 0
        return lines, waiting

    def _read_manifests(self, study: Study, files: StudyFiles, memory: _Memory) -> None:
        names = {name for some in files.manifests.values() for name in some}
        memory.manifests = {
            name: read_manifest(os.path.join(self.path, *study, name), memory.manifests.get(name))
            for name in names
        }

    def _recover(
        self,
        study: Study,
        missing: list[tuple[str, str, InstanceFile]],
        memory: _Memory,
        lines: dict[str, dict[str, InstanceFacts]],
    ) -> int:
        now = file_system_now(self.root)
        waiting = 0
        healed: list[tuple[str, str, InstanceFile]] = []
        for series, name, file in missing:
            if not self._recovery.may_recover(file, now):
                waiting += 1
                continue
            instance = name.removesuffix(layout.INSTANCE_ENDING)
            with contextlib.suppress(FileNotFoundError):
                if self._recovery.recover(InstanceKey(*study, series, instance), file):
                    healed.append((series, name, file))
        if healed:
            files = study_files(self.path, *study)
            self._read_manifests(study, files, memory)
            for series, name, file in healed:
                manifests = [memory.manifests[one] for one in files.manifests.get(series, ())]
                best = _best(name, file, manifests)
                if best:
                    lines[series][name] = best
        return waiting

    # --- writing ------------------------------------------------------------------------------

    def _write_study_json(self, study: Study, record: StudyRecord) -> None:
        path = f"{layout.study_folder(*study)}/{layout.STUDY_INDEX}"
        wanted = record.study_json()
        try:
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.root), "rb") as file:
                if file.read() == wanted:
                    return
        except FileNotFoundError:
            pass
        durable.replace_file(self.root, path, wanted)

    def _remove_study_json(self, study: Study) -> None:
        path = f"{layout.study_folder(*study)}/{layout.STUDY_INDEX}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            durable.unlink(path, folder=self.root)

    def _take_out(self, study: Study, memory: _Memory) -> None:
        self._remove_study_json(study)
        with contextlib.suppress(FileNotFoundError):
            line = catalogue.removal(study[1])
            catalogue.append(self.root, study[0], [line])
            self._touch_month(study[0], len(line))
        # Not known from an earlier rebuild: what manifests speak of, unless they are gone too.
        if places := memory.places or _spoken_of(memory.manifests):
            self._append_places(self._place_lines(study, places, removed=True))
        else:
            self.gone.add(layout.study_folder(*study).encode())

    def _update_places(
        self,
        study: Study,
        memory: _Memory,
        lines: dict[str, dict[str, InstanceFacts]],
        cold: bool,
    ) -> None:
        places = _places(lines)
        known = memory.places
        if cold:
            # Every instance that a manifest speaks of may stand in the shards.
            known = _spoken_of(memory.manifests)
            self._append_places(self._place_lines(study, places, removed=False))
        else:
            self._append_places(self._place_lines(study, places - known, removed=False))
        self._append_places(self._place_lines(study, known - places, removed=True))
        memory.places = places
        self.gone.discard(layout.study_folder(*study).encode())

    def _place_lines(
        self, study: Study, places: Iterable[tuple[str, str]], *, removed: bool
    ) -> list[tuple[str, bytes]]:
        return [
            instance_shards.instance_line(*study, series, name, removed=removed)
            if name
            else instance_shards.series_line(*study, series, removed=removed)
            for series, name in sorted(places)
        ]

    def _append_places(self, lines: list[tuple[str, bytes]]) -> None:
        for shard, added in instance_shards.append(self.root, lines).items():
            self.touched_shards[shard] = self.touched_shards.get(shard, 0) + added

    def _touch_month(self, month: str, added: int) -> None:
        self.touched_months[month] = self.touched_months.get(month, 0) + added

    def _remember(self, study: Study, memory: _Memory) -> None:
        self._known[study] = memory
        self._remembered += len(memory.places)
        while self._remembered > _REMEMBERED and len(self._known) > 1:
            self._remembered -= len(self._known.popitem(last=False)[1].places)

    # --- compaction ---------------------------------------------------------------------------

    def want_compacted(self, month: str) -> None:
        """Has the next ``compact(everything=True)`` tidy the month's catalogue, whatever it is."""
        self._wanted.add(month)

    def appended(self) -> int:
        """Bytes appended to derived files that were not compacted since."""
        return sum(self.touched_months.values()) + sum(self.touched_shards.values())

    def compact(self, *, everything: bool = False) -> float:
        """Tidies what was touched: small files always, large ones when much was appended.

        ``everything``: of the others as many as are rewritten in a moment, and what was appended
        to the rest is on disk; however large an archive is, a stop does not wait for it. Returns
        the seconds it took. Raises OSError.
        """
        began = time.monotonic()
        self.several.settle()
        left = _REWRITTEN_AT_STOP if everything else 0

        def is_tidied(path: str, added: int, small: int) -> bool:
            nonlocal left
            try:
                size = os.stat(path, dir_fd=self.root).st_size
            except FileNotFoundError:
                return True
            if size < small or added * 2 > size:
                return True
            if size <= left:
                left -= size
                return True
            if everything:
                durable.settle(self.root, path)
            return False

        for month in sorted(self.touched_months.keys() | self._wanted):
            added = self.touched_months.get(month, 0)
            wanted = everything and month in self._wanted
            if wanted or is_tidied(f"{month}/{layout.CATALOGUE}", added, _SMALL_CATALOGUE):
                catalogue.compact(self.root, month)
                self.touched_months.pop(month, None)
                self._wanted.discard(month)
        if self.gone:
            gone = set(self.gone)
            for shard in instance_shards.SHARDS:
                instance_shards.compact(self.root, shard, gone)
                self.touched_shards.pop(shard, None)
            self.gone -= gone  # not before: a full disk may have come in between
        for shard, added in list(self.touched_shards.items()):
            if is_tidied(f"{layout.INSTANCES}/{shard}", added, _SMALL_SHARD):
                instance_shards.compact(self.root, shard)
                del self.touched_shards[shard]
        return time.monotonic() - began


def _places(lines: dict[str, dict[str, InstanceFacts]]) -> set[tuple[str, str]]:
    """(series, file name) of every instance, and (series, "") of every series that has one."""
    places = {(series, name) for series, present in lines.items() for name in present}
    return places | {(series, "") for series, present in lines.items() if present}


def _spoken_of(manifests: dict[str, ManifestFacts]) -> set[tuple[str, str]]:
    """The places, as above, of every instance that the manifests have a line of."""
    return {
        (layout.series_of_manifest(manifest) or "", name)
        for manifest, facts in manifests.items()
        for name in ("", *facts.lines)
        if not name or layout.instance_of(name)
    }


def _best(
    name: str, file: InstanceFile, manifests: Iterable[ManifestFacts]
) -> InstanceFacts | None:
    return best_facts(file, [line for one in manifests for line in one.lines.get(name, ())])
