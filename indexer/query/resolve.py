"""What a person means who names a study: by its UID, by a part of that, or by terms as of ``ls``.

- A whole UID, of a study, series or instance of the archive.
- Four or more digits and dots with which the UID of a study begins or ends; of no study, that of a
  series or instance. Where a table shortened the UID, its "…" may stand there.
- Anything else is a term. Terms together mean the studies that match all of them.

Digits may also be a patient's ID: where they are the part of one study's UID and stand in another
study's texts, nothing tells which is meant, and both are shown (``Ambiguous``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import orjson

from plainpacs.archive.errors import BadQuery, NoMatch
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import is_name
from plainpacs.archive.tree.root import stamp
from plainpacs.archive.tree.targets import Target
from plainpacs.indexer.index import catalogue, instance_shards, lookup
from plainpacs.indexer.index.lookup import Named, Note
from plainpacs.indexer.query.conditions import PartOfUID
from plainpacs.indexer.query.query import Query, parse
from plainpacs.indexer.query.search import Found, studies
from plainpacs.indexer.query.stored_period import END

MOST_SHOWN = 10
"""Of several that may be meant, so many are shown."""

# A UID begins with 0, 1 or 2 (PS3.5 9.1): what does not is looked for in no folder after folder.
_UID = re.compile(r"[012](?:\.[0-9]+)+", re.ASCII)
_PART = re.compile(r"(…?)([0-9.]{4,64})(…?)", re.ASCII)
_LAST_STORED = re.compile(rb'"last_stored":"([^"\n]*)"')


@dataclass(slots=True)
class Meant:
    """What several texts mean. ``unknown``: those that look like UIDs, of which there are none."""

    named: list[Named] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Ambiguous(NoMatch):
    """More than one may be meant. ``candidates``: some of them."""

    def __init__(self, text: str, candidates: Sequence[Named]) -> None:
        number = len(candidates)
        found = f"more than {MOST_SHOWN}" if number > MOST_SHOWN else str(number)
        super().__init__(f"{text!r} may mean {found}: give more of the UID, or more terms")
        self.candidates = candidates[:MOST_SHOWN]


def some(
    root: str,
    texts: Iterable[str],
    note: Note,
    *,
    elsewhere: Callable[[], Collection[str]] = tuple,
    whole: bool = False,
    level: str | None = None,
) -> Meant:
    """What the ``texts`` mean. UIDs and parts of UIDs each mean one thing, terms any number of
    studies.

    ``elsewhere``: further UIDs that may be meant, of what is no longer in the tree, say. ``whole``:
    only whole UIDs and KEY=VALUE count, as nobody can be asked whether the right study was found.
    ``level``: what UIDs are of, see ``lookup.LEVELS``.
    Raises Ambiguous, NoMatch when no study matches the terms, and BadQuery.
    """
    return _meant(
        _Asked(root, note, elsewhere, level=level), list(map(str.strip, texts)), whole=whole
    )


def one(
    root: str, texts: Iterable[str], note: Note, *, walk: bool = True, level: str | None = None
) -> Named:
    """The one study, series or instance that the ``texts`` mean; it may lie in several places.

    ``walk=False``: as far as folders' names and indexes tell. Raises Ambiguous, NoMatch, BadQuery.
    """
    given = list(map(str.strip, texts))
    meant = _meant(_Asked(root, note, walk=walk, most=MOST_SHOWN + 1, level=level), given)
    if meant.unknown:
        raise NoMatch(f"no study, series or instance {meant.unknown[0]} here")
    if len(meant.named) > 1:
        raise Ambiguous(" ".join(given), meant.named)
    return meant.named[0]


def study(root: str, texts: Sequence[str], note: Note) -> str:
    """The UID of the one study that the ``texts`` mean. Raises Ambiguous, NoMatch, BadQuery."""
    if len(texts) == 1 and is_name(uid := texts[0].strip()) and lookup.months_of(root, uid):
        return uid
    found = one(root, texts, note, walk=False)
    target = Target.at(found.places[0])
    if target and target.series:
        raise NoMatch(f"{found.uid} is not a study; it lies in the study {target.study}")
    return found.uid


def last(root: str, note: Note) -> Named:
    """The study that came last: the one with the latest ``last_stored``. Raises NoMatch."""
    latest, holding, unlisted = "", set[str](), set[str]()
    # No line is later than its catalogue: what was not written since the latest has no later one.
    for written, month in sorted(_written(root), reverse=True):
        if written < latest:
            break
        try:
            data = catalogue.read(root, month)
        except OSError:
            data = None
        if data is None:
            unlisted.add(month)
            continue
        found = max(_LAST_STORED.findall(data), default=b"").decode()
        if found > latest:
            latest, holding = found, set()
        if found == latest:
            holding.add(month)
    months = frozenset(holding | unlisted)
    # A line that counts no longer may be later than all that do: then every study is looked at.
    for query in (Query(stored=(latest, END), only_months=months), Query()):
        best = max(studies(root, query, note), key=_last_stored, default=None)
        if best is not None:
            return _named(best)
    raise NoMatch("no studies here yet")


def _written(root: str) -> Iterator[tuple[str, str]]:
    """When the catalogue of each month was written, as plainpacs writes times, and the month."""
    for month in catalogue.months(root):
        try:
            facts = os.stat(os.path.join(root, month, layout.CATALOGUE))
            yield stamp(facts.st_mtime_ns), month
        except OSError:
            yield END, month


def among(text: str, *groups: Collection[str]) -> list[str]:
    """The UID that ``text``, a UID or a part of one, means among these: in the first group that has
    any. None, or one. Raises Ambiguous."""
    if any(text in group for group in groups):
        return [text]
    if part := _part(text):
        for group in groups:
            if found := sorted({uid for uid in group if part.is_of(uid)}):
                if len(found) > 1:
                    raise Ambiguous(text, [Named(uid) for uid in found])
                return found
    return []


def looks_whole(text: str) -> bool:
    """Whether a person who writes ``text`` means a whole UID, and no word."""
    return _UID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Of what, and how far."""

    root: str
    note: Note
    elsewhere: Callable[[], Collection[str]] = tuple
    walk: bool = True
    most: int | None = None
    level: str | None = None

    def studies(self, query: Query) -> list[Named]:
        return [_named(one) for one in islice(studies(self.root, query, self.note), self.most)]

    def places(self, uid: str, *, walk: bool = False) -> tuple[str, ...]:
        found = lookup.places(self.root, uid, self.note, walk=walk)
        return tuple(lookup.at_one_level(found, self.level))


def _meant(asked: _Asked, texts: Sequence[str], *, whole: bool = False) -> Meant:
    meant = Meant()
    terms, parts = [], []
    for text in texts:
        if found := _whole(asked, text):
            meant.named.append(found)
        elif whole and "=" not in text:
            if not is_name(text):
                raise BadQuery(f"{text!r} is neither a UID nor KEY=VALUE, as --yes needs")
            meant.unknown.append(text)
        elif _PART.fullmatch(text) or _UID.fullmatch(text):
            parts.append(text)
        else:
            terms.append(text)
    if terms:
        if meant.named or meant.unknown:
            raise BadQuery(f"give either UIDs or terms: {terms[0]!r} is a term")
        if asked.level not in (None, "study"):
            raise BadQuery(f"--level {asked.level} needs UIDs: {terms[0]!r} is a term")
        meant.named = _by_terms(asked, [*terms, *parts])
        return meant
    for text in parts:
        by_part = _by_part(asked, text)
        meant.named += by_part
        meant.unknown += [] if by_part else [text]
        if asked.most is None and len(by_part) == 1 and by_part[0].uid != text:
            asked.note(f"{text} is taken to mean {by_part[0].uid}")
    meant.named = list(dict.fromkeys(meant.named))
    return meant


def _whole(asked: _Asked, text: str) -> Named | None:
    if found := lookup.named(asked.root, text, asked.note, asked.level):
        return found
    return Named(text) if is_name(text) and text in asked.elsewhere() else None


def _by_terms(asked: _Asked, terms: Sequence[str]) -> list[Named]:
    found = asked.studies(parse([term.strip("…") for term in terms]))
    if not found and len(terms) == 1 and asked.walk and _is_unindexed_name(asked, terms[0]):
        places = asked.places(terms[0], walk=True)
        found = [Named(terms[0], places)] if places else []
    if not found:
        raise NoMatch(f"no study matches {' '.join(terms)!r}")
    return found


def _is_unindexed_name(asked: _Asked, text: str) -> bool:
    """Whether it may be a UID with letters, in a copy without the indexes that would know it."""
    return is_name(text) and not instance_shards.are_there(asked.root)


def _by_part(asked: _Asked, text: str) -> list[Named]:
    if part := _part(text):
        if asked.level in (None, "study") and (found := _studies_by_part(asked, part)):
            return found
        if known := among(text, asked.elsewhere()):
            return [Named(known[0])]
        if found := _lower_by_part(asked, part):
            return found
    if asked.walk and _UID.fullmatch(text) and (places := asked.places(text, walk=True)):
        return [Named(text, places)]
    return []


def _lower_by_part(asked: _Asked, part: PartOfUID) -> list[Named]:
    """The series or instance whose UID begins or ends so."""
    uids = instance_shards.find_part(
        asked.root, part.text, MOST_SHOWN, begins=part.begins, ends=part.ends
    )
    found = [Named(uid, places) for uid in uids if (places := asked.places(uid))]
    if len(found) > 1:
        raise Ambiguous(part.text, found)
    return found


def _studies_by_part(asked: _Asked, part: PartOfUID) -> list[Named]:
    """The study whose UID begins or ends so; if none does, those that have it in their texts."""
    by_uid: list[Named] = []
    by_word: list[Named] = []
    for found in studies(asked.root, Query((part,)), asked.note):
        (by_uid if part.is_of(found.study) else by_word).append(_named(found))
        if max(len(by_uid), len(by_word) if asked.most else 0) > MOST_SHOWN:
            break
    if by_uid and len(by_uid) + len(by_word) > 1:
        raise Ambiguous(part.text, by_uid + by_word)
    return by_uid or by_word


def _part(text: str) -> PartOfUID | None:
    match = _PART.fullmatch(text)
    if not match:
        return None
    before, part, behind = match.groups()
    return PartOfUID(part, begins=not before, ends=not behind, words=not (before or behind))


def _named(found: Found) -> Named:
    places = (layout.study_folder(month, found.study) for month in found.months)
    return Named(found.study, tuple(sorted(places)), found.line)


def _last_stored(found: Found) -> str:
    return str(orjson.loads(found.line).get("last_stored", ""))
