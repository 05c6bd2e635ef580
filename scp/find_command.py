"""The command ``find``: searching another archive, with the terms and formats of ``ls``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import click
import orjson

from plainpacs.archive.attributes import Level
from plainpacs.archive.errors import NoMatch
from plainpacs.indexer import output, readable
from plainpacs.indexer.merging import Record
from plainpacs.indexer.output import note
from plainpacs.scp import calling, remote_terms
from plainpacs.scp.asking import Finder
from plainpacs.scp.remote_search import FIELDS, UNIQUE, search

SHOWN = 50
"""Records in a table on a terminal, unless ``--all`` or ``--limit``."""

LEVELS = {
    "patient": Level.PATIENT,
    "study": Level.STUDY,
    "series": Level.SERIES,
    "instance": Level.INSTANCE,
}
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
@click.option("--limit", type=click.IntRange(min=1), help="Cancel the search after so many.")
@click.option(
    "--all", "all_", is_flag=True, help=f"On a terminal, list more than the first {SHOWN}."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    help="How to print.  [a table on a terminal, jsonl elsewhere]",
)
@calling.options()
def find(
    node: str,
    *,
    terms: tuple[str, ...],
    level: str,
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
    (of patients: their IDs).

    \b
    Examples:  plainpacs find PACS doe StudyDate=20240101- Modality=CT
               plainpacs find PACS@10.0.0.5:104 PatientID=A12 --level series
               plainpacs pull PACS $(plainpacs find PACS Modality=MR --format uids)
    """
    form = output.chosen(format_)
    asked = remote_terms.read(terms, LEVELS[level])
    call = calling.calling(node, as_, config, flags)
    if limit is None and form == "table" and output.on_terminal() and not all_:
        limit = SHOWN
    number = 0

    def counted(records: Iterable[Record]) -> Iterator[Record]:
        nonlocal number
        for number, record in enumerate(islice(records, limit), 1):  # noqa: B007 - told below
            yield record

    with (
        Finder.open(call.node, call.ae_title, call.limits) as finder,
        contextlib.closing(search(finder, asked)) as found,
    ):
        _write(counted(found), asked.level, form)
        more = number == limit and next(found, None) is not None
    if more:
        note(f"cancelled after {limit}: narrow the search, or add --all or a higher --limit")
    if not number:
        raise NoMatch(f"{call.node} has no {level} that matches")


def _write(records: Iterable[Record], level: Level, form: str) -> None:
    if form == "jsonl":
        for record in records:
            output.write_jsonl([_json(record)])
    elif form == "uids":
        for record in records:
            output.write_paths([str(record.get(UNIQUE[level], ""))])
    elif form == "json":
        output.write_json([_json(record) for record in records])
    elif form == "csv":
        output.write_csv(columns(level), records)
    else:
        _write_table(list(records), level)


def _json(record: Record) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def columns(level: Level) -> list[str]:
    """The fixed columns of csv: what is asked for at this level, and the UIDs of those above."""
    above = {
        Level.SERIES: [UNIQUE[Level.STUDY]],
        Level.INSTANCE: [UNIQUE[Level.STUDY], UNIQUE[Level.SERIES]],
    }
    return [*above.get(level, []), *FIELDS[level]]


_Show = Callable[[Record], str]


def _plain(keyword: str) -> _Show:
    return lambda record: readable.text(record, keyword)


def _date(keyword: str) -> _Show:
    return lambda record: readable.date(record.get(keyword))


_PATIENT: Mapping[str, _Show] = {
    "Patient": lambda record: readable.person_name(record.get("PatientName")),
    "ID": _plain("PatientID"),
}
_TABLES: Mapping[Level, Mapping[str, _Show]] = {
    Level.PATIENT: {
        "Patient": _PATIENT["Patient"],
        "Born": _date("PatientBirthDate"),
        "Sex": _plain("PatientSex"),
        "Issuer": _plain("IssuerOfPatientID"),
        "ID": _PATIENT["ID"],
    },
    Level.STUDY: {
        "Date": _date("StudyDate"),
        "Time": lambda record: readable.time_of_day(record.get("StudyTime")),
        **_PATIENT,
        "Mod.": lambda record: readable.text(record, "ModalitiesInStudy").replace(", ", "/"),
        "Description": _plain("StudyDescription"),
        "Acc. no.": _plain("AccessionNumber"),
        "Inst.": _plain("NumberOfStudyRelatedInstances"),
        "StudyInstanceUID": _plain("StudyInstanceUID"),
    },
    Level.SERIES: {
        "Date": _date("StudyDate"),
        **_PATIENT,
        "No.": _plain("SeriesNumber"),
        "Mod.": _plain("Modality"),
        "Description": _plain("SeriesDescription"),
        "Body part": _plain("BodyPartExamined"),
        "Inst.": _plain("NumberOfSeriesRelatedInstances"),
        "SeriesInstanceUID": _plain("SeriesInstanceUID"),
    },
    Level.INSTANCE: {
        **_PATIENT,
        "Series": _plain("SeriesNumber"),
        "No.": _plain("InstanceNumber"),
        "Image": lambda r: "x".join(readable.text(r, k) for k in ("Columns", "Rows") if k in r),
        "SOPInstanceUID": _plain("SOPInstanceUID"),
    },
}
_RIGHT = ("Inst.", "No.", "Series")
_RANKS = {"Time": 4, "Description": 1, "Acc. no.": 3, "Body part": 2, "Image": 2, "Issuer": 3}


def _write_table(records: list[Record], level: Level) -> None:
    if not records:
        return
    from plainpacs.indexer.table import Column  # rich is slow to load  # noqa: PLC0415

    shown = _TABLES[level]
    titles = [Column(title, rank=_RANKS.get(title, 0), right=title in _RIGHT) for title in shown]
    output.write_table(titles, [[show(record) for show in shown.values()] for record in records])
