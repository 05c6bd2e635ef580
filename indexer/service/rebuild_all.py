"""Rebuilding every index from the instances and manifests alone."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.listing import studies_in
from plainpacs.archive.tree.root import file_system_now
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.index.rebuild import Rebuilder
from plainpacs.indexer.index.recover_lines import LineRecovery
from plainpacs.indexer.service.pending import Pending
from plainpacs.indexer.service.reconcile import Facts, facts_of, record_seen

_SPILL = 64 << 20  # bytes of instance lines held in memory


def rebuild_everything(
    rebuilder: Rebuilder,
    stop: Callable[[], bool] = bool,
    tick: Callable[[int], object] = bool,
) -> int:
    """Makes ``study.json``, ``studies.jsonl``, ``seen`` and the shards anew; returns how many
    studies there are.

    Each file is replaced when its new content is complete, so readers never see half an index;
    when ``stop()`` becomes true, what was not reached stays as it was. ``tick`` is called after
    each study. Raises OSError.
    """
    root, path = rebuilder.root, rebuilder.path
    rebuilder.forget()
    count = 0
    with _Shards(root) as shards:
        for month in catalogue.months(path):
            lines: list[bytes] = []
            seen: dict[str, Facts] = {}
            now = file_system_now(root)
            for study in studies_in(path, month):
                if stop():
                    return count
                facts = facts_of(path, month, study)
                made = rebuilder.remake((month, study))
                tick(1)
                after = facts_of(path, month, study)
                if made.line:
                    lines.append(made.line)
                    count += 1
                shards.add(made.places)
                if facts and after and not made.waiting:
                    seen[study] = {**facts, "index": after["index"]}
            catalogue.rewrite(root, month, lines)
            record_seen(root, month, seen, now)
        shards.put_in_place()
    rebuilder.several.make_anew()
    rebuilder.forget()
    return count


class _Shards:
    """Gathers the lines of all shards, in files beneath ``indexing`` when they grow many."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._lines: defaultdict[str, list[bytes]] = defaultdict(list)
        self._bytes = 0

    def __enter__(self) -> _Shards:
        self._remove_files()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_files()

    def add(self, lines: list[tuple[str, bytes]]) -> None:
        for shard, line in lines:
            self._lines[shard].append(line)
            self._bytes += len(line)
        if self._bytes > _SPILL:
            for shard, some in self._lines.items():
                durable.append_lines(self._root, self._file(shard), b"".join(some))
            self._lines.clear()
            self._bytes = 0

    def put_in_place(self) -> None:
        for shard in instance_shards.SHARDS:
            spilled = b""
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._file(shard), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
                with open(fd, "rb") as file:
                    spilled = file.read()
            instance_shards.rewrite(self._root, shard, spilled + b"".join(self._lines[shard]))

    def _file(self, shard: str) -> str:
        return f"{layout.INDEXING}/{shard}.new"

    def _remove_files(self) -> None:
        for shard in instance_shards.SHARDS:
            with contextlib.suppress(FileNotFoundError):
                durable.unlink(self._file(shard), folder=self._root)


def reread_everything(
    path: str, recovery: LineRecovery, pending: Pending, stop: Callable[[], bool]
) -> None:
    """Reads the attributes of all instances again; a study where they are others is pending.
    Raises OSError."""
    for month in catalogue.months(path):
        for study in studies_in(path, month):
            if stop():
                return
            if recovery.reread(path, month, study):
                pending.mark((month, study))
    recovery.flush()
