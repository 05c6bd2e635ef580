"""C-GET as its user (PS3.4 C.4.3): instances come over the association they were asked for on.

They are kept in the archive as they come: what the peer is answered for each is what a receiver
would answer.
"""

from __future__ import annotations

from collections.abc import Collection

from pynetdicom.presentation import build_context

from plainpacs.archive.dicom.identifier_writing import to_pydicom
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
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.remote.calling import UNCOMPRESSED, Calling, Failed
from plainpacs.scp.remote.find_scu import STUDY_ROOT_GET
from plainpacs.scp.remote.retrieve import Result, Take, Wanted, result_of
from plainpacs.scp.storage import cget_contexts
from plainpacs.scp.storage.store_scp import LargeInstance, StoreRequest, store


class _Receiving(Requestor):
    """An association on which instances come too, which ``getter`` keeps."""

    getter: Getter | None = None

    def spill(self, context_id: int, command: Command) -> Spill:
        if command.field != CommandField.C_STORE_RQ or self.getter is None:
            return Drain()
        return self.getter.spill(self.getter.request(context_id, command))

    def take(self, message: Message) -> None:
        if message.command.field == CommandField.C_STORE_RQ and self.getter is not None:
            self.getter.store(message)
        else:
            super().take(message)


def _associate_to_get(
    call: Calling, sop_classes: Collection[str], stopping: int = -1
) -> _Receiving:
    """Raises NoAssociation, Stopping; Failed when the peer would not send over the association."""
    storage = cget_contexts.storage_contexts(sorted(sop_classes) or cget_contexts.USUAL)
    association = _Receiving.open(
        call.node,
        call.ae_title,
        [build_context(STUDY_ROOT_GET, UNCOMPRESSED), *storage],
        limits=call.limits,
        sent_to_us=dict.fromkeys(str(one.abstract_syntax) for one in storage),
        stopping=stopping,
    )
    if association.context_for(STUDY_ROOT_GET) is None:
        why = "the peer does not offer C-GET"
    elif not any(one.as_scp for one in association.accepted_contexts):
        why = "the peer offers C-GET, but would send none of it: it takes no role selection"
    else:
        return association
    association.release()
    raise Failed(call.node, "context", why)


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
        self._archive = archive
        self._refused = call.settings.refuse_sop_class
        self._provenance = provenance
        self._take = take
        self._messages = 0
        self._classes = frozenset(sop_classes)
        self.association = _associate_to_get(call, self._classes, stopping)
        self.association.getter = self

    def serves(self, wanted: Wanted) -> bool:
        needed = wanted.sop_classes()
        return bool(needed) and needed <= self._classes if self._classes else not needed

    def retrieve(self, wanted: Wanted) -> Result:
        self._messages = self._messages % 0xFFFF + 1
        answers = self.association.send_c_get(
            to_pydicom(wanted.identifier()), STUDY_ROOT_GET, self._messages, priority=0
        )
        *_, (answer, identifier) = answers
        return result_of("C-GET", answer, identifier)

    # --- for the association --------------------------------------------------------------------

    def request(self, context_id: int, command: Command) -> StoreRequest:
        context = self.association.contexts.get(context_id)
        if context is None or context.abstract_syntax == STUDY_ROOT_GET:
            raise ProtocolError(f"an instance came on context {context_id}, not for it")
        return StoreRequest(
            command.sop_class,
            command.sop_instance,
            str(context.abstract_syntax),
            str(context.transfer_syntax),
            self._provenance,
        )

    def spill(self, request: StoreRequest) -> Spill:
        return LargeInstance(self._archive, request, self._refused)

    def store(self, message: Message) -> None:
        """Keeps an instance, and answers."""
        command, data = message.command, message.data
        if isinstance(data, LargeInstance):
            size, answer = data.size, data.store()
        else:
            held = data if isinstance(data, memoryview) else None
            size = len(held or b"")
            request = self.request(message.context_id, command)
            answer = store(self._archive, request, held, self._refused)
        self._take(command.sop_instance, answer, size)
        said = response(command, answer.status, answer.comment)
        self.association.send_message(message.context_id, said)
