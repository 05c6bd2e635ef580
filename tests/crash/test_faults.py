"""Every primitive of the store path, of ``import`` and of the indexer fails, once and for good."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli, logs
from plainpacs.archive.dicom.part10 import EXPLICIT_LITTLE_ENDIAN
from plainpacs.archive.errors import PlainpacsError, StorageUnavailable
from plainpacs.archive.store.import_files import import_all, sources
from plainpacs.archive.store.store import Archive, StoreOutcome
from plainpacs.indexer.service.indexer import Indexer
from plainpacs.scp.network.answers import StoreStatus, answer_for
from plainpacs.scp.storage import store_scp
from plainpacs.scp.storage.store_scp import LargeInstance, StoreAnswer, StoreRequest
from tests.crash.kills import several_studies
from tests.crash.recovery import quick_folder
from tests.support.archives import (
    CT_IMAGE_STORAGE,
    MODALITY,
    data_set,
    left_behind,
    new_archive,
    part10,
    store,
)
from tests.support.faults import ERRNOS, SHORT, Failing
from tests.support.peer import Peer
from tests.support.peer import data_set as sent_data_set
from tests.support.promises import check, check_tree, derived, digest_of, in_tree, recover
from tests.support.receiver import Start

SECOND = {"SOPInstanceUID": "1.2.3.4.6"}
OTHER = {"PatientName": "Other^One"}
LARGE = {"SOPInstanceUID": "1.2.3.4.7", "PixelData": b"\5\6" * 5000}
FULL = (errno.ENOSPC, errno.EDQUOT)


CASES: list[int] = []


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    print(f"\n{sum(CASES)} faults")


@pytest.fixture
def folder() -> Iterator[str]:
    with quick_folder() as folder:
        yield folder


def request_of(raw: bytes) -> StoreRequest:
    uid = next(uid for uid in ("1.2.3.4.7", "1.2.3.4.6", "1.2.3.4.5") if uid.encode() in raw)
    return StoreRequest(CT_IMAGE_STORAGE, uid, CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN, MODALITY)


def sent_whole(archive: Archive, raw: bytes) -> StoreAnswer:
    return store_scp.store(archive, request_of(raw), memoryview(raw))


def sent_in_pieces(archive: Archive, raw: bytes) -> StoreAnswer:
    large = LargeInstance(archive, request_of(raw))
    for start in range(0, len(raw), 4000):
        large.write(memoryview(raw)[start : start + 4000])
    answer = large.store()
    large.discard()
    return answer


def imported(archive: Archive, raw: bytes) -> StoreAnswer:
    """As the command does it, but for its words."""
    source = Path(archive.root).with_name("source")
    source.write_bytes(part10(**SECOND))
    assert source.read_bytes().endswith(raw)
    try:
        [result] = import_all(archive, sources([str(source)]))
    except PlainpacsError as error:
        return StoreAnswer(answer_for(error).status, error=error)
    assert result.stored, result.error
    return StoreAnswer(StoreStatus.SUCCESS, stored=result.stored)


@dataclass(frozen=True)
class Order:
    act: Callable[[Archive, bytes], StoreAnswer]
    raw: bytes
    outcome: StoreOutcome
    before: tuple[dict[str, str], ...] = ()
    """What was stored before, in the same process."""
    fewest: int = 0
    """The least number of primitives it is made of."""


ORDERS = {
    "new study": Order(sent_whole, data_set(), StoreOutcome.STORED, (), 15),
    "second instance": Order(sent_whole, data_set(**SECOND), StoreOutcome.STORED, ({},), 8),
    "the same again": Order(sent_whole, data_set(), StoreOutcome.DUPLICATE, ({},), 5),
    "other bytes": Order(sent_whole, data_set(**OTHER), StoreOutcome.CONFLICT, ({},), 15),
    "in pieces": Order(sent_in_pieces, data_set(**LARGE), StoreOutcome.STORED, ({},), 10),
    "import": Order(imported, data_set(**SECOND), StoreOutcome.STORED, ({},), 8),
}


def calls_of(order: Order, path: str) -> list[str]:
    """The primitives that the order is made of, where nothing fails."""
    nothing = Failing()
    new_archive(Path(path))
    with Archive.open(path) as archive:
        for changes in order.before:
            store(archive, **changes)
        with nothing.put_in():
            answer = order.act(archive, order.raw)
        assert answer.stored, answer.error
        assert answer.stored.outcome is order.outcome
    return nothing.calls


@pytest.mark.parametrize("number", [*ERRNOS, SHORT])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("name", ORDERS)
def test_every_fault_of_a_store(name: str, for_good: bool, number: int, folder: str) -> None:
    order = ORDERS[name]
    calls = calls_of(order, f"{folder}/calls")
    assert len(calls) >= order.fewest, calls
    cases = [at for at, call in enumerate(calls) if number != SHORT or call == "write"]
    for at in cases:
        _fail(order, Failing(at, number, for_good), f"{folder}/{at}")
    assert len(cases) >= (1 if number == SHORT else order.fewest)
    CASES.append(len(cases))


def _fail(order: Order, fault: Failing, path: str) -> None:
    new_archive(Path(path))
    with Archive.open(path) as archive:
        for changes in order.before:
            store(archive, **changes)
        before = in_tree(path)
        with fault.put_in():
            answer = order.act(archive, order.raw)
        why = fault.words
        _judge_answer(order, fault, answer)
        known = {*before.values(), digest_of(order.raw)}
        kept = {digest_of(order.raw)} if answer.stored else set()
        check_tree(path, acknowledged={*before.values(), *kept}, known=known, why=why)
        if not answer.stored and "link" not in fault.calls[: fault.at]:
            assert in_tree(path) == before, f"{why}: something is in the tree"
        [own] = left_behind(path)
        left = os.listdir(Path(path, ".plainpacs", "incoming", own))
        assert left == ["lock"] or _cannot_unlink(fault), f"{why}: {left} in incoming"
        again = order.act(archive, order.raw)
        if _a_sync_failed(fault):
            assert again.status in (StoreStatus.OUT_OF_RESOURCES, StoreStatus.SUCCESS), why
        else:
            assert again.status == StoreStatus.SUCCESS, (why, again.error)
    with Archive.open(path) as restarted:
        once_more = order.act(restarted, order.raw)
        assert once_more.status == StoreStatus.SUCCESS, (why, once_more.error)
    assert left_behind(path) == [], why
    if fault.number == errno.ENOSPC:
        recover(path)
        check(path, acknowledged=known, known=known, why=why)


def _judge_answer(order: Order, fault: Failing, answer: StoreAnswer) -> None:
    """That it is the answer of the table: success only where nothing that it rests on failed."""
    assert fault.at is not None
    call, before = fault.calls[fault.at], fault.calls[: fault.at]
    # The manifest line can be made again; a copy in the kernel that fails is made by reading.
    dispensable = call in ("open_to_append", "copy_range") or (call == "write" and "link" in before)
    # Folders that move away beneath us are looked for again.
    tried_again = fault.number == errno.ESTALE and call in ("make_folder", "open_folder", "link")
    goes_on = fault.number == SHORT and not fault.for_good
    why = f"{fault.words}: {answer}"
    if not fault.for_good and (dispensable or tried_again or goes_on):
        assert answer.status == StoreStatus.SUCCESS, why
        assert answer.stored
        assert answer.stored.outcome in (order.outcome, StoreOutcome.DUPLICATE), why
        return
    assert answer.status == StoreStatus.OUT_OF_RESOURCES, why
    assert isinstance(answer.error, StorageUnavailable), why
    said = str(answer.error)
    assert "Doe" not in said
    assert said, why
    if order.act is not imported:
        assert answer.comment in ("Out of space", "Storage unavailable"), why
        if fault.number in FULL and call in ("create", "write", "link", "touch"):
            assert answer.comment == "Out of space", why


def _cannot_unlink(fault: Failing) -> bool:
    assert fault.at is not None
    return fault.for_good or fault.calls[fault.at] == "unlink"


def _a_sync_failed(fault: Failing) -> bool:
    """Which holds until a restart."""
    assert fault.at is not None
    failed = fault.calls[fault.at :] if fault.for_good else fault.calls[fault.at : fault.at + 1]
    return any(call.startswith("sync_") for call in failed)


def test_a_folder_whose_sync_failed_is_refused_until_a_restart(folder: str) -> None:
    order = ORDERS["second instance"]
    calls = calls_of(order, f"{folder}/calls")
    path = new_archive(Path(folder, "a"))
    fault = Failing(len(calls) - 1 - calls[::-1].index("sync_folder"), errno.EIO)
    with Archive.open(path) as archive:
        store(archive)
        with fault.put_in():
            assert order.act(archive, order.raw).status == StoreStatus.OUT_OF_RESOURCES
        for _ in range(3):
            assert order.act(archive, order.raw).status == StoreStatus.OUT_OF_RESOURCES
        store(archive, SOPInstanceUID="1.9.9", SeriesInstanceUID="1.9", StudyInstanceUID="1.8")
    with Archive.open(path) as restarted:
        assert order.act(restarted, order.raw).status == StoreStatus.SUCCESS


# --- the indexer ----------------------------------------------------------------------------------


def index_calls(path: str, *, full: bool) -> list[str]:
    nothing = Failing()
    several_studies(path)
    with Indexer.open(path) as indexer, nothing.put_in():
        indexer.once(full=full)
    return nothing.calls


def firsts(calls: list[str]) -> list[int]:
    """Where each primitive is called for the first time, and the last."""
    return sorted(
        {calls.index(c) for c in calls} | {len(calls) - 1 - calls[::-1].index(c) for c in calls}
    )


@pytest.mark.parametrize("number", [*ERRNOS, SHORT])
@pytest.mark.parametrize("full", [False, True], ids=["reindex", "full"])
def test_every_fault_of_the_indexer(full: bool, number: int, folder: str) -> None:
    calls = index_calls(f"{folder}/calls", full=full)
    wanted = derived(f"{folder}/calls")
    if number == errno.ENOSPC:
        chosen = [at for at, call in enumerate(calls) if call != "unlink" or calls[at - 1] != call]
        chosen = chosen[:: 3 if full else 1]
    else:
        chosen = firsts(calls)
    cases = 0
    for at in chosen:
        if number == SHORT and calls[at] != "write":
            continue
        for for_good in (False, True):
            path = f"{folder}/{at}.{for_good}"
            several_studies(path)
            fault = Failing(at, number, for_good)
            with Indexer.open(path) as indexer:
                # What can go on does; else it is said in the one way the command knows.
                with fault.put_in(), contextlib.suppress(StorageUnavailable):
                    indexer.once(full=full)
                assert fault.calls[at] == calls[at]
            with Indexer.open(path) as indexer:
                indexer.once()
            assert derived(path).keys() == wanted.keys(), fault.words
            cases += 1
            if number == errno.ENOSPC and at % 10 == 0:
                known = set(in_tree(path).values())
                check(path, acknowledged=known, known=known, why=fault.words)
    assert cases >= (2 if number == SHORT else 15)
    CASES.append(cases)


@pytest.mark.parametrize("command", [["reindex"], ["reindex", "--full"], ["index", "--once"]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_commands_that_index_say_so_in_one_line(
    command: list[str],
    number: int,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It is for a process of its own: here it would outlast the test.
    monkeypatch.setattr(logs, "set_up", lambda *_: None)
    path = f"{folder}/a"
    several_studies(path)
    with Failing(15, number, for_good=True).put_in(), pytest.raises(SystemExit) as ended:
        cli.main([*command, "-a", path])
    assert ended.value.code == 3
    assert os.strerror(number) in capsys.readouterr().err.splitlines()[-1]
    assert CliRunner().invoke(cli.root, [*command, "-a", path]).exit_code == 0


# --- over the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("call", ["create", "write", "make_folder", "link", "touch"])
def test_a_peer_is_told_and_may_try_again(number: int, call: str, start: Start) -> None:
    running = start()
    data = sent_data_set()
    with Peer(running.port) as peer:
        fault = _first(call, number)
        with fault.put_in():
            refused = peer.store(data)
        assert fault.at is not None
        tried_again = number == errno.ESTALE and call in ("make_folder", "link")
        assert refused == (0x0000 if tried_again else 0xA700), fault.words
        if call != "touch" and not tried_again:
            assert running.instances() == []
        assert peer.echo() == 0x0000, "the association goes on"
        assert peer.store(data) == 0x0000
    assert len(running.instances()) == 1


class _First(Failing):
    """The first call of one primitive fails."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__(None, number)
        self.call = call

    def now(self) -> bool:
        if self.at is None and self.calls[-1] == self.call:
            self.at = len(self.calls) - 1
        return super().now()


def _first(call: str, number: int) -> Failing:
    return _First(call, number)


def test_out_of_descriptors(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really so: the process may open no more."""
    import resource

    running = start()
    with Peer(running.port) as peer:
        assert peer.store(sent_data_set()) == 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        other = sent_data_set(sop="1.2.3.9", study="1.2.99", series="1.2.99.1")
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert peer.store(other, sop="1.2.3.9") == 0xA700
            assert highest
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(running.instances()) == 1
        assert peer.store(other, sop="1.2.3.9") == 0


def test_a_full_disk_at_the_start_leaves_nothing_in_incoming(folder: str) -> None:
    path = f"{folder}/a"
    new_archive(Path(path))

    def started(fault: Failing) -> None:
        with fault.put_in():
            archive = Archive.open(path)
        archive.close()

    with Archive.open(path):  # so that none of these sweeps
        before = set(os.listdir(f"{path}/.plainpacs/incoming"))
        started(nothing := Failing())
        assert "create" in nothing.calls
        for at, call in enumerate(nothing.calls):
            with contextlib.suppress(PlainpacsError):
                started(Failing(at, errno.ENOSPC, False))
            left = set(os.listdir(f"{path}/.plainpacs/incoming"))
            # What cannot be removed stays, for the next start that is alone.
            assert left == before or call.startswith(("unlink", "remove")), (at, call)
            before = left
