"""C-GET and C-MOVE as their user: one association over which retrievals go, one after the other.

``Getter`` takes the instances over the same association and keeps them in the archive as they
come: what it answers the peer for each is what a receiver would. ``Mover`` has them sent to a
receiver, and only hears how many were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from plainpacs.archive.archive import Archive, Provenance
from plainpacs.archive.attributes import Level
from plainpacs.scp import offering
from plainpacs.scp.asking import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from plainpacs.scp.calling import UNCOMPRESSED, Calling, Failed
from plainpacs.scp.dimse import (
    RESPONSE,
    Command,
    CommandField,
    Drain,
    Element,
    Message,
    ProtocolError,
    Spill,
    request,
    response,
)
from plainpacs.scp.identifiers import BadIdentifier, Value, encode, read
from plainpacs.scp.meanings import PENDING, told
from plainpacs.scp.negotiation import ContextResult, ProposedContext
from plainpacs.scp.requestor import Requestor
from plainpacs.scp.storing import LargeInstance, StoreAnswer, StoreRequest, store

_MODEL_CONTEXT = 1
_DESTINATION_UNKNOWN = 0xA801


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request asks for: a study, series, or instances of a series.

    ``missing``: the instances that are to come, with their SOP Classes as far as the peer told
    them; None when it did not tell which there are.
    """

    study: str
    series: str = ""
    instances: tuple[str, ...] = ()
    missing: dict[str, str] | None = None

    def identifier(self) -> dict[str, Value]:
        level = Level.INSTANCE if self.instances else Level.SERIES if self.series else Level.STUDY
        keys: dict[str, Value] = {
            "QueryRetrieveLevel": level.value,
            "StudyInstanceUID": self.study,
            "SeriesInstanceUID": self.series,
            "SOPInstanceUID": "\\".join(self.instances),
        }
        return {keyword: value for keyword, value in keys.items() if value}

    def sop_classes(self) -> frozenset[str]:
        """Empty when not all of them are known."""
        classes = frozenset((self.missing or {}).values())
        return frozenset() if "" in classes else classes

    @property
    def number(self) -> int:
        """How many instances it is, as far as that is known; else 1."""
        return 1 if self.missing is None else len(self.missing)

    def __str__(self) -> str:
        return f"series {self.series}" if self.series else f"study {self.study}"


@dataclass(frozen=True, slots=True)
class Result:
    """How a request ended. ``told``: the status in words; ``failed``: the instances that the peer
    says it could not send."""

    status: int
    told: str
    failed: frozenset[str] = frozenset()


Take = Callable[[str, StoreAnswer, int], None]
"""Is told of each instance that comes: its UID, what became of it, and its bytes."""


class Retriever(Protocol):
    def serves(self, wanted: Wanted) -> bool:
        """Whether what is wanted can come over this association."""

    def retrieve(self, wanted: Wanted) -> Result:
        """Raises what a channel raises; and Failed when nothing can be retrieved at all."""

    def close(self, *, abort: bool) -> None: ...


def _associate_to_get(
    call: Calling,
    sop_classes: Collection[str],
    spill: Callable[[int, Command], Spill] = lambda _, __: Drain(),
    stopping: int = -1,
) -> Requestor:
    """Raises NoAssociation, Stopping; Failed when the peer would not send over the association."""
    storage = offering.storage_contexts(sorted(sop_classes) or offering.USUAL, _MODEL_CONTEXT + 2)
    association = Requestor.open(
        call.node,
        call.ae_title,
        [ProposedContext(_MODEL_CONTEXT, STUDY_ROOT_GET, UNCOMPRESSED), *storage],
        limits=call.limits,
        roles=offering.roles(storage),
        spill=spill,
        stopping=stopping,
    )
    storing = (one for number, one in association.contexts.items() if number != _MODEL_CONTEXT)
    if _MODEL_CONTEXT not in association.contexts:
        why = "the peer does not offer C-GET"
    elif not any(one.abstract_syntax in _scp_of(association) for one in storing):
        why = "the peer offers C-GET, but would send none of it: it takes no role selection"
    else:
        return association
    association.release()
    raise Failed(call.node, "context", why)


def _scp_of(association: Requestor) -> set[str]:
    return {uid for uid, role in association.roles.items() if role.scp}


def try_to_get(call: Calling, wanted: Wanted) -> None:
    """Raises NoAssociation, or Failed, when C-GET is not to be had from the peer."""
    _associate_to_get(call, wanted.sop_classes()).release()


class Getter:
    """Takes instances over the association, and stores them. Raises as ``_associate_to_get``."""

    def __init__(
        self,
        call: Calling,
        archive: Archive,
        provenance: Provenance,
        sop_classes: Collection[str],
        take: Take,
        *,
        stopping: int = -1,
    ) -> None:
        self._call = call
        self._archive = archive
        self._provenance = provenance
        self._take = take
        self._messages = 0
        self._classes = frozenset(sop_classes)
        self._association = _associate_to_get(call, self._classes, self._spill, stopping)
        self._contexts = self._association.contexts

    def serves(self, wanted: Wanted) -> bool:
        needed = wanted.sop_classes()
        return bool(needed) and needed <= self._classes if self._classes else not needed

    def retrieve(self, wanted: Wanted) -> Result:
        channel, context = self._association.channel, self._contexts[_MODEL_CONTEXT]
        self._messages = self._messages % 0xFFFF + 1
        _send(self._association, CommandField.C_GET_RQ, context, self._messages, wanted)
        while True:
            message = channel.read()
            if message.command.field == CommandField.C_STORE_RQ:
                answer = self._store(message)
                channel.send(
                    message.context_id, response(message.command, answer.status, answer.comment)
                )
                continue
            _check(message.command, CommandField.C_GET_RQ, self._messages)
            if message.command.status not in PENDING:
                return _result(CommandField.C_GET_RQ, message, context)

    def _store(self, message: Message) -> StoreAnswer:
        if isinstance(message.data, LargeInstance):
            size, answer = message.data.size, message.data.store()
        else:
            data = message.data if isinstance(message.data, memoryview) else None
            size = len(data or b"")
            answer = store(
                self._archive,
                self._request(message.context_id, message.command),
                data,
                self._call.settings.refuse_sop_class,
            )
        self._take(message.command.sop_instance, answer, size)
        return answer

    def _spill(self, context_id: int, command: Command) -> Spill:
        if command.field != CommandField.C_STORE_RQ:
            raise ProtocolError("an identifier of some megabytes")
        refused = self._call.settings.refuse_sop_class
        return LargeInstance(self._archive, self._request(context_id, command), refused)

    def _request(self, context_id: int, command: Command) -> StoreRequest:
        context = self._contexts.get(context_id)
        if context is None or context_id == _MODEL_CONTEXT:
            raise ProtocolError(f"an instance came on context {context_id}, not for it")
        return StoreRequest(
            command.sop_class,
            command.sop_instance,
            context.abstract_syntax,
            context.transfer_syntax,
            self._provenance,
        )

    def close(self, *, abort: bool) -> None:
        _close(self._association, abort=abort)


@dataclass(slots=True)
class _Progress:
    """What C-MOVE-RSPs say: how many instances were sent."""

    seen: int = 0
    tell: Callable[[int], None] = field(default=lambda _: None)

    def take(self, command: Command) -> None:
        counted = sum(
            command.number(one) or 0
            for one in (
                Element.COMPLETED_SUB_OPERATIONS,
                Element.WARNING_SUB_OPERATIONS,
            )
        )
        if counted > self.seen:
            self.tell(counted - self.seen)
            self.seen = counted


class Mover:
    """``moved`` is told how many instances more were sent to ``destination``.

    Raises NoAssociation, Stopping.
    """

    def __init__(
        self,
        call: Calling,
        destination: str,
        moved: Callable[[int], None],
        *,
        stopping: int = -1,
    ) -> None:
        self._node = call.node
        self._destination = destination
        self._moved = moved
        self._messages = 0
        self._association = Requestor.open(
            call.node,
            call.ae_title,
            [ProposedContext(_MODEL_CONTEXT, STUDY_ROOT_MOVE, UNCOMPRESSED)],
            limits=call.limits,
            stopping=stopping,
        )

    def serves(self, wanted: Wanted) -> bool:
        return True

    def retrieve(self, wanted: Wanted) -> Result:
        channel = self._association.channel
        context = self._association.contexts[_MODEL_CONTEXT]
        self._messages = self._messages % 0xFFFF + 1
        more = {Element.MOVE_DESTINATION: self._destination}
        _send(self._association, CommandField.C_MOVE_RQ, context, self._messages, wanted, more=more)
        progress = _Progress(tell=self._moved)
        while True:
            message = channel.read()
            _check(message.command, CommandField.C_MOVE_RQ, self._messages)
            progress.take(message.command)
            if message.command.status == _DESTINATION_UNKNOWN:
                words = told(CommandField.C_MOVE_RQ, message.command)
                raise Failed(self._node, "status", f"{words}: {self._destination}")
            if message.command.status not in PENDING:
                return _result(CommandField.C_MOVE_RQ, message, context)

    def close(self, *, abort: bool) -> None:
        _close(self._association, abort=abort)


def _send(
    association: Requestor,
    operation: CommandField,
    context: ContextResult,
    number: int,
    wanted: Wanted,
    *,
    more: Mapping[Element, str] = MappingProxyType({}),
) -> None:
    elements: dict[Element, str | int | bytes] = {
        Element.AFFECTED_SOP_CLASS_UID: context.abstract_syntax,
        Element.PRIORITY: 0,
        **more,
    }
    asked = request(operation, number, elements, has_data_set=True)
    identifier = encode(wanted.identifier(), context.transfer_syntax)
    association.channel.send(context.id, asked, (identifier,))


def _check(command: Command, operation: CommandField, number: int) -> None:
    if command.field != operation | RESPONSE or command.message_id != number:
        raise ProtocolError("the peer sent what was not asked for")


def _result(operation: CommandField, message: Message, context: ContextResult) -> Result:
    failed: list[str] = []
    if isinstance(message.data, memoryview):
        try:
            failed = read(message.data, context.transfer_syntax).texts("FailedSOPInstanceUIDList")
        except BadIdentifier:
            failed = []  # then what did not come is what failed
    return Result(message.command.status, told(operation, message.command), frozenset(failed))


def _close(association: Requestor, *, abort: bool) -> None:
    if abort:
        association.abort()
    else:
        association.release()
