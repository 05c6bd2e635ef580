"""Where an instance or series lies: ``.plainpacs/instances/<hh>``, 256 shards by UID.

``hh`` is the last byte of the CRC-32 of the UID, in hexadecimal. A line names a place; a later one
with ``"removed":true`` takes it back; a UID may have several places:

    {"SOPInstanceUID":"1.2.3.4","path":"202401/1.2/1.2.3/1.2.3.4.dcm"}
    {"SeriesInstanceUID":"1.2.3","path":"202401/1.2/1.2.3"}

The compacted form has the live lines sorted. A shard is a hint: who follows it looks whether
something lies there.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_name

_LINE = re.compile(
    rb'(\{"(?:SOP|Series)InstanceUID":"([0-9a-z._-]+)","path":"(([^/"]+/[^/"]+)/[^"]+)")'
    rb'(,"removed":true)?\}'
)
SHARDS = tuple(f"{number:02x}" for number in range(256))


def shard_of(uid: str) -> str:
    """The name of the shard that ``uid`` is in."""
    return f"{zlib.crc32(uid.encode('ascii')) & 0xFF:02x}"


def series_line(month: str, study: str, series: str, *, removed: bool = False) -> tuple[str, bytes]:
    """(shard, line) of a series."""
    end = ',"removed":true}\n' if removed else "}\n"
    line = f'{{"SeriesInstanceUID":"{series}","path":"{month}/{study}/{series}"{end}'
    return shard_of(series), line.encode()


def instance_line(
    month: str, study: str, series: str, name: str, *, removed: bool = False
) -> tuple[str, bytes]:
    """(shard, line) of the instance whose file is ``name``."""
    uid = name.removesuffix(layout.INSTANCE_ENDING)
    end = ',"removed":true}\n' if removed else "}\n"
    line = f'{{"SOPInstanceUID":"{uid}","path":"{month}/{study}/{series}/{name}"{end}'
    return shard_of(uid), line.encode()


def append(root: int, lines: Iterable[tuple[str, bytes]]) -> dict[str, int]:
    """Adds ``lines`` to their shards; returns the bytes added to each. Raises OSError."""
    by_shard: defaultdict[str, list[bytes]] = defaultdict(list)
    for shard, line in lines:
        by_shard[shard].append(line)
    added: dict[str, int] = {}
    for shard, some in by_shard.items():
        data = b"".join(some)
        path = f"{layout.INSTANCES}/{shard}"
        try:
            durable.append_lines(root, path, data)
        except FileNotFoundError:  # somebody removed the folder: it may be made again
            durable.make_folder(layout.INSTANCES, folder=root)
            durable.append_lines(root, path, data)
        added[shard] = len(data)
    return added


def _live(data: bytes, gone: Collection[bytes] = ()) -> list[bytes]:
    live: dict[bytes, None] = {}
    for raw in data.split(b"\n"):
        match = _LINE.fullmatch(raw)
        if match is None or match[4] in gone:
            continue
        if match[5]:
            live.pop(match[1], None)
        else:
            live[match[1]] = None
    return sorted(live)


def compact(root: int, shard: str, gone: Collection[bytes] = ()) -> None:
    """Leaves the live lines, sorted; those of the studies ``gone`` (``b"202401/1.2"``) go.

    Nobody else may append meanwhile. Raises OSError.
    """
    path = f"{layout.INSTANCES}/{shard}"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return
    if not rewrite(root, shard, data, gone):
        # What was appended may not have reached the disk, and nothing looks after a shard again
        # once its studies are known to be indexed.
        durable.settle(root, path)


def rewrite(root: int, shard: str, data: bytes, gone: Collection[bytes] = ()) -> bool:
    """Puts the compacted form of the lines ``data`` in the shard's place, for good; False when
    that changes nothing. Raises OSError."""
    path = f"{layout.INSTANCES}/{shard}"
    compacted = b"".join(line + b"}\n" for line in _live(data, gone))
    before = _read(root, path)
    if before is None and not compacted:
        return False
    if compacted:
        if compacted == before:
            return False
        durable.replace_file(root, path, compacted)
    else:
        durable.unlink(path, folder=root)
        durable.settle(root, path)
    return True


def _read(root: int, path: str) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def places(root: str, shard: str) -> list[tuple[bytes, str]]:
    """(line, path) of every live line of a shard, beneath the path ``root``; the line as
    ``series_line`` and ``instance_line`` have it. None when it is missing. Raises OSError."""
    try:
        with open(os.path.join(root, layout.INSTANCES, shard), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    return [(raw + b"}\n", raw[raw.rindex(b'":"') + 3 : -1].decode()) for raw in _live(data)]


def are_there(root: str) -> bool:
    """Whether there are shards that can be read, beneath the path ``root``."""
    try:
        with os.scandir(os.path.join(root, layout.INSTANCES)) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def find(root: str, uid: str) -> list[str]:
    """The paths, relative to ROOT, where the instance or series ``uid`` was last seen, sorted.

    Empty when it is not known, or the shards are missing or may not be read.
    """
    if not is_name(uid):
        return []
    try:
        with open(os.path.join(root, layout.INSTANCES, shard_of(uid)), "rb") as file:
            data = file.read()
    except OSError:
        return []
    needle = b'InstanceUID":"' + uid.encode() + b'","path"'
    places: dict[str, bool] = {}
    at = data.find(needle)
    while at >= 0:
        end = data.find(b"\n", at)
        end = end if end >= 0 else len(data)
        match = _LINE.fullmatch(data, data.rfind(b"\n", 0, at) + 1, end)
        if match and match[2] == uid.encode():
            places[match[3].decode()] = not match[5]
        at = data.find(needle, end)
    return sorted(path for path, live in places.items() if live)


def find_part(root: str, text: str, most: int, *, begins: bool, ends: bool) -> list[str]:
    """The UIDs of series and instances that begin, or end, with ``text`` (digits and dots).

    Looks for no further ones when there are more than ``most``. They may be gone: ``find`` tells.
    """
    part = text.encode("ascii")
    needles = [b'InstanceUID":"' + part] * begins + [part + b'","path":"'] * ends
    found: dict[str, None] = {}
    for shard in SHARDS:
        try:
            with open(os.path.join(root, layout.INSTANCES, shard), "rb") as file:
                data = file.read()
        except OSError:
            continue
        for needle in needles:
            at = data.find(needle)
            while at >= 0 and len(found) <= most:
                end = data.find(b"\n", at)
                end = end if end >= 0 else len(data)
                match = _LINE.fullmatch(data, data.rfind(b"\n", 0, at) + 1, end)
                if match:
                    found[match[2].decode()] = None
                at = data.find(needle, end)
    return list(found)
