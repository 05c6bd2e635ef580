"""A rule of the setting ``retention``: when a study need not be kept any longer.

>>> RetentionRule.parse("old=age>5y ModalitiesInStudy=US")
RetentionRule(name='old', measure='age', limit=1830, terms=('ModalitiesInStudy=US',))
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

_FORM = re.compile(
    r"(age|stored)\s*>\s*(\d{1,5})(d|w|mo|y)|(free|total)\s*([<>])\s*(\d{1,6})([MGT])"
)
_DAYS = {"d": 1, "w": 7, "mo": 31, "y": 366}
"""At most: nothing is removed a day early."""
_BYTES = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
AGE, STORED, FREE, TOTAL = "age", "stored", "free", "total"


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """``measure`` is ``age`` or ``stored``: days since StudyDate, or since the last instance came;
    ``free`` or ``total``: bytes of space, and then the oldest go first. ``terms`` as of `ls`."""

    name: str
    measure: str
    limit: int
    terms: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> RetentionRule:
        """From ``NAME=CONDITION [TERM...]``. Raises ValueError."""
        name, equals, rest = text.partition("=")
        try:
            condition, *terms = shlex.split(rest)
        except ValueError:
            condition, terms = "", []
        found = _FORM.fullmatch(condition)
        right = found and (found[4] is None or (found[4], found[5]) in ((FREE, "<"), (TOTAL, ">")))
        if not equals or not name.strip() or found is None or not right:
            raise ValueError(
                f"{text!r} is no rule: write NAME=CONDITION TERM..., the condition as age>5y, "
                "stored>90d, free<200G or total>4T"
            )
        if found[1]:
            return cls(name.strip(), found[1], int(found[2]) * _DAYS[found[3]], tuple(terms))
        return cls(name.strip(), found[4], int(found[6]) * _BYTES[found[7]], tuple(terms))
