"""The headers for browsers of studies that settled, made before anybody asks for them.

Where a web server runs, a study that has had no new instance for the while gets the documents of
``series_metadata``, one study after the other, in a thread of its own. It is a convenience: what is
missing, or was not made when the indexer ended, is made by the first request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from plainpacs.archive.errors import PlainpacsError
from plainpacs.archive.tree.identity import is_name
from plainpacs.indexer.index.rebuild import Study
from plainpacs.indexer.index.series_metadata import SeriesMetadata

log = logging.getLogger(__name__)


class BrowserHeaders:
    """Of the archive at ``path``, open as ``root``. Thread-safe.

    ``quiet``: the while, in seconds; None: none are made.
    """

    def __init__(self, path: str, root: int, quiet: float | None) -> None:
        self._path = path
        self._quiet = quiet
        self._documents = SeriesMetadata(path, root)
        self._due: dict[Study, float] = {}
        self._changed = threading.Condition()
        self._stopping = False

    def note(self, study: Study, *, there: bool) -> None:
        """The study was indexed: it is ``there``, or gone."""
        if self._quiet is None:
            return
        with self._changed:
            self._due.pop(study, None)
            if there:
                self._due[study] = time.monotonic() + self._quiet
                self._changed.notify()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Has them made until the end of the block."""
        thread = threading.Thread(target=self._run, name="headers for browsers")
        if self._quiet is not None:
            thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify()
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        while (study := self._next()) is not None:
            try:
                self._make(study)
            except (OSError, PlainpacsError) as error:
                log.warning("no headers for browsers of study %s/%s: %s", *study, error)

    def _next(self) -> Study | None:
        """The study that is due next, once it is; None at the end."""
        with self._changed:
            while not self._stopping:
                # The oldest is the first: who is noted again goes to the end.
                study = next(iter(self._due), None)
                wait = None if study is None else self._due[study] - time.monotonic()
                if study is not None and wait is not None and wait <= 0:
                    del self._due[study]
                    return study
                self._changed.wait(wait)
        return None

    def _make(self, study: Study) -> None:
        with contextlib.suppress(FileNotFoundError):
            for series in sorted(os.listdir(os.path.join(self._path, *study))):
                if self._stopping:
                    return
                files = self._documents.files(*study, series) if is_name(series) else {}
                if files and self._documents.kept(*study, series, files) is None:
                    made = self._documents.made(*study, series, files, log.debug)
                    self._documents.keep(*study, series, made)
