"""Instances that lie at several places: one SOP Instance UID under two StudyDates or Study UIDs.

Both are kept, as the path is a function of the instance; whether one of them is wrong, a person has
to say. Found by the ``instances`` shards, where those are missing by looking through the tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import instances_in_tree
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.index import instance_shards
from plainpacs.indexer.index.lookup import Note


def two_places(root: str, targets: Iterable[Target] | None, note: Note) -> list[list[InstanceKey]]:
    """The places of each instance that lies at several, sorted, as far as one of them is among the
    ``targets`` (None: of all). Raises OSError, NotAnArchive."""
    wanted = None if targets is None else list(targets)
    found = []
    for keys in _several(root, note):
        there = sorted(k for k in keys if os.path.lexists(os.path.join(root, _path(k))))
        if len(there) > 1 and (
            wanted is None or any(target.covers(key) for target in wanted for key in there)
        ):
            found.append(there)
    return sorted(found)


def _path(key: InstanceKey) -> str:
    return layout.instance_path(key)


def _several(root: str, note: Note) -> Iterator[list[InstanceKey]]:
    try:
        shards = os.listdir(os.path.join(root, layout.INSTANCES))
    except OSError:
        shards = []
    if not shards:
        note(f"{layout.INSTANCES} is missing or may not be read: looking through the study folders")
        yield from _grouped(instances_in_tree(root))
    for shard in shards:
        # All places of an instance are in one shard.
        paths = (path for _, path in instance_shards.places(root, shard))
        yield from _grouped(key for path in paths if (key := layout.key_of(path)) is not None)


def _grouped(keys: Iterable[InstanceKey]) -> Iterator[list[InstanceKey]]:
    first: dict[str, InstanceKey] = {}
    several: dict[str, list[InstanceKey]] = {}
    for key in keys:
        known = first.setdefault(key.instance, key)
        if known != key:
            several.setdefault(key.instance, [known]).append(key)
    yield from several.values()
