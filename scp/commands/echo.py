"""The command ``echo``: whether another application is there."""

from __future__ import annotations

from typing import Any

import click

from plainpacs.indexer.output import formats
from plainpacs.scp.remote import calling
from plainpacs.scp.remote.echo_scu import echo as ask


@click.command()
@click.argument("node")
@click.option(
    "--repeat",
    type=click.IntRange(1, 0xFFFF),
    default=1,
    metavar="N",
    help="Ask so many times, over one association.",
)
@calling.options()
def echo(node: str, repeat: int, as_: str | None, config: str | None, **flags: Any) -> None:
    """Ask NODE whether it is there, by C-ECHO.

    NODE is a name of the settings (see `plainpacs nodes`) or AET@HOST:PORT, with /tls behind it
    for TLS. What fails says at which step: connect, TLS, association, context, status.

    \b
    Example:  plainpacs echo PACS@10.0.0.5:104 --as CT1
    """
    call = calling.calling(node, as_, config, flags)
    associated, *answered = ask(call.node, call.ae_title, call.limits, repeat)
    formats.write_text(
        [f"{call.node} associated with {call.ae_title} in {associated * 1e3:.1f} ms"]
    )
    formats.write_text(f"answered in {seconds * 1e3:.1f} ms" for seconds in answered)
