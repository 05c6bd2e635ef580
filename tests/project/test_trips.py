"""How many of our files an everyday operation goes through: who follows it has to read them.

A file counts when a function in it was called. Wanted are 14 for a store, 18 for a query, 28 for a
retrieve and 10 for ``ls``. It takes 27, 32, 33 and 18 today: these limits only ever get less.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from click.testing import CliRunner
from pydicom import Dataset
from pynetdicom import AE, build_role, evt

import plainpacs
from plainpacs.archive.app import cli
from tests.support.archives import CT_IMAGE_STORAGE as SOP_CLASS
from tests.support.peer import STUDY, Peer, data_set
from tests.support.queries import index
from tests.support.receiver import Running, Start

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom", "ignore:::pynetdicom")

assert plainpacs.__file__
OURS = plainpacs.__file__.rpartition("/")[0]
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"


class Trip:
    """The files gone through while it is ``on``."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.on = False

    def note(self, frame: FrameType, event: str, _: object) -> None:
        name, within = frame.f_code.co_filename, frame.f_code.co_name
        if self.on and event == "call" and name.startswith(OURS) and within != "<module>":
            self.files.setdefault(name.removeprefix(OURS + "/"))

    def of(self, action: Callable[[], object]) -> list[str]:
        self.files.clear()
        self.on = True
        action()
        self.on = False
        return list(self.files)


@contextmanager
def in_new_threads() -> Iterator[Trip]:
    trip = Trip()
    threading.setprofile(trip.note)
    try:
        yield trip
    finally:
        threading.setprofile(None)


@pytest.fixture
def trip() -> Iterator[Trip]:
    with in_new_threads() as one:
        yield one


@pytest.fixture
def running(trip: Trip, start: Start) -> Running:
    return start(query_retrieve="any")


def test_a_third_instance_is_stored(running: Running, trip: Trip) -> None:
    with Peer(running.port) as peer:

        def store(number: int) -> None:
            uid = f"1.2.9.{number}"
            assert peer.store(data_set(sop=uid), sop=uid) == 0

        store(1)
        store(2)
        went = trip.of(lambda: store(3))
        assert len(went) <= 28, " ".join(went)


def test_one_study_is_found_and_fetched(running: Running, trip: Trip) -> None:
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0
    index(running)
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID, asked.PatientName = "STUDY", STUDY, ""
    got: list[object] = []
    entity = AE()
    for sop_class in (FIND, GET, SOP_CLASS):
        entity.add_requested_context(sop_class)
    association = entity.associate(
        "127.0.0.1", running.port, ae_title="DRDCM", ext_neg=[build_role(SOP_CLASS, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, lambda event: got.append(event) or 0)],
    )  # fmt: skip
    try:
        found: list[object] = []

        def find() -> None:
            found[:] = association.send_c_find(asked, FIND)

        find()
        went = trip.of(find)
        assert len(found) == 2
        assert len(went) <= 34, " ".join(went)
        del asked.PatientName

        def get() -> None:
            list(association.send_c_get(asked, GET))

        get()
        went = trip.of(get)
        assert len(got) == 2
        assert len(went) <= 34, " ".join(went)
    finally:
        association.release()


def test_one_study_is_listed(running: Running) -> None:
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0
    index(running)
    trip = Trip()
    lines: list[str] = []

    def ls() -> None:
        sys.setprofile(trip.note)
        try:
            lines.append(
                CliRunner().invoke(cli.root, ["-a", str(running.root), "ls", STUDY]).output
            )
        finally:
            sys.setprofile(None)

    ls()
    went = trip.of(ls)
    assert STUDY in lines[1]
    assert len(went) <= 20, " ".join(went)
