"""Load, kills, aborts and a disk that fills up, for as long as you like; then all is checked.

    python -m tests.soak --minutes 30 [--volume ext4|tmpfs|none] [--megabytes N] [--dir FOLDER]

Runs ``plainpacs serve`` on a small file system of its own (mounting one takes root; without, the
reserve makes the end of the disk), and sends to it with four senders that abort in the middle,
repeat, and send other bytes under a stored UID, and with DCMTK's storescu. Receivers, the indexer
and the whole service are killed and restarted at random, in the first three quarters of the time;
the last one shows whether memory stays flat. When the disk is full, the oldest whole studies are
checked and removed, by hand or by ``plainpacs rm --purge``. Every instance answered with 0000 is
noted with the digest of its data set.

At the end each of them must be there and equal, every other ``.dcm`` whole, what ``ls`` says what
the folders hold, a full rebuild the same bytes as what was indexed, ``plainpacs verify`` clean,
nothing unfinished left. Prints a summary; exit status 1 says that a promise was not kept, 3 that
it could not run. All is cleared away at the end, after Ctrl-C and SIGTERM too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.soak import checks
from tests.soak.ledger import MONTH, Ledger
from tests.soak.senders import Sender, Storescu
from tests.soak.service import PLAINPACS, Broken, Memory, Service
from tests.soak.volume import KINDS, best_kind, volume

_SENDERS = 4
_FULL = 8
"""So many answers A700 mean that the disk is full, not that somebody was unlucky."""
_SETTLED = 5.0
_MOST_GROWTH = 32 << 20
_SAMPLE = 200


class Soak:
    """One run. ``ledger`` has the counts and the findings."""

    def __init__(self, options: argparse.Namespace, service: Service, place: Path) -> None:
        self.ledger = Ledger()
        self.service = service
        self._seconds = options.minutes * 60
        self._rng = random.Random(options.seed)
        self._stopping = threading.Event()
        self.memory = Memory(service, self._stopping)
        self._storescu = Storescu(self.ledger, service.port, place, self._stopping)
        numbers = range(_SENDERS)
        self._senders = [Sender(self.ledger, service.port, n, self._stopping) for n in numbers]
        self._killed = self._is_down = False
        self._janitor = threading.Thread(target=self._keep_making_room, daemon=True)
        self._threads = [self.memory, self._storescu, *self._senders, self._janitor]

    def load(self) -> None:
        """Sends and kills until the time is over. Raises Broken."""
        self.service.start()
        for thread in self._threads:
            thread.start()
        began = said = time.monotonic()
        calm_from = began + 0.75 * self._seconds
        next_kill = began + min(5.0, self._seconds / 4)
        try:
            while (now := time.monotonic()) < began + self._seconds:
                if next_kill <= now < calm_from:
                    self._do_harm()
                    next_kill = time.monotonic() + self._rng.uniform(1, min(15, self._seconds / 6))
                if now - said > 30:
                    said = now
                    self._look()
                time.sleep(0.1)
        finally:
            self.end()

    def end(self) -> None:
        """Ends the senders."""
        self._stopping.set()
        self._storescu.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(60)

    # --- harm ---------------------------------------------------------------------------------

    def _do_harm(self) -> None:
        what = self._rng.random()
        if what < 0.45:
            self._kill("receivers killed", self.service.receivers())
        elif what < 0.8:
            self._kill("indexers killed", self.service.indexers())
        elif what < 0.9:
            self.ledger.count("services killed")
            self.service.kill()
            self._start()
        else:
            self.ledger.count("services stopped and started")
            self.stop()
            self._start()

    def _start(self) -> None:
        self._is_down = True
        self.service.start()
        self._is_down = self._killed = False

    def stop(self) -> None:
        """Stops the service as people do, and looks at what that leaves."""
        if status := self.service.stop():
            self.ledger.find(f"the service stopped with exit status {status}")
        # What a killed child leaves is the next start's to sweep.
        if not self._killed:
            checks.check_stopped(self.service.root, self.ledger)

    def _kill(self, what: str, pids: list[int]) -> None:
        if pids:
            self._killed = True
            os.kill(self._rng.choice(pids), signal.SIGKILL)
            self.ledger.count(what)

    # --- room ---------------------------------------------------------------------------------

    def _keep_making_room(self) -> None:
        by_hand, freed_at = False, 0
        while not self._stopping.wait(0.1):
            refused = self.ledger.counts["answered A700"] - freed_at
            # Without any room the service does not start, so nobody is refused either.
            if refused >= _FULL or (self._is_down and self.service.volume.is_full()):
                self.ledger.count("times the disk was full")
                self.make_room(by_hand=by_hand)
                by_hand = not by_hand
                freed_at = self.ledger.counts["answered A700"]

    def make_room(self, *, by_hand: bool) -> None:
        """Removes the older two thirds of the studies that are complete, after checking them."""
        root, old = self.service.root, self.ledger.closed_since(_SETTLED)
        going = old[: (2 * len(old) + 2) // 3]
        for study in going:
            promised = [one for one in study.instances.values() if one.promised]
            self.ledger.count("checked", checks.check_promises(root, self.ledger, promised))
            checks.check_variants(root, self.ledger, study)
            self.ledger.forget(study)
        there = [study.uid for study in going if (root / MONTH / study.uid).is_dir()]
        if there and not by_hand and self._purge(there):
            self.ledger.count("studies purged", len(going))
            return
        for study in going:
            for top in (root, root / ".plainpacs/conflicts"):
                remove_by_hand(top / MONTH / study.uid)
        self.ledger.count("studies removed by hand", len(going))

    def _purge(self, studies: list[str]) -> bool:
        """Whether ``plainpacs rm --purge`` could; on a disk without any room it may not."""
        command = [*PLAINPACS, "rm", "--purge", "--yes", "-a", str(self.service.root), *studies]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            self.ledger.count("purges killed after 30 s")
            return False
        if done.returncode == 0:
            return True
        self.ledger.count("purges that failed")
        print(f"rm --purge: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return False

    # --- looking ------------------------------------------------------------------------------

    def _look(self) -> None:
        every = self.ledger.promises()
        sample = self._rng.sample(every, min(_SAMPLE, len(every)))
        self.ledger.count("checked", checks.check_promises(self.service.root, self.ledger, sample))
        counts = self.ledger.counts
        words = ("stores answered 0000", "answered A700", "senders aborted", "receivers killed")
        shown = ", ".join(f"{counts[word]} {word}" for word in words)
        print(f"{shown}, {len(self.ledger.findings)} findings", file=sys.stderr, flush=True)

    def check_all(self) -> None:
        """At the end, with the service stopped: everything."""
        root, ledger = self.service.root, self.ledger
        every = ledger.promises()
        ledger.count("checked", checks.check_promises(root, ledger, every))
        for study in ledger.studies():
            checks.check_variants(root, ledger, study)
        ledger.count("promises there and equal at the end", len(every))
        ledger.count("files in the tree at the end", checks.check_tree(root, ledger))
        ledger.count("studies in the tree at the end", checks.check_indexes(root, ledger))
        print(f"verify: {checks.verify(root, ledger)}")
        checks.check_log(self.service.log, ledger)

    def check_memory(self) -> list[str]:
        """What is to be said of it."""
        warm_up = max(3.0, min(60.0, self._seconds / 12))
        peaks = self.memory.peaks().items()
        said = [f"{role}: {peak / 2**20:.0f} MB at most" for role, peak in peaks]
        for role, (grown, seconds) in self.memory.growth(warm_up).items():
            megabytes = f"{grown / 2**20:+.1f} MB"
            said.append(f"{role}: {megabytes} in the {seconds:.0f} s after its first {warm_up:.0f}")
            if grown > _MOST_GROWTH:
                self.ledger.find(f"the memory of the {role} grew by {grown >> 20} MB")
        return said


def remove_by_hand(folder: Path) -> None:
    """As ``rm -r`` does, again when somebody put something into it meanwhile."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _delete(promised: list[Path]) -> None:
    promised[0].unlink()


def _change(promised: list[Path]) -> None:
    content = bytearray(promised[1].read_bytes())
    content[-1] ^= 1
    promised[1].chmod(0o644)
    promised[1].write_bytes(content)


def _cut(promised: list[Path]) -> None:
    promised[2].chmod(0o644)
    os.truncate(promised[2], promised[2].stat().st_size // 2)


def _add(promised: list[Path]) -> None:
    shutil.copy(promised[3], promised[3].with_name("1.2.99.dcm"))


def _leave(promised: list[Path]) -> None:
    (promised[0].parents[3] / ".plainpacs/incoming/k.1").mkdir()


HARM: dict[str, Callable[[list[Path]], None]] = {
    "deleted": _delete,
    "changed": _change,
    "cut": _cut,
    "never-sent": _add,
    "unfinished": _leave,
}
"""By name, what is done to the files of instances that were promised, in the order of paths."""


# --- the program ----------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=words)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="how long the load lasts (30)")
    add("--volume", choices=KINDS, help="what fills up (ext4 for root, else none)")
    add("--megabytes", type=int, default=400, help="when it is full (400)")
    add("--dir", help="where all of it lies while it runs (the temporary folder)")
    add("--keep", metavar="FOLDER", help="copies archive and log into it when there are findings")
    add("--seed", type=int, default=1, help="of what is killed, when (1)")
    add("--harm", action="append", choices=sorted(HARM), help="do so at the end: tests this tool")
    return parser.parse_args(given)


def run(options: argparse.Namespace) -> int:
    """The whole of it. Returns the exit status."""
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="plainpacs-soak-", dir=options.dir))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        kind = options.volume or best_kind()
        on = stack.enter_context(volume(kind, place, options.megabytes))
        service = Service(on, place)
        stack.callback(service.end)
        soak = Soak(options, service, place)
        stack.callback(soak.end)
        print(f"{options.minutes:g} minutes on {kind} of {options.megabytes} MB", file=sys.stderr)
        soak.load()
        soak.stop()
        # Once more, for what was killed to be swept; to start takes a little room.
        soak.make_room(by_hand=True)
        service.start()
        service.stop()
        for harm in options.harm or ():
            HARM[harm](sorted(service.root / one.path for one in soak.ledger.promises()))
        checks.check_stopped(service.root, soak.ledger)
        soak.check_all()
        memory = soak.check_memory()
        print_summary(soak.ledger, memory)
        if soak.ledger.findings and options.keep:
            shutil.copytree(service.root, Path(options.keep, "archive"), symlinks=True)
            shutil.copy(service.log, options.keep)
        return int(bool(soak.ledger.findings))


def print_summary(ledger: Ledger, memory: list[str]) -> None:
    for what, count in sorted(ledger.counts.items()):
        print(f"{count:>9} {what}")
    print("\n".join(memory))
    print(f"{len(ledger.findings)} findings")
    print("\n".join(ledger.findings[:50]))


class _Stopped(BaseException):
    """By a signal of this number."""


def _stop(number: int, _: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # nothing is to interrupt the clearing up
    raise _Stopped(number)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    # In so many words: who is started in the background of a shell is deaf to Ctrl-C's signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return run(options)
    except _Stopped as stopped:
        print("stopped", file=sys.stderr)
        return 128 + int(str(stopped))
    except (Broken, OSError, subprocess.SubprocessError) as error:
        print(f"it cannot go on: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
