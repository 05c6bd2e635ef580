"""A bar for long work: how far it is, how fast, how long it will take. Where there is no terminal,
nothing is shown."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from plainpacs.indexer.output import formats
from plainpacs.indexer.output.humanize import size

if TYPE_CHECKING:  # loaded only where it is seen: it takes longer than a small run does
    from rich.progress import Progress

_ASKED_EVERY = 0.2


class ProgressBar:
    """A context manager. ``total``: how many instances (or what else is done) there will be; None
    when nobody knows. ``reached`` is asked how many instances and bytes are done, instead of
    ``add``."""

    def __init__(
        self,
        words: str,
        total: int | None,
        reached: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.instances = 0
        self.bytes = 0
        self._words = words
        self._total = total
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None
        self._asked = reached
        self._follower: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __enter__(self) -> ProgressBar:
        if sys.stderr is None or not sys.stderr.isatty():
            return self
        from rich import progress as bars  # noqa: PLC0415 - as said above
        from rich.console import Console  # noqa: PLC0415 - as said above

        console = Console(stderr=True, highlight=False)
        self._progress = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}", markup=False),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(self._words, total=self._total, rate="")
        self._progress.start()
        if self._asked:
            self._follower = threading.Thread(target=self._follow, args=(self._asked,))
            self._follower.start()
        formats.beside.append(partial(console.print, markup=False, soft_wrap=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._follower is not None:
            self._follower.join()
        if self._progress is not None:
            formats.beside.pop()
            self._progress.stop()

    def add(self, instances: int, more_bytes: int = 0) -> None:
        self._reached(self.instances + instances, self.bytes + more_bytes)

    def _follow(self, reached: Callable[[], tuple[int, int]]) -> None:
        while not self._ended.wait(_ASKED_EVERY):
            self._reached(*reached())

    def _reached(self, instances: int, bytes_: int) -> None:
        self.instances, self.bytes = instances, bytes_
        if self._progress is not None:
            rate = f"{self.rate}, " * bool(bytes_) + f"{instances / max(self.seconds, 0.001):.0f}/s"
            self._progress.update(self._task, completed=instances, rate=rate)

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """Within, results may be printed: the bar is not in their way."""
        away = self._progress if formats.on_terminal() else None
        if away:
            away.stop()
        try:
            yield
        finally:
            if away:
                away.start()

    @property
    def rate(self) -> str:
        """Bytes in a second, for people."""
        return f"{size(int(self.bytes / max(self.seconds, 0.001)))}/s"

    def __str__(self) -> str:
        return f"{size(self.bytes)} in {self.seconds:.1f} s, {self.rate}"
