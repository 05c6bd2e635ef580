"""Which studies, series and instances of a remote archive a person means: by UID, or by terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree.identity import is_name
from plainpacs.scp.remote.calling import Failed
from plainpacs.scp.remote.find_scu import Finder
from plainpacs.scp.remote.missing import Chosen
from plainpacs.scp.remote.search import UNIQUE, search
from plainpacs.scp.remote.terms import Terms

_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)
_UNIQUE = tuple(UNIQUE[level] for level in _LEVELS)
Note = Callable[[str], None]

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+", re.ASCII)


def is_uid(text: str) -> bool:
    """Whether a person who writes ``text`` means a UID, and no word."""
    return _UID.fullmatch(text) is not None


def by_uid(finder: Finder, uid: str) -> list[Chosen]:
    """The study, series or instance of that UID. Raises NoMatch, and as ``Finder.find``."""
    for level in _LEVELS:
        keys = dict.fromkeys(_UNIQUE[: _LEVELS.index(level) + 1], "") | {UNIQUE[level]: uid}
        try:
            answers = list(finder.find(level, keys))
        except Failed as failed:
            if failed.step != "status" or level is Level.STUDY:
                raise
            why = "and does not say of which study it is a series or instance"
            raise NoMatch(
                f"{finder.node} has no study {uid}, {why}: give StudyInstanceUID=… "
                "SeriesInstanceUID=… --level series instead"
            ) from None
        found = (_chosen({key: one.data.text(key) for key in keys}, level) for one in answers)
        if chosen := [one for one in found if one]:
            return chosen
    raise NoMatch(f"{finder.node} has no study, series or instance {uid}")


def by_terms(finder: Finder, terms: Terms, note: Note) -> Iterator[Chosen]:
    """What matches. Raises as ``remote_search.search``."""
    for record in search(finder, terms):
        chosen = _chosen(record, terms.level)
        if chosen is None:
            note(f"{finder.node} has a {terms.level.name.lower()} without a usable UID: left out")
        else:
            yield chosen


def _chosen(record: Mapping[str, Any], level: Level) -> Chosen | None:
    study, series, instance = (str(record.get(key, "")) for key in _UNIQUE)
    told = (study, series, instance)[: _LEVELS.index(level) + 1]
    if not all(map(is_name, told)):
        return None  # it could not be stored; nor may it be looked for in the tree
    return Chosen(
        study,
        frozenset((series,)) if level is not Level.STUDY else frozenset(),
        frozenset((instance,)) if level is Level.INSTANCE else frozenset(),
    )


def merged(chosen: Iterable[Chosen]) -> list[Chosen]:
    """Each study once; of instances, each series once."""
    studies: dict[str, frozenset[str]] = {}
    lists: dict[tuple[str, frozenset[str]], frozenset[str]] = {}
    for one in chosen:
        if one.instances:
            key = (one.study, one.series)
            lists[key] = lists.get(key, frozenset()) | one.instances
        elif one.study not in studies:
            studies[one.study] = one.series
        elif studies[one.study]:
            studies[one.study] = studies[one.study] | one.series if one.series else frozenset()
    return [Chosen(study, series) for study, series in studies.items()] + [
        Chosen(study, series, instances) for (study, series), instances in lists.items()
    ]
