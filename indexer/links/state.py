"""What a tree of links knows of itself, in ``.plainpacs-links``, and where one may be.

``tree.json`` says whose links they are and how they are arranged; ``studies.jsonl`` which folder
each study has: the last line for one counts.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import orjson

from plainpacs.archive.errors import NotALinkTree
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_month
from plainpacs.indexer.links.names import By

OWN = ".plainpacs-links"
FACTS = f"{OWN}/tree.json"
STUDIES = f"{OWN}/studies.jsonl"
LOCK = f"{OWN}/lock"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Linked:
    """A study that has links. ``facts``: what its part of the archive looked like when they were
    made, empty when that is not known, as while they are being made."""

    folder: str
    facts: str = ""


@dataclass(slots=True)
class Facts:
    """``tree.json``. ``archive``: the way from DIR to ROOT; ``before``: other ways that links may
    still lead, as the tree or the archive was moved since they were made."""

    by: By
    archive: str
    before: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: int) -> Facts | None:
        """None when there is none. Raises ValueError, OSError."""
        data = durable.read_file(FACTS, folder=folder)
        if data is None:
            return None
        found: Any = orjson.loads(data)
        try:
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            return cls(By(found["by"]), str(found["archive"]), list(map(str, found["before"])))
        except (LookupError, TypeError) as error:
            raise ValueError("something is lacking") from error

    def write(self, folder: int) -> None:
        """Durably, in the open tree. Raises OSError."""
        facts = {"format": _FORMAT, "by": self.by.value, "archive": self.archive}
        replace(folder, FACTS, orjson.dumps({**facts, "before": self.before}) + b"\n")


def line_of(study: str, linked: Linked) -> bytes:
    """The study's line in ``studies.jsonl``, newline included."""
    line = {"StudyInstanceUID": study, "folder": linked.folder, "facts": linked.facts}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def read_studies(folder: int) -> dict[str, Linked]:
    """What ``studies.jsonl`` of the open tree says, by StudyInstanceUID. Raises OSError."""
    found: dict[str, Linked] = {}
    for raw in (durable.read_file(STUDIES, folder=folder) or b"").split(b"\n"):
        try:
            line: Any = orjson.loads(raw)
            linked = Linked(str(line["folder"]), str(line["facts"]))
        except (ValueError, LookupError, TypeError):
            continue  # torn by a crash
        # Two names, neither of which leads anywhere else.
        if linked.folder.count("/") == 1 and not {"", ".", ".."} & {*linked.folder.split("/")}:
            found[str(line["StudyInstanceUID"])] = linked
    return found


def replace(folder: int, path: str, data: bytes) -> None:
    """Puts ``data`` at ``path`` in the open tree, at once and for good. Raises OSError."""
    temporary = new_name()
    fd = durable.create(temporary, folder=folder)
    try:
        durable.write_all(fd, [data])
        durable.sync_file(fd)
    finally:
        os.close(fd)
    durable.rename(temporary, path, folder=folder, to_folder=folder)
    durable.settle_folder(folder, OWN)


def new_name() -> str:
    """A new name for what is not finished."""
    return f"{OWN}/new.{os.urandom(6).hex()}"


# --- where a tree may be --------------------------------------------------------------------------


def refuse_place(path: str) -> None:
    """Raises NotALinkTree where links would lie among an archive's own files, or another tree's."""
    whole = os.path.realpath(path)
    if os.path.lexists(os.path.join(whole, layout.MARKER)):
        raise NotALinkTree(f"{path} is an archive; name a folder of its own for the links")
    above, name = os.path.split(whole)
    while name:
        if os.path.lexists(os.path.join(above, OWN)):
            raise NotALinkTree(f"{path} lies in another tree of links, {above}; name another")
        if os.path.lexists(os.path.join(above, layout.MARKER)) and (
            is_month(name) or name == layout.INTERNAL
        ):
            raise NotALinkTree(
                f"{path} lies in {name}, among the files of the archive {above}; name a folder "
                "beside those, or outside"
            )
        above, name = os.path.split(above)


def begin(path: str, folder: int, make: By | None) -> None:
    """Sees to it that the folder is a tree, or an empty one becomes one. Raises NotALinkTree."""
    names = os.listdir(folder)
    if OWN in names:
        return
    if make is None:
        raise NotALinkTree(f"{path} is no tree of links")
    if names:
        raise NotALinkTree(
            f"{path} is not empty, and no tree of links: name a new folder, or an empty one"
        )
    with contextlib.suppress(FileExistsError):
        durable.make_folder(OWN, 0o700, folder=folder)


def facts_of(path: str, folder: int) -> Facts | None:
    """What ``tree.json`` says; None when there is none. Raises NotALinkTree."""
    try:
        return Facts.read(folder)
    except ValueError as error:
        raise NotALinkTree(
            f"{path}/{FACTS} cannot be used ({error}): delete the whole folder, then make it anew"
        ) from None


def refuse_another(path: str, root: str, facts: Facts) -> None:
    """A way that leads to another archive was not ours. Raises NotALinkTree."""
    for way in facts.before:
        other = os.path.join(path, way)
        if os.path.lexists(os.path.join(other, layout.MARKER)) and not os.path.samefile(
            other, root
        ):
            raise NotALinkTree(f"{path} has the links of another archive, {other}; name another")
