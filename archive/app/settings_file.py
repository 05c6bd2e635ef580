"""The TOML file of settings: where it is looked for when none is named, and what it says."""

from __future__ import annotations

import contextlib
import os
import tomllib
from typing import Any

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadSettings, NotAnArchive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import find_archive

FILE = "plainpacs.toml"


def default_files() -> list[str]:
    """Where a file of settings is looked for when none is named: in the archive that the running
    command is about, then in the folder of the user's configurations."""
    files = [os.path.join(click.get_app_dir("plainpacs"), FILE)]
    running = click.get_current_context(silent=True)
    if running:
        named = running.params.get("root") or running.ensure_object(Context).archive
        with contextlib.suppress(NotAnArchive):
            files.insert(0, os.path.join(find_archive(named), layout.INTERNAL, FILE))
    return files


def found() -> str | None:
    """The first of ``default_files`` that there is. Raises BadSettings for a file of somebody else:
    settings name commands that are run."""
    path = next(filter(os.path.exists, default_files()), None)
    if path is None:
        return None
    owner = os.stat(path).st_uid
    if owner not in (0, os.getuid()):
        raise BadSettings(
            f"{path} belongs to another user ({owner}); change its owner, or name it with --config"
        )
    return path


def read(path: str) -> dict[str, Any]:
    """What it says. Raises BadSettings."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadSettings(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"the configuration {path} is not TOML: {error}") from None
