"""Finding what was changed by hand: rsync into the tree, ``rm -r``, another node, lost indexes.

For every study the facts of its folder (per series folder ctime, mtime and inode; per manifest its
size; of ``study.json`` its mtime and size) are compared, by inequality, with those in
``.plainpacs/seen/<yyyyMM>``, where the last look left them. A study that differs, is new, or is
not in its month's catalogue, is marked pending; so is one that is in the catalogue or in ``seen``
and has no folder any more. Additions are marked before removals, so that a study moved to another
month is never in neither. What happened so lately that a change in the same tick could hide behind
it (two seconds) is not recorded: the next look finds it different again.

Recording comes after the markers are there for good, and a marker stays until the study is indexed,
so a look that is cut off anywhere only makes the next one mark more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_month, is_name
from plainpacs.archive.tree.listing import studies_in
from plainpacs.archive.tree.root import file_system_now
from plainpacs.indexer.index import catalogue
from plainpacs.indexer.index.rebuild import Study

Facts = dict[str, Any]
"""``{"index": [mtime, size], "manifests": {name: size}, "series": {uid: [ctime, mtime, inode]}}``,
times in nanoseconds."""

_TICK = 2_000_000_000
_NOTHING: Facts = {"index": [], "manifests": {}, "series": {}}


def facts_of(path: str, month: str, study: str, before: Facts = _NOTHING) -> Facts | None:
    """What the file system says of a study's folder now; None when there is nothing of ours.

    ``before``: what it said once; names that were ours need no second check of their spelling,
    which takes as long as all else. Raises OSError.
    """
    try:
        with os.scandir(f"{path}/{month}/{study}") as scanned:
            entries = list(scanned)
    except (FileNotFoundError, NotADirectoryError):
        return None
    index: list[int] = []
    manifests: dict[str, int] = {}
    series: dict[str, list[int]] = {}
    known_manifests, known_series = before["manifests"], before["series"]
    for entry in entries:
        name = entry.name
        try:
            if name == layout.STUDY_INDEX:
                facts = entry.stat(follow_symlinks=False)
                index = [facts.st_mtime_ns, facts.st_size]
            elif name in known_manifests or layout.series_of_manifest(name) is not None:
                manifests[name] = entry.stat(follow_symlinks=False).st_size
            elif (name in known_series or is_name(name)) and entry.is_dir(follow_symlinks=False):
                facts = entry.stat(follow_symlinks=False)
                series[name] = [facts.st_ctime_ns, facts.st_mtime_ns, facts.st_ino]
        except FileNotFoundError:
            continue
    if not (index or manifests or series):
        return None
    return {"index": index, "manifests": manifests, "series": series}


def reconcile(
    path: str,
    root: int,
    mark: Callable[[Study], None],
    indexed: Callable[[Study, Facts], bool] = lambda study, facts: False,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Marks every study that changed since the last look; returns how many.

    ``indexed(study, facts)`` tells that these very facts were indexed already. Returns early when
    ``stop()`` becomes true. Raises OSError.
    """
    marked = 0
    removed: list[Study] = []
    months = sorted(set(catalogue.months(path)) | set(_seen_months(path)))
    for month in months:
        if stop():
            return marked
        seen = _read_seen(path, month)
        catalogued = catalogue.read(path, month)
        listed = {study for study, _, _ in catalogue.live(catalogued or b"")}
        now = file_system_now(root)
        before = marked
        found: dict[str, Facts] = {}
        for study in studies_in(path, month):
            known = seen.get(study, _NOTHING)
            facts = facts_of(path, month, study, known)
            if facts is None:
                continue
            unchanged = facts == known
            found[study] = known if unchanged else facts  # not both: a month may be large
            same = unchanged or indexed((month, study), facts)
            has_instances = bool(facts["index"])
            if same and (study in listed) == has_instances:
                continue
            mark((month, study))
            marked += 1
            if stop():
                return marked
        if catalogued is None and not found:
            # As a rebuild leaves it; a crash made the month's folder and nothing in it.
            with contextlib.suppress(FileNotFoundError):
                catalogue.make(root, month)
        removed += [(month, study) for study in sorted((listed | set(seen)) - set(found))]
        if marked > before:
            durable.settle_folder(root, layout.PENDING)
        record_seen(root, month, found, now, before=seen)
    for gone in removed:
        mark(gone)
    return marked + len(removed)


def _settled(facts: Facts, now: int) -> bool:
    times = [t for ctime, mtime, _ in facts["series"].values() for t in (ctime, mtime)]
    return all(abs(now - t) > _TICK for t in (*times, *facts["index"][:1]))


def _seen_months(path: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from (name for name in os.listdir(os.path.join(path, layout.SEEN)) if is_month(name))


def _read_seen(path: str, month: str) -> dict[str, Facts]:
    """Unreadable or damaged: nothing was seen, so everything is looked at."""
    try:
        with open(os.path.join(path, layout.SEEN, month), "rb") as file:
            seen = orjson.loads(file.read())
    except (OSError, orjson.JSONDecodeError):
        return {}
    if not isinstance(seen, dict):
        return {}
    return {study: facts for study, facts in seen.items() if _is_whole(facts)}


def _is_whole(facts: object) -> bool:
    return (
        isinstance(facts, dict)
        and isinstance(facts.get("manifests"), dict)
        and isinstance(facts.get("series"), dict)
    )


def record_seen(
    root: int,
    month: str,
    found: dict[str, Facts],
    now: int,
    *,
    before: dict[str, Facts] | None = None,
) -> None:
    """Remembers the facts ``found`` of a month's studies, of those that are settled.

    ``now``: the file system's clock before they were read; ``before``: what is recorded already.
    Raises OSError.
    """
    name = f"{layout.SEEN}/{month}"
    before = before or {}
    settled = {
        study: facts
        for study, facts in found.items()
        if facts is before.get(study) or _settled(facts, now)
    }
    if not settled:
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(name, folder=root)
    elif settled != before:
        with contextlib.suppress(FileExistsError):
            durable.make_folder(layout.SEEN, folder=root)
        style = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
        durable.replace_file(root, name, orjson.dumps(settled, option=style))
