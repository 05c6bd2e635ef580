"""Starting plainpacs on what a crash left, and whether it then keeps what it promised."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import SimpleNamespace

import pytest

from plainpacs.archive.dicom import part10
from plainpacs.archive.dicom.header import read_header
from plainpacs.archive.errors import PlainpacsError, RefusedInstance
from plainpacs.archive.store import writer
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout, machines
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.indexer.index import (
    catalogue,
)
from plainpacs.indexer.index import (
    instance_shards as instances,
)
from plainpacs.indexer.index import (
    split_studies as several,
)
from plainpacs.indexer.service.indexer import Indexer

Files = Mapping[str, bytes]
"""The bytes of files by path, from the folder on that stands for the disk; folders end in /."""
Holds = Callable[[Files], bool]
Said = tuple[str, Holds]
"""What was promised, in words and as a check."""
ARCHIVE = "archive"
"""The archive's folder, in the folder that stands for the disk."""


@contextlib.contextmanager
def quick_folder() -> Iterator[str]:
    """A new folder in memory, where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="plainpacs-test.", dir=memory)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def booted(name: str) -> Iterator[None]:
    """The machine's boot is ``name``; and nobody waits for processes that are not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "boot_id", lambda: name)
        patch.setattr(writer, "time", without_waiting(writer.time))
        yield


def without_waiting(time: object) -> SimpleNamespace:
    return SimpleNamespace(**vars(time) | {"sleep": lambda _: None})


def recover(root: str) -> None:
    """As ``serve`` starts: the receiver, which sweeps, then the indexer, which looks at all."""
    with Archive.open(root), Indexer.open(root) as indexer:
        indexer.once()


def rebuild(root: str) -> None:
    with Indexer.open(root) as indexer:
        indexer.once(full=True)


def files_in(top: str) -> dict[str, bytes]:
    """Every file below ``top`` with its bytes, and every folder (ending in ``/``)."""
    found: dict[str, bytes] = {}
    stack = [top]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                name = entry.path[len(top) + 1 :]
                if entry.is_dir(follow_symlinks=False):
                    found[name + "/"] = b""
                    stack.append(entry.path)
                else:
                    with open(entry.path, "rb") as file:
                        found[name] = file.read()
    return found


# --- promises ------------------------------------------------------------------------------------


def data_set_in(file: bytes) -> bytes | None:
    try:
        return file[part10.read_part10(file[: part10.LONGEST_META]).dataset_offset :]
    except RefusedInstance:
        return None


def kept(path: str, data_set: bytes) -> Holds:
    """The instance lies at ``path`` (relative to the archive), its data set byte for byte."""
    return lambda files: _holds(files.get(f"{ARCHIVE}/{path}", b""), data_set)


def kept_somewhere(data_set: bytes) -> Holds:
    """The data set lies whole under a final name, among the conflicts or in the trash."""
    return lambda files: any(
        _holds(file, data_set) for path, file in files.items() if f"/{layout.INCOMING}/" not in path
    )


def _holds(file: bytes, data_set: bytes) -> bool:
    return file.endswith(data_set) and data_set_in(file) == data_set


def gone(path: str) -> Holds:
    """Nothing lies at ``path``."""
    return lambda files: f"{ARCHIVE}/{path}" not in files


def has_line(folder: str, series: str, name: str, words: bytes) -> Holds:
    """A manifest of the series has a line of a file whose name begins so, with ``words`` in it."""
    start, named = f"{ARCHIVE}/{folder}/{series}.", f'"file":"{name}'.encode()
    return lambda files: any(
        named in line and words in line
        for path, file in files.items()
        if path.startswith(start) and path.endswith(layout.MANIFEST_ENDING)
        for line in file.split(b"\n")
    )


def unkept(files: Files, promises: Iterable[Said]) -> list[str]:
    return [words for words, holds in promises if not holds(files)]


def partial(files: Files, offered: Collection[bytes]) -> list[str]:
    """The final names under which no whole instance lies, of those ``offered``, that belongs."""
    return [
        f"partial: {path}"
        for path, file in files.items()
        if path.endswith(layout.INSTANCE_ENDING)
        and f"/{layout.INTERNAL}/" not in path
        and not _is_whole(path.partition("/")[2], file, offered)
    ]


_whole: dict[tuple[str, bytes], bytes | None] = {}


def _is_whole(path: str, file: bytes, offered: Collection[bytes]) -> bool:
    if (path, file) not in _whole:
        _whole[path, file] = _belonging(path, file)
    return _whole[path, file] in offered


def _belonging(path: str, file: bytes) -> bytes | None:
    """The data set of the file, when it belongs at ``path``."""
    data_set = data_set_in(file)
    if data_set is None:
        return None
    try:
        found = part10.read_part10(file[: part10.LONGEST_META])
        key = InstanceKey.of_attributes(read_header(data_set, found.transfer_syntax))
    except RefusedInstance:
        return None
    return data_set if layout.instance_path(key) == path else None


# --- checking ------------------------------------------------------------------------------------


class Checker:
    """Starts plainpacs on trees; remembers what a fresh rebuild of the same instances gave.

    ``offered`` are the data sets that may lie under final names. Not ``careful``: the tree was
    damaged before, so that it may hold others, and studies that cannot be indexed. Not
    ``compacted``: lines that count no more, or lead nowhere, may stand in indexes yet.
    """

    def __init__(
        self, offered: Collection[bytes], *, careful: bool = True, compacted: bool = True
    ) -> None:
        self._offered = offered
        self._careful = careful
        self._compacted = compacted
        self._rebuilt: dict[frozenset[tuple[str, bytes]], dict[str, bytes]] = {}

    def broken(self, top: str, promises: Iterable[Said], boot: str) -> list[str]:
        """Recovers the archive below ``top`` in a new ``boot``; every promise it then breaks."""
        promises = list(promises)
        root = f"{top}/{ARCHIVE}"
        if not os.path.lexists(f"{root}/{layout.MARKER}"):
            return unkept(files_in(top), promises)
        with booted(boot):
            try:
                recover(root)
            except PlainpacsError as error:
                return [f"does not start: {error}"]
            first = files_in(top)
            recover(root)
            second = files_in(top)
        found = unkept(first, promises)
        if self._careful:
            found += partial(first, self._offered)
            found += [f"left over: {path}" for path in first if _left_over(path)]
        changed = [
            name
            for name in sorted(first.keys() | second.keys())
            # What was seen is written down when it is some seconds old.
            if first.get(name) != second.get(name) and f"/{layout.SEEN}/" not in name
        ]
        found += [f"a second recovery changes {changed}"] if changed else []
        return found or self.stale(top)

    def stale(self, top: str) -> list[str]:
        """The derived files below ``top`` that are not as a fresh rebuild makes them."""
        files = files_in(top)
        root = f"{top}/{ARCHIVE}"
        now = several.by_looking(root, catalogue.months(root))
        if several.recorded(root) not in (None, now):
            return [f"studies in several months: {several.recorded(root)}, not {now}"]
        key = frozenset(item for item in files.items() if not _is_volatile(item[0]))
        wanted = self._rebuilt.get(key)
        if wanted is None:
            rebuild(root)
            wanted = {name: data for name, data in files_in(top).items() if _is_derived(name)}
            self._rebuilt[key] = wanted
        have = {name: data for name, data in files.items() if _is_derived(name)}
        return [
            f"not as a rebuild makes it: {name}"
            for name in sorted(have.keys() | wanted.keys())
            if have.get(name) != wanted.get(name)
            and (self._compacted or not _says_the_same(name, have, wanted, files))
        ]


def _says_the_same(name: str, have: Files, wanted: Files, files: Files) -> bool:
    """Whether the lines that count are the same, but for hints that lead nowhere."""
    one, other = have.get(name, b""), wanted.get(name, b"")
    if name.endswith(layout.CATALOGUE):
        return {line for _, _, line in catalogue.live(one)} == {
            line for _, _, line in catalogue.live(other)
        }
    if f"/{layout.INSTANCES}/" not in name:
        return one == other
    more = {*instances._live(one)} - {*instances._live(other)}
    paths = (line.rpartition(b'"path":"')[2].rstrip(b'"').decode() for line in more)
    return {*instances._live(other)} <= {*instances._live(one)} and not any(
        f"{ARCHIVE}/{path}" in files or f"{ARCHIVE}/{path}/" in files for path in paths
    )


def _is_derived(path: str) -> bool:
    shards = f"{ARCHIVE}/{layout.INSTANCES}/"
    return path.endswith((layout.STUDY_INDEX, layout.CATALOGUE)) or path.startswith(shards)


def _is_volatile(path: str) -> bool:
    """Indexes do not depend on it."""
    return _is_derived(path) or path.startswith(f"{ARCHIVE}/{layout.INTERNAL}/")


def _left_over(path: str) -> bool:
    """Unfinished work that no process is at."""
    inside = path.removeprefix(f"{ARCHIVE}/")
    return any(
        inside.startswith(f"{folder}/") and inside != f"{folder}/"
        for folder in (layout.INCOMING, layout.PENDING, layout.INDEXING)
    )
