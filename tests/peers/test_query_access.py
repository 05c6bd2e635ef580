"""Who may query and retrieve: DCMTK's clients from this machine, as a node, and as a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.peer import dcmtk
from tests.support.queries import fill
from tests.support.receiver import Running, Start
from tests.support.serve import address_of_this_machine

STUDY = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.1")
CLIENTS = {"findscu": (), "getscu": ("-od", "."), "movescu": ("-aem", "STRANGER")}


def ask(running: Running, tool: str, to: str, calling: str, folder: Path) -> str:
    """What a client says of the last response, and of what came before it."""
    more = [str(folder) if word == "." else word for word in CLIENTS[tool]]
    who = ("-aec", "DRDCM", "-aet", calling, to, str(running.port))
    done = dcmtk(tool, "-d", "-S", *STUDY, *more, *who)
    return done.stdout + done.stderr


@pytest.mark.parametrize("tool", CLIENTS)
def test_a_stranger_gets_nothing(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, tool: str
) -> None:
    here = address_of_this_machine()
    # Neither the title nor the address alone will do.
    nodes = (f"PACS@{here}:104", "STRANGER@127.0.0.9:104")
    running = start(bind="", nodes=nodes)
    fill(running)
    said = ask(running, tool, here, "STRANGER", tmp_path)
    assert "0x124" in said.replace("0x0124", "0x124"), said
    assert "not a node of this archive: see its setting query_retrieve" in said
    assert "1.1.1.1" not in said
    assert not list(tmp_path.glob("*1.1.1.1*"))
    running.stop()
    [line] = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert line == (
        f"refused: STRANGER at {here} to DRDCM: 0124 a query or retrieve: the address of its node"
        f" is 127.0.0.9; flag to answer it: --nodes with STRANGER@{here}, or --query-retrieve any"
    )


@pytest.mark.parametrize(
    ("to", "calling", "settings"),
    [
        ("127.0.0.1", "STRANGER", {}),
        ("here", "PACS", {"nodes": "PACS@{here}:104"}),
        ("here", "STRANGER", {"query_retrieve": "any"}),
    ],
)
def test_this_machine_and_the_nodes_get_what_they_ask_for(
    start: Start, tmp_path: Path, to: str, calling: str, settings: dict[str, str]
) -> None:
    here = address_of_this_machine()
    nodes = tuple(one.format(here=here) for one in [settings.pop("nodes", "")] if one)
    running = start(bind="", nodes=nodes, **settings)
    fill(running)
    to = here if to == "here" else to
    assert "0x0000" in (said := ask(running, "findscu", to, calling, tmp_path)) or "Success" in said
    assert "[1.1 ]" in said.replace("\0", " ") or "[1.1]" in said, said
    ask(running, "getscu", to, calling, tmp_path)
    assert len(list(tmp_path.glob("*1.1.1.*"))) == 2
