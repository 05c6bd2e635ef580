"""A bar for long work: how far it is, how fast, how long it will take. Where there is no terminal,
nothing is shown."""

from __future__ import annotations

import sys
import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from plainpacs.indexer.output import formats
from plainpacs.indexer.output.humanize import size

if TYPE_CHECKING:  # loaded only where it is seen: it takes longer than a small run does
    from rich.progress import Progress


class ProgressBar:
    """A context manager. ``total``: how many instances there will be; None when nobody knows."""

    def __init__(self, words: str, total: int | None) -> None:
        self.instances = 0
        self.bytes = 0
        self._words = words
        self._total = total
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

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
        formats.beside.append(partial(console.print, markup=False, soft_wrap=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            formats.beside.pop()
            self._progress.stop()

    def add(self, instances: int, more_bytes: int = 0) -> None:
        self.instances += instances
        self.bytes += more_bytes
        if self._progress is not None:
            rate = f"{self.rate}, {self.instances / max(self.seconds, 0.001):.0f}/s"
            self._progress.update(self._task, advance=instances, rate=rate)

    @property
    def rate(self) -> str:
        """Bytes in a second, for people."""
        return f"{size(int(self.bytes / max(self.seconds, 0.001)))}/s"

    def __str__(self) -> str:
        return f"{size(self.bytes)} in {self.seconds:.1f} s, {self.rate}"
