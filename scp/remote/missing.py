"""What of a remote archive is missing here: studies compared instance by instance, by UID.

Where a peer answers at the level IMAGE, only what the archive lacks is wanted, as whole series or
as lists of instances; so a pull that was interrupted goes on. Where it does not, the study, or
series, is wanted whole, and what is here already changes nothing when it comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from plainpacs.archive.tree import layout
from plainpacs.archive.tree.listing import study_files
from plainpacs.indexer.index import lookup
from plainpacs.scp.remote import instance_listing
from plainpacs.scp.remote.calling import Failed
from plainpacs.scp.remote.find_scu import Finder
from plainpacs.scp.remote.retrieve import Wanted

MOST_LISTED = 250
"""Instances asked for by one list: of 64 characters each, it is far from the longest UI."""
_LEAST_SPLIT = 100
"""Instances of a series for which another association is worth while."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A study to be pulled; or, of it, ``series``, and ``instances`` of the only one of these."""

    study: str
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()


@dataclass(slots=True)
class Missing:
    """``wanted``: what to ask for; ``here``: how many instances need not come; ``unlisted``: how
    many studies of which the peer does not say what they hold."""

    wanted: list[Wanted] = field(default_factory=list)
    here: int = 0
    unlisted: int = 0

    @property
    def instances(self) -> int | None:
        """How many are to come; None when that is not known."""
        if self.unlisted:
            return None
        return sum(len(one.missing or ()) for one in self.wanted)


def find(finder: Finder, root: str, chosen: Chosen, result: Missing) -> None:
    """Adds to ``result`` what is missing of ``chosen`` in the archive at ``root``.

    Raises Failed when the peer is lost, and OSError.
    """
    try:
        listed = list(instance_listing.instances(finder, chosen.study, chosen.series))
    except Failed as failed:
        if failed.step != "status":
            raise
        listed = []
    if not listed:
        result.unlisted += 1
        result.wanted += [Wanted(chosen.study, one) for one in sorted(chosen.series) or [""]]
        return
    here = {series: present(root, chosen.study, [series]) for series in {s.series for s in listed}}
    by_series: dict[str, dict[str, str]] = {}
    known: dict[str, int] = {}
    for one in listed:
        if chosen.instances and one.instance not in chosen.instances:
            continue
        known[one.series] = known.get(one.series, 0) + 1
        if one.instance in here[one.series]:
            result.here += 1
        else:
            by_series.setdefault(one.series, {})[one.instance] = one.sop_class
    for series, missing in by_series.items():
        whole = not chosen.instances and len(missing) > known[series] // 2
        wanted = Wanted(chosen.study, series, missing=missing)
        result.wanted += [wanted] if whole else _in_lists(wanted, MOST_LISTED)


def shared_out(wanted: Sequence[Wanted], jobs: int) -> list[Wanted]:
    """``wanted``, the largest parts of it cut up when there are fewer than ``jobs``."""
    found = list(wanted)
    for one in sorted(found, key=lambda part: -len(part.missing or ())):
        number = len(one.missing or ())
        if len(found) >= jobs or number < 2 * _LEAST_SPLIT:
            break
        step = max(_LEAST_SPLIT, min(MOST_LISTED, -(-number // jobs)))
        found.remove(one)
        found += _in_lists(one, step)
    return found


def _in_lists(wanted: Wanted, length: int) -> Iterator[Wanted]:
    missing = list((wanted.missing or {}).items())
    for at in range(0, len(missing), length):
        part = dict(missing[at : at + length])
        yield replace(wanted, instances=tuple(part), missing=part)


def present(root: str, study: str, series: Collection[str] | None = None) -> dict[str, int]:
    """The instances of the study that lie in the tree, and the bytes of their files.

    Raises OSError.
    """
    return {
        instance: file.size
        for month in lookup.months_of(root, study)
        for files in study_files(root, month, study, series).instances.values()
        for name, file in files.items()
        if (instance := layout.instance_of(name)) is not None
    }
