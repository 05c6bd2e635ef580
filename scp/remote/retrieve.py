"""C-GET and C-MOVE as their user (PS3.4 C.4.2, C.4.3): what both have in common.

What is asked for, and what comes of it. ``get_scu`` takes the instances over the same association,
``move_scu`` has them sent to a receiver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pydicom.dataset import Dataset

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.dicom.identifier import BadIdentifier, of_pydicom
from plainpacs.archive.dicom.identifier_writing import Value
from plainpacs.scp.network.peer_status import told
from plainpacs.scp.network.requestor import Requestor
from plainpacs.scp.storage.store_scp import StoreAnswer


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
    @property
    def association(self) -> Requestor: ...

    def serves(self, wanted: Wanted) -> bool:
        """Whether what is wanted can come over this association."""

    def retrieve(self, wanted: Wanted) -> Result:
        """Raises what an association raises; and Failed when nothing can be retrieved at all."""


def result_of(operation: str, answer: Dataset, identifier: Dataset | None) -> Result:
    """From the last response to a request."""
    failed: list[str] = []
    try:
        if identifier is not None:
            failed = of_pydicom(identifier).texts("FailedSOPInstanceUIDList")
    except BadIdentifier:
        failed = []  # then what did not come is what failed
    return Result(answer.Status, told(operation, answer), frozenset(failed))
