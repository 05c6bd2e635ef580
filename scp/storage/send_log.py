"""A file that remembers what a node has taken, so that sending goes on where it was interrupted.

One line for each instance that was answered with success: the node, a tab, the SOP Instance UID.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import TextIO

from plainpacs.archive.errors import BadSettings, PlainpacsError
from plainpacs.scp.network.requestor import Node


class Answered:
    """A context manager. Without a ``path`` nothing is remembered.

    Raises BadSettings when the file cannot be had, or is of another kind.
    """

    def __init__(self, path: str | None, node: Node) -> None:
        self._path = path
        self._node = str(node)
        self._file: TextIO | None = None
        self._known: Counter[str] = Counter()

    def __enter__(self) -> Answered:
        if self._path is None:
            return self
        try:
            self._file = open(self._path, "a+", encoding="utf-8")
            self._read(self._file)
        except (OSError, UnicodeDecodeError) as error:
            self._close()
            why = getattr(error, "strerror", None) or "it is no text"
            raise BadSettings(f"--resume {self._path} cannot be had: {why}") from None
        except BadSettings:
            self._close()
            raise
        return self

    def _read(self, file: TextIO) -> None:
        file.seek(0)
        for line in file:
            node, tab, uid = line.rstrip("\n").partition("\t")
            if not tab and line.endswith("\n"):
                raise BadSettings(f"--resume {self._path} is no such file: it has other lines")
            if node == self._node and line.endswith("\n"):
                self._known[uid] += 1
        file.seek(0)
        text = file.read()
        if text and not text.endswith("\n"):  # a line that was cut short when the power went
            file.write("\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def has_taken(self, uid: str) -> bool:
        """Whether the node took one of that UID more than was asked for: two series may have it."""
        self._known[uid] -= 1
        return self._known[uid] >= 0

    def add(self, uid: str) -> None:
        """Remembers it at once. Raises PlainpacsError when that cannot be."""
        if self._file is not None:
            try:
                self._file.write(f"{self._node}\t{uid}\n")
                self._file.flush()
            except OSError as error:
                raise PlainpacsError(
                    f"--resume {self._path} cannot be written: {error.strerror}"
                ) from None
