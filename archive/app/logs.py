"""How the programs that go on running speak: one line per event on stderr.

As text (time, level, message) or as JSON (``log_format = json``), one object a line: ``time`` in
UTC, ``level``, ``message``, ``pid``, and the fields that are known. A field is known when an
argument of the message says so: see ``Fielded``.

No line above debug level has a patient's name or ID. Our own words never repeat what a data set
says; the words of an exception that nobody foresaw might, so of such a one a line has where it was
raised and its class, and its words only at debug level.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, runtime_checkable

import orjson

from plainpacs.archive.tree.root import stamp

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
_LOG = logging.getLogger("plainpacs")


@runtime_checkable
class Fielded(Protocol):
    """An argument of a log message that is words in text and fields in JSON."""

    def log_fields(self) -> Mapping[str, object]: ...


def set_up(level: str, form: str = "text") -> None:
    """Log on stderr from ``level`` on, as ``form`` says; libraries speak only at debug.

    What ends this process or one of its threads unforeseen is a line of the log too.
    """
    handler = logging.StreamHandler()
    formatter = JSONLines if form == "json" else TextLines
    handler.setFormatter(formatter(words=level == "debug"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("plainpacs").setLevel(level.upper())
    # Their warnings are of peers' mistakes and of values; ours say what matters in one line.
    quiet = logging.DEBUG if level == "debug" else logging.CRITICAL + 1
    for name in ("pynetdicom", "pydicom", "py.warnings"):
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(True)
    # What no line says need not be found out for each.
    logging.logThreads = logging.logMultiprocessing = False
    threading.excepthook = _thread_died
    sys.excepthook = _program_died


def _thread_died(died: threading.ExceptHookArgs) -> None:
    name = died.thread.name if died.thread else "?"
    error = died.exc_value
    _LOG.error("thread %s ended by a defect of plainpacs", name, exc_info=error)


def _program_died(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    _LOG.critical("ended by a defect of plainpacs", exc_info=(kind, error, trace))


class TextLines(logging.Formatter):
    """``2024-02-28T03:38:10+0100 WARNING what happened``; ``words``: also those of exceptions."""

    def __init__(self, *, words: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        self._words = words

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another formatter made of it, with all its words
        return super().format(record)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's own name
        return super().formatException(ei) if self._words else "\n".join(_places(ei[1]))


class JSONLines(logging.Formatter):
    """One JSON object a record; ``exception`` is a text of several lines."""

    def __init__(self, *, words: bool) -> None:
        super().__init__()
        self._trace = TextLines(words=words)

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": stamp(int(record.created * 1e9)),
            "level": record.levelname,
            "message": record.getMessage(),
            "pid": record.process,
        }
        arguments = record.args if isinstance(record.args, tuple) else ()
        for argument in arguments:
            if isinstance(argument, Fielded):
                entry |= argument.log_fields()
        if record.exc_info and record.exc_info[1] is not None:
            entry["exception"] = self._trace.formatException(record.exc_info)
        # As people's tools: what is not text (a lone surrogate) is replaced, never refused.
        return orjson.dumps(_clean(entry)).decode()


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items()}
    return value


def _places(error: BaseException | None) -> Iterator[str]:
    """Where ``error`` and what led to it were raised, first things first, and their classes."""
    if error is None:
        return
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from _places(earlier)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    yield f"{type(error).__module__}.{type(error).__qualname__} (its words: --log-level debug)"
