"""The services besides C-ECHO and C-STORE: which there are, and what each is given.

A service is one function. It is loaded when it is asked for first, so that a process that only
receives has no more than it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from plainpacs.archive.archive import Archive
from plainpacs.archive.settings import Settings
from plainpacs.scp.channel import Channel
from plainpacs.scp.dimse import Command, CommandField
from plainpacs.scp.negotiation import ContextResult
from plainpacs.scp.tally import Caller


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a service. ``data`` is its data set, encoded; empty when there was none.

    ``contexts`` are all that were accepted, by id, and ``context`` is the one it came on.
    """

    command: Command
    data: bytes
    context: ContextResult
    contexts: Mapping[int, ContextResult]
    channel: Channel
    caller: Caller
    archive: Archive
    settings: Settings


Service = Callable[[Asked], bytes | None]
"""Answers by way of the channel, and gives the command set to answer with last, if any.

Raises what the channel raises. Any other Exception is answered with 0110, and logged as a defect.
"""

_SERVICES: dict[tuple[str, CommandField], str] = {}
"""By SOP Class of the context and operation: ``module:function``."""


def find(abstract_syntax: str, field: int) -> Service | None:
    """What serves the operation ``field`` on a context for ``abstract_syntax``."""
    place = _SERVICES.get((abstract_syntax, cast(CommandField, field)))
    if place is None:
        return None
    module, _, name = place.partition(":")
    return cast(Service, getattr(importlib.import_module(module), name))


SOP_CLASSES = frozenset(abstract_syntax for abstract_syntax, _ in _SERVICES)
"""Whose contexts are accepted besides Verification and storage."""
