"""The services besides C-ECHO and C-STORE: which there are, and what each is given.

A service is a subclass of pynetdicom's service class. It is loaded when it is asked for first, so
that a process that only receives has no more than it needs.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any, Protocol, cast

from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass

from plainpacs.archive.app.settings import Settings
from plainpacs.archive.store.store import Archive
from plainpacs.scp.network.acceptor import Accepted
from plainpacs.scp.network.answers import LONGEST_COMMENT
from plainpacs.scp.network.dimse import Command, CommandField
from plainpacs.scp.network.negotiation import PATIENT_ROOT_GET, STUDY_ROOT_GET, Context
from plainpacs.scp.receiver.statistics import Caller

_LOG = logging.getLogger("plainpacs.scp")
_NOTED: set[tuple[str, str, str]] = set()
_MOST_NOTED = 1000


class Awaited(Protocol):
    """A request of ours that the peer is to answer when it comes to it."""

    def answered(self, command: Command) -> None:
        """``command`` is the response. Raises ProtocolError when it is none."""

    def ended(self) -> None:
        """The association is over, and there was no answer. Raises nothing."""


class Asked(ServiceClass):
    """A request to a service: pynetdicom's service class, with what the request is asked of.

    ``request``: as pynetdicom read it; ``data``: its data set, encoded, until the association is
    listened to again; empty when there was none.
    ``context``: the one it came on; ``agreed``: what was agreed on for the SOP Class of that by
    extended negotiation. ``awaited``, of this association, by message id: what a service puts in
    when it sent a request and does not wait for the response.
    """

    assoc: Accepted

    def __init__(
        self, association: Accepted, context: Context, data: memoryview, *, caller: Caller,
        archive: Archive, settings: Settings, agreed: bytes, awaited: dict[int, Awaited],
    ) -> None:  # fmt: skip
        super().__init__(association)
        self.request: Any = None
        self.context, self.data, self.caller = context, data, caller
        self.archive, self.settings = archive, settings
        self.agreed, self.awaited = agreed, awaited

    def SCP(self, req: Any, context: PresentationContext) -> None:  # noqa: N802 - its name there
        """Answers. Raises what an association raises; any other Exception is answered with 0110,
        and logged as a defect."""
        self.request = req
        self.serve()

    def serve(self) -> None:
        raise NotImplementedError

    def answer(
        self,
        status: int,
        comment: str = "",
        *,
        tag: int = 0,
        identifier: bytes = b"",
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Sends a response. ``tag``: of the element that is wrong. ``more``: by keyword."""
        response = type(self.request)()
        response.MessageIDBeingRespondedTo = self.request.MessageID
        response.AffectedSOPClassUID = self.context.abstract_syntax
        response.Status = int(status)
        if comment:
            response.ErrorComment = comment[:LONGEST_COMMENT].rstrip()
        if tag:
            response.OffendingElement = [tag]
        if identifier:
            response.Identifier = BytesIO(identifier)
        for keyword, value in more.items():
            setattr(response, keyword, value)
        self.dimse.send_msg(response, self.context.id)

    def note_once(self, words: str) -> None:
        """A line in the log, the first time that such an application is to be told of it."""
        told = self.caller.calling_ae, self.caller.peer, words
        if told not in _NOTED and len(_NOTED) < _MOST_NOTED:
            _NOTED.add(told)
            _LOG.info("query: %s: %s", self.caller, words)

    def is_cancelled(self, msg_id: int) -> bool:
        """Whether the peer cancelled its request ``msg_id`` (C-CANCEL, PS3.7 9.3.2.3).

        Does not wait; raises Stopping once the receiver stops.
        """
        self.assoc.listen()
        return super().is_cancelled(msg_id)


_PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
_STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
_COMMITMENT = "1.2.840.10008.1.20.1"
_QUERY_RETRIEVE = "1.2.840.10008.5.1.4.1.2."

_SERVICES: dict[tuple[str, CommandField], str] = {
    (_PATIENT_ROOT_FIND, CommandField.C_FIND_RQ): "plainpacs.scp.query_retrieve.find:Find",
    (_STUDY_ROOT_FIND, CommandField.C_FIND_RQ): "plainpacs.scp.query_retrieve.find:Find",
    (_PATIENT_ROOT_MOVE, CommandField.C_MOVE_RQ): "plainpacs.scp.query_retrieve.retrieve:Move",
    (_STUDY_ROOT_MOVE, CommandField.C_MOVE_RQ): "plainpacs.scp.query_retrieve.retrieve:Move",
    (PATIENT_ROOT_GET, CommandField.C_GET_RQ): "plainpacs.scp.query_retrieve.retrieve:Get",
    (STUDY_ROOT_GET, CommandField.C_GET_RQ): "plainpacs.scp.query_retrieve.retrieve:Get",
    (_COMMITMENT, CommandField.N_ACTION_RQ): "plainpacs.scp.commitment.service:Commitment",
}
"""By SOP Class of the context and operation: ``module:class``."""

_OFFERED: dict[str, bytes] = {
    # Relational queries, and the date and time of one event combined; neither fuzzy semantic
    # matching of names, nor timezone query adjustment, nor enhanced multi-frame image conversion.
    _PATIENT_ROOT_FIND: b"\1\1\0\0\0",
    _STUDY_ROOT_FIND: b"\1\1\0\0\0",
    # Relational retrieves (C.5.2.1).
    **dict.fromkeys(
        (_PATIENT_ROOT_MOVE, _STUDY_ROOT_MOVE, PATIENT_ROOT_GET, STUDY_ROOT_GET), b"\1\0"
    ),
}
"""By SOP Class: what of extended negotiation is agreed to, byte by byte (PS3.4 C.5.1.1)."""


def find(abstract_syntax: str, field: int) -> type[Asked] | None:
    """What serves the operation ``field`` on a context for ``abstract_syntax``."""
    place = _SERVICES.get((abstract_syntax, cast(CommandField, field)))
    if place is None:
        return None
    module, _, name = place.partition(":")
    return cast(type[Asked], getattr(importlib.import_module(module), name))


def is_query_retrieve(abstract_syntax: str) -> bool:
    """Whether the operations on it give out what is kept: C-FIND, C-MOVE and C-GET."""
    return abstract_syntax.startswith(_QUERY_RETRIEVE)


def prepare(abstract_syntaxes: Collection[str]) -> None:
    """Loads what serves these, so that the first request need not wait for it."""
    for (abstract_syntax, _), place in _SERVICES.items():
        if abstract_syntax in abstract_syntaxes:
            importlib.import_module(place.partition(":")[0])


_SOP_CLASSES = frozenset(abstract_syntax for abstract_syntax, _ in _SERVICES)
_WITHOUT_QUERIES = frozenset(uid for uid in _SOP_CLASSES if not is_query_retrieve(uid))


def served(settings: Settings) -> frozenset[str]:
    """Whose contexts are accepted besides Verification and storage."""
    return _WITHOUT_QUERIES if settings.query_retrieve == "off" else _SOP_CLASSES


def agreed(wanted: Mapping[str, bytes], served: Collection[str]) -> dict[str, bytes]:
    """The answer to a SOP Class Extended Negotiation: what is both wanted and offered."""
    return {
        uid: bytes(one & other for one, other in zip(asked, _OFFERED[uid], strict=False))
        for uid, asked in wanted.items()
        if uid in _OFFERED and uid in served
    }
