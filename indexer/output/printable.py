"""Text from headers, and from anywhere else, made safe to print on a terminal."""

from __future__ import annotations

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
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
