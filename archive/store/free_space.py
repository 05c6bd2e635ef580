"""The room that stays free on the archive's file system, so that what is stored can be indexed.

A disk that is full to the last byte also stops the indexer, ``repair``, and whoever logs in to make
room. So instances are refused a little before: when fewer bytes would stay free than the reserve,
or, where the file system counts files, fewer than 1,000 of those (on a small one 5 %, but 300: the
indexes are some 260).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGT]?)(?:I?B)?|(%))", re.ASCII)
_FILES = 1000
_FILES_SHARE = 0.05
_FEWEST_FILES = 300
_SCARCE_BYTES = 4 << 30
_SCARCE_FILES = 100_000


class Room(NamedTuple):
    """What may be written before the reserve is reached; infinite where that is not counted.

    Negative when less than the reserve is free already.
    """

    bytes: float
    files: float

    def less(self, size: int, files: int) -> Room:
        """What is left of it after ``size`` bytes and so many ``files``."""
        return Room(self.bytes - size, self.files - files)

    @property
    def is_used_up(self) -> bool:
        return self.bytes < 0 or self.files < 0

    @property
    def is_scarce(self) -> bool:
        """Whether what others write within a second may use it up."""
        return self.bytes < _SCARCE_BYTES or self.files < _SCARCE_FILES


@dataclass(frozen=True, slots=True)
class Reserve:
    """The smallest of ``sizes`` (bytes) and ``shares`` (of the file system, 0 to 1) is kept free.

    None of either, or a zero: no reserve.
    """

    sizes: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reserve:
        """``"1G"`` (1 << 30), ``"500M"``, ``"2%"``, or several, of which the smallest counts:
        ``"1G,2%"``. ``"0"``: none. Raises ValueError."""
        sizes, shares = [], []
        for part in text.split(","):
            found = _SIZE.fullmatch(part.strip().upper())
            if not found or (found[3] and float(found[1]) > 100):
                raise ValueError("it is bytes, or like 500M, 1G, 2%, or 1G,2% (the smaller)")
            if found[3]:
                shares.append(float(found[1]) / 100)
            else:
                sizes.append(int(float(found[1]) * _UNITS[found[2]]))
        return cls(tuple(sizes), tuple(shares))

    def bytes_of(self, facts: os.statvfs_result) -> int:
        """The reserve on this file system, in bytes; 0 where it does not tell its size."""
        total = facts.f_blocks * facts.f_frsize
        parts = [*self.sizes, *(int(share * total) for share in self.shares)]
        return min(parts, default=0) if total else 0

    def room(self, facts: os.statvfs_result) -> Room:
        """What may be written. Without bounds when there is no reserve here."""
        kept = self.bytes_of(facts)
        if not kept:
            return UNBOUNDED
        files = UNBOUNDED.files
        if facts.f_files:  # some file systems make files as they need them, and say 0
            few = max(_FEWEST_FILES, _FILES_SHARE * facts.f_files)
            files = facts.f_favail - min(_FILES, few)
        return Room(facts.f_bavail * facts.f_frsize - kept, files)


UNBOUNDED = Room(float("inf"), float("inf"))
NO_RESERVE = Reserve()
