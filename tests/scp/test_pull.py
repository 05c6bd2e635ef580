"""The command ``pull``: what is missing is fetched, by C-GET or C-MOVE, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plainpacs.archive.dicom.part10 import read_part10
from plainpacs.archive.store.store import Archive, Provenance
from tests.support.archives import part10
from tests.support.commands import Run, at, data_sets, empty, lines, run
from tests.support.pacs import pacs
from tests.support.queries import fill
from tests.support.receiver import Running, Start

__all__ = ["empty", "run"]  # the fixtures

pytestmark = pytest.mark.filterwarnings("ignore:::pynetdicom", "ignore:::pydicom")


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver with a few studies, indexed."""
    one = start()
    fill(one)
    return one


def test_only_what_is_missing_is_pulled(run: Run, empty: str) -> None:
    with pacs(series=(3, 2)) as other:
        node = at(other.port, "PACS")
        done = run("pull", node, "-a", empty, "1.7.1.2", "--as", "US1")
        assert (done.code, done.err.splitlines()[0].partition(";")[0]) == (0, "1 fetched")
        [line] = lines(empty)
        assert (line["calling_ae"], line["called_ae"]) == ("PACS", "US1")
        assert (line["peer"], line["origin"]) == ("127.0.0.1", "c-store")
        done = run("pull", node, "-a", empty, "1.7", "--dry-run")
        assert "1 instances are here already, 4 are missing" in done.err
        other.asked.clear()
        done = run("pull", node, "-a", empty, "PatientID=P1", "--jobs", "1")
        assert done.code == 0
        assert done.err.startswith("4 fetched; 1 here already")
        assert [one for one in other.asked if "GET" in one] == ["GET IMAGE", "GET SERIES"] or (
            [one for one in other.asked if "GET" in one] == ["GET SERIES", "GET SERIES"]
        )
        done = run("pull", node, "-a", empty, "1.7")
        assert "5 instances are here already, 0 are missing" in done.err
        assert len(data_sets(empty)) == 5
    audit = run("audit", "-a", empty, "--event", "pull", "--format", "jsonl").out.splitlines()
    assert sum(json.loads(line)["stored"] for line in audit) == 5


def test_a_peer_that_does_not_list_its_instances(run: Run, empty: str) -> None:
    with pacs(levels=("STUDY",)) as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
        assert done.code == 0
        assert "does not list" in done.err
        assert "GET STUDY" in other.asked
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
        assert "0 fetched; 5 came again" in done.err
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7.1")
        assert done.code == 1
        assert "--level series instead" in done.err
    assert len(data_sets(empty)) == 5


def test_a_peer_that_ignores_lists_of_instances(run: Run, empty: str) -> None:
    with pacs(series=(5,), ignores_lists=True) as other:
        node = at(other.port, "PACS")
        for uid in ("1.7.1.1", "1.7.1.2", "1.7.1.3"):
            assert run("pull", node, "-a", empty, uid).code == 0
        done = run("pull", node, "-a", empty, "1.7")
        assert done.code == 0, done.err
        assert other.asked[-2:] == ["GET IMAGE", "GET SERIES"]
    assert len(data_sets(empty)) == 5


def test_what_the_peer_cannot_send_is_named(run: Run, empty: str) -> None:
    with pacs(cannot_send=frozenset(("1.7.1.2",))) as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
        assert done.code == 1
        assert "1.7.1.2: status: the peer could not send it; B000, " in done.err
        assert "4 fetched; 1 failed" in done.err
    assert len(data_sets(empty)) == 4


def test_a_peer_that_vanishes_is_called_again(run: Run, empty: str) -> None:
    with pacs(series=(6,), vanishes_after=2) as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
        assert done.code == 0, done.err
        assert [one for one in other.asked if "GET" in one] == ["GET SERIES", "GET IMAGE"]
    assert len(data_sets(empty)) == 6


def test_our_receiver_is_sent_to_where_there_is_no_get(run: Run, start: Start) -> None:
    ours = start(aet=("OURS",))
    with pacs(offers="12", destinations={"OURS": ours.port}) as other:
        node = at(other.port, "PACS")
        done = run("pull", node, "-a", ours.root, "1.7", "--move-to", "OURS")
        assert done.code == 0, done.err
        assert done.err.startswith("5 fetched; ")
        assert "MOVE SERIES" in other.asked
        assert "0 are missing" in run("pull", node, "-a", ours.root, "1.7").err
        done = run("pull", node, "-a", ours.root, "1.7", "--via", "get")
        assert "0 are missing" in done.err
    assert len(data_sets(ours.root)) == 5


def test_a_move_destination_that_the_peer_does_not_know(run: Run, empty: str) -> None:
    with pacs(takes_roles=False) as other:  # no C-GET without roles
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7", "--move-to", "NOBODY")
    assert done.code == 3
    assert "status: A801, Move destination unknown (PS3.4 C.4.2): NOBODY" in done.err


def test_instances_that_go_elsewhere_are_missed(run: Run, start: Start, empty: str) -> None:
    elsewhere = start(aet=("OURS",))
    with pacs(offers="12", series=(2,), destinations={"OURS": elsewhere.port}) as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7", "--move-to", "OURS")
    assert done.code == 1
    assert done.err.count("it is not in this archive") == 2


@pytest.mark.parametrize(
    ("manner", "arguments", "words"),
    [
        ({"offers": "1"}, (), "context: the peer offers neither C-GET nor C-MOVE"),
        ({"offers": "12"}, ("--via", "get"), "context: the peer does not offer C-GET"),
        ({"offers": "13"}, ("--via", "move"), "context: the peer does not offer C-MOVE"),
        ({"offers": "13", "takes_roles": False}, (), "context: the peer offers C-GET, but"),
    ],
)
def test_a_peer_that_offers_no_retrieval(
    run: Run, empty: str, manner: dict[str, object], arguments: tuple[str, ...], words: str
) -> None:
    with pacs(**manner) as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7", *arguments)
    assert done.code == 3
    assert words in done.err


def test_an_archive_that_is_full_takes_no_more(run: Run, empty: str) -> None:
    with pacs() as other:
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7", "--reserve", "99%")
    assert done.code == 3
    assert "space" in done.err or "room" in done.err or "reserve" in done.err
    assert data_sets(empty) == {}
    assert os.listdir(Path(empty, ".plainpacs", "incoming")) == []


def test_other_bytes_under_a_uid_are_kept_aside(run: Run, empty: str) -> None:
    with Archive.open(empty) as archive:
        raw = part10(StudyInstanceUID="1.8", SeriesInstanceUID="1.8.1", SOPInstanceUID="1.8.1.1")
        archive.store(raw[read_part10(raw).dataset_offset :], "1.2.840.10008.1.2.1", Provenance())
    with pacs(series=(1,), levels=("STUDY",)) as other:
        assert run("pull", at(other.port, "PACS"), "-a", empty, "1.7").code == 0
        other.stored[0].StudyDescription = "Another"
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
    assert done.code == 0
    assert "1 kept aside" in done.err


def test_an_interrupted_pull_goes_on(tmp_path: Path, run: Run, empty: str) -> None:
    arrived = threading.Event()
    with pacs(series=(40,)) as other:
        once = other.matching

        def slowly(asked: object) -> list[object]:
            found = once(asked)  # type: ignore[arg-type]  # an identifier
            if "GET" in other.asked[-1] and not arrived.is_set():
                arrived.set()
            return found  # type: ignore[return-value]  # data sets

        other.matching = slowly  # type: ignore[assignment,method-assign]  # to know when
        pulling = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "plainpacs",
                    "pull",
                    at(other.port, "PACS"),
                ),
                *("-a", empty, "1.7"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert arrived.wait(60)
        pulling.send_signal(signal.SIGINT)
        _, said = pulling.communicate(timeout=60)
        assert pulling.returncode in (0, 130), said
        if pulling.returncode == 130:
            assert "the same command again goes on" in said
        assert os.listdir(Path(empty, ".plainpacs", "incoming")) == []
        before = len(data_sets(empty))
        done = run("pull", at(other.port, "PACS"), "-a", empty, "1.7")
        assert done.code == 0, done.err
        assert (
            before == 40
            or f"{40 - before} fetched; {before} here already" in done.err
            or (before == 0)
        )
    assert len(data_sets(empty)) == 40


def test_nothing_to_pull(run: Run, running: Running, empty: str) -> None:
    for what in ("1.99", "PatientID=nobody"):
        done = run("pull", at(running.port), "-a", empty, what)
        assert done.code == 1
        assert "has no" in done.err
