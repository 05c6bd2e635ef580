"""How this program starts processes of its own."""

from __future__ import annotations

import sys


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module``, in the Python that runs this one.

    ``-P``: it imports nothing from the working folder. A file ``orjson.py`` lying where the
    program happens to be started must not run.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
