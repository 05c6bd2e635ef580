"""A command as a person gives it, run in this process; and what it leaves in archives."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from plainpacs.archive.app import cli
from plainpacs.archive.dicom.part10 import read_part10
from tests.support.archives import instances_in, new_archive


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``plainpacs`` with these arguments."""
    for variable in ("PLAINPACS_ARCHIVE", "PLAINPACS_CONFIG"):
        monkeypatch.delenv(variable, raising=False)

    def _run(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return _run


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """The path of a new archive."""
    return new_archive(tmp_path / "ours")


def at(port: int, title: str = "DRDCM") -> str:
    return f"{title}@127.0.0.1:{port}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def data_sets(root: Path | str) -> dict[str, tuple[str, bytes]]:
    """Transfer syntax and data set of every instance of an archive."""
    found = {}
    for path in instances_in(root):
        raw = Path(root, path).read_bytes()
        read = read_part10(raw[: 1 << 20])
        found[Path(path).stem] = read.transfer_syntax, raw[read.dataset_offset :]
    return found


def lines(root: Path | str) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for path in Path(root).glob("[0-9]*/*/*.jsonl")
        for line in path.read_text().splitlines()
    ]
