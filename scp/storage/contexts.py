"""Which contexts to propose for instances that are to be sent, and over how many associations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pynetdicom.presentation import PresentationContext, build_context

from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from plainpacs.scp.storage.convert import can_become
from plainpacs.scp.storage.instance_file import Outgoing

MOST_CONTEXTS = 128
"""Context ids are odd and fit into a byte (PS3.8 9.3.2.2)."""
TARGETS = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""What is converted to, the better first."""


@dataclass(slots=True)
class Batch:
    """What one association can carry."""

    contexts: list[PresentationContext] = field(default_factory=list)
    instances: list[Outgoing] = field(default_factory=list)

    def _propose(self, sop_class: str, syntaxes: Iterable[str]) -> None:
        self.contexts += [build_context(sop_class, syntax) for syntax in syntaxes]


def batches(instances: Iterable[Outgoing]) -> list[Batch]:
    """The ``instances`` by the association that each is to go over, in their order otherwise.

    Every transfer syntax has a context of its own, so that the peer takes or leaves each; one that
    can be converted has, besides, those that it can be converted to.
    """
    instances = list(instances)
    stored: dict[str, dict[str, None]] = {}
    for one in instances:
        stored.setdefault(one.sop_class, {})[one.transfer_syntax] = None
    found = [Batch()]
    place: dict[tuple[str, str], Batch] = {}
    for sop_class, all_syntaxes in stored.items():
        for syntaxes in _at_most(list(all_syntaxes), MOST_CONTEXTS - len(TARGETS)):
            others = [
                target
                for target in TARGETS
                if target not in syntaxes and any(can_become(one, target) for one in syntaxes)
            ]
            if len(found[-1].contexts) + len(syntaxes) + len(others) > MOST_CONTEXTS:
                found.append(Batch())
            found[-1]._propose(sop_class, [*syntaxes, *others])
            place |= {(sop_class, syntax): found[-1] for syntax in syntaxes}
    for one in instances:
        place[one.sop_class, one.transfer_syntax].instances.append(one)
    return [batch for batch in found if batch.instances]


def _at_most(items: list[str], number: int) -> Iterator[list[str]]:
    for at in range(0, len(items), number):
        yield items[at : at + number]
