"""What ``send`` is to send: by UID out of the archive, or files and folders from anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import NotDICOM, StorageUnavailable, UnreadableDataSet
from plainpacs.archive.store.import_sources import sources
from plainpacs.archive.tree.targets import Target
from plainpacs.scp.query_retrieve import retrieve_request
from plainpacs.scp.query_retrieve.retrieve_request import Wanted
from plainpacs.scp.storage import instance_file
from plainpacs.scp.storage.instance_file import Outgoing

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that cannot be sent. ``skipped``: it is no instance, which nobody need act upon."""

    path: str
    why: str
    skipped: bool = False


def of_paths(paths: Iterable[str]) -> Iterator[Outgoing | Unreadable]:
    """The instances at and below ``paths``. Of an archive, not what it keeps aside.

    Raises StorageUnavailable for a path that is not there, or cannot be listed.
    """
    for source in sources(paths):
        if source.variant:
            continue
        if source.missing or source.unpack:
            why = source.missing or "it is in a zip file: unpack it, or import it, first"
            yield Unreadable(source.path, why)
            continue
        try:
            if not os.path.isfile(source.path):  # opening a pipe would wait for who writes to it
                yield Unreadable(source.path, "it is not a file", skipped=True)
            else:
                yield instance_file.of_file(source.path)
        except NotDICOM as error:
            yield Unreadable(source.path, str(error), skipped=True)
        except UnreadableDataSet as error:
            yield Unreadable(source.path, str(error))
        except OSError as error:
            yield Unreadable(source.path, error.strerror or str(error))


def of_targets(root: str, targets: Iterable[Target], note: Note) -> Iterator[Outgoing]:
    """The instances of studies, series and instances of the archive at ``root``.

    Raises NoMatch, StorageUnavailable.
    """
    seen = set()
    for one in targets:
        try:
            for found in retrieve_request.instances(root, _wanted(one), note):
                if found.path not in seen:  # of a study in two months, each is asked for both
                    seen.add(found.path)
                    yield found
        except OSError as error:
            raise StorageUnavailable(f"{one.path} cannot be read: {error.strerror}") from None


def _wanted(target: Target) -> Wanted:
    level = Level.INSTANCE if target.instance else Level.SERIES if target.series else Level.STUDY
    uids = (target.study, target.series, target.instance)
    return Wanted(level, frozenset(), *(frozenset((uid,)) if uid else frozenset() for uid in uids))
