"""The receivers that are compared: how each is started, and what has arrived at it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.receiving.processes import family, is_indexer

T = TypeVar("T")

_HERE = Path(__file__).resolve().parent
_PLAINPACS = [sys.executable, "-m", "plainpacs"]
_PATIENCE = 60.0


class Failed(Exception):
    """A receiver or a sender did not do what it was started for; the words say what."""


@dataclass(frozen=True, slots=True)
class Running:
    """A receiver at work in ``folder``, listening on ``port`` of 127.0.0.1."""

    pid: int
    folder: Path
    port: int
    second_port: int


class Receiver:
    """One of those compared. ``arrived`` gives the bytes of each instance by SOP Instance UID."""

    def __init__(self, name: str, title: str, program: str | None = "") -> None:
        self.name = name
        self.title = title
        self.program = program
        """What must be installed; None when it is not."""

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        """What is to be there from before its start until after its end."""
        (folder / "stored").mkdir()
        yield

    def port_said(self, said: str) -> int | None:
        """The port, if it is the receiver who picks it and says which."""
        return None

    def arrived(self, at: Running) -> dict[str, int]:
        return {
            self.uid_of(entry.name): entry.stat().st_size
            for entry in os.scandir(at.folder / "stored")
        }

    def uid_of(self, name: str) -> str:
        return name

    def come_to_rest(self, at: Running) -> None:
        """Returns when no work is left over from what was sent."""


class Plainpacs(Receiver):
    """``plainpacs serve`` with some flags. Without its indexer, we sit in the indexer's place."""

    def __init__(self, name: str, title: str, flags: tuple[str, ...], *, indexer: bool) -> None:
        super().__init__(name, title)
        self._flags = flags
        self._indexer = indexer

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        where = ["--bind", "127.0.0.1", "--port", "0"]
        return [*_PLAINPACS, "serve", *where, *self._flags, str(folder / "archive")]

    @contextlib.contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        root = folder / "archive"
        made = subprocess.run([*_PLAINPACS, "init", str(root)], check=False, capture_output=True)
        if made.returncode:
            raise Failed(f"plainpacs init: {made.stderr.decode(errors='replace').strip()}")
        with contextlib.ExitStack() as held:
            if not self._indexer:
                lock = held.enter_context((root / ".plainpacs/indexer.lock").open("ab"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def port_said(self, said: str) -> int | None:
        found = re.search(r" port (\d+) of ", said)
        return int(found[1]) if found else None

    def arrived(self, at: Running) -> dict[str, int]:
        found = (at.folder / "archive").glob("[0-9]*/*/*/*.dcm")
        return {path.stem: path.stat().st_size for path in found}

    def come_to_rest(self, at: Running) -> None:
        """Every study is indexed, so after the first one the indexer has started, too; or else it
        has started and waits for its place."""
        root = at.folder / "archive"
        if self._indexer:
            eventually(lambda: _is_indexed(root), "the indexer to be done")
        else:
            eventually(lambda: _awaits_lock(at.pid), "the indexer to wait")


class Storescp(Receiver):
    """DCMTK's storescp with some flags."""

    def __init__(self, name: str, title: str, flags: tuple[str, ...]) -> None:
        super().__init__(name, title, dcmtk("storescp"))
        self._flags = flags

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        assert self.program
        return [self.program, *self._flags, "-od", str(folder / "stored"), str(port)]

    def uid_of(self, name: str) -> str:
        return name.partition(".")[2]  # CT.1.2.3


class Orthanc(Receiver):
    """Orthanc with its defaults, but in a folder and on ports of its own, and without plugins."""

    def __init__(self) -> None:
        super().__init__("orthanc", "Orthanc", orthanc())

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        assert self.program
        configuration = folder / "orthanc.json"
        own = {
            "StorageDirectory": "stored",
            "IndexDirectory": "stored",
            "Plugins": [],
            "DicomPort": port,
            "HttpPort": second_port,
            "DicomAlwaysAllowStore": True,
        }
        configuration.write_text(json.dumps(own))
        return [self.program, str(configuration)]

    def arrived(self, at: Running) -> dict[str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", at.second_port, timeout=_PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/instances?expand")
                found = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Failed(f"Orthanc does not say what it has: {error}") from None
        return {one["MainDicomTags"]["SOPInstanceUID"]: one["FileSize"] for one in found}


class Script(Receiver):
    """One of the receivers beside this file."""

    def __init__(self, name: str, title: str, script: str) -> None:
        super().__init__(name, title)
        self._script = script

    def command(self, folder: Path, port: int, second_port: int) -> list[str]:
        return [sys.executable, str(_HERE / self._script), str(folder / "stored")]

    def port_said(self, said: str) -> int | None:
        return int(said) if said.endswith("\n") else None


def receivers(serve: tuple[str, ...] = ()) -> dict[str, Receiver]:
    """All by name; ``serve``: more flags for `plainpacs serve`."""
    off = ("--sync", "off", *serve)
    every = (
        Plainpacs("plainpacs-off", "plainpacs --sync off", off, indexer=True),
        Plainpacs("plainpacs", "plainpacs", serve, indexer=True),
        Plainpacs("no-indexer", "the same, no indexer", off, indexer=False),
        Plainpacs(
            "no-services",
            "the same, queries and retrieves off",
            (*off, "--no-query-retrieve"),
            indexer=True,
        ),
        Storescp("storescp", "storescp +B", ("+B",)),
        Storescp("storescp-fork", "storescp +B --fork", ("+B", "--fork")),
        Storescp("storescp-pdu", "storescp +B -pdu 131072", ("+B", "-pdu", "131072")),
        Orthanc(),
        Script("pynetdicom", "stock pynetdicom", "pynetdicom_server.py"),
        Script("raw", "raw floor", "raw_server.py"),
    )
    return {receiver.name: receiver for receiver in every}


@contextlib.contextmanager
def running(receiver: Receiver, folder: Path, *, nodelay: bool = True) -> Iterator[Running]:
    """Starts it in the empty ``folder``; it and all that it started have ended afterwards."""
    port, second_port = free_ports(2)
    log = folder / "log"
    with receiver.around(folder), log.open("wb") as output:
        process = subprocess.Popen(
            receiver.command(folder, port, second_port),
            cwd=folder,
            env=environment(nodelay=nodelay),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us, who then stop everything in order
        )
        try:

            def listening() -> int | None:
                if process.poll() is not None:
                    raise Failed("it ended at once")
                # Only the ports of those that cannot tell theirs are tried by connecting.
                said = receiver.port_said(log.read_text(errors="replace"))
                return said or (port if _answers(port) else None)

            found = eventually(listening, f"{receiver.title} to listen")
            yield Running(process.pid, folder, found, second_port)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, then sees to it; with what it forked."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def environment(*, nodelay: bool = True) -> dict[str, str]:
    """Ours, without settings of plainpacs. ``nodelay`` turns off Nagle's algorithm in DCMTK."""
    dropped = ("PLAINPACS_", "TCP_NODELAY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"TCP_NODELAY": "1"} if nodelay else kept


@functools.cache
def dcmtk(tool: str) -> str | None:
    """The path of DCMTK's program; pynetdicom installs others of the same names."""
    for folder in os.get_exec_path():
        path = shutil.which(tool, path=folder)
        if path and version(path).startswith("$dcmtk"):
            return path
    return None


def orthanc() -> str | None:
    """The path of Orthanc's program, which Debian keeps out of the way of users."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def version(program: str) -> str:
    """The first line that ``program --version`` prints."""
    done = subprocess.run([program, "--version"], capture_output=True, check=False, timeout=30)
    return (done.stdout.decode(errors="replace").splitlines() or [""])[0]


def eventually(condition: Callable[[], T | None], what: str) -> T:
    """The first true value of ``condition()``. Raises Failed when it does not come."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise Failed(f"waited {_PATIENCE:.0f} s in vain for {what}")


def last_line(log: Path) -> str:
    if not log.exists():
        return "none"
    return (log.read_text(errors="replace").strip().splitlines() or ["none"])[-1]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on. (Another may take one before it is used; that run then fails.)"""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_indexed(root: Path) -> bool:
    waiting = (root / ".plainpacs/pending", root / ".plainpacs/indexing")
    if any(any(place.iterdir()) for place in waiting):
        return False
    studies = (path for path in root.glob("[0-9]*/*") if path.is_dir())
    return all((study / "study.json").exists() for study in studies)


def _awaits_lock(pid: int) -> bool:
    """Whether the indexer below ``pid`` has the lock's file open."""
    for indexer in filter(is_indexer, family(pid)):
        with contextlib.suppress(FileNotFoundError):  # closed or ended meanwhile
            opened = Path(f"/proc/{indexer}/fd").iterdir()
            if any(one.readlink().name == "indexer.lock" for one in opened):
                return True
    return False
