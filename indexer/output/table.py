"""Tables for people: as wide as the terminal, every cell safe to print.

Where there is too little room, UIDs are shortened first, from the left, as it is their ends that
tell them apart (and that commands take); then the widest of the other columns; then columns are
left out. A wider terminal never shows fewer of them.

Widths are those of a terminal (East Asian wide and combining characters), from rich. Its own
Table is not used: it takes a minute for 100,000 rows, and reads markup in what it prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from plainpacs.indexer.output.printable import visible

__all__ = ["DATE", "DATE_TIME", "Column", "lines", "visible"]

DATE, DATE_TIME = 10, 16
"""The ``least`` of dates and times, which are never cut."""

_GAP = "  "
_BELOW = "    "
_LEAST_UID, _MOST_UID = 10, 20


@dataclass(frozen=True, slots=True)
class Column:
    """``least``: cells it is not cut below. ``rank``: the highest is left out first.

    ``uid``: shortened from the left, and first, to 10 cells, or 20 where they are alike up to that.
    ``whole``, of the last column: what people copy, or a sentence. It is never cut; where it does
    not fit beside all others, it moves below them.
    """

    title: str
    least: int = 4
    rank: int = 0
    right: bool = False
    uid: bool = False
    whole: bool = False


def lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None, *, bold: bool
) -> Iterator[str]:
    """The table's lines, the titles first. ``width`` in cells; None: as wide as it wants to be.

    A column that is empty in every row is left out, but for a last one of UIDs.
    """
    titles = [column.title for column in columns]
    cells = [titles, *([visible(cell) for cell in row] for row in rows)]
    wanted = [max(cell_len(row[i]) for row in cells) for i in range(len(columns))]
    last = len(columns) - 1
    filled = [i for i in range(last) if any(row[i] for row in cells[1:])]
    if columns[last].whole and len(filled) > 1 and not any(row[last] for row in cells[1:]):
        last = filled.pop()
    least = [_least(column, wanted[i], cells, i) for i, column in enumerate(columns)]
    below = width is not None and columns[last].whole and _total([*filled, last], least) > width
    shown = filled if below and filled else [*filled, last]
    widths = _widths(columns, shown, wanted, least, width)
    on, off = ("\x1b[1m", "\x1b[0m") if bold else ("", "")
    for number, row in enumerate(cells):
        line = _GAP.join(_cell(row[i], widths[i], columns[i]) for i in widths)
        parts = [line, _BELOW + row[last]] if below and filled and row[last] else [line]
        for part in parts:
            yield on + part.rstrip() + off if number == 0 else part.rstrip()


def _least(column: Column, wanted: int, cells: Sequence[Sequence[str]], i: int) -> int:
    if column.whole:
        return wanted
    if not column.uid:
        return min(column.least, wanted)
    different = {row[i] for row in cells[1:]}
    least = max(_LEAST_UID, column.least)
    while least < _MOST_UID and len({uid[1 - least :] for uid in different}) < len(different):
        least += 1
    return min(least, wanted)


def _total(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1)


def _widths(
    columns: Sequence[Column],
    shown: list[int],
    wanted: Sequence[int],
    least: Sequence[int],
    width: int | None,
) -> dict[int, int]:
    """The widths of the columns shown: what is left out does not depend on the rest's widths."""
    if width is None:
        return {i: wanted[i] for i in shown}
    *others, last = shown
    while others and _total([*others, last], least) > width:
        others.remove(max(others, key=lambda i: (columns[i].rank, i)))
    widths = list(wanted)
    excess = _total([*others, last], widths) - width
    uids_first = sorted([*others, last], key=lambda i: not columns[i].uid)
    for i in uids_first:
        if columns[i].uid and excess > 0:
            cut = min(excess, widths[i] - least[i])
            widths[i], excess = widths[i] - cut, excess - cut
    while excess > 0:
        cuttable = [i for i in [*others, last] if widths[i] > least[i]]
        if not cuttable:  # a single column, wider than the terminal
            widths[last] = widths[last] if columns[last].whole else max(2, width)
            break
        widest = max(cuttable, key=lambda i: widths[i])
        widths[widest], excess = widths[widest] - 1, excess - 1
    return {i: widths[i] for i in [*others, last]}


def _cell(text: str, width: int, column: Column) -> str:
    length = cell_len(text)
    if length > width and column.uid:
        while cell_len(text) >= width:
            text = text[1:]
        text, length = "…" + text, cell_len(text) + 1
    elif length > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - length) + text if column.right else text + " " * (width - length)
