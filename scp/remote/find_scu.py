"""C-FIND as its user: identifiers out, answers in as they come (PS3.4 C.4.1).

with Finder.open(node, "PLAINPACS", limits) as finder:
    for answer in finder.find(Level.STUDY, {"PatientID": "A1", "StudyInstanceUID": ""}):
        ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.identifier import BadIdentifier, DataSet, of_pydicom
from plainpacs.archive.dicom.identifier_writing import Value, to_pydicom
from plainpacs.scp.network.peer_status import PENDING, PENDING_KEYS_NOT_SUPPORTED, told
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node, Requestor
from plainpacs.scp.remote.calling import LOST, UNCOMPRESSED, Failed, saying_what_was_lost

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

_MODELS = (STUDY_ROOT_FIND, PATIENT_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET)
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
        self.offers = frozenset(str(context.abstract_syntax) for context in contexts)

    @classmethod
    def open(cls, node: Node, calling_ae: str, limits: Limits, *, stopping: int = -1) -> Finder:
        """Raises NoAssociation, and Stopping."""
        contexts = [build_context(uid, UNCOMPRESSED) for uid in _MODELS]
        return cls(
            Requestor.open(
                node, calling_ae, contexts, limits=limits, extended=_RELATIONAL, stopping=stopping
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
        model = PATIENT_ROOT_FIND if level is Level.PATIENT else STUDY_ROOT_FIND
        if model not in self.offers:
            which = "Patient" if model == PATIENT_ROOT_FIND else "Study"
            why = f"the peer does not answer queries of the {which} Root model"
            raise Failed(self.node, "context", why)
        self._messages = number = self._messages % 0xFFFF + 1
        identifier = to_pydicom({"QueryRetrieveLevel": level.value, **keys})
        with saying_what_was_lost(self.node):
            answers = iter(self._association.send_c_find(identifier, model, number, priority=0))
        while True:
            with saying_what_was_lost(self.node):
                answer, data = next(answers)
            if answer.Status not in PENDING:
                if answer.Status:
                    raise Failed(self.node, "status", told("C-FIND", answer))
                return
            try:
                yield self._answer(answer, data)
            except GeneratorExit:
                self._cancel(model, number)
                raise

    def _answer(self, answer: Dataset, data: Dataset | None) -> Answer:
        try:
            if data is None:
                raise BadIdentifier("it has no identifier, or one that is damaged")
            found = of_pydicom(data, default_for(self.node.ae_title))
        except BadIdentifier as error:
            raise Failed(self.node, "answer", f"it cannot be read: {error}") from None
        return Answer(found, answer.Status != PENDING_KEYS_NOT_SUPPORTED)

    def _cancel(self, model: str, number: int) -> None:
        """Ends the query; what was on its way already is dropped."""
        with contextlib.suppress(*LOST):  # what was wanted has come
            self._association.send_c_cancel(number, query_model=model)
            while self._association.next_status() in PENDING:
                pass
