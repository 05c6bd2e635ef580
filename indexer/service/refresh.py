"""Making the indexes of some studies, or of all, true now, whoever is the archive's indexer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection

from plainpacs.archive.errors import InUse, StorageUnavailable
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked, open_root
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.indexer.service.pending import REQUEST_HEADERS, Pending, request_to_compact

_POLL = 0.05
PATIENCE = 60.0
"""Seconds that an indexer at work may take without finishing anything of what it is asked for."""


def refresh(
    path: str, studies: Collection[Study], *, node: str | None = None, digest: str = "blake3"
) -> None:
    """Indexes the ``studies`` of the archive at ``path``; when this returns, neither they nor the
    catalogues of their months say anything of what is not there any more.

    An indexer at work is asked to, and waited for. Raises OSError, StorageUnavailable.
    """
    while not refresh_alone(path, studies, node=node, digest=digest):
        if _ask(path, studies):
            return


def refresh_alone(
    path: str, studies: Collection[Study], *, node: str | None = None, digest: str = "blake3"
) -> bool:
    """As ``refresh``, but False, and nothing done, when an indexer is at work: it sees to what is
    pending anyway."""
    try:
        with Indexer.open(path, node=node, digest=digest) as indexer:
            indexer.refresh(studies)
    except InUse:
        return False
    return True


def index_pending(path: str, *, node: str | None = None, digest: str = "blake3") -> None:
    """Indexes the studies that are marked, those that something was stored in; an indexer at work
    does it by itself. Raises StorageUnavailable and what ``Indexer.open`` raises, but InUse."""
    with contextlib.suppress(InUse), Indexer.open(path, node=node, digest=digest) as indexer:
        indexer.once(reconciling=False)


def index_all(
    path: str,
    note: Note,
    request: str,
    *,
    node: str | None = None,
    digest: str = "blake3",
    full: bool = False,
    tick: Callable[[int], object] = bool,
) -> int | None:
    """Indexes what is pending or changed, or (``full``) everything; how many studies that was.
    ``tick`` is called after each.

    None when an indexer at work did what ``request`` means in our stead, which ``note`` is told. If
    that one ends before it has, we do. Raises StorageUnavailable and what ``Indexer.open`` raises,
    but InUse.
    """
    while True:
        try:
            with Indexer.open(path, node=node, digest=digest) as indexer:
                return indexer.once(full=full, headers=request == REQUEST_HEADERS, tick=tick)
        except InUse:
            note("an indexer is at work on the archive; it does this now")
            if _request(path, request):
                return None


def _request(path: str, request: str) -> bool:
    """Has the indexer at work do it, and waits; False when it ended before."""
    root = open_root(path)
    pending = Pending(root)
    try:
        pending.request(request)
        while pending.requested(request):
            if not is_locked(root, layout.INDEXER_LOCK):
                return False
            time.sleep(_POLL)
        return True
    finally:
        pending.close()
        os.close(root)


def _ask(path: str, studies: Collection[Study]) -> bool:
    """Has the indexer at work do it; False when it ended before."""
    requests = {request_to_compact(month) for month, _ in studies}
    root = open_root(path)
    pending = Pending(root)
    try:
        for study in studies:
            pending.mark(study)
        for request in requests:
            pending.request(request)
        left, deadline = len(requests), time.monotonic() + PATIENCE
        while waiting := sum(pending.requested(request) for request in requests):
            if not is_locked(root, layout.INDEXER_LOCK):
                return False
            if waiting < left:
                left, deadline = waiting, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise StorageUnavailable(
                    f"the indexer at work did not bring {waiting} months up to date within "
                    f"{PATIENCE:g} s; see its log (is the disk full?), then give the command again"
                )
            time.sleep(_POLL)
        return True
    finally:
        pending.close()
        os.close(root)
