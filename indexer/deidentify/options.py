"""What commands that hand out instances have in common: `--deidentify`, and with what key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from plainpacs.archive.errors import BadSettings
from plainpacs.indexer.deidentify.instance import Deidentifier
from plainpacs.indexer.deidentify.pixels import UNCLEANED
from plainpacs.indexer.deidentify.profile import OPTIONS, Profile
from plainpacs.indexer.deidentify.pseudonyms import Pseudonyms, default_path, load_key

F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """Gives a click command the three that ``deidentifier`` takes."""
    for option in (
        click.option(
            "--uncleaned",
            multiple=True,
            type=click.Choice(sorted(UNCLEANED)),
            help="With --deidentify: include what cannot be cleaned: "
            + "; ".join(f"`{kind}` are {words}" for kind, words in UNCLEANED.items())
            + ".",
        ),
        click.option(
            "--key",
            "key_file",
            metavar="FILE",
            help="With --deidentify: the key of the pseudonyms. A missing file gets a new key."
            "  [~/.config/plainpacs/deidentify.key]",
        ),
        click.option(
            "--deidentify",
            metavar="[=PROFILE]",
            is_flag=False,
            flag_value="basic",
            help="Remove what says who the patient is, by PS3.15 Annex E. PROFILE: `basic`, or "
            f"options to add to it with commas between: {', '.join(OPTIONS)}.",
        ),
    ):
        command = option(command)
    return command


def deidentifier(
    profile: str | None,
    key_file: str | None,
    uncleaned: tuple[str, ...],
    note: Callable[[str], None],
) -> Deidentifier | None:
    """From what the user gave; None without `--deidentify`. Raises BadSettings."""
    if profile is None:
        if key_file is not None or uncleaned:
            raise BadSettings("--key and --uncleaned need --deidentify")
        return None
    chosen = Profile.parse(profile)
    path = key_file or default_path()
    key, is_new = load_key(path)
    if is_new:
        note(f"a new key is in {path}: keep it, other pseudonyms come from any other")
    return Deidentifier(chosen, Pseudonyms(key), frozenset(uncleaned))
