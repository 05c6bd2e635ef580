"""Queries and retrieves as real applications send them; and refused for who tests conformance."""

from __future__ import annotations

import pytest

from plainpacs.archive.dicom.identifier_writing import Value, encode
from tests.scp.test_retrieve import STUDY_GET, asking, get, role
from tests.support.peer import CT, EVRLE, IVRLE
from tests.support.queries import PATIENT_ROOT, STUDY_ROOT, SUCCESS, Asker, fill
from tests.support.receiver import Running, Start

SR = "1.2.840.10008.5.1.4.1.1.88.11"
REFUSED = 0xA900


@pytest.fixture
def running(start: Start) -> Running:
    one = start()
    fill(one)
    return one


@pytest.fixture
def strict(start: Start) -> Running:
    one = start(strict_queries="on")
    fill(one)
    return one


QUERIES: dict[str, tuple[str, str, dict[str, Value], list[str]]] = {
    "series without a study": (STUDY_ROOT, "SERIES", {"Modality": "MR"}, ["1.2.1"]),
    "series of a study by wild card": (
        STUDY_ROOT, "SERIES", {"StudyInstanceUID": "1.2*"}, ["1.2.1"],
    ),
    "series of several studies": (
        STUDY_ROOT, "SERIES", {"StudyInstanceUID": ["1.2", "1.3"]}, ["1.2.1", "1.3.1"],
    ),
    "instances without a series": (
        STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.2"}, ["1.2.1"],
    ),
    "studies without a patient": (
        PATIENT_ROOT, "STUDY", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": ""}, [""],
    ),
    "a level in lower case": (STUDY_ROOT, "series", {"StudyInstanceUID": "1.2"}, ["1.2.1"]),
    "a level in both": (STUDY_ROOT, "Series", {"StudyInstanceUID": "1.2"}, ["1.2.1"]),
    "INSTANCE": (
        STUDY_ROOT,
        "INSTANCE",
        {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1"},
        ["1.2.1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "level", "keys", "series"), QUERIES.values(), ids=QUERIES)
def test_queries_are_answered_as_they_are_meant(
    running: Running,
    strict: Running,
    caplog: pytest.LogCaptureFixture,
    *,
    model: str,
    level: str,
    keys: dict[str, Value],
    series: list[str],
) -> None:
    caplog.set_level("INFO")
    with Asker(running.port, model) as peer:
        for _ in range(3):
            found = peer.ask({"SeriesInstanceUID": "", **keys}, level)
            assert (found.status, found.texts("SeriesInstanceUID")) == (
                SUCCESS,
                [(one,) for one in series],
            )
    assert caplog.text.count("answered as relational") <= 1
    with Asker(strict.port, model) as peer:
        assert peer.ask({"SeriesInstanceUID": "", **keys}, level).status == REFUSED


RETRIEVES: dict[str, tuple[str, dict[str, Value], int]] = {
    "by accession number": ("STUDY", {"AccessionNumber": "ACC1"}, 3),
    "by accession numbers": ("STUDY", {"AccessionNumber": ["ACC1", "NONE"]}, 3),
    "by patient ID": ("STUDY", {"PatientID": "P3"}, 1),
    "by patient IDs": ("STUDY", {"PatientID": ["P3", "P1"]}, 4),
    "by both": ("STUDY", {"PatientID": "P3", "AccessionNumber": "ACC1"}, 0),
    "a study if it has that number": (
        "study", {"StudyInstanceUID": "1.1", "AccessionNumber": "ACC1"}, 3,
    ),
    "a study that has another": (
        "study", {"StudyInstanceUID": "1.1", "AccessionNumber": "NONE"}, 0,
    ),
    "an instance": ("INSTANCE", {"SOPInstanceUID": "1.2.1.1"}, 1),
}  # fmt: skip


def got(running: Running, level: str, keys: dict[str, Value]) -> tuple[int | None, object]:
    contexts = [(1, STUDY_GET, [EVRLE]), (3, CT, [EVRLE, IVRLE]), (5, SR, [EVRLE])]
    with asking(running.port, contexts, role(CT, 0, 1), role(SR, 0, 1)) as peer:
        last, came = get(peer, encode({"QueryRetrieveLevel": level, **keys}, EVRLE))
        peer.release()
    assert last.status != 0 or last.counts[1] == len(came)
    return last.status, len(came)


@pytest.mark.parametrize(("level", "keys", "number"), RETRIEVES.values(), ids=RETRIEVES)
def test_retrieves_take_what_names_a_study(
    running: Running, strict: Running, level: str, keys: dict[str, Value], number: int
) -> None:
    assert got(running, level, keys) == (SUCCESS, number)
    status, _ = got(strict, level, keys)
    plain = level == "STUDY" or level.isupper()
    assert status == REFUSED or (not plain and status == SUCCESS)


def test_keys_that_no_index_has_are_returned_on_every_level(
    running: Running, strict: Running
) -> None:
    wanted = {"StudyInstanceUID": "1.1", "KVP": "", "ImageComments": ""}
    for one, told in ((running, ("120.0", "größer")), (strict, ("", ""))):
        with Asker(one.port) as peer:
            found = peer.ask(wanted)
            assert found.texts("KVP", "ImageComments") == [told]
            found = peer.ask({**wanted, "SeriesInstanceUID": "1.1.1"}, "SERIES")
            assert found.texts("KVP", "ImageComments") == [told]
            found = peer.ask({**wanted, "SOPInstanceUID": ""})  # of many, none is the study's
            assert found.texts("SOPInstanceUID") == [("",)]
