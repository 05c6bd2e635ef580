"""The command ``hooks``: of the user's commands, those that wait and those that failed for good."""

from __future__ import annotations

import os

import click

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import StorageUnavailable
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.indexer.hooks.journal import HookJournal, Kind
from plainpacs.indexer.output import formats, naming


@click.command()
@naming.optional
@click.option("--retry", is_flag=True, help="Have what failed for good tried again.")
@click.pass_obj
def hooks(context: Context, /, *, named: tuple[str, ...], last: bool, retry: bool) -> None:
    """Show pending and failed hook commands (--on-study-settled and --on-instance of `serve`).

    Of all studies, or of those that are named: by UID, by the beginning or end of one (4 characters
    or more), or by TERMs as of `ls`.

    With --retry, what failed for good is tried again by the `serve` that runs, or that is started
    next.

    Example:  plainpacs hooks --retry -a /srv/dicom
    """
    path = context.archive_path()
    root = open_root(path)
    try:
        wanted = {one.uid for one in naming.some(path, named, last=last)} if named or last else None
        book = HookJournal(root)
        lines = []
        for kind, study in book.failed():
            if wanted is not None and study[1] not in wanted:
                continue
            if retry:
                book.try_again(kind, study)
            else:
                lines.append(_line("failed", kind, study))
        for kind in Kind:
            lines += [
                _line("waiting", kind, study)
                for study in sorted(book.waiting(kind))
                if wanted is None or study[1] in wanted
            ]
    except OSError as error:
        raise StorageUnavailable(f"cannot use {layout.HOOKS} in {path}: {error.strerror}") from None
    finally:
        os.close(root)
    formats.write_text(lines)


def _line(state: str, kind: Kind, study: tuple[str, str]) -> str:
    return f"{state:<9}{kind.value:<10}{'/'.join(study)}"
