"""C-GET and C-MOVE as their user (PS3.4 C.4.2, C.4.3): what both have in common.

What is asked for, what comes of it, and the messages between. ``getting`` takes the instances over
the same association, ``moving`` has them sent to a receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.identifier import BadIdentifier, read
from plainpacs.archive.dicom.identifier_writing import Value, encode
from plainpacs.scp.network.dimse import (
    RESPONSE,
    Command,
    CommandField,
    Element,
    Message,
    ProtocolError,
    request,
)
from plainpacs.scp.network.negotiation import ContextResult
from plainpacs.scp.network.peer_status import told
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.storage.store_scp import StoreAnswer

MODEL_CONTEXT = 1
"""The id of the context that is for requests."""


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


def ask(
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


def check(command: Command, operation: CommandField, number: int) -> None:
    if command.field != operation | RESPONSE or command.message_id != number:
        raise ProtocolError("the peer sent what was not asked for")


def result_of(operation: CommandField, message: Message, context: ContextResult) -> Result:
    failed: list[str] = []
    if isinstance(message.data, memoryview):
        try:
            failed = read(message.data, context.transfer_syntax).texts("FailedSOPInstanceUIDList")
        except BadIdentifier:
            failed = []  # then what did not come is what failed
    return Result(message.command.status, told(operation, message.command), frozenset(failed))


def close(association: Requestor, *, abort: bool) -> None:
    if abort:
        association.abort()
    else:
        association.release()
