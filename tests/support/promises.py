"""What holds of an archive after anything happened to it, checked on the tree itself.

Instances are told apart by the digest of their data set, found here without the code under test.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.service.indexer import Indexer
from tests.crash.recovery import quick_folder
from tests.support.archives import left_behind, tree

KEPT_ASIDE = (".plainpacs/conflicts", ".plainpacs/trash")


def digest_of(data_set: bytes) -> str:
    """By which an instance is known here."""
    return hashlib.sha256(data_set).hexdigest()


def data_set_of(file: bytes) -> bytes:
    """What follows the File Meta Information (PS3.10 7.1); all of it when there is none."""
    if file[128:132] != b"DICM" or file[132:138] != b"\2\0\0\0UL":
        return file
    return file[144 + int.from_bytes(file[140:144], "little") :]


def in_tree(root: str | Path) -> dict[str, str]:
    """The digest of the data set of every ``.dcm`` file, by its path relative to ROOT."""
    return {
        str(path.relative_to(root)): digest_of(data_set_of(path.read_bytes()))
        for path in sorted(Path(root).rglob("*.dcm"))
    }


def kept_aside(root: str | Path) -> dict[str, str]:
    """The same of what lies in ``conflicts`` and ``trash``."""
    return {
        str(path.relative_to(root)): digest_of(data_set_of(path.read_bytes()))
        for top in KEPT_ASIDE
        for path in sorted(Path(root, top).rglob("*"))
        if path.is_file() and path.suffix not in (".jsonl", ".json")
    }


def derived(root: str | Path) -> dict[str, str]:
    """Every derived file but ``seen``, with a digest."""
    return {
        name: digest
        for name, digest in tree(root, internal=True).items()
        if name.endswith(("/study.json", "/studies.jsonl"))
        or name.startswith(".plainpacs/instances/")
    }


def delete_derived(root: str | Path) -> None:
    for name in derived(root):
        Path(root, name).unlink()
    for folder in ("seen", "pending", "instances"):
        shutil.rmtree(Path(root, ".plainpacs", folder), ignore_errors=True)


def recover(root: str | Path) -> None:
    """What a start of the service does, until nothing is left to do."""
    with Archive.open(str(root)):
        pass
    with Indexer.open(str(root)) as indexer:
        indexer.once()


def compact(root: str | Path) -> None:
    """Brings all that is appended to into the form that a rebuild makes."""
    fd = open_root(str(root))
    try:
        for month in catalogue.months(str(root)):
            catalogue.compact(fd, month)
        for shard in instance_shards.SHARDS:
            instance_shards.compact(fd, shard)
    finally:
        os.close(fd)


def check(
    root: str | Path, *, acknowledged: Collection[str], known: Collection[str], why: str = ""
) -> None:
    """Every promise, on an archive at rest after ``recover``; ``why`` is what happened to it.

    ``acknowledged``: the digests of what must be kept, ``known``: of all that may be.
    """
    check_tree(root, acknowledged=acknowledged, known=known, why=why)
    assert left_behind(root) == [], f"{why}: incoming is not cleared"
    internal = Path(root, ".plainpacs")
    assert not list(internal.glob("dirty.*")), f"{why}: still dirty"
    for folder in ("pending", "indexing"):
        assert os.listdir(internal / folder) == [], f"{why}: {folder} is not done with"
    before = _without_seen(root)
    recover(root)
    assert _without_seen(root) == before, f"{why}: a second recovery changes something"
    compact(root)
    differ = {name for name, _ in set(_rebuilt(root).items()) ^ set(derived(root).items())}
    assert not differ, f"{why}: not as a fresh rebuild makes them: {sorted(differ)}"


_REBUILDS: dict[frozenset[tuple[str, str]], dict[str, str]] = {}


def _rebuilt(root: str | Path) -> dict[str, str]:
    """``derived`` as a fresh rebuild makes it, which is the same for the same instances and lines
    and made once for them."""
    made_from = frozenset(
        (name, digest)
        for name, digest in tree(root).items()
        if not name.endswith(("/study.json", "/studies.jsonl"))
    )
    months = (name for name in os.listdir(root) if "." not in name)  # a month may hold nothing
    made_from |= {(name, "") for name in months}
    if made_from not in _REBUILDS:
        with quick_folder() as folder:
            copy = f"{folder}/copy"
            subprocess.run(["cp", "-a", str(root), copy], check=True)
            delete_derived(copy)
            with Indexer.open(copy) as indexer:
                indexer.once(full=True)
            _REBUILDS[made_from] = derived(copy)
    return _REBUILDS[made_from]


def check_tree(
    root: str | Path, *, acknowledged: Collection[str], known: Collection[str], why: str = ""
) -> None:
    """What holds at any moment, without a recovery: nothing lost, nothing partial."""
    visible, aside = in_tree(root), kept_aside(root)
    for name, digest in (*visible.items(), *aside.items()):
        assert digest in known, f"{why}: {name} is not what was sent"
    inside = [name for name in visible if name.startswith(".plainpacs/")]
    assert not inside, f"{why}: looks like an instance of the tree: {inside}"
    lost = set(acknowledged) - set(visible.values()) - set(aside.values())
    assert not lost, f"{why}: {len(lost)} acknowledged instances are lost"


def _without_seen(root: str | Path) -> dict[str, str]:
    found = tree(root, internal=True)
    return {name: digest for name, digest in found.items() if "/seen/" not in name}
