"""The command ``stats``. It reads and never writes."""

from __future__ import annotations

from dataclasses import asdict

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, NoMatch
from plainpacs.indexer.output import formats, humanize
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.query.stats import By, Totals, totals

_COUNTS = ("studies", "series", "instances", "bytes")


@click.command()
@click.argument("terms", metavar="[TERM]...", nargs=-1)
@click.option(
    "--by",
    "by_",
    default=By.MONTH.value,
    show_default=True,
    metavar="WHAT,...",
    help="month, modality, sender, or several of them.",
)
@click.option("--stored", metavar="WHEN", help="Of studies last stored then; see `ls`.")
@formats.format_choice("table", "json", "jsonl", "csv")
@click.pass_obj
def stats(
    context: Context,
    /,
    *,
    terms: tuple[str, ...],
    by_: str,
    stored: str | None,
    format_: str | None,
) -> None:
    """Count studies, series, instances and bytes: by month, modality or sender.

    TERMs are those of `ls`: only studies that match are counted, each as a whole. The month is that
    of StudyDate; the sender is the calling AE title, or "import" and "recovered" for what nobody
    sent. A study of two modalities counts as one in each, so studies may add up to more than there
    are. By sender every manifest is read, which takes its time in a large archive.

    \b
    Examples:  plainpacs stats
               plainpacs stats --by modality,sender StudyDate=2024* --format csv
    Example:   plainpacs stats --by sender --stored 7d
    """
    form = formats.chosen(format_)
    by = _by(by_)
    groups = totals(context.archive_path(), parse(terms, stored), by, note)
    names = [one.value for one in by]
    records = [
        {**dict(zip(names, group, strict=True)), **asdict(held)} for group, held in groups.items()
    ]
    if form == "json":
        formats.write_json(map(orjson.dumps, records))
    elif form == "jsonl":
        formats.write_jsonl(map(orjson.dumps, records))
    elif form == "csv":
        formats.write_csv((*names, *_COUNTS), records)
    elif records:
        _write_table(names, groups)
    if not groups:
        raise NoMatch("no study matches" if terms or stored else "no studies here yet")


def _by(text: str) -> list[By]:
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    try:
        found = list(dict.fromkeys(By(name) for name in names))
    except ValueError:
        raise BadQuery(f"--by {text} cannot be: write month, modality or sender") from None
    if not found:
        raise BadQuery("--by names nothing: write month, modality or sender")
    return found


def _write_table(names: list[str], groups: dict[tuple[str, ...], Totals]) -> None:
    from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

    sizes = [humanize.size(held.bytes) for held in groups.values()]
    wide = max(map(len, sizes))
    columns = [
        *(Column(name.capitalize(), 6) for name in names),
        *(Column(name.capitalize(), 6, right=True) for name in _COUNTS[:-1]),
        Column("Size".rjust(wide), wide),
    ]
    rows = [
        [*(value or "-" for value in group), f"{held.studies:,}", f"{held.series:,}",
         f"{held.instances:,}", size.rjust(wide)]
        for (group, held), size in zip(groups.items(), sizes, strict=True)
    ]  # fmt: skip
    formats.write_table(columns, rows)
