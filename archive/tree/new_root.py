"""Which folder may become an archive: a new or empty one, in no source tree of plainpacs."""

from __future__ import annotations

import logging
import os
import tomllib

from plainpacs.archive.errors import NotAnArchive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_month

log = logging.getLogger(__name__)

_ROOMS = ("archive", "indexer", "scp")
_NOTHING = (layout.INTERNAL, "lost+found")
"""What an interrupted `init` leaves, and what a new file system has."""
_NAMES_SHOWN = 3
_INSTEAD = "Keep the archive elsewhere, for example in ~/dicom"


def refuse_source_tree(path: str) -> None:
    """Raises NotAnArchive for a folder in a source tree of plainpacs: `git clean`, or deleting the
    clone, would delete the archive, and the images could get into a commit or a container."""
    folder, below = os.path.realpath(path), ""
    while folder != below:
        if _is_source_tree(folder):
            raise NotAnArchive(
                f"{path} lies in the source tree of plainpacs ({folder}), where `git clean` "
                f"deletes it. {_INSTEAD}"
            )
        folder, below = os.path.dirname(folder), folder


def refuse_folder_in_use(root: int, path: str) -> None:
    """Raises NotAnArchive when the open folder ``root`` (``path`` is for the words) holds anything
    but the months of an archive, which the log then names."""
    names = sorted(name for name in os.listdir(root) if name not in _NOTHING)
    others = [name for name in names if not is_month(name)]
    if others:
        more = " …" * (len(others) > _NAMES_SHOWN)
        raise NotAnArchive(
            f"{path} is not empty ({', '.join(others[:_NAMES_SHOWN])}{more}). Name a new or an "
            "empty folder; or use --force to make this folder an archive all the same"
        )
    if names:
        log.warning(
            "%s holds the months of an archive (%s to %s) without a marker: it is one again",
            *(path, names[0], names[-1]),
        )


def refuse_package(root: int, path: str) -> None:
    """Raises NotAnArchive when the open folder ``root`` is a Python package."""
    if "__init__.py" in os.listdir(root):
        raise NotAnArchive(f"{path} is a Python package (it has __init__.py). {_INSTEAD}")


def _is_source_tree(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
            named = tomllib.load(file)["project"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    rooms = (os.path.join(folder, room) for room in _ROOMS)
    return bool(named == "plainpacs") and all(map(os.path.isdir, rooms))
