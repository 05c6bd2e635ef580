"""Lists that ``b3sum -c`` and ``sha256sum -c`` check a copy of the archive with, run in its ROOT.

The digests are those in the manifests, so what is checked is what was stored. Where a manifest has
another digest than the one asked for, the instance is read: once, for both, so that what is listed
has proved to be what was stored.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.manifest import digest_of
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import months, studies_in
from plainpacs.archive.verify.instance import Reader, open_instance
from plainpacs.archive.verify.study import Sound, look, sorted_out
from plainpacs.archive.verify.verify import Options, wanted

_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Sum:
    """An instance and its digest in hexadecimal; empty when there is none to vouch for it."""

    path: str
    digest: str

    @property
    def line(self) -> str:
        """As the programs write and read it; a name of ours needs no escaping."""
        return f"{self.digest}  {self.path}"


def sums(root: str, name: str, options: Options) -> Iterator[Sum]:
    """The digests called ``name`` (``blake3`` or ``sha256``) of the instances that are there.

    Raises OSError, NotAnArchive.
    """
    reader = Reader(options.rate)
    waiting: deque[tuple[InstanceKey, Future[str]]] = deque()
    with ThreadPoolExecutor(options.threads, thread_name_prefix="sums") as pool:
        for month in months(root):
            for study in studies_in(root, month):
                if options.targets and study not in {one.study for one in options.targets}:
                    continue
                seen = look(root, month, study)
                sound, suspect = sorted_out(seen, Forbidden())
                for key in suspect:
                    if wanted(options, key) and seen.file(key) is not None:
                        yield Sum(layout.instance_path(key), "")
                for one in sorted(sound, key=_path):
                    if not wanted(options, one.key, one.file.mtime):
                        continue
                    if isinstance(digest := one.line.get(name), str):
                        yield Sum(layout.instance_path(one.key), digest)
                        continue
                    waiting.append((one.key, pool.submit(_computed, root, one, name, reader)))
                    while len(waiting) > _AHEAD:
                        yield _next(waiting)
        while waiting:
            yield _next(waiting)


def _path(one: Sound) -> str:
    return layout.instance_path(one.key)


def _next(waiting: deque[tuple[InstanceKey, Future[str]]]) -> Sum:
    key, future = waiting.popleft()
    return Sum(layout.instance_path(key), future.result())


def _computed(root: str, one: Sound, name: str, reader: Reader) -> str:
    recorded, value = digest_of(one.line)
    try:
        fd = open_instance(root, one.key)
        try:
            found = reader.digests(fd, [name, *([recorded] if recorded else [])])
        finally:
            os.close(fd)
    except OSError:
        return ""
    return found[0] if not recorded or found[1] == value else ""
