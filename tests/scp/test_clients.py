"""The commands that ask others: ``echo``, ``nodes`` and ``find``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from plainpacs.archive.dicom.attributes import PATIENT
from plainpacs.scp.network.peer_status import meaning
from tests.scp.test_tls import Certificates, certificates
from tests.support.archives import eventually
from tests.support.commands import Run, at, empty, free_port, run
from tests.support.pacs import pacs
from tests.support.queries import fill
from tests.support.receiver import Running, Start

__all__ = ["certificates", "empty", "run"]  # the fixtures

pytestmark = pytest.mark.filterwarnings("ignore:::pynetdicom", "ignore:::pydicom")


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver with a few studies, indexed."""
    one = start()
    fill(one)
    return one


# --- echo and nodes -------------------------------------------------------------------------------


def test_echo(run: Run, running: Running) -> None:
    done = run("echo", at(running.port), "--repeat", "2", "--as", "CT1")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"DRDCM@127.0.0.1:{running.port} associated with CT1 in ")
    assert done.out.count("answered in") == 2


def test_a_node_is_called_by_its_name_and_with_tls(
    run: Run, start: Start, certificates: Certificates, tmp_path: Path
) -> None:
    secured = start(**certificates.serving())
    config = tmp_path / "p.toml"
    config.write_text(
        f'tls-ca = "{certificates.ca.cert}"\n[nodes]\n'
        f'DRDCM = "127.0.0.1:{secured.port}/tls-any-name"\nGONE = "127.0.0.1:{free_port()}"\n'
    )
    assert run("echo", "drdcm", "--config", config).code == 0
    done = run("echo", at(secured.port))
    assert done.code == 3
    done = run("nodes", "--config", config, "--format", "json", "--echo")
    assert done.code == 1
    first, second = json.loads(done.out)
    assert first["tls"] == "tls-any-name"
    assert (first["echo"], second["echo"]) == ("answered", "connect: Connection refused")
    done = run("nodes", "--config", config, "--format", "table")
    assert done.code == 0
    assert "GONE" in done.out
    assert run("nodes", "--config", config, "--format", "csv").out.startswith("ae_title,host,port")
    assert run("nodes").code == 1


@pytest.mark.parametrize(
    ("called", "arguments", "words"),
    [
        ("OTHER", (), r"association: it does not know the called AE title.* (1/1/7)"),
        ("DRDCM", ("--as", "X" * 17), "--as"),
    ],
)
def test_why_a_node_does_not_answer(
    run: Run, running: Running, called: str, arguments: tuple[str, ...], words: str
) -> None:
    done = run("echo", at(running.port, called), *arguments)
    assert done.code == (2 if arguments else 3)
    assert all(part in done.err for part in words.split(".*"))
    assert done.err.count("\n") == 1


def test_nobody_there(run: Run, empty: str) -> None:
    node = at(free_port())
    for arguments in (
        ("echo", node),
        ("find", node),
        ("pull", node, "1.2"),
        ("send", node, __file__),
    ):
        done = run(*arguments, *(["-a", empty] if arguments[0] == "pull" else []))
        if arguments[0] == "send":
            assert done.code == 1  # no instance is there to be sent
            continue
        assert (done.code, done.out) == (3, "")
        assert done.err == f"plainpacs: {node}: connect: Connection refused\n"


def test_a_node_that_the_settings_do_not_have(run: Run) -> None:
    done = run("find", "PACS", "--nodes", "PACT@127.0.0.1:104")
    assert done.code == 2
    assert "the nearest is PACT" in done.err


def test_statuses_in_words() -> None:
    assert "A900" in meaning("C-FIND", 0xA900)
    assert "PS3.7" in meaning("C-STORE", 0x0124)
    assert "does not have" in meaning("C-MOVE", 0x1234)


# --- find -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [
        (),
        ("müller",),
        ("P3",),
        ("chest", "acc1"),
        ("PatientName=roe*",),
        ("PatientID=P1", "PatientID=P3"),
        ("Modality=SR\\MR",),
        ("StudyDate=20240201-",),
        ("StudyDate=2024-01-31",),
        ("StudyDate=20240101-20240131", "PatientSex=?*"),
        ("NumberOfStudyRelatedInstances=2-",),
        ("StudyInstanceUID=1.1\\1.3",),
        ("StudyInstanceUID=1.*",),
        ("StudyTime=10:00-11:00",),
        ("StudyDateTime=202401310900-202401311200",),
        ("1.2",),
        ("nobody-at-all",),
    ],
)
def test_find_gives_what_ls_gives(run: Run, running: Running, terms: tuple[str, ...]) -> None:
    here = run("ls", "-a", running.root, *terms, "--format", "jsonl")
    there = run("find", at(running.port), *terms, "--format", "jsonl")
    ours, theirs = (
        {one["StudyInstanceUID"]: one for one in map(json.loads, done.out.splitlines())}
        for done in (here, there)
    )
    assert theirs.keys() == ours.keys()
    assert (here.code, there.code) == (0 if ours else 1,) * 2
    for uid, record in theirs.items():
        # Of a study in which instances disagree, a peer is told the value it asked for.
        told = {key: record[key] for key in record.keys() & ours[uid].keys() - PATIENT}
        assert told == {key: ours[uid][key] for key in told}
        assert {"NumberOfStudyRelatedInstances", "StudyInstanceUID"} <= told.keys()


def test_series_and_instances_are_found_below_their_studies(run: Run, running: Running) -> None:
    node = at(running.port)
    done = run("find", node, "--level", "series", "Modality=CT", "--format", "uids")
    assert sorted(done.out.split()) == ["1.1.1", "1.3.1"]
    done = run("find", node, "--level", "series", "SeriesNumber=2-", "chest", "--format", "json")
    [record] = json.loads(done.out)
    assert (record["SeriesNumber"], record["PatientName"]) == (2, "Müller^Jörg")
    done = run("find", node, "--level", "instance", "StudyInstanceUID=1.1", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert sorted(row["SOPInstanceUID"] for row in rows) == ["1.1.1.1", "1.1.1.2", "1.1.2.1"]
    done = run("find", node, "--level", "patient", "PatientID=P*", "--format", "uids")
    assert sorted(done.out.split()) == ["P1", "P3"]
    table = run("find", node, "--level", "series", "--format", "table")
    assert "Series UID" in table.out.splitlines()[0]
    for level in ("patient", "study", "instance"):
        assert run("find", node, "--level", level, "--format", "table").code == 0


def test_fields_and_order(run: Run, running: Running) -> None:
    fields = (
        "--fields",
        "PatientID,PatientAge,SOPClassesInStudy",
        "--sort",
        "-PatientID",
    )
    done = run("find", at(running.port), *fields, "--format", "jsonl", "StudyInstanceUID=1.1\\1.2")
    first, second = map(json.loads, done.out.splitlines())
    assert first.pop("SOPClassesInStudy") == ["1.2.840.10008.5.1.4.1.1.2"]
    assert (first["PatientID"], second["PatientID"]) == ("P3", "P1")
    assert run("find", at(running.port), "--sort", "Colour").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Colour=red",), "'Colour' is not a key"),
        (("calling_ae=CT1", "--level", "instance"), "plainpacs archives only"),
        (("StudyDate=20240101", "--level", "patient"), "--level study"),
        (("StudyDate=20241301",), "StudyDate"),
        (("PatientID=",), "has no value"),
        (("PatientID=" + "\\".join(map(str, range(300))),), "fewer values"),
    ],
)
def test_terms_that_cannot_be(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run("find", at(1), *arguments)
    assert done.code == 2
    assert words in done.err


def test_a_search_is_cancelled_at_its_limit(run: Run) -> None:
    with pacs(series=(1,) * 60) as other:
        done = run(
            *("find", at(other.port, "PACS"), "StudyInstanceUID=1.7", "--level", "series"),
            *("--limit", "2", "--format", "uids"),
        )
        assert done.out.split() == ["1.7.1", "1.7.2"]
        assert "cancelled after 2" in done.err
        assert done.code == 0
        eventually(lambda: "CANCEL" in other.asked)


def test_a_refused_query_is_said_with_its_status(run: Run) -> None:
    with pacs(levels=()) as other:
        done = run("find", at(other.port, "PACS"))
    assert done.code == 3
    assert "status: A900, Identifier Does Not Match SOP Class (PS3.4 C.4.1)" in done.err
    with pacs(offers="2") as other:
        done = run("find", at(other.port, "PACS"))
    assert done.code == 3
    assert "context: the peer does not answer queries of the Study Root model" in done.err


def test_a_peer_that_ends_the_association_amid_a_query(run: Run) -> None:
    with pacs(aborts_queries=True) as other:
        done = run("find", at(other.port, "PACS"))
    assert done.code == 3
    assert "association: the peer ended it before it had answered" in done.err
