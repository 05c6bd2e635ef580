"""A command at a terminal of 80 columns, and every line that its user saw."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

_ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


def seen(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Its exit status, what stood on the screen at last, and every line that ever stood there."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "LINES": "200", "TERM": "xterm"}
    command = [sys.executable, "-m", "plainpacs", *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            break
        if not more:
            break
        data += more
    os.close(ours)
    code = process.wait()
    return code, *_screen(data.decode())


def _screen(text: str) -> tuple[list[str], list[str]]:
    lines, row, column, ever = [""], 0, 0, dict[str, None]()
    at = 0
    while at < len(text):
        character = text[at]
        if match := _ESCAPE.match(text, at):
            number, kind = match[1], match[2]
            count = int(number) if number.isdigit() else 1
            if kind == "A":
                row = max(0, row - count)
            elif kind == "B":
                row += count
            elif kind == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            at = match.end()
        elif character == "\r":
            column, at = 0, at + 1
        elif character == "\n":
            ever[lines[row]] = None
            row, at = row + 1, at + 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            ever[lines[row]] = None
            column, at = column + 1, at + 1
    return lines, list(ever)
