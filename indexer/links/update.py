"""Keeping trees of links: what the archive holds, as folders and links named for people.

A tree is a function of the archive's indexes, made again as they are: a run looks at each study's
folders (not in them), and changes the links of those that are not as they were. First go the links
of studies that are gone or have another folder now, then come the new ones.

``.plainpacs/links`` knows the trees, for a purge: names of patients are in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import blake3
import orjson

from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import open_root, stamp
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.links.names import By, folders, link_names, series_folders
from plainpacs.indexer.links.tree import LinkTree, Wanted
from plainpacs.indexer.query.query import Query
from plainpacs.indexer.query.search import studies

_BATCH = 200
_SETTLED = 2_000_000_000
"""Nanoseconds: a change may follow a younger one without changing the time."""


@dataclass(slots=True)
class Done:
    """What a run did: how many ``studies`` have links, of how many those were ``changed`` or
    ``removed``, and where something else was ``in_the_way``."""

    studies: int = 0
    changed: int = 0
    removed: int = 0
    in_the_way: tuple[str, ...] = ()


def update(root: str, path: str, note: Note, *, by: By | None = None, full: bool = False) -> Done:
    """Makes the folder at ``path`` the tree of the archive at ``root``, or brings it up to date.

    ``by``: how it is arranged; None: as it was, a new one by patient. ``full``: looks into every
    study. Raises NotALinkTree, NotAnArchive, OSError.
    """
    with LinkTree.open(path, root, make=by or By.PATIENT) as tree:
        put_down(root, path, note)
        return _Run(root, tree, note).update(by or tree.by, full=full)


class _Run:
    """Bringing a tree up to date."""

    def __init__(self, root: str, tree: LinkTree, note: Note) -> None:
        self._root = root
        self._tree = tree
        self._note = note
        self._months: dict[str, tuple[str, ...]] = {}
        self._done = Done()

    def update(self, by: By, *, full: bool) -> Done:
        tree = self._tree
        before = dict(tree.studies)
        plan = folders(by, self._records())
        for study, linked in before.items():
            if plan.get(study) != linked.folder:
                tree.clear(study)
                self._done.removed += study not in plan
        facts = {study: self._facts(study) for study in plan}
        changed = [study for study in plan if full or not self._is_current(study, facts[study])]
        for some in (changed[at : at + _BATCH] for at in range(0, len(changed), _BATCH)):
            tree.expect({study: plan[study] for study in some})
            tree.made({study: facts[study] for study in some if self._link(study)})
        if tree.studies != before:
            tree.save()
        tree.complete(by)
        self._done.studies = len(tree.studies)
        self._done.in_the_way = tuple(tree.in_the_way)
        return self._done

    def _records(self) -> Iterator[tuple[str, Record]]:
        for found in studies(self._root, Query(), self._note):
            self._months[found.study] = found.months
            yield found.study, orjson.loads(found.line)

    def _facts(self, study: str) -> str:
        return _facts(self._root, self._months[study], study, self._tree.way)

    def _is_current(self, study: str, facts: str) -> bool:
        linked = self._tree.studies.get(study)
        return (
            bool(facts) and linked is not None and linked.facts == facts and self._tree.has(study)
        )

    def _link(self, study: str) -> bool:
        """Brings one study up to date; whether all of its links are there."""
        blocked = len(self._tree.in_the_way)
        wanted = _wanted(self._root, self._months[study], study, self._note)
        if not wanted:  # in a catalogue alone, as in half a copy
            self._tree.clear(study)
            return False
        self._done.changed += self._tree.link(study, wanted)
        return len(self._tree.in_the_way) == blocked


def _wanted(root: str, months: tuple[str, ...], study: str, note: Note) -> Wanted:
    """The links of a study as it is now."""
    records = ((month, lookup.part_of_study(root, month, study, note)) for month in months)
    parts = [(month, record) for month, record in records if record is not None]
    attributes: dict[str, Record] = {}
    instances: dict[str, list[tuple[str, object]]] = {}
    for month, part in lookup.with_instances(root, parts, note):
        for series in part["series"]:
            uid = str(series.get("SeriesInstanceUID", ""))
            attributes.setdefault(uid, series)
            instances.setdefault(uid, []).extend(
                (f"{layout.study_folder(month, study)}/{uid}/{line['file']}",
                 line.get("InstanceNumber"))
                for line in series["instances"]
            )  # fmt: skip
    found = {uid: some for uid, some in instances.items() if some}
    names = series_folders(attributes[uid] for uid in found)
    return {
        names[uid]: {name: path for path, name in link_names(some).items()}
        for uid, some in found.items()
    }


def _facts(root: str, months: Collection[str], study: str, way: str) -> str:
    """Changes with whatever the study's links are made from; empty while that may still change."""
    found: list[object] = [way]
    newest = 0
    for month in months:
        folder = os.path.join(root, layout.study_folder(month, study))
        try:
            index = os.stat(os.path.join(folder, layout.STUDY_INDEX))
            found += [month, index.st_mtime_ns, index.st_size]
            with os.scandir(folder) as entries:
                series = [
                    (entry.name, entry.stat(follow_symlinks=False).st_mtime_ns)
                    for entry in entries
                    if is_name(entry.name) and entry.is_dir(follow_symlinks=False)
                ]
        except OSError:
            return ""
        found += sorted(series)
        newest = max(newest, index.st_mtime_ns, *(time for _, time in series))
    if newest > time.time_ns() - _SETTLED:
        return ""
    return blake3.blake3(orjson.dumps(found)).hexdigest()[:32]


def remove(root: str, path: str, note: Note) -> bool:
    """Takes every link at ``path`` away and forgets the tree; whether the folder is empty now.

    A tree that is not there any more is forgotten. Raises NotALinkTree, OSError.
    """
    try:
        with LinkTree.open(path, root) as tree:
            empty = tree.remove()
    except FileNotFoundError:
        empty = True
    put_down(root, path, note, forgotten=True)
    return empty


# --- what a purge does ----------------------------------------------------------------------------


def clear(root: str, uids: Collection[str], note: Note) -> None:
    """Takes the links of these studies out of every tree that is known. Raises nothing because of
    a tree: what could not be done is said.

    What is left of a study has links again after the next run.
    """
    for path in known(root):
        try:
            with LinkTree.open(path, root) as tree:
                here = [uid for uid in uids if uid in tree.studies]
                kept = [uid for uid in here if not tree.clear(uid)]
                tree.save()
            if kept:
                note(f"folders that were of purged studies stay in {path}: other files are in them")
        except FileNotFoundError:
            note(
                f"the tree of links {path} is not there: delete it where it is now, or forget it "
                f"with: plainpacs links --remove {path}"
            )
        except (OSError, PlainpacsError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            note(f"the links in {path} are not cleared ({why}): delete that tree yourself")


def known(root: str) -> list[str]:
    """The paths of the trees that are put down, sorted."""
    try:
        with open(os.path.join(root, layout.LINKS), "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found: dict[str, bool] = {}
    for raw in lines:
        try:
            line = orjson.loads(raw)
            found[str(line["tree"])] = "forgotten" not in line
        except (ValueError, LookupError, TypeError):
            continue  # torn by a crash
    real = os.path.realpath(root)
    return sorted(
        os.path.normpath(os.path.join(real, way)) for way, there in found.items() if there
    )


def put_down(root: str, path: str, note: Note, *, forgotten: bool = False) -> None:
    """Sees to it that the archive knows of the tree at ``path``, or no longer does."""
    whole = os.path.realpath(path)
    if (whole in known(root)) != forgotten:
        return
    way = os.path.relpath(whole, os.path.realpath(root))
    what = "forgotten" if forgotten else "since"
    line = orjson.dumps(
        {"tree": way, what: stamp(time.time_ns())}, option=orjson.OPT_APPEND_NEWLINE
    )
    try:
        folder = open_root(root)
        try:
            durable.append_lines(folder, layout.LINKS, line)
            durable.settle(folder, layout.LINKS)
        finally:
            os.close(folder)
    except OSError as error:
        note(
            f"{root} cannot be written ({error.strerror}), so that `rm --purge` there will not "
            f"clear the links in {path}"
        )
