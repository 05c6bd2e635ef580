"""The commands of the settings ``on_study_settled`` and ``on_instance``: words, places, variables.

The text is split into words as a shell would, then ``{path}`` and the like are put in, then the
program is started: no shell ever sees it, so nothing that a peer sends can become a command.

>>> words = HookWords.parse("copy -r {path} '/backup/{month} a'", STUDY_PLACES)
>>> words.filled({"path": "/a/202401/1.2", "month": "202401"})
['copy', '-r', '/a/202401/1.2', '/backup/202401 a']
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_BOTH = {
    "path": "HOOK_PATH",
    "archive": "HOOK_ARCHIVE",
    "month": "HOOK_MONTH",
    "StudyInstanceUID": "HOOK_STUDY_INSTANCE_UID",
    "bytes": "HOOK_BYTES",
    "calling_ae": "HOOK_CALLING_AE",
    "called_ae": "HOOK_CALLED_AE",
    "peer": "HOOK_PEER",
}
STUDY_PLACES = {
    **_BOTH,
    "series": "HOOK_SERIES",
    "instances": "HOOK_INSTANCES",
    "first_stored": "HOOK_FIRST_STORED",
    "last_stored": "HOOK_LAST_STORED",
}
"""What may be put into ``on_study_settled``, and the variable that says the same."""
INSTANCE_PLACES = {
    **_BOTH,
    "SeriesInstanceUID": "HOOK_SERIES_INSTANCE_UID",
    "SOPInstanceUID": "HOOK_SOP_INSTANCE_UID",
    "SOPClassUID": "HOOK_SOP_CLASS_UID",
    "transfer_syntax": "HOOK_TRANSFER_SYNTAX",
    "origin": "HOOK_ORIGIN",
    "stored": "HOOK_STORED",
}
"""The same of ``on_instance``."""

_PLACE = re.compile(r"\{(\w+)\}", re.ASCII)


class LooksLikeAnOption(ValueError):
    """A value that begins with ``-`` would begin a word, and so be an option of the program."""


@dataclass(frozen=True, slots=True)
class HookWords:
    """A command, split into words that have places in them."""

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, places: Collection[str]) -> HookWords:
        """Raises ValueError when it cannot be split, is empty, or has an unknown place."""
        words = tuple(shlex.split(text))
        if not words or not words[0]:
            raise ValueError("it names no program")
        for word in words:
            for name in _PLACE.findall(word):
                if name not in places:
                    raise ValueError(f"{{{name}}} is none of {', '.join(places)}")
        if _PLACE.search(words[0]):
            raise ValueError("the program itself is named, not put in")
        return cls(words)

    def filled(self, values: Mapping[str, str]) -> list[str]:
        """The words with ``values`` in their places. Raises LooksLikeAnOption."""
        filled = []
        for word in self.words:
            whole = _PLACE.sub(lambda place: values.get(place[1], ""), word)
            if whole.startswith("-") and not word.startswith("-"):
                raise LooksLikeAnOption(f"{word} would be read as an option")
            filled.append(whole)
        return filled
