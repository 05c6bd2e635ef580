"""Whether the indexes say what fresh ones would: a ``Check`` for ``verify``.

For each study its record is made anew from what was seen of it, and held against ``study.json`` and
its line in the catalogue; for the whole archive, the lines in the shards against the instances. An
index that is behind because the study waits to be indexed is no finding.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

from plainpacs.archive.tree import layout
from plainpacs.archive.tree.listing import instances_in_tree
from plainpacs.archive.verify.finding import Finding, FindingKind
from plainpacs.archive.verify.study import StudyLook, look
from plainpacs.archive.verify.verify import Check, Options
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.index.manifest_facts import InstanceFacts, instance_facts
from plainpacs.indexer.index.study_record import StudyRecord, record_of

_AGAIN = "`plainpacs reindex`, or `plainpacs repair`, makes it again"
_MOST = 1000  # places of a shard that are counted, when they are missing


class IndexCheck(Check):
    """Of the archive at the path ``root``."""

    def __init__(self, root: str, options: Options) -> None:
        self._root = root
        self._options = options
        self._month = ""
        self._listed: dict[str, bytes] | None = None
        self._unlisted = 0
        self._shards = _ShardLines() if options.whole else None

    # --- a study --------------------------------------------------------------------------------

    def study(self, seen: StudyLook) -> Iterator[Finding]:
        self._begin(seen.month)
        record = _record(seen)
        if self._shards and not self._waits(seen.month, seen.study):
            self._shards.add(seen)
        listed = self._listed.pop(seen.study, None) if self._listed is not None else None
        if self._is_as(seen, record, listed):
            return
        # Once more: something may have been stored, or indexed, while we looked.
        if self._waits(seen.month, seen.study):
            return
        seen = look(self._root, seen.month, seen.study)
        record = _record(seen)
        if self._waits(seen.month, seen.study):
            return
        yield from self._differences(seen, record)

    def _is_as(self, seen: StudyLook, record: StudyRecord | None, listed: bytes | None) -> bool:
        json, line = _wanted(record)
        return line == listed and json == self._study_json(seen.month, seen.study)

    def _differences(self, seen: StudyLook, record: StudyRecord | None) -> Iterator[Finding]:
        month, study = seen.month, seen.study
        json, line = _wanted(record)
        there = self._study_json(month, study)
        if there != json:
            path = f"{layout.study_folder(month, study)}/{layout.STUDY_INDEX}"
            yield _of_study(month, study, path, missing=there is None)
        data = catalogue.read(self._root, month)
        if data is None:
            self._unlisted += line is not None
            return
        listed = catalogue.last_line(data, study)
        if (listed[2] if listed else None) != line:
            yield _of_study(month, study, _catalogue(month), missing=False)

    def _study_json(self, month: str, study: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, month, study, layout.STUDY_INDEX), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _waits(self, month: str, study: str) -> bool:
        """Whether the study is marked for the indexer, or it is at work on it."""
        name = layout.pending_name(month, study)
        folders = (layout.PENDING, layout.INDEXING, layout.PENDING)  # it moves from one to the next
        return any(os.path.lexists(os.path.join(self._root, one, name)) for one in folders)

    # --- a month --------------------------------------------------------------------------------

    def _begin(self, month: str) -> None:
        if month != self._month:
            self._month, self._unlisted = month, 0
            data = catalogue.read(self._root, month)
            live = catalogue.live(data) if data is not None else None
            self._listed = None if live is None else {study: line for study, _, line in live}

    def month(self, month: str) -> Iterator[Finding]:
        self._begin(month)
        for study in sorted(self._listed or ()):
            # Of the studies it lists these were not seen.
            if not self._waits(month, study) and self._is_empty(month, study):
                words = f"lists a study that is not there; {_AGAIN}"
                path = _catalogue(month)
                yield Finding.of_study(FindingKind.STALE_INDEX, month, study, path, words)
        if self._unlisted and catalogue.read(self._root, month) is None:
            words = f"the month's catalogue is missing; {_AGAIN}"
            yield Finding.of_path(FindingKind.MISSING_INDEX, _catalogue(month), words, month)
        self._month = ""

    def _is_empty(self, month: str, study: str) -> bool:
        try:
            return _record(look(self._root, month, study)) is None
        except OSError:  # said already: it is there, and cannot be read
            return False

    # --- the archive ----------------------------------------------------------------------------

    def end(self) -> Iterable[Finding]:
        internal = os.path.join(self._root, layout.INTERNAL)
        if self._shards is None or not os.access(internal, os.R_OK | os.X_OK):
            return
        lacking, surplus = self._shards.compare(self._root)
        found = self._look_for(lacking) if any(lacking.values()) else {}
        for shard in instance_shards.SHARDS:
            there = {line for line, _ in instance_shards.places(self._root, shard)}
            less = len(found.get(shard, set()) - there)
            more = sum(not self._lies_there(path) for path in surplus[shard])
            if less or more:
                path = f"{layout.INSTANCES}/{shard}"
                missing = not os.path.lexists(os.path.join(self._root, path))
                kind = FindingKind.MISSING_INDEX if missing else FindingKind.STALE_INDEX
                lacks = f"lacks {less} places" if less < _MOST else f"lacks {less} places or more"
                words = f"{lacks} and has {more} where nothing lies"
                yield Finding.of_path(kind, path, f"{words}; {_AGAIN} (reindex with --full)")

    def _look_for(self, lacking: dict[str, set[int]]) -> dict[str, set[bytes]]:
        """The lines whose hashes are ``lacking``, by shard, of instances that are still there and
        not waiting to be indexed; of a shard so many at most."""
        found: dict[str, set[bytes]] = {}
        for key in instances_in_tree(self._root):
            place = (key.month, key.study, key.series)
            name = layout.instance_name(key.instance)
            lines = (
                instance_shards.instance_line(*place, name),
                instance_shards.series_line(*place),
            )
            for shard, line in lines:
                some = found.setdefault(shard, set())
                if hash(line) not in lacking[shard] or len(some) == _MOST or line in some:
                    continue
                if not self._waits(key.month, key.study):
                    some.add(line)
        return found

    def _lies_there(self, path: str) -> bool:
        month, study, *_ = path.split("/")
        return os.path.lexists(os.path.join(self._root, path)) or self._waits(month, study)


class _ShardLines:
    """What the shards should hold, by the hashes of their lines: 8 bytes an instance."""

    def __init__(self) -> None:
        self._hashes: dict[str, array[int]] = {
            shard: array("q") for shard in instance_shards.SHARDS
        }

    def add(self, seen: StudyLook) -> None:
        for series, best in seen.best.items():
            place = (seen.month, seen.study, series)
            if best:
                shard, line = instance_shards.series_line(*place)
                self._hashes[shard].append(hash(line))
            for name in best:
                shard, line = instance_shards.instance_line(*place, name)
                self._hashes[shard].append(hash(line))

    def compare(self, root: str) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
        """By shard: the hashes of lines that are not there, and the paths that should not be."""
        lacking: dict[str, set[int]] = {}
        surplus: dict[str, list[str]] = {}
        for shard, wanted in self._hashes.items():
            there = {hash(line): path for line, path in instance_shards.places(root, shard)}
            expected = set(wanted)
            lacking[shard] = expected - there.keys()
            surplus[shard] = [path for one, path in there.items() if one not in expected]
        return lacking, surplus


def _record(seen: StudyLook) -> StudyRecord | None:
    series: dict[str, dict[str, InstanceFacts]] = {}
    for uid, best in seen.best.items():
        series[uid] = {}
        for name, line in best.items():
            if facts := instance_facts(line, b""):  # nothing here asks for the line's bytes
                series[uid][name] = facts
    return record_of(seen.study, series)


def _wanted(record: StudyRecord | None) -> tuple[bytes | None, bytes | None]:
    """``study.json`` and the catalogue's line, without newline; None where none should be."""
    return (record.study_json(), record.catalogue_line()[:-1]) if record else (None, None)


def _catalogue(month: str) -> str:
    return f"{month}/{layout.CATALOGUE}"


def _of_study(month: str, study: str, path: str, *, missing: bool) -> Finding:
    kind = FindingKind.MISSING_INDEX if missing else FindingKind.STALE_INDEX
    words = "is missing" if missing else "is not what the study's instances and manifests give"
    return Finding.of_study(kind, month, study, path, f"{words}; {_AGAIN}")
