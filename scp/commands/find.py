"""The command ``find``: searching another archive, with the terms and formats of ``ls``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import click

from plainpacs.archive.errors import NoMatch
from plainpacs.indexer.commands.ls import SHOWN
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.output import formats
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.listing import LEVELS, Listing, field_names
from plainpacs.indexer.query.sorting import in_order, sort_keys
from plainpacs.scp.remote import calling
from plainpacs.scp.remote import terms as remote_terms
from plainpacs.scp.remote.find_scu import Finder
from plainpacs.scp.remote.search import search

_FORMATS = ("table", "json", "jsonl", "csv", "uids")


def level_option(
    help_: str, levels: Sequence[str] = tuple(LEVELS)
) -> Callable[[calling.F], calling.F]:
    """Gives a click command ``--level``; it arrives as a key of ``LEVELS``."""
    return click.option(
        "--level",
        type=click.Choice(levels),
        default="study",
        show_default=True,
        help=help_,
    )


@click.command()
@click.argument("node")
@click.argument("terms", metavar="[TERM]...", nargs=-1)
@level_option("What to list.")
@click.option("--sort", metavar="KEY,...", help="In this order; -KEY: from the last to the first.")
@click.option("--fields", metavar="KEY,...", help="Only these, in this order.")
@click.option("--limit", type=click.IntRange(min=1), help="Cancel the search after so many.")
@click.option(
    "--all", "all_", is_flag=True, help=f"On a terminal, list more than the first {SHOWN}."
)
@formats.format_choice(*_FORMATS)
@calling.options()
def find(
    node: str,
    *,
    terms: tuple[str, ...],
    level: str,
    sort: str | None,
    fields: str | None,
    limit: int | None,
    all_: bool,
    format_: str | None,
    as_: str | None,
    config: str | None,
    **flags: Any,
) -> None:
    """List what NODE has, by C-FIND: studies that match every TERM, if any is given.

    NODE is a name of the settings (see `plainpacs nodes`) or AET@HOST:PORT, with /tls behind it
    for TLS. TERMs are those of `plainpacs ls`: words, and KEY=VALUE with *, ?, ranges. What C-FIND
    cannot ask for (a range of counts, several values) is asked for in pieces, or judged here.
    Whether case and accents count is up to the peer. With --level series or instance, words are
    looked for in the studies, and each study that matches is asked for its series.

    Formats: as of `ls`; jsonl prints each match as it comes. uids: the UIDs alone, one a line
    (of patients: their IDs). The order is the peer's, unless --sort is given, which waits for all.

    \b
    Examples:  plainpacs find PACS doe StudyDate=20240101- Modality=CT
               plainpacs find PACS@10.0.0.5:104 PatientID=A12 --level series
               plainpacs pull PACS $(plainpacs find PACS Modality=MR --format uids)
    """
    asked = remote_terms.read(terms, LEVELS[level])
    listing = Listing(
        "",
        asked.level,
        formats.chosen(format_),
        field_names(fields, asked.level) if fields is not None else (),
    )
    keys = sort_keys(sort, asked.level) if sort is not None else ()
    call = calling.calling(node, as_, config, flags)
    if limit is None and listing.form == "table" and formats.on_terminal() and not all_:
        limit = SHOWN
    number = 0

    def counted(records: Iterable[Record]) -> Iterator[Record]:
        nonlocal number
        for number, record in enumerate(islice(records, limit), 1):  # noqa: B007 - told below
            yield record

    with (
        Finder.open(call.node, call.ae_title, call.limits) as finder,
        contextlib.closing(search(finder, asked, listing.fields)) as found,
    ):
        _write(listing, counted(in_order(found, keys, limit) if keys else found))
        more = number == limit and next(found, None) is not None
    if more:
        note(f"cancelled after {limit}: narrow the search, or add --all or a higher --limit")
    if not number:
        raise NoMatch(f"{call.node} has no {level} that matches")


def _write(listing: Listing, records: Iterable[Record]) -> None:
    if listing.form == "jsonl":
        for record in records:  # each as it comes
            if not formats.write_jsonl([listing.line(record)]):
                return
    else:
        listing.write(records)
