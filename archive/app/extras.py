"""How to install what is optional, in the words of an error."""

from __future__ import annotations

import shlex


def how_to_install(extra: str) -> str:
    """A command that installs ``extra`` from where plainpacs itself was installed: its folder or
    file, or its repository (``direct_url.json`` of PEP 610), else the package index.
    """
    import importlib.metadata  # noqa: PLC0415 - for an error alone
    import json  # noqa: PLC0415 - for an error alone
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - for an error alone

    wanted = f"plainpacs[{extra}]"
    try:
        told = importlib.metadata.distribution("plainpacs").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        told = None
    if told:
        origin = json.loads(told)
        url = str(origin["url"])
        if "vcs_info" in origin:
            wanted += f" @ {origin['vcs_info']['vcs']}+{url}"
        elif url.startswith("file:"):
            wanted = f"{unquote(urlsplit(url).path)}[{extra}]"
        else:
            wanted += f" @ {url}"
    return f"pip install {shlex.quote(wanted)}"
