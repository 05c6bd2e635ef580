"""Tables for people: as wide as the terminal, every cell safe to print.

The last column is what people copy (a UID, a path): it is never cut. Where it leaves too little
room for the others, it moves to a line of its own below them.

Widths are those of a terminal (East Asian wide and combining characters), from rich. Its own
Table is not used: it takes a minute for 100,000 rows, and reads markup in what it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_GAP = "  "
_BELOW = "    "
# Printable by Python's table, but not to be seen: fillers, joiners, Mongolian and Khmer marks.
_UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"
_VARIATIONS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_ODD = re.compile(f"[{_UNSEEN}{_VARIATIONS}]")
_VARIATION = re.compile(f"[{_VARIATIONS}]")


def visible(text: str) -> str:
    """``text`` in which a terminal finds nothing to obey and a reader nothing hidden.

    Control, bidirectional, zero-width and unassigned characters become U+FFFD, blanks of all
    kinds spaces; variation selectors, which only choose a glyph, are left out.

    >>> visible("Doe\\x1b[2J^J\\u202eohn")
    'Doe\\ufffd[2J^J\\ufffdohn'
    """
    if text.isprintable() and (text.isascii() or not _ODD.search(text)):
        return text
    text = _VARIATION.sub("", text)
    return "".join(c if c.isprintable() else _blank(c) for c in _ODD.sub(REPLACEMENT, text))


def _blank(character: str) -> str:
    return (
        " "
        if character in "\u00a0\u1680\u202f\u205f\u3000" or "\u2000" <= character <= "\u200a"
        else REPLACEMENT
    )


@dataclass(frozen=True, slots=True)
class Column:
    """``least``: cells it is not cut below. ``rank``: 0 always shown, the highest goes first."""

    title: str
    least: int = 4
    rank: int = 0
    right: bool = False


def lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None, *, bold: bool
) -> Iterator[str]:
    """The table's lines, the titles first. ``width`` in cells; None: as wide as it wants to be.

    A column that is empty in every row is left out, but for the last.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    natural = [max([cell_len(row[i]) for row in cells], default=0) for i in range(len(columns))]
    shown = [i for i, wide in enumerate(natural) if wide or i == len(columns) - 1]
    wanted = [max(natural[i], cell_len(column.title)) for i, column in enumerate(columns)]
    *others, last = shown
    below = False
    if width is not None:
        room = width - wanted[last] - len(_GAP)
        below = bool(others) and _fit(columns, _kept(columns, others), wanted, room) is None
        while (fitted := _fit(columns, others, wanted, width if below else room)) is None:
            dropped = max(others, key=lambda i: (columns[i].rank, i))
            if columns[dropped].rank == 0 and len(others) == 1:
                fitted = {dropped: max(1, width)}
                break
            others.remove(dropped)
        wanted = [fitted.get(i, wide) for i, wide in enumerate(wanted)]

    titles = [column.title for column in columns]
    on, off = ("\x1b[1m", "\x1b[0m") if bold else ("", "")
    for number, row in enumerate([titles, *cells]):
        line = _GAP.join(_pad(row[i], wanted[i], columns[i].right) for i in others)
        if below:
            line = f"{line.rstrip()}\n{_BELOW if others else ''}{row[last]}"
        elif others:
            line += _GAP + row[last]
        else:
            line = row[last]
        yield on + line.rstrip() + off if number == 0 else line.rstrip()


def _kept(columns: Sequence[Column], indexes: list[int]) -> list[int]:
    return [i for i in indexes if columns[i].rank == 0]


def _fit(
    columns: Sequence[Column], indexes: list[int], wanted: list[int], room: int
) -> dict[int, int] | None:
    """Widths that fit into ``room``, the widest cut first; None when the least do not fit."""
    widths = {i: wanted[i] for i in indexes}
    spare = room - sum(widths.values()) - len(_GAP) * max(0, len(indexes) - 1)
    while spare < 0:
        cuttable = [i for i in indexes if widths[i] > columns[i].least]
        if not cuttable:
            return None
        widest = max(cuttable, key=lambda i: widths[i])
        widths[widest] -= 1
        spare += 1
    return widths


def _pad(text: str, width: int, right: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - length) + text if right else text + " " * (width - length)
