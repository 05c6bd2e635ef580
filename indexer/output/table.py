"""Tables for people: as wide as the terminal, every cell safe to print.

The last column is what people copy (a UID, a path): it is never cut. Where it leaves too little
room for the others, it moves to a line of its own below them.

Widths are those of a terminal (East Asian wide and combining characters), from rich. Its own
Table is not used: it takes a minute for 100,000 rows, and reads markup in what it prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from plainpacs.indexer.output.printable import visible

__all__ = ["Column", "lines", "visible"]

_GAP = "  "
_BELOW = "    "


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
    titles = [column.title for column in columns]
    cells = [titles, *([visible(cell) for cell in row] for row in rows)]
    wanted = [max(cell_len(row[i]) for row in cells) for i in range(len(columns))]
    last = len(columns) - 1
    filled = [i for i in range(last) if any(row[i] for row in cells[1:])]
    widths, below = _layout(columns, filled, wanted, width)
    on, off = ("\x1b[1m", "\x1b[0m") if bold else ("", "")
    for number, row in enumerate(cells):
        line = [_pad(row[i], widths[i], columns[i].right) for i in widths]
        parts = [_GAP.join(line), _BELOW + row[last]] if below else [_GAP.join([*line, row[last]])]
        for part in parts:
            yield on + part.rstrip() + off if number == 0 else part.rstrip()


def _layout(
    columns: Sequence[Column], filled: list[int], wanted: list[int], width: int | None
) -> tuple[dict[int, int], bool]:
    """The widths of the columns shown but for the last, and whether that goes below them."""
    if width is None or not filled:
        return {i: wanted[i] for i in filled}, False
    room = width - wanted[-1] - len(_GAP)
    always = [i for i in filled if columns[i].rank == 0]
    below = _fit(columns, always, wanted, room) is None
    if below:
        room = width
    shown = list(filled)
    while (widths := _fit(columns, shown, wanted, room)) is None:
        if len(shown) == 1:
            return {shown[0]: max(1, room)}, below
        shown.remove(max(shown, key=lambda i: (columns[i].rank, i)))
    return widths, below


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
