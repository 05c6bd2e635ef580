"""The command ``links``: a tree of links named for people."""

from __future__ import annotations

import os
import sys

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import NoMatch, StorageUnavailable
from plainpacs.indexer.links import update
from plainpacs.indexer.links.names import By
from plainpacs.indexer.output.formats import note


@click.command()
@click.argument("directory", metavar="[DIR]", required=False)
@click.option(
    "--by",
    type=click.Choice([by.value for by in By]),
    help="What the folders at the top are.  [patient; a tree that is there: as it is]",
)
@click.option("--full", is_flag=True, help="Look into every study, also where nothing changed.")
@click.option("--remove", is_flag=True, help="Take the links away again, and forget the tree.")
@click.pass_obj
def links(
    context: Context,
    /,
    *,
    directory: str | None,
    by: str | None,
    full: bool,
    remove: bool,
) -> None:
    """Keep a tree of symbolic links to the instances, named for people, in DIR.

    \b
      Doe, Jane [P1]/2024-01-15 CT chest/03 lung/0001.dcm             --by patient
      2024-01/2024-01-15 Doe, Jane [P1] CT chest/03 lung/0001.dcm     --by date
      A77 Doe, Jane [P1]/2024-01-15 CT chest/03 lung/0001.dcm         --by accession

    DIR is a new or empty folder, or one that this command made; run it again, from a timer say, and
    it changes what changed in the archive. Without DIR it sees to every tree that it made before.
    Names that are equal, or that some file system takes for equal, have ~ and a digest at their
    end. Only links that it made are ever taken away, and folders that are empty then.

    The links are relative: DIR and the archive may be moved together. There are names of patients
    in DIR; `plainpacs rm --purge` takes the links of what it erases away.

    \b
    Example:  plainpacs links ~/by-patient
    """
    root = context.archive_path()
    if remove and (by or full or not directory):
        raise click.UsageError("--remove needs DIR and nothing else")
    paths = [directory] if directory else update.known(root)
    if not paths:
        raise NoMatch("no trees of links are known here; make one with: plainpacs links DIR")
    if not directory and by:
        raise click.UsageError("--by needs DIR")
    blocked = False
    for path in paths:
        if not directory and not os.path.isdir(path):
            note(f"{path} is not there; forget it with: plainpacs links --remove {path}")
            continue
        try:
            if remove:
                _remove(root, path)
            else:
                done = update.update(root, path, note, by=By(by) if by else None, full=full)
                blocked |= _say(path, done)
        except OSError as error:
            raise StorageUnavailable(
                f"cannot keep links in {path}: {error.strerror or error}"
            ) from error
    sys.exit(1 if blocked else 0)


def _say(path: str, done: update.Done) -> bool:
    note(
        f"{path}: {done.studies:,} {'study' if done.studies == 1 else 'studies'}, "
        f"{done.changed:,} linked anew, {done.removed:,} taken away"
    )
    for one in done.in_the_way:
        note(f"something else is in the way: {os.path.join(path, one)}")
    return bool(done.in_the_way)


def _remove(root: str, path: str) -> None:
    if update.remove(root, path, note):
        note(f"{path}: every link is gone")
    else:
        note(f"{path}: every link is gone; what others put there stays")
