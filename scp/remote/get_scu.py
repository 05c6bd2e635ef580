"""C-GET as its user (PS3.4 C.4.3): instances come over the association they were asked for on.

They are kept in the archive as they come: what the peer is answered for each is what a receiver
would answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from plainpacs.archive.store.store import Archive, Provenance
from plainpacs.scp.network.dimse import (
    Command,
    CommandField,
    Drain,
    Message,
    ProtocolError,
    Spill,
    response,
)
from plainpacs.scp.network.negotiation import ProposedContext
from plainpacs.scp.network.peer_status import PENDING
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.remote import retrieve as retrieving
from plainpacs.scp.remote.calling import UNCOMPRESSED, Calling, Failed
from plainpacs.scp.remote.find_scu import STUDY_ROOT_GET
from plainpacs.scp.remote.retrieve import MODEL_CONTEXT, Result, Take, Wanted
from plainpacs.scp.storage import cget_contexts
from plainpacs.scp.storage.store_scp import LargeInstance, StoreAnswer, StoreRequest, store


def _associate_to_get(
    call: Calling,
    sop_classes: Collection[str],
    spill: Callable[[int, Command], Spill] = lambda _, __: Drain(),
    stopping: int = -1,
) -> Requestor:
    """Raises NoAssociation, Stopping; Failed when the peer would not send over the association."""
    storage = cget_contexts.storage_contexts(
        sorted(sop_classes) or cget_contexts.USUAL, MODEL_CONTEXT + 2
    )
    association = Requestor.open(
        call.node,
        call.ae_title,
        [ProposedContext(MODEL_CONTEXT, STUDY_ROOT_GET, UNCOMPRESSED), *storage],
        limits=call.limits,
        roles=cget_contexts.roles(storage),
        spill=spill,
        stopping=stopping,
    )
    storing = (one for number, one in association.contexts.items() if number != MODEL_CONTEXT)
    if MODEL_CONTEXT not in association.contexts:
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
        channel, context = self._association.channel, self._contexts[MODEL_CONTEXT]
        self._messages = self._messages % 0xFFFF + 1
        retrieving.ask(self._association, CommandField.C_GET_RQ, context, self._messages, wanted)
        while True:
            message = channel.read()
            if message.command.field == CommandField.C_STORE_RQ:
                answer = self._store(message)
                channel.send(
                    message.context_id, response(message.command, answer.status, answer.comment)
                )
                continue
            retrieving.check(message.command, CommandField.C_GET_RQ, self._messages)
            if message.command.status not in PENDING:
                return retrieving.result_of(CommandField.C_GET_RQ, message, context)

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
        if context is None or context_id == MODEL_CONTEXT:
            raise ProtocolError(f"an instance came on context {context_id}, not for it")
        return StoreRequest(
            command.sop_class,
            command.sop_instance,
            context.abstract_syntax,
            context.transfer_syntax,
            self._provenance,
        )

    def close(self, *, abort: bool) -> None:
        retrieving.close(self._association, abort=abort)
