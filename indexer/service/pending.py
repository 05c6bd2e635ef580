"""The studies that wait to be indexed: markers in ``pending/``, claims in ``indexing/``.

A store leaves a marker; the indexer claims it by renaming it before it reads the study, so that
what is stored while it reads leaves a marker anew. Claims of an indexer that died become pending
again. More names ask the indexer for more than one study: ``REQUESTS`` and
``request_to_compact(month)``; it removes them when it has done so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import is_month
from plainpacs.indexer.index.rebuild import Study

REQUEST_RECONCILE = "reconcile"
REQUEST_REBUILD = "rebuild"
REQUEST_HEADERS = "headers"
REQUESTS = (REQUEST_REBUILD, REQUEST_HEADERS, REQUEST_RECONCILE)
_COMPACT = "compact~"


def request_to_compact(month: str) -> str:
    """Asks that what is pending be indexed, and that the month's catalogue then have no line of
    what is not there any more."""
    return _COMPACT + month


def month_to_compact(request: str) -> str | None:
    """The month of such a request; None for others."""
    month = request.removeprefix(_COMPACT)
    return month if request.startswith(_COMPACT) and is_month(month) else None


class Pending:
    """The markers of the archive open as ``root``. Methods raise OSError; close it."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._pending = self._open(layout.PENDING)
        self._indexing = self._open(layout.INDEXING)

    def _open(self, path: str) -> int:
        with contextlib.suppress(FileExistsError):
            durable.make_folder(path, folder=self._root)
        return durable.open_folder(path, folder=self._root)

    def close(self) -> None:
        os.close(self._pending)
        os.close(self._indexing)

    def waiting(self) -> tuple[set[Study], set[str]]:
        """The studies marked, and the requests made. Other names are passed over."""
        if os.fstat(self._pending).st_nlink == 0:  # somebody removed the folder
            os.close(self._pending)
            self._pending = self._open(layout.PENDING)
        names = os.listdir(self._pending)
        studies = {study for name in names if (study := layout.study_of_pending(name))}
        return studies, {name for name in names if name in REQUESTS or month_to_compact(name)}

    def mark(self, study: Study) -> None:
        durable.touch(layout.pending_name(*study), folder=self._pending)

    def request(self, name: str) -> None:
        durable.touch(name, folder=self._pending)

    def requested(self, name: str) -> bool:
        """Whether the request still waits to be done."""
        return name in os.listdir(self._pending)

    def done(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(name, folder=self._pending)

    def claim(self, study: Study) -> bool:
        """Takes a study to work on; False when its marker is gone."""
        name = layout.pending_name(*study)
        try:
            durable.rename(name, name, folder=self._pending, to_folder=self._indexing)
        except FileNotFoundError:
            return False
        return True

    def release(self, study: Study) -> None:
        """The claimed study is indexed."""
        with contextlib.suppress(FileNotFoundError):
            durable.unlink(layout.pending_name(*study), folder=self._indexing)

    def give_back(self, study: Study) -> None:
        """The claimed study could not be indexed: it is pending again."""
        name = layout.pending_name(*study)
        with contextlib.suppress(FileNotFoundError):
            durable.rename(name, name, folder=self._indexing, to_folder=self._pending)

    def recover(self) -> None:
        """At the start: what a dead indexer had claimed is pending again, its rubbish goes."""
        for name in os.listdir(self._indexing):
            # One that cannot be moved or cleared must not keep the indexer from its work.
            with contextlib.suppress(OSError):
                if study := layout.study_of_pending(name):
                    self.give_back(study)
                else:
                    durable.unlink(name, folder=self._indexing)


def additions_first(path: str, studies: Iterable[Study]) -> list[Study]:
    """So that a study that moved between months is never out of both catalogues."""
    return sorted(studies, key=lambda study: (not os.path.isdir(os.path.join(path, *study)), study))
