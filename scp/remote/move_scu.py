"""C-MOVE as its user (PS3.4 C.4.2): instances are sent to a receiver, and counted here."""

from __future__ import annotations

from collections.abc import Callable

from pynetdicom.presentation import build_context

from plainpacs.archive.dicom.identifier_writing import to_pydicom
from plainpacs.scp.network.peer_status import told
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.remote.calling import UNCOMPRESSED, Calling, Failed
from plainpacs.scp.remote.find_scu import STUDY_ROOT_MOVE
from plainpacs.scp.remote.retrieve import Result, Wanted, result_of

_DESTINATION_UNKNOWN = 0xA801


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
        self.association = Requestor.open(
            call.node,
            call.ae_title,
            [build_context(STUDY_ROOT_MOVE, UNCOMPRESSED)],
            limits=call.limits,
            stopping=stopping,
        )

    def serves(self, wanted: Wanted) -> bool:
        return True

    def retrieve(self, wanted: Wanted) -> Result:
        self._messages = self._messages % 0xFFFF + 1
        seen = 0
        answers = self.association.send_c_move(
            to_pydicom(wanted.identifier()),
            self._destination,
            STUDY_ROOT_MOVE,
            self._messages,
            priority=0,
        )
        for answer, identifier in answers:  # noqa: B007 - the last is what counts
            counted = sum(
                answer.get(keyword) or 0
                for keyword in ("NumberOfCompletedSuboperations", "NumberOfWarningSuboperations")
            )
            if counted > seen:
                self._moved(counted - seen)
                seen = counted
            if answer.Status == _DESTINATION_UNKNOWN:
                words = told("C-MOVE", answer)
                raise Failed(self._node, "status", f"{words}: {self._destination}")
        return result_of("C-MOVE", answer, identifier)
