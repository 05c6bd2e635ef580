"""The log: a line an event, as text or as JSON, and nothing of an exception's words in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import eventually, new_archive
from tests.support.peer import Peer, data_set
from tests.support.serve import Serve

SPEAKING = """
import logging, sys, threading, warnings
from plainpacs.archive.app import logs
logs.set_up(*sys.argv[1:3])
log = logging.getLogger("plainpacs.test")
class Who:
    def __str__(self): return "somebody"
    def log_fields(self): return {"peer": "10.0.0.1", "calling_ae": "CT1"}
log.debug("whispered")
log.info("hello %s, %d times\\nand a line", Who(), 3)
log.warning("j\\udcffrg %s", 1.5)
logging.getLogger("pydicom").error("SECRET value")
warnings.warn("SECRET warning")
try:
    try:
        int("SECRET")
    except ValueError as error:
        raise KeyError("SECRET") from error
except KeyError:
    log.exception("caught")
def die(): int("SECRET")
thread = threading.Thread(target=die, name="worker")
thread.start(); thread.join()
int("SECRET")
"""


def said(level: str, form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKING, level, form], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, "it still ends as a program does that has a defect"
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    entries: list[dict[str, Any]] = [json.loads(line) for line in said("info", "json")]
    assert [(e["level"], e["message"]) for e in entries] == [
        ("INFO", "hello somebody, 3 times\nand a line"),
        ("WARNING", "j?rg 1.5"),
        ("ERROR", "caught"),
        ("ERROR", "thread worker ended by a defect of plainpacs"),
        ("CRITICAL", "ended by a defect of plainpacs"),
    ]
    first = entries[0]
    assert (first["peer"], first["calling_ae"]) == ("10.0.0.1", "CT1")
    assert "peer" not in entries[1]
    assert isinstance(first["pid"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert -1 < age.total_seconds() < 60, "in UTC"
    trace = entries[2]["exception"]
    assert trace.index("builtins.ValueError") < trace.index("builtins.KeyError"), "the cause first"


def test_text_has_the_same_words() -> None:
    lines = said("info", "text")
    heads = [line for line in lines if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line)]
    assert len(heads) == 5
    assert heads[0].endswith("INFO hello somebody, 3 times")
    assert "ValueError" in "\n".join(lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_only_debug_repeats_what_exceptions_and_libraries_say(form: str) -> None:
    assert "SECRET" not in "\n".join(said("info", form)).replace('int(\\"SECRET\\")', "")
    loud = "\n".join(said("debug", form))
    assert "invalid literal" in loud
    assert "SECRET value" in loud
    assert "SECRET warning" in loud
    assert "whispered" in loud


def test_a_level_leaves_out_what_is_below() -> None:
    entries = [json.loads(line) for line in said("error", "json")]
    assert [e["level"] for e in entries] == ["ERROR", "ERROR", "CRITICAL"]


def test_the_whole_service_speaks_json(serve: Serve) -> None:
    """Receivers, indexer and parent, from the greeting to the end: every line is an object."""
    service = serve("--log-format", "json", "--receivers", "2", "--log-level", "debug")
    with Peer(service.port) as peer:
        assert peer.store(data_set()) == 0
        assert peer.store(data_set(sop_class="1.2.3")) == 0xA900
        peer.release()
    with Peer(service.port, called="OTHER"):
        pass
    eventually(lambda: "indexed study" in service.said)
    assert service.stop() == 0
    entries = [json.loads(line) for line in service.said.splitlines()]
    assert len({e["pid"] for e in entries}) >= 3
    [ended] = [e for e in entries if e["message"].startswith("association ended")]
    known = {k: v for k, v in ended.items() if k not in ("time", "level", "message", "pid")}
    assert known.pop("seconds") >= 0
    assert known.pop("bytes") > 0
    who = {"peer": "127.0.0.1", "calling_ae": "TESTER", "called_ae": "DRDCM"}
    assert known == {**who, "stored": 1, "refused": 1}
    [refused] = [e for e in entries if e["message"].startswith("refused association")]
    assert refused["called_ae"] == "OTHER"


def test_an_unknown_format_is_wrong_usage(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    command = [
        sys.executable,
        "-m",
        "plainpacs",
        "serve",
        root,
        "--log-format",
        "xml",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "text, json" in done.stderr
