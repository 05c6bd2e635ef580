"""Killing an order of the archive before each of its system calls.

An *order* is one thing the archive does: store an instance, rebuild the indexes. ``stops_of`` has
it run once under strace and reads from the trace before which system calls it is to be killed;
``kill_at`` has it run again, on a fresh copy, until SIGKILL comes before that call.

Processes of ours start slowly, so all are forked from one that has everything loaded (this module,
run as a program). strace is attached to the fork when all is ready for the order, and counts from
there.

To add an order: a generator function that makes everything ready, yields, and does the thing,
saying ``acknowledge(...)`` of each instance whose safety it has been told; and a row in ``ORDERS``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from plainpacs.archive.app import cli
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import NoMatch
from plainpacs.archive.store import import_files
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.verify import verify as verifying
from plainpacs.indexer.commands import conflicts, reindex, restore, rm, verify
from plainpacs.indexer.index import catalogue, instance_shards
from plainpacs.indexer.service.indexer import Indexer
from tests.support.archives import CT_IMAGE_STORAGE, MODALITY, data_set, new_archive, part10, store
from tests.support.promises import data_set_of, digest_of

LOADED = (conflicts, reindex, restore, rm, verify)
"""What the command line loads when it is used: here before, for all forks."""
BEGIN, END = "/plainpacs.order.begins", "/plainpacs.order.ends"
_PR_SET_PTRACER = 0x59616D61

Run = Callable[[str], Iterator[None]]


@dataclass(frozen=True)
class Order:
    """``prepare`` makes the archive at a path; ``run`` is the order, in two steps, on a copy.

    ``sends``: the data sets that the order brings in. ``erases``: those of which nothing is left
    when it came to its end.
    """

    prepare: Callable[[str], None]
    run: Run
    sends: tuple[bytes, ...] = ()
    erases: tuple[bytes, ...] = ()


# --- the orders -----------------------------------------------------------------------------------

OTHER_BYTES = {"PatientName": "Other^One"}
LARGE = {"SOPInstanceUID": "1.2.3.4.6", "PixelData": b"\3\4" * 50_000}


def one_stored(path: str) -> None:
    new_archive(Path(path))
    with Archive.open(path) as archive:
        store(archive)
    with Indexer.open(path) as indexer:
        indexer.once()


def empty(path: str) -> None:
    new_archive(Path(path))


def several_studies(path: str) -> None:
    """Some indexed; one of those is gone since, and others are new or have grown."""
    new_archive(Path(path))
    with Archive.open(path) as archive:
        for number in range(4):
            store(archive, StudyInstanceUID=f"1.{number}", SOPInstanceUID=f"1.{number}.1")
    with Indexer.open(path) as indexer:
        indexer.once()
    shutil.rmtree(Path(path, "202401", "1.3"))
    with Archive.open(path) as archive:
        store(archive, StudyInstanceUID="1.0", SOPInstanceUID="1.0.2")
        store(archive, StudyInstanceUID="1.9", SOPInstanceUID="1.9.1", StudyDate="")


def much_appended(path: str) -> None:
    several_studies(path)
    with Indexer.open(path) as indexer:
        indexer.once()
    root = open_root(path)
    record = b'{"StudyInstanceUID":"1.0","bytes":1}\n'
    now = Path(path, "202401", "studies.jsonl").read_bytes().splitlines(keepends=True)
    catalogue.append(root, "202401", [record, *reversed(now), b'{"StudyInst\n'])
    instance_shards.append(root, [instance_shards.series_line("202401", "1.0", "1.2.3.4")] * 3)
    os.close(root)


def files_beside(path: str) -> None:
    """An archive with one instance; beside it a folder with that, another, and other bytes."""
    one_stored(path)
    source = Path(path).with_name("source")
    source.mkdir()
    (source / "a").write_bytes(part10())
    (source / "b").write_bytes(part10(SOPInstanceUID="1.2.3.4.7", StudyInstanceUID="1.2.4"))
    (source / "c").write_bytes(part10(**OTHER_BYTES))
    (source / "d").write_bytes(b"no DICOM")


def died_before(path: str) -> None:
    """A writer died here: an instance linked but not marked, and half a file."""
    one_stored(path)
    node = next(Path(path, ".plainpacs").glob("node.*")).name.removeprefix("node.")
    left = Path(path, ".plainpacs", "incoming", f"{node}.dead")
    left.mkdir()
    (left / "lock").touch()
    (left / "7").write_bytes(data_set()[:50])
    (left / "8").write_bytes(part10(SOPInstanceUID="1.2.3.4.8"))
    os.link(left / "8", Path(path, "202401", "1.2.3", "1.2.3.4", "1.2.3.4.8.dcm"))
    Path(path, ".plainpacs", f"dirty.{node}").write_bytes(b"another boot\n")


def with_a_variant(path: str) -> None:
    """One instance, and other bytes under its UID kept aside."""
    one_stored(path)
    with Archive.open(path) as archive:
        store(archive, **OTHER_BYTES)


def some_removed(path: str) -> None:
    """Of two instances of a study one is in the trash, and other bytes of it are kept aside."""
    with_a_variant(path)
    with Archive.open(path) as archive:
        store(archive, SOPInstanceUID="1.2.3.4.9")
        store(archive, StudyInstanceUID="1.0", SOPInstanceUID="1.0.1")
    with Indexer.open(path) as indexer:
        indexer.once()
    _command("rm", "--yes", "-a", path, "1.2.3.4.5")


def damaged(path: str) -> None:
    """A manifest is gone, an instance lies in another study's folder too, an index is empty."""
    several_studies(path)
    with Indexer.open(path) as indexer:
        indexer.once()
    month = Path(path, "202401")
    next((month / "1.1").glob("*.jsonl")).unlink()
    shutil.copy2(month / "1.2/1.2.3.4/1.2.1.dcm", month / "1.0/1.2.3.4/1.2.1.dcm")
    (month / "1.0" / "study.json").write_bytes(b"{}")


def storing(**changes: Any) -> Run:
    def run(path: str) -> Iterator[None]:
        with Archive.open(path) as archive:
            yield
            store(archive, MODALITY, **changes)
            acknowledge(data_set(**changes))

    return run


def spooling(path: str) -> Iterator[None]:
    with Archive.open(path) as archive:
        yield
        raw = data_set(**LARGE)
        uid = LARGE["SOPInstanceUID"]
        assert isinstance(uid, str)
        with archive.spool(
            EXPLICIT_LITTLE_ENDIAN, MODALITY, sop_class=CT_IMAGE_STORAGE, sop_instance=uid
        ) as spool:
            for start in range(0, len(raw), 1 << 15):
                spool.write(raw[start : start + (1 << 15)])
            spool.store()
        acknowledge(raw)


def starting_and_stopping(path: str) -> Iterator[None]:
    yield
    with Archive.open(path):
        pass


def indexing(*, full: bool) -> Run:
    def run(path: str) -> Iterator[None]:
        with Indexer.open(path) as indexer:
            yield
            indexer.once(full=full)

    return run


def compacting(path: str) -> Iterator[None]:
    with Indexer.open(path):  # it holds the lock that compaction needs
        root = open_root(path)
        yield
        catalogue.compact(root, "202401")
        for shard in sorted(os.listdir(Path(path, ".plainpacs", "instances"))):
            instance_shards.compact(root, shard)


class _AtOnce(ThreadPoolExecutor):
    """strace counts the calls of each thread apart: here there is one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def importing_files(path: str) -> Iterator[None]:
    import_files.ThreadPoolExecutor = _AtOnce  # type: ignore[misc]  # in a process of its own
    with Archive.open(path) as archive:
        yield
        for result in import_files.import_all(
            archive, import_files.sources([str(Path(path).with_name("source"))])
        ):
            if result.stored:
                acknowledge(data_set_of(Path(result.source.path).read_bytes()))


def commanding(*arguments: str) -> Run:
    """A command of the command line, with any result but a failure."""

    def run(path: str) -> Iterator[None]:
        verifying.ThreadPoolExecutor = _AtOnce  # type: ignore[misc]  # in a process of its own
        yield
        with contextlib.suppress(NoMatch):  # the second time, when the first came to its end
            _command(*arguments, "-a", path)

    return run


def _command(*arguments: str) -> None:
    try:
        cli.root(list(arguments), prog_name="plainpacs", standalone_mode=False)
    except SystemExit as ended:
        if ended.code not in (0, 1):
            raise


IMPORTED = (
    data_set(),
    data_set(SOPInstanceUID="1.2.3.4.7", StudyInstanceUID="1.2.4"),
    data_set(**OTHER_BYTES),
)

ORDERS = {
    "start and stop": Order(died_before, starting_and_stopping),
    "store, new study": Order(empty, storing(), (data_set(),)),
    "store, second instance": Order(
        one_stored,
        storing(SOPInstanceUID="1.2.3.4.9"),
        (data_set(SOPInstanceUID="1.2.3.4.9"),),
    ),
    "store, the same again": Order(one_stored, storing(), (data_set(),)),
    "store, other bytes": Order(one_stored, storing(**OTHER_BYTES), (data_set(**OTHER_BYTES),)),
    "store, as it comes": Order(one_stored, spooling, (data_set(**LARGE),)),
    "import": Order(files_beside, importing_files, IMPORTED),
    "reindex": Order(several_studies, indexing(full=False)),
    "reindex --full": Order(several_studies, indexing(full=True)),
    "compact": Order(much_appended, compacting),
    "rm, an instance": Order(one_stored, commanding("rm", "--yes", "1.2.3.4.5")),
    "rm, a study": Order(some_removed, commanding("rm", "--yes", "1.2.3")),
    "rm --purge": Order(
        some_removed,
        commanding("rm", "--yes", "--purge", "1.2.3"),
        erases=(data_set(), data_set(**OTHER_BYTES), data_set(SOPInstanceUID="1.2.3.4.9")),
    ),
    "restore": Order(some_removed, commanding("restore", "1.2.3")),
    "conflicts --keep first": Order(
        with_a_variant, commanding("conflicts", "--keep", "first", "1.2.3")
    ),
    "conflicts --keep second": Order(
        with_a_variant, commanding("conflicts", "--keep", "second", "1.2.3")
    ),
    "repair": Order(damaged, commanding("repair", "--apply")),
}


def acknowledge(data: bytes) -> None:
    """In an order: the sender is answered that this data set is stored."""
    _say(f"acknowledged {digest_of(data)}")


# --- the process from which they are forked -------------------------------------------------------


_TOLD = 1
"""Whom we speak to; what orders print goes elsewhere."""


def _say(words: str) -> None:
    os.write(_TOLD, words.encode() + b"\n")


def _hear() -> str:
    """A line; whoever speaks to us waits for an answer before saying the next."""
    return os.read(0, 1 << 16).decode().rstrip("\n")


def _serve() -> None:
    while line := _hear():
        name, path = line.split("\t")
        pid = os.fork()
        if not pid:
            _carry_out(ORDERS[name], path)
        _, status = os.waitpid(pid, 0)
        _say(f"ended {os.waitstatus_to_exitcode(status)}")


def _carry_out(order: Order, path: str) -> NoReturn:
    """In the fork, which ends here."""
    # Its own errors go to the server's stderr; nothing of ours is tidied up by leaving.
    try:
        gc.disable()
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        steps = order.run(path)
        next(steps)
        # Waited for with a call that no order makes: strace may come before it or after.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        _say(f"ready {os.getpid()}")
        signal.sigwait({signal.SIGUSR1})
        os.access(BEGIN, os.F_OK)
        next(steps, None)
        os.access(END, os.F_OK)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


# --- the side of the tests ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """Before the ``number``-th call of ``call`` since strace was attached; ``line`` shows it."""

    call: str
    number: int
    line: str


@dataclass(frozen=True)
class Ended:
    """How the order ended: exit status or minus the signal, and what it acknowledged before."""

    status: int
    acknowledged: frozenset[str]
    trace: list[str]


class Killer:
    """Has orders run and killed; ``work`` is a folder of its own. A context manager."""

    def __init__(self, work: Path) -> None:
        self._work = work
        work.mkdir(exist_ok=True)
        self._log = work / "trace"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (work / "said").open("wb") as said:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
            )

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(20)
        self._server.stdout.close()

    def copy(self, template: Path) -> Path:
        """A fresh copy of the archive to work on, where the last one was."""
        target = self._work / "copy"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", str(template), str(target)], check=True)
        return target

    def stops_of(self, name: str, path: Path, *, every: bool) -> list[Stop]:
        """Before which calls the order is to be killed: before all, or (``every`` false) before
        those that change the tree or tell the sender, and at the end.

        What every start and stop does is then left to the order of that name.
        """
        ended = self._run(name, path, ["-y", "-e", "trace=all"])
        assert ended.status == 0, (name, self.said())
        stops = stops_in(ended.trace, every=every)
        usual = re.compile("\0" if every or name == "start and stop" else _START_AND_STOP)
        return [stop for stop in stops if not usual.search(stop.line)]

    def kill_at(self, name: str, path: Path, stop: Stop) -> Ended:
        """The order on ``path``, killed before the call."""
        chosen = f"{stop.call}:signal=KILL:when={stop.number}"
        return self._run(name, path, ["-e", f"trace={stop.call}", "-e", f"inject={chosen}"])

    def carry_out(self, name: str, path: Path) -> Ended:
        """The order on ``path``, to its end."""
        return self._run(name, path, None)

    def said(self) -> str:
        return (self._work / "said").read_text()

    def _run(self, name: str, path: Path, options: list[str] | None) -> Ended:
        """With strace and these ``options``, or (None) without."""
        self._tell(f"{name}\t{path}")
        ready, _, pid = self._answer().partition(" ")
        assert ready == "ready", (name, self.said())
        if options is None:
            return Ended(*self._go(int(pid)), [])
        command = ["strace", "-f", "-p", pid, "-o", str(self._log), "-s", "200", *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr
            attached = strace.stderr.readline()
            assert "attached" in attached, attached
            status, acknowledged = self._go(int(pid))
        return Ended(status, acknowledged, self._log.read_text(errors="replace").splitlines())

    def _go(self, pid: int) -> tuple[int, frozenset[str]]:
        os.kill(pid, signal.SIGUSR1)
        acknowledged = set()
        while (line := self._answer()).startswith("acknowledged "):
            acknowledged.add(line.split()[1])
        assert line.startswith("ended "), (line, self.said())
        return int(line.split()[1]), frozenset(acknowledged)

    def _tell(self, words: str) -> None:
        assert self._server.stdin
        self._server.stdin.write(words.encode() + b"\n")
        self._server.stdin.flush()

    def _answer(self) -> str:
        assert self._server.stdout
        return self._server.stdout.readline().decode().rstrip("\n")


def why_not() -> str:
    """Why strace cannot be used here; empty when it can."""
    if not shutil.which("strace"):
        return "strace is not installed (apt install strace)"
    tried = ["strace", "-f", "-e", "inject=rmdir:signal=KILL:when=1", "rmdir", "/nowhere/at/all"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    if "killed by SIGKILL" not in done.stderr:
        return f"strace may not trace here: {done.stderr.strip().splitlines()[-1:]}"
    return ""


_START_AND_STOP = r"\.try\.|/node\.|/dirty\.|\block\b"
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\w+)")
_CHANGING = {
    *("creat", "write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile"),
    *("splice", "link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "truncate", "ftruncate"),
    *("fallocate", "utimensat", "futimesat", "chmod", "fchmod", "fchmodat", "chown", "fchown"),
    *("fchownat", "setxattr", "fsetxattr", "removexattr", "sendto", "sendmsg"),
}


def stops_in(trace: list[str], *, every: bool) -> list[Stop]:
    """The stops of the order that was traced."""
    counted: dict[str, int] = {}
    found: list[Stop] = []
    within = False
    for raw in trace:
        line = raw.partition(" ")[2].strip()
        match = _CALL.match(line)
        if match is None:
            assert "unfinished" not in line, f"the order has two threads: {line}"
            continue
        call, arguments, result = match.groups()
        counted[call] = counted.get(call, 0) + 1
        stop = Stop(call, counted[call], line)
        if BEGIN in arguments:
            within = True
        elif END in arguments:
            return [*found, stop]
        elif within and (every or _changes(call, arguments, result)):
            found.append(stop)
    raise AssertionError("the order did not come to its end")


def _changes(call: str, arguments: str, result: str) -> bool:
    if result == "-1" or (result == "0" and "write" in call):
        return False
    if call == "write" and re.match(r"2[<,]", arguments):  # words for whoever looks on
        return False
    return call in _CHANGING or (call.startswith("open") and "O_CREAT" in arguments)


if __name__ == "__main__":
    _TOLD = os.dup(1)
    os.dup2(2, 1)
    _serve()
