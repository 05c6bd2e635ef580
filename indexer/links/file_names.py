"""Names for people out of text from headers, which every file system can hold.

A name is safe on Linux, macOS and Windows: no separators or wildcards, no control, bidirectional or
invisible characters, none of the names that Windows keeps for devices, no dot or blank at either
end, NFC, and neither too many characters nor too many bytes. Much is lost on the way, so names that
were different may become equal, or differ in case alone; ``told_apart`` sees to those.

>>> safe("CT: Thorax/Abdomen "), safe("nul"), safe("..")
('CT_ Thorax_Abdomen', '_nul', '')
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable
from typing import TypeVar

import blake3

from plainpacs.indexer.output.printable import REPLACEMENT, visible

MARK = "~"
"""Stands before what tells equal names apart; no other name has it."""

_FORBIDDEN = re.compile(f'[\\\\/:*?"<>|{REPLACEMENT}]')
_BLANKS = re.compile(r"\s+")
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(?:\..*)?",
    re.IGNORECASE,
)
_SHORT_MARK = 8  # hexadecimal digits

Key = TypeVar("Key", bound=Hashable)


def safe(text: str, longest: int = 60) -> str:
    """``text`` as a name of at most ``longest`` characters (UTF-16, as Windows counts them) and
    twice as many bytes (UTF-8); empty when nothing can be kept."""
    name = unicodedata.normalize("NFC", visible(unicodedata.normalize("NFC", text)))
    name = _BLANKS.sub(" ", _FORBIDDEN.sub("_", name).replace(MARK, "-"))
    # What comes next may bare another dot, blank or device name.
    name = _cut(name.strip(". "), longest).strip(". ")
    return "_" + name[: longest - 1] if _DEVICE.fullmatch(name) else name


def _cut(name: str, longest: int) -> str:
    while len(name.encode("utf-16-le", "replace")) > 2 * longest:
        name = name[:-1]
    while len(name.encode("utf-8", "replace")) > 2 * longest:
        name = name[:-1]
    return name


def folded(name: str) -> str:
    """Equal for names that some file system takes for one: it ignores case, or normalises."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def marked(name: str, key: str, digits: int = _SHORT_MARK) -> str:
    """The ``name`` with what tells ``key`` apart from other keys.

    >>> marked("lung", "1.2.3")
    'lung ~711247d8'
    """
    return f"{name} {MARK}{blake3.blake3(key.encode('utf-8', 'replace')).hexdigest()[:digits]}"


def told_apart(wanted: Iterable[tuple[Key, str, str]]) -> dict[Key, str]:
    """A name of its own for each key, of which (key, its text, name) are given.

    Where names are taken for one, all of them are marked by their texts, so that the outcome does
    not depend on which of them came first. Texts are different for different keys.
    """
    groups: dict[str, list[tuple[Key, str, str]]] = {}
    for one in wanted:
        groups.setdefault(folded(one[2]), []).append(one)
    found: dict[Key, str] = {}
    for group in groups.values():
        if len(group) == 1:
            found[group[0][0]] = group[0][2]
            continue
        digits = _SHORT_MARK
        while True:
            names = {key: marked(name, text, digits) for key, text, name in group}
            if len({folded(name) for name in names.values()}) == len(group) or digits == 64:
                break
            digits *= 2
        found.update(names)
    return found
