"""How a command is told which studies, series and instances it is about.

``options`` gives a command the argument and ``--last``; they are passed on to ``study``, ``one`` or
``some``. Several that may be meant are listed, and NoMatch is raised (exit status 1).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import click
import orjson

from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Named
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note

F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """Gives a click command the arguments ``named`` and the flag ``last``, of which it gets one."""
    return _with(command, "UID|TERM...", required=True)


def optional(command: F) -> F:
    """The same for a command that means everything when nothing is named."""
    return _with(command, "[UID|TERM]...", required=False)


def _with(command: F, metavar: str, *, required: bool) -> F:
    @functools.wraps(command)
    def checked(*args: Any, named: tuple[str, ...], last: bool, **others: Any) -> Any:
        if required or last:
            check(named, last=last)
        return command(*args, named=named, last=last, **others)

    argument = click.argument("named", metavar=metavar, nargs=-1)
    return cast("F", _last_option(argument(checked)))


_last_option = click.option("--last", is_flag=True, help="The study that came last.")


def check(named: Sequence[str], *, last: bool) -> None:
    """Raises UsageError unless studies are named in one of the two ways."""
    if named and last:
        raise click.UsageError("--last names a study itself: leave the rest out")
    if not (named or last):
        raise click.UsageError("Missing argument 'UID|TERM...': which study? (or --last)")


def level_option(command: F) -> F:
    """Gives a click command ``level``, for ``one`` and ``some``."""
    return click.option(
        "--level",
        type=click.Choice(lookup.LEVELS),
        help="What the UIDs are of.  [a study, else a series, else an instance]",
    )(command)


def study(root: str, named: Sequence[str], *, last: bool) -> str:
    """The UID of the one study that is meant. Raises NoMatch, BadQuery."""
    uid: str = "" if last or len(named) > 1 else named[0].strip()
    if not (is_name(uid) and lookup.months_of(root, uid)):
        with _resolving() as resolve:
            uid = resolve.last(root, note).uid if last else resolve.study(root, named, note)
    return uid


def one(root: str, named: Sequence[str], *, last: bool, level: str | None = None) -> Named:
    """The one study, series or instance that is meant. Raises NoMatch, BadQuery."""
    if not last and len(named) == 1 and (whole := lookup.named(root, named[0], note, level)):
        return whole
    with _resolving() as resolve:
        if last:
            found: Named = resolve.last(root, note)
        else:
            found = resolve.one(root, named, note, level=level)
    return found


def some(root: str, named: Sequence[str], *, last: bool, level: str | None = None) -> list[Named]:
    """All that is meant. Raises NoMatch when something of it is not there; BadQuery."""
    if last:
        return [one(root, named, last=last)]
    meant, unknown = found(root, named, level=level)
    if unknown:
        raise NoMatch(f"no study, series or instance {', '.join(unknown)} here")
    return meant


def found(
    root: str,
    named: Sequence[str],
    *,
    elsewhere: Callable[[], Collection[str]] = tuple,
    whole: bool = False,
    level: str | None = None,
) -> tuple[list[Named], list[str]]:
    """All that is meant, and the UIDs of which there is nothing; see ``resolve.some``."""
    with _resolving() as resolve:
        meant = resolve.some(root, named, note, elsewhere=elsewhere, whole=whole, level=level)
    return meant.named, meant.unknown


def targets(named: Iterable[Named]) -> list[Target]:
    """Where they lie."""
    found = (Target.at(place) for one_ in named for place in one_.places)
    return [target for target in found if target]


def among(text: str, *groups: Collection[str]) -> list[str]:
    """See ``resolve.among``."""
    with _resolving() as resolve:
        uids: list[str] = resolve.among(text, *groups)
    return uids


def confirm(question: str, otherwise: str) -> None:
    """Ends the command (exit status 1) unless a person says yes. Raises UsageError where nobody can
    be asked, with the words ``otherwise`` to add."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"nobody to ask here: add {otherwise}")
    if not click.confirm(question, err=True):
        note("nothing was changed")
        sys.exit(1)


@contextlib.contextmanager
def _resolving() -> Iterator[Any]:
    """Gives the module ``resolve``, which a whole UID does without: it takes a while to load."""
    from plainpacs.indexer.query import resolve  # noqa: PLC0415 - as just said

    try:
        yield resolve
    except resolve.Ambiguous as several:
        _list(several.candidates)
        raise NoMatch(str(several)) from None


def _list(candidates: Sequence[Named]) -> None:
    """One line each on standard error, with what tells them apart where a person reads it."""
    if not sys.stderr.isatty():
        for one_ in candidates:
            note(one_.uid)
        return
    # rich is slow to load
    from plainpacs.indexer.output import columns  # noqa: PLC0415

    width = formats.terminal_width(sys.stderr)
    records = [orjson.loads(one_.line) if one_.line else {} for one_ in candidates]
    for line in columns.brief([one_.uid for one_ in candidates], records, width):
        note(line)
