"""C-FIND: what is asked on each level of both models, what is answered, and what is refused."""

from __future__ import annotations

import shutil
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from plainpacs.archive.dicom.identifier import EXPLICIT, IMPLICIT
from plainpacs.archive.dicom.identifier_writing import Value, encode
from plainpacs.archive.dicom.text_encoding import TextEncoding
from tests.support.peer import (
    ABORT,
    DATA,
    EVRLE,
    IVRLE,
    VERIFICATION,
    Peer,
    associate_rq,
    command,
    context_item,
    message,
)
from tests.support.queries import (
    CANCELLED,
    JAPANESE,
    LATIN,
    PATIENT_ROOT,
    PENDING,
    PENDING_KEYS,
    STUDY_ROOT,
    SUCCESS,
    Asker,
    fill,
)
from tests.support.receiver import Running, Start, wait_until

LEVEL = 0x00080052


@pytest.fixture
def running(start: Start) -> Running:
    one = start(aet=("DRDCM", "SECOND"))
    fill(one)
    return one


@pytest.fixture
def study_root(running: Running) -> Iterator[Asker]:
    with Asker(running.port) as asker:
        yield asker


@pytest.fixture
def patient_root(running: Running) -> Iterator[Asker]:
    with Asker(running.port, PATIENT_ROOT) as asker:
        yield asker


# --- levels ---------------------------------------------------------------------------------------


def test_patients(patient_root: Asker):
    keys = {"PatientID": "", "PatientName": "", "NumberOfPatientRelatedInstances": ""}
    found = patient_root.ask(keys, "PATIENT")
    assert found.status == SUCCESS
    assert found.pending == {PENDING}
    assert found.texts("PatientID", "PatientName", "NumberOfPatientRelatedInstances") == [
        ("", "Nobody", "1"),
        ("P1", "Müller^Jörg", "3"),
        ("P3", "Yamada^Tarou=山田^太郎", "1"),
    ]


def test_studies_of_a_patient(patient_root: Asker):
    found = patient_root.ask({"PatientID": "P1", "StudyInstanceUID": ""})
    assert found.texts("PatientID", "StudyInstanceUID") == [("P1", "1.1")]


def test_studies(study_root: Asker):
    found = study_root.ask(
        dict.fromkeys(
            (
                *("StudyInstanceUID", "PatientName", "ModalitiesInStudy", "StudyDate", "StudyTime"),
                *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
                *("SOPClassesInStudy", "AccessionNumber"),
            ),
            "",
        )
    )
    assert found.pending == {PENDING}
    [study] = [one for one in found.answers if one.text("StudyInstanceUID") == "1.1"]
    assert study.texts("ModalitiesInStudy") == ["CT", "SR"]
    assert study.texts("SOPClassesInStudy") == [
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.5.1.4.1.1.88.11",
    ]
    assert study.text("NumberOfStudyRelatedSeries") == "2"
    assert study.text("NumberOfStudyRelatedInstances") == "3"
    assert (study.text("StudyDate"), study.text("StudyTime")) == ("20240131", "101500")
    # The newest first.
    uids = [one.text("StudyInstanceUID") for one in found.answers]
    assert uids == ["1.2", "1.1", "1.3"]


def test_series(study_root: Asker):
    keys = {"StudyInstanceUID": "1.1", "Modality": "", "NumberOfSeriesRelatedInstances": ""}
    found = study_root.ask(keys, "SERIES", SeriesNumber="", PatientID="")
    assert found.texts("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances") == [
        ("1.1.1", "CT", "2"),
        ("1.1.2", "SR", "1"),
    ]
    assert found.pending == {PENDING}
    assert study_root.ask(keys | {"Modality": "SR"}, "SERIES").texts("SeriesInstanceUID") == [
        ("1.1.2",)
    ]


def test_instances(study_root: Asker):
    keys = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1", "InstanceNumber": ""}
    found = study_root.ask(keys, "IMAGE", Rows="", SliceThickness="", ImageType="")
    assert found.pending == {PENDING}
    assert found.texts(
        "SOPInstanceUID", "InstanceNumber", "Rows", "SliceThickness", "ImageType"
    ) == [
        ("1.1.1.1", "10", "512", "0.75", "ORIGINAL\\PRIMARY"),
        ("1.1.1.2", "9", "512", "0.75", "ORIGINAL\\PRIMARY"),
    ]
    found = study_root.ask(keys | {"InstanceNumber": 9}, "IMAGE")
    assert found.texts("SOPInstanceUID") == [("1.1.1.2",)]


def test_instances_by_way_of_the_patient(patient_root: Asker):
    keys = {"PatientID": "P1", "StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"}
    found = patient_root.ask(keys, "IMAGE", SOPInstanceUID="")
    assert found.texts("SOPInstanceUID") == [("1.1.1.1",), ("1.1.1.2",)]


def test_a_list_of_uids(study_root: Asker):
    found = study_root.ask(StudyInstanceUID=["1.1", "1.3", "1.99"])
    assert found.texts("StudyInstanceUID") == [("1.1",), ("1.3",)]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("longest", [64, 16384, 0])
def test_every_syntax_and_length_of_pdu(running: Running, syntax: str, longest: int):
    with Asker(running.port, syntax=syntax, longest=longest) as asker:
        found = asker.ask(PatientName="müller*", StudyInstanceUID="")
        assert found.texts("PatientName", "StudyInstanceUID") == [("Müller^Jörg", "1.1")]
        assert len(asker.ask(StudyInstanceUID="").answers) == 3


# --- keys -----------------------------------------------------------------------------------------


def test_what_every_answer_says(study_root: Asker):
    found = study_root.ask(StudyInstanceUID="1.1")
    told = ("QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability")
    assert found.texts(*told) == [("STUDY", "DRDCM", "ONLINE")]
    assert list(found.answers[0].elements) == sorted(found.answers[0].elements)


@pytest.mark.parametrize(("called", "title"), [("SECOND", "SECOND"), ("ANY-SCP", "DRDCM")])
def test_the_title_to_retrieve_from_is_one_of_ours(running: Running, called: str, title: str):
    with Asker(running.port, called=called) as asker:
        found = asker.ask(StudyInstanceUID="1.1", RetrieveAETitle="OTHER")
        assert found.texts("RetrieveAETitle") == [(title,)]
        assert found.pending == {PENDING}


@pytest.mark.parametrize(
    ("key", "value", "studies"),
    [
        ("PatientName", "MULLER^JORG", ["1.1"]),
        ("PatientName", "yamada*", ["1.2"]),
        ("PatientName", "*", ["1.1", "1.2", "1.3"]),
        ("PatientID", "P2", ["1.1"]),  # of the report that lies there by mistake
        ("PatientID", "p1", []),
        ("StudyDate", "20240101-20240229", ["1.1"]),
        ("StudyDate", "20240201-", ["1.2"]),
        ("StudyDate", "*", ["1.1", "1.2", "1.3"]),
        ("StudyTime", "2300-", ["1.2"]),
        ("ModalitiesInStudy", "SR", ["1.1"]),
        ("ModalitiesInStudy", ["MR", "SR"], ["1.1", "1.2"]),
        ("AccessionNumber", "ACC?", ["1.1"]),
        ("StudyDescription", "Che*", ["1.1"]),
        ("NumberOfStudyRelatedInstances", "3", ["1.1"]),
        ("StudyInstanceUID", "", ["1.1", "1.2", "1.3"]),
    ],
)
def test_matching(study_root: Asker, key: str, value: Value, studies: list[str]):
    keys: dict[str, Value] = {"StudyInstanceUID": "", key: value}
    found = study_root.ask(keys, repertoire=LATIN)
    assert [uid for (uid,) in found.texts("StudyInstanceUID")] == studies
    assert found.pending <= {PENDING}


def test_the_value_returned_is_one_that_matches(study_root: Asker):
    found = study_root.ask(PatientID="P2", PatientName="Roe*")
    assert found.texts("StudyInstanceUID", "PatientID", "PatientName") == [
        ("1.1", "P2", "Roe^Richard")
    ]


def test_modality_of_a_study_means_the_modalities_in_it(study_root: Asker):
    found = study_root.ask(Modality="SR", StudyInstanceUID="")
    assert found.texts("StudyInstanceUID", "Modality") == [("1.1", "SR")]


def test_request_attributes(study_root: Asker):
    step: Value = [{"ScheduledProcedureStepID": "STEP1", "RequestedProcedureID": ""}]
    keys: dict[str, Value] = {"StudyInstanceUID": "1.1", "RequestAttributesSequence": step}
    found = study_root.ask(keys, "SERIES")
    assert found.pending == {PENDING}
    assert found.texts("SeriesInstanceUID") == [("1.1.1",)]
    [item] = found.answers[0].items("RequestAttributesSequence")
    assert item.text("RequestedProcedureID") == "PROC1"
    other: Value = [{"ScheduledProcedureStepID": "STEP2"}]
    assert study_root.ask(keys | {"RequestAttributesSequence": other}, "SERIES").answers == []


def test_universal_keys_are_returned_with_or_without_a_value(study_root: Asker):
    found = study_root.ask(StudyInstanceUID="1.3", PatientBirthDate="", StudyDescription="")
    [study] = found.answers
    assert 0x00100030 in study.elements
    assert (study.text("PatientBirthDate"), study.text("StudyDescription")) == ("", "")
    assert found.pending == {PENDING}


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientWeight": ""},
        {"PatientWeight": "80"},
        {"SeriesDescription": "Lung"},
        {"TimezoneOffsetFromUTC": "+0100"},
        {"OtherPatientIDsSequence": []},
        {"RequestAttributesSequence": [{"ScheduledProcedureStepID": "STEP9"}]},
    ],
)
def test_keys_that_are_not_supported_are_returned_empty(start: Start, keys: dict[str, Value]):
    strict = start(strict_queries="on")
    fill(strict)
    with Asker(strict.port) as asker:
        found = asker.ask(StudyInstanceUID="1.1", **keys)
    assert found.pending == {PENDING_KEYS}
    assert found.texts("StudyInstanceUID", *keys) == [("1.1", *[""] * len(keys))]


def test_a_private_key_is_returned_empty(study_root: Asker):
    private = b"\x09\0\x10\0LO\4\0ACME\x09\0\1\x10LO\2\0xx"
    before = encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT)
    study_root.begin(before + private + encode({"StudyInstanceUID": "1.1"}, EXPLICIT))
    found = study_root.finish()
    assert found.pending == {PENDING_KEYS}
    assert found.answers[0].elements[0x00091001].value == b""


def test_the_offset_from_utc_of_an_instance_is_returned_and_shifts_nothing(study_root: Asker):
    keys = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1", "TimezoneOffsetFromUTC": ""}
    found = study_root.ask(keys, "IMAGE", StudyTime="2350")
    assert found.texts("TimezoneOffsetFromUTC", "StudyTime") == [("+0900", "2350")]


# --- attributes of the files ----------------------------------------------------------------------

IN_SERIES: dict[str, Value] = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_no_index_has_comes_from_the_file(running: Running, syntax: str):
    with Asker(running.port, syntax=syntax) as asker:
        region: Value = [{"CodeValue": ""}]
        keys = IN_SERIES | {"KVP": "", "ImageComments": "", "AnatomicRegionSequence": region}
        found = asker.ask(keys, "IMAGE", AvailableTransferSyntaxUID="")
        assert found.pending == {PENDING}
        told = ("SOPInstanceUID", "KVP", "ImageComments", "AvailableTransferSyntaxUID")
        assert found.texts(*told) == [
            ("1.1.1.1", "120.0", "größer", EXPLICIT),
            ("1.1.1.2", "120.0", "größer", IMPLICIT),
        ]
        for answer in found.answers:
            [item] = answer.items("AnatomicRegionSequence")
            assert item.text("CodeMeaning") == "Brust (größer)"


def test_a_file_that_is_gone_or_damaged_says_nothing_more(running: Running, study_root: Asker):
    first, second = sorted((running.root / "202401/1.1/1.1.1").glob("*.dcm"))
    first.chmod(0o644)
    first.write_bytes(first.read_bytes()[:500].ljust(first.stat().st_size, b"\xff"))
    found = study_root.ask(IN_SERIES | {"ImageComments": ""}, "IMAGE")
    assert (found.status, found.pending) == (SUCCESS, {PENDING})
    assert ("1.1.1.2", "größer") in found.texts("SOPInstanceUID", "ImageComments")
    assert second.exists()


# --- character sets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "study", "used"),
    [
        (None, "1.1", ["ISO_IR 192"]),
        (None, "1.3", []),
        (LATIN, "1.1", ["ISO_IR 100"]),
        (LATIN, "1.3", ["ISO_IR 100"]),
        (LATIN, "1.2", ["ISO_IR 192"]),
        (JAPANESE, "1.2", ["ISO 2022 IR 87"]),
        (JAPANESE, "1.1", ["ISO_IR 192"]),
        (TextEncoding(("ISO_IR 192",)), "1.2", ["ISO_IR 192"]),
        (TextEncoding(("GB18030",)), "1.2", ["GB18030"]),
    ],
)
def test_answers_are_in_the_character_set_of_the_query_when_it_carries_them(
    study_root: Asker, asked: TextEncoding | None, study: str, used: list[str]
):
    names = {"1.1": "Müller^Jörg", "1.2": "Yamada^Tarou=山田^太郎", "1.3": "Nobody"}
    [found] = study_root.ask(StudyInstanceUID=study, PatientName="", repertoire=asked).answers
    assert found.texts("SpecificCharacterSet") == used
    assert found.text("PatientName") == names[study]


def test_a_name_in_the_character_set_of_the_query(study_root: Asker):
    found = study_root.ask(PatientName="*=山田*", StudyInstanceUID="", repertoire=JAPANESE)
    assert found.texts("StudyInstanceUID") == [("1.2",)]


# --- what is refused ------------------------------------------------------------------------------

UNREADABLE, UNMATCHABLE, NOT_OF_THE_MODEL = 0xC001, 0xC002, 0xA900


@pytest.mark.parametrize(
    ("model", "level", "keys", "refusal"),
    [
        (STUDY_ROOT, "PATIENT", {}, (NOT_OF_THE_MODEL, LEVEL)),
        (STUDY_ROOT, "SECRET", {}, (NOT_OF_THE_MODEL, LEVEL)),
        (STUDY_ROOT, "", {}, (NOT_OF_THE_MODEL, LEVEL)),
        (STUDY_ROOT, "SERIES", {}, (NOT_OF_THE_MODEL, 0x0020000D)),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": "1.*"}, (NOT_OF_THE_MODEL, 0x0020000D)),
        (
            STUDY_ROOT,
            "SERIES",
            {"StudyInstanceUID": ["1.1", "1.2"]},
            (NOT_OF_THE_MODEL, 0x0020000D),
        ),
        (STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.1"}, (NOT_OF_THE_MODEL, 0x0020000E)),
        (PATIENT_ROOT, "STUDY", {}, (NOT_OF_THE_MODEL, 0x00100020)),
        (PATIENT_ROOT, "STUDY", {"PatientID": "SECRET*"}, (NOT_OF_THE_MODEL, 0x00100020)),
        (PATIENT_ROOT, "SERIES", {"StudyInstanceUID": "1.1"}, (NOT_OF_THE_MODEL, 0x00100020)),
        (STUDY_ROOT, "STUDY", {"StudyDate": "SECRET"}, (UNMATCHABLE, 0x00080020)),
        (STUDY_ROOT, "STUDY", {"StudyDate": "20241341"}, (UNMATCHABLE, 0x00080020)),
        (STUDY_ROOT, "STUDY", {"StudyTime": "2500"}, (UNMATCHABLE, 0x00080030)),
        (STUDY_ROOT, "STUDY", {"NumberOfStudyRelatedSeries": "x"}, (UNMATCHABLE, 0x00201206)),
    ],
)
def test_what_cannot_be_answered_is_refused(
    caplog: pytest.LogCaptureFixture,
    *,
    model: str,
    level: str,
    keys: dict[str, Value],
    refusal: tuple[int, int],
    start: Start,
):
    running = start(strict_queries="on")
    fill(running)
    caplog.set_level("DEBUG")
    with Asker(running.port, model) as asker:
        found = asker.ask({**keys, "PatientName": "SECRET"}, level)
        assert found.answers == []
        assert (found.status, found.offending) == refusal
        assert 0 < len(found.comment) <= 64
        assert asker.echo() == 0
    assert f"{refusal[0]:04X} a query: {found.comment}" in caplog.text
    assert "SECRET" not in caplog.text + found.comment


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (None, NOT_OF_THE_MODEL),
        (b"", NOT_OF_THE_MODEL),
        (b"\xff" * 40, UNREADABLE),
        (b"\x08\0\x52\0CS\x06\0STU", UNREADABLE),
        (encode({"QueryRetrieveLevel": "STUDY"}, IMPLICIT), UNREADABLE),
        (encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT)[::-1], UNREADABLE),
        (b"\x08\0\x52\0CS\x06\0STUDY " + b"\x09\0\x01\x10UN\0\0\xff\xff\xff\xff", UNREADABLE),
    ],
)
def test_malformed_identifiers(study_root: Asker, data: bytes | None, status: int):
    study_root.begin(data)
    found = study_root.finish()
    assert (found.answers, found.status) == ([], status)
    assert study_root.echo() == 0


def test_too_many_keys(study_root: Asker):
    keys = b"".join(bytes((0x21, 0x10 + n // 256, n % 256, 0x10)) + b"LO\0\0" for n in range(1001))
    study_root.begin(encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT) + keys)
    found = study_root.finish()
    assert (found.status, found.comment) == (UNREADABLE, "more than 1000 elements and items")


def test_an_identifier_of_megabytes(study_root: Asker):
    study_root.begin(b"\x08\0\x52\0UN\0\0\0\0\x60\0" + bytes(6 << 20))
    found = study_root.finish()
    assert (found.status, found.comment) == (0xC000, "an identifier of some megabytes")
    assert study_root.ask(StudyInstanceUID="1.1").status == SUCCESS


def test_another_sop_class_than_that_of_the_context(study_root: Asker):
    told = command(0x20, PATIENT_ROOT.encode(), None)
    study_root.send(message(1, told, encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT)))
    assert study_root.status() == 0x0122


def test_another_operation_on_the_context(study_root: Asker):
    study_root.send(message(1, command(0x21, STUDY_ROOT.encode(), None), b""))
    assert study_root.status() == 0x0211


def test_an_archive_that_is_gone(running: Running, study_root: Asker):
    shutil.move(running.root, running.root.with_name("away"))
    found = study_root.ask(StudyInstanceUID="")
    assert (found.status, found.comment) == (0xA700, "the archive cannot be read")
    shutil.move(running.root.with_name("away"), running.root)
    assert len(study_root.ask(StudyInstanceUID="").answers) == 3


def test_queries_can_be_turned_off(start: Start):
    running = start(query_retrieve="off")
    contexts = context_item(1, STUDY_ROOT, [EVRLE]) + context_item(3, VERIFICATION, [IVRLE])
    with Peer(running.port, associate_rq(contexts)) as peer:
        assert peer.results() == {1: (3, EVRLE), 3: (0, IVRLE)}
        assert peer.echo() == 0


# --- extended negotiation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposed", "agreed"),
    [
        (b"\1", b"\1"),
        (b"\0\1", b"\0\1"),
        (b"\1\1\1", b"\1\1\0"),
        (b"\1\1\1\1\1", b"\1\1\0\0\0"),
        (b"\1\1\1\1\1\1\1\1", b"\1\1\0\0\0"),
    ],
)
def test_what_is_agreed(running: Running, proposed: bytes, agreed: bytes):
    with Asker(running.port, extended=proposed) as asker:
        assert asker.agreed() == {STUDY_ROOT: agreed}
        assert asker.ask(StudyInstanceUID="1.1").status == SUCCESS


def test_nothing_is_agreed_that_was_not_proposed(study_root: Asker):
    assert study_root.agreed() == {}


def test_relational_queries_need_no_keys_above(running: Running):
    with Asker(running.port, extended=b"\1") as asker:
        found = asker.ask({"Modality": "CT"}, "SERIES")
        assert found.texts("SeriesInstanceUID", "StudyInstanceUID") == [
            ("1.1.1", "1.1"),
            ("1.3.1", "1.3"),
        ]
        found = asker.ask({"SOPInstanceUID": ["1.2.1.1", "1.1.1.2"]}, "IMAGE")
        assert found.texts("StudyInstanceUID") == [("1.1",), ("1.2",)]


def test_relational_queries_take_keys_of_lower_levels(running: Running):
    with Asker(running.port, extended=b"\1") as asker:
        found = asker.ask({"SeriesDescription": "Lung", "StudyInstanceUID": ""})
        assert found.texts("StudyInstanceUID", "SeriesDescription") == [("1.1", "")]
        assert asker.ask({"SOPInstanceUID": "1.2.1.1"}).texts("StudyInstanceUID") == [("1.2",)]
        both = {"SOPInstanceUID": "1.2.1.1", "PatientID": "P1"}
        assert asker.ask(both).answers == []
        steps: Value = [{"ScheduledProcedureStepID": "STEP1"}]
        found = asker.ask({"RequestAttributesSequence": steps})
        assert found.texts("StudyInstanceUID") == [("1.1",)]
    with Asker(running.port, PATIENT_ROOT, extended=b"\1") as asker:
        found = asker.ask({"SOPInstanceUID": "1.2.1.1"}, "PATIENT")
        assert found.texts("PatientID") == [("P3",)]


@pytest.mark.parametrize(
    ("extended", "times", "studies"),
    [
        # To noon of the day after the second study, or: before noon on any of the days.
        (b"\0\1", "1000-1200", ["1.1", "1.2"]),
        (b"\0\0", "1000-1200", ["1.1"]),
        (b"\0\1", "2200-0600", ["1.2"]),
    ],
)
def test_date_and_time_combined(
    running: Running, extended: bytes, times: str, studies: list[str]
) -> None:
    with Asker(running.port, extended=extended) as asker:
        found = asker.ask(StudyDate="20240131-20240302", StudyTime=times)
        assert [uid for (uid,) in found.texts("StudyInstanceUID")] == studies


def test_a_time_that_ends_before_it_starts_needs_a_date(running: Running) -> None:
    for extended, keys in ((b"\0\0", {"StudyDate": "20240131-20240302"}), (b"\0\1", {})):
        with Asker(running.port, extended=extended) as asker:
            found = asker.ask(StudyTime="2200-0600", **keys)
            assert (found.status, found.offending) == (UNMATCHABLE, 0x00080030)


# --- many -----------------------------------------------------------------------------------------


def catalogue(root: Path, count: int) -> None:
    """A month with so many studies, in the catalogue alone."""
    month = root / "202402"
    month.mkdir(exist_ok=True)
    lines = (
        orjson.dumps({"StudyInstanceUID": f"1.5.{number:06d}", "PatientName": f"N{number}"})
        for number in range(count)
    )
    (month / "studies.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def test_a_query_that_is_cancelled_ends_soon(running: Running, study_root: Asker):
    catalogue(running.root, 3000)
    query = study_root.find_rq(encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT))
    study_root.send(query + study_root.cancel_rq())
    found = study_root.finish()
    assert found.status == CANCELLED
    assert len(found.answers) <= 100
    assert len(study_root.ask(StudyInstanceUID="").answers) == 3003


def test_a_cancel_of_another_request_changes_nothing(running: Running, study_root: Asker):
    catalogue(running.root, 300)
    query = study_root.find_rq(encode({"QueryRetrieveLevel": "STUDY"}, EXPLICIT))
    study_root.send(study_root.cancel_rq(99) + query + study_root.cancel_rq(99))
    found = study_root.finish()
    assert (found.status, len(found.answers)) == (SUCCESS, 303)


def test_a_peer_that_vanishes_amid_the_answers(running: Running, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    catalogue(running.root, 20_000)
    asker = Asker(running.port)
    asker.begin(encode({"QueryRetrieveLevel": "STUDY", "PatientName": ""}, EXPLICIT))
    assert asker.receive()[0] == DATA
    asker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    asker.socket.close()
    wait_until(lambda: "connection lost" in caplog.text)
    wait_until(lambda: running.receiver.associations() == 0)
    with Asker(running.port) as other:
        assert len(other.ask(StudyInstanceUID="1.1").answers) == 1


def test_a_peer_that_takes_nothing_is_given_up(start: Start, caplog: pytest.LogCaptureFixture):
    running = start(pdu_timeout=0.5)
    catalogue(running.root, 60_000)
    with Asker(running.port) as asker:
        asker.begin(encode({"QueryRetrieveLevel": "STUDY", "PatientName": ""}, EXPLICIT))
        wait_until(lambda: running.receiver.associations() == 0, 30)


def test_a_stop_amid_the_answers(running: Running):
    catalogue(running.root, 60_000)
    with Asker(running.port) as asker:
        asker.begin(encode({"QueryRetrieveLevel": "STUDY", "PatientName": ""}, EXPLICIT))
        assert asker.receive()[0] == DATA
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        received = 1
        while (kind := asker.receive()[0]) == DATA:
            received += 1
        stopping.join()
        assert kind in (0, ABORT)
        assert received < 2 * 60_000


def test_answers_are_not_gathered(running: Running, study_root: Asker):
    keys: dict[str, Value] = {"StudyInstanceUID": "", "PatientName": ""}
    catalogue(running.root, 500)
    study_root.ask(keys)
    catalogue(running.root, 5000)
    size = (running.root / "202402/studies.jsonl").stat().st_size
    study_root.begin(encode({"QueryRetrieveLevel": "STUDY", **keys}, EXPLICIT))
    tracemalloc.start()
    try:
        count = 0
        while study_root.receive()[1][5] != 0 and count < 10_006:
            count += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * size
