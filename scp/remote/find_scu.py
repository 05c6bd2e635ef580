"""C-FIND as its user: identifiers out, answers in as they come (PS3.4 C.4.1).

with Finder.open(node, "PLAINPACS", limits) as finder:
    for answer in finder.find(Level.STUDY, {"PatientID": "A1", "StudyInstanceUID": ""}):
        ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.identifier import BadIdentifier, DataSet, read
from plainpacs.archive.dicom.identifier_writing import Value, encode
from plainpacs.scp.network.dimse import RESPONSE, Command, CommandField, Element, cancel, request
from plainpacs.scp.network.negotiation import ContextResult, ProposedContext
from plainpacs.scp.network.peer_status import PENDING, PENDING_KEYS_NOT_SUPPORTED, told
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node, Requestor
from plainpacs.scp.remote.calling import LOST, UNCOMPRESSED, Failed, saying_what_was_lost

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

_CONTEXTS = tuple(
    ProposedContext(2 * number + 1, uid, UNCOMPRESSED)
    for number, uid in enumerate(
        (STUDY_ROOT_FIND, PATIENT_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET)
    )
)
_RELATIONAL = {STUDY_ROOT_FIND: b"\1"}
"""Extended negotiation (PS3.4 C.5.1.1): a series may be asked for without its study."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One match. ``complete``: all keys counted, those too that a peer need not support."""

    data: DataSet
    complete: bool


class Finder:
    """An association to ask questions over, one after the other; a context manager.

    ``offers``: the SOP Classes of query and retrieve that the peer has.
    """

    def __init__(self, association: Requestor) -> None:
        self._association = association
        self.node = association.node
        self._messages = 0
        contexts = association.contexts.values()
        self.offers = frozenset(context.abstract_syntax for context in contexts)

    @classmethod
    def open(cls, node: Node, calling_ae: str, limits: Limits, *, stopping: int = -1) -> Finder:
        """Raises NoAssociation, and Stopping."""
        return cls(
            Requestor.open(
                node, calling_ae, _CONTEXTS, limits=limits, extended=_RELATIONAL, stopping=stopping
            )
        )

    def __enter__(self) -> Finder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._association.__exit__(kind, error, trace)

    def find(self, level: Level, keys: Mapping[str, Value]) -> Generator[Answer, None, None]:
        """The matches, each as it comes. Left early, the rest is cancelled (C-CANCEL).

        Raises Failed when the peer does not take the query, or is lost; and Stopping.
        """
        context = self._context(PATIENT_ROOT_FIND if level is Level.PATIENT else STUDY_ROOT_FIND)
        self._messages = number = self._messages % 0xFFFF + 1
        elements: dict[Element, str | int | bytes] = {
            Element.AFFECTED_SOP_CLASS_UID: context.abstract_syntax,
            Element.PRIORITY: 0,
        }
        asked = request(CommandField.C_FIND_RQ, number, elements, has_data_set=True)
        identifier = encode({"QueryRetrieveLevel": level.value, **keys}, context.transfer_syntax)
        with saying_what_was_lost(self.node):
            self._association.channel.send(context.id, asked, (identifier,))
        while (answer := self._answer(context, number)) is not None:
            try:
                yield answer
            except GeneratorExit:
                self._cancel(context.id, number)
                raise

    def _context(self, model: str) -> ContextResult:
        context = self._association.context_for(model)
        if context is None:
            which = "Patient" if model == PATIENT_ROOT_FIND else "Study"
            why = f"the peer does not answer queries of the {which} Root model"
            raise Failed(self.node, "context", why)
        return context

    def _answer(self, context: ContextResult, number: int) -> Answer | None:
        """The next match; None when there are no more."""
        with saying_what_was_lost(self.node):
            message = self._association.channel.read()
            self._check(message.command, number)
            status = message.command.status
        if status not in PENDING:
            if status:
                words = told(CommandField.C_FIND_RQ, message.command)
                raise Failed(self.node, "status", words)
            return None
        data = bytes(message.data) if isinstance(message.data, memoryview) else b""
        try:
            found = read(data, context.transfer_syntax)
        except BadIdentifier as error:
            raise Failed(self.node, "answer", f"it cannot be read: {error}") from None
        return Answer(found, status != PENDING_KEYS_NOT_SUPPORTED)

    def _check(self, command: Command, number: int) -> None:
        expected = CommandField.C_FIND_RQ | RESPONSE
        if command.field != expected or command.message_id != number:
            raise Failed(self.node, "association", "the peer sent what was not asked for")

    def _cancel(self, context: int, number: int) -> None:
        """Ends the query; what was on its way already is dropped."""
        channel = self._association.channel
        with contextlib.suppress(*LOST):  # what was wanted has come
            channel.send(context, cancel(number))
            while channel.read().command.status in PENDING:
                pass
