"""The command ``web``: the archive in a browser."""

from __future__ import annotations

from typing import Any

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.extras import how_to_install
from plainpacs.archive.app.parent_pipe import begin
from plainpacs.archive.errors import PlainpacsError

PORT = 8042


@click.command()
@click.argument("root", metavar="[ROOT]", required=False)
@click.option("--port", metavar="PORT", help=f"Port to listen on.  [{PORT}]")
@click.option("--bind", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]")
@click.option("--parent-pipe", is_flag=True, hidden=True, help="A child of serve.")
@settings.options(
    *("web_users", "web_hosts", "web_user_header", "web_proxies", "web_origins", "web_open"),
    *("ohif", "web_stow", "sync", "digest", "reserve", "on_conflict", "node"),
    *("tls_cert", "tls_key", "log_level", "log_format"),
)
@click.pass_obj
def web(
    context: Context,
    /,
    root: str | None,
    *,
    port: str | None,
    bind: str | None,
    parent_pipe: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Show the archive ROOT in a browser: a list of studies, their images, and DICOMweb.

    Reads only, unless --web-stow, and works on a read-only copy. `plainpacs serve --web PORT`
    starts it beside the receiver.

    Only this machine can open the page, unless --bind names another address; that takes
    --web-users FILE with names and passwords (htpasswd -B -c FILE NAME), or --web-open.

    Needs the extra [web]; without it, the command says how to install it.

    \b
    Example:  plainpacs web -a /srv/dicom
    """
    told = None
    if parent_pipe:
        given, told = begin()
        chosen = settings.from_document(given["settings"])
    else:
        asked = {**flags, "web": port, "web_bind": bind}
        chosen = settings.load(asked, config)
        if chosen.web is None:
            chosen = settings.load({**asked, "web": str(PORT)}, config)
    path = context.archive_path(root)
    try:
        from plainpacs.scp.web import server  # an extra, and slow to load  # noqa: PLC0415
    except ImportError as error:
        words = f"the web server needs {error.name}: {how_to_install('web')}"
        raise PlainpacsError(words) from None
    server.serve(path, chosen, told)
