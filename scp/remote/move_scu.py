"""C-MOVE as its user (PS3.4 C.4.2): instances are sent to a receiver, and counted here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from plainpacs.scp.network.dimse import Command, CommandField, Element
from plainpacs.scp.network.negotiation import ProposedContext
from plainpacs.scp.network.peer_status import PENDING, told
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.remote import retrieve as retrieving
from plainpacs.scp.remote.calling import UNCOMPRESSED, Calling, Failed
from plainpacs.scp.remote.find_scu import STUDY_ROOT_MOVE
from plainpacs.scp.remote.retrieve import MODEL_CONTEXT, Result, Wanted

_DESTINATION_UNKNOWN = 0xA801


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
            [ProposedContext(MODEL_CONTEXT, STUDY_ROOT_MOVE, UNCOMPRESSED)],
            limits=call.limits,
            stopping=stopping,
        )

    def serves(self, wanted: Wanted) -> bool:
        return True

    def retrieve(self, wanted: Wanted) -> Result:
        channel = self._association.channel
        context = self._association.contexts[MODEL_CONTEXT]
        self._messages = self._messages % 0xFFFF + 1
        more = {Element.MOVE_DESTINATION: self._destination}
        operation = CommandField.C_MOVE_RQ
        retrieving.ask(self._association, operation, context, self._messages, wanted, more=more)
        progress = _Progress(tell=self._moved)
        while True:
            message = channel.read()
            retrieving.check(message.command, operation, self._messages)
            progress.take(message.command)
            if message.command.status == _DESTINATION_UNKNOWN:
                words = told(operation, message.command)
                raise Failed(self._node, "status", f"{words}: {self._destination}")
            if message.command.status not in PENDING:
                return retrieving.result_of(operation, message, context)

    def close(self, *, abort: bool) -> None:
        retrieving.close(self._association, abort=abort)
