"""The command ``nodes``: the applications elsewhere that have names, and which of them answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.ae_address import Address
from plainpacs.archive.errors import NoMatch
from plainpacs.indexer.output import formats
from plainpacs.scp.network import remote_aes
from plainpacs.scp.network.requestor import NoAssociation
from plainpacs.scp.remote import calling
from plainpacs.scp.remote.calling import Failed
from plainpacs.scp.remote.echo_scu import echo as ask

_COLUMNS = ("ae_title", "host", "port", "tls", "echo")


@dataclass(frozen=True, slots=True)
class _Row:
    address: Address
    echo: str = ""

    def cells(self) -> list[str]:
        one = self.address
        return [one.ae_title, one.host, str(one.port), one.security.value, self.echo]


@click.command()
@click.option("--echo", "asking", is_flag=True, help="Ask each whether it is there, by C-ECHO.")
@formats.format_choice("table", "json", "jsonl", "csv")
@calling.options()
def nodes(
    asking: bool, format_: str | None, as_: str | None, config: str | None, **flags: Any
) -> None:
    """List the applications elsewhere that the settings name.

    They stand in the TOML file, or in --nodes or PLAINPACS_NODES:

    \b
      [nodes]
      PACS = "10.0.0.5:104"
      WORKSTATION = "ws3.example:2762/tls"

    With --echo the exit status is 1 when one of them does not answer.

    \b
    Example:  plainpacs nodes --echo
    """
    known = remote_aes.known(settings.load(flags, config))
    if not known:
        raise NoMatch("the settings name no node: give --nodes, or a table [nodes] in --config")
    rows = [_Row(one, _asked(str(one), as_, config, flags) if asking else "") for one in known]
    form = formats.chosen(format_)
    if form == "table":
        from plainpacs.indexer.output.table import Column  # rich is slow to load  # noqa: PLC0415

        titles = ("AE title", "Host", "Port", "TLS", "C-ECHO")
        formats.write_table([Column(title) for title in titles], [row.cells() for row in rows])
    elif form == "csv":
        formats.write_csv(_COLUMNS, (dict(zip(_COLUMNS, row.cells(), strict=True)) for row in rows))
    else:
        objects = [
            orjson.dumps({name: value for name, value in _facts(row).items() if value != ""})
            for row in rows
        ]
        (formats.write_json if form == "json" else formats.write_jsonl)(objects)
    if asking and any(row.echo != _WELL for row in rows):
        raise NoMatch("not every node answered")


_WELL = "answered"


def _facts(row: _Row) -> dict[str, object]:
    one = row.address
    return dict(
        zip(
            _COLUMNS,
            (one.ae_title, one.host, one.port, one.security.value, row.echo),
            strict=True,
        )
    )


def _asked(node: str, as_: str | None, config: str | None, flags: dict[str, Any]) -> str:
    try:
        call = calling.calling(node, as_, config, flags)
        list(ask(call.node, call.ae_title, call.limits))
    except (NoAssociation, Failed) as error:
        return f"{error.step}: {error.why}"
    return _WELL
