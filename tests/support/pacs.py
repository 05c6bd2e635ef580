"""A PACS to query and retrieve from, made of pynetdicom, that can be told to behave badly."""

from __future__ import annotations

import contextlib
import fnmatch
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

from tests.support.archives import part10

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2."
CT = "1.2.840.10008.5.1.4.1.1.2"
LEVELS = {
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


@dataclass
class Pacs:
    """``series``: how many instances each has, in one study. ``levels``: those it answers queries
    at. ``ignores_lists``: it finds nothing by a list of UIDs. ``cannot_send``: instances that it
    fails on. ``vanishes_after``: so many instances, the first time."""

    series: tuple[int, ...] = (3, 2)
    offers: str = "123"
    takes_roles: bool = True
    levels: tuple[str, ...] = ("STUDY", "SERIES", "IMAGE")
    ignores_lists: bool = False
    cannot_send: frozenset[str] = frozenset()
    vanishes_after: int = -1
    destinations: dict[str, int] = field(default_factory=dict)
    aborts_queries: bool = False
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.stored: list[Dataset] = []
        for number, count in enumerate(self.series, 1):
            for one in range(1, count + 1):
                raw = part10(
                    StudyInstanceUID="1.7",
                    SeriesInstanceUID=f"1.7.{number}",
                    SOPInstanceUID=f"1.7.{number}.{one}",
                )
                self.stored.append(pydicom.dcmread(io.BytesIO(raw)))

    def matching(self, asked: Dataset) -> list[Dataset]:
        return [one for one in self.stored if self._means(asked, one)]

    def _means(self, asked: Dataset, one: Dataset) -> bool:
        for keyword in (*LEVELS.values(), "PatientID", "PatientName"):
            wanted = asked.get(keyword)
            if not wanted:
                continue
            several = [wanted] if isinstance(wanted, str) else list(wanted)
            if self.ignores_lists and len(several) > 1:
                return False
            if keyword.startswith("Patient"):
                several = [str(wanted)]
            if not any(fnmatch.fnmatchcase(str(one.get(keyword)), text) for text in several):
                return False
        return True

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        level = asked.QueryRetrieveLevel
        self.asked.append(f"FIND {level}")
        if self.aborts_queries:
            event.assoc.abort()
            return
        if level not in self.levels:
            yield 0xA900, None
            return
        seen = set()
        for one in self.matching(asked):
            uid = one[LEVELS[level]].value
            if uid in seen:
                continue
            if event.is_cancelled:
                self.asked.append("CANCEL")
                yield 0xFE00, None
                return
            seen.add(uid)
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for element in asked:
                if element.keyword in one:
                    answer[element.tag] = one[element.tag]
            yield 0xFF00, answer

    def retrieve(self, event: evt.Event, *, move: bool) -> Iterator[Any]:
        asked = event.identifier
        self.asked.append(f"{'MOVE' if move else 'GET'} {asked.QueryRetrieveLevel}")
        found = self.matching(asked)
        if move:
            port = self.destinations.get(str(event.move_destination))
            yield ("127.0.0.1", port) if port else (None, None)
        yield len(found)
        for number, one in enumerate(found):
            if number == self.vanishes_after:
                self.vanishes_after = -1
                event.assoc.abort()
                return
            if one.SOPInstanceUID in self.cannot_send:
                broken = Dataset()
                broken.SOPClassUID = "1.2.3.4"  # on no context
                broken.SOPInstanceUID = one.SOPInstanceUID
                yield 0xFF00, broken
            else:
                yield 0xFF00, one


@contextlib.contextmanager
def pacs(**manner: Any) -> Iterator[Pacs]:
    """One that listens on ``port`` of 127.0.0.1, as PACS."""
    one = Pacs(**manner)
    entity = AE("PACS")
    for which in one.offers:
        entity.add_supported_context(STUDY_ROOT + which)
    entity.add_supported_context("1.2.840.10008.1.1")
    roles = {"scu_role": False, "scp_role": True} if one.takes_roles else {}
    entity.add_supported_context(CT, ALL_TRANSFER_SYNTAXES, **roles)
    entity.add_requested_context(CT)
    handlers = [
        (evt.EVT_C_FIND, one.find),
        (evt.EVT_C_GET, lambda event: one.retrieve(event, move=False)),
        (evt.EVT_C_MOVE, lambda event: one.retrieve(event, move=True)),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    one.port = server.server_address[1]
    try:
        yield one
    finally:
        server.shutdown()
