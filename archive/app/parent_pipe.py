"""What a child of `serve` reads on its standard input: documents of JSON, one a line.

The first says what the child is to do and with which settings, the others what changed since. The
parent holds the other end: when it dies, however, the pipe ends, and so does the child.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any


def begin() -> tuple[Any, Iterator[Any]]:
    """The first document, and the others when they arrive, until the parent is gone.

    Raises SystemExit when it is gone already.
    """
    told = _documents()
    for first in told:
        return first, told
    raise SystemExit(0)


def _documents() -> Iterator[Any]:
    read = b""
    # Not by sys.stdin: a thread within it at the end makes the interpreter's end a crash.
    while got := os.read(0, 1 << 16):
        *lines, read = (read + got).split(b"\n")
        yield from map(json.loads, lines)
