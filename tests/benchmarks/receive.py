"""How fast instances are received, beside DCMTK, Orthanc, pynetdicom and the limit.

    python -m tests.benchmarks.receive [--case NAME]... [--rounds N] [--quick] [--markdown]

Generates instances, starts each receiver in turn as a process of its own, sends to it with DCMTK's
storescu, checks that every instance arrived whole, and prints a table for each case. The receivers
of a case take turns (A B C, A B C, ...), each time started anew in an empty folder, and warmed up
with 40 small instances; the ratios are those within one round. What is not installed is left out.
Asserts nothing; exit status 1 says that a run failed, 3 that nothing could be measured.

What makes it fair: the same files from the same file system, in the page cache, to the same file
system; the same client, one process for each sender, its start included in the time; TCP_NODELAY=1
in the environment of client and receiver (but for two cases); everything over 127.0.0.1. Our own
sender serves the cases of one association for each instance alone, because DCMTK's clients keep
theirs; it is the same for every receiver. The indexer runs beside plainpacs and has proved it by
indexing the warm-up. Only plainpacs with its default, and Orthanc, sync what they store.

Where it writes (--dir) matters. An ext4 without a journal, as small virtual machines have it, looks
for minutes past every inode that was deleted a moment ago, so that what one run removes slows the
next one's files down: 1.1 ms for each instance instead of 0.3 were seen. Take a file system with a
journal, or for what is not synced /dev/shm, which shows the programs and not the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.receiving import machine
from tests.benchmarks.receiving.cases import CASES, Case
from tests.benchmarks.receiving.data import SMALL, Kind, Sent, make
from tests.benchmarks.receiving.receivers import Failed, Receiver, dcmtk, receivers
from tests.benchmarks.receiving.report import (
    EXPLANATION,
    Runs,
    print_case,
    print_markdown,
    problems,
)
from tests.benchmarks.receiving.run import Measured, run

_WARM = 40
_QUICK_ROUNDS = 2
_QUICK_SHARE = 8


class Data:
    """The instances of each kind and number, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Kind, int], Sent] = {}

    def of(self, kind: Kind, count: int) -> Sent:
        if (kind, count) not in self._made:
            say(f"making {count} instances of {kind.name}")
            place = self._folder / f"{kind.name.replace(' ', '')}-{count}"
            self._made[kind, count] = make(place, kind, count)
            os.sync()  # so that writing them is not mixed up with what is measured
        return self._made[kind, count]

    def keep_only(self, wanted: Sequence[tuple[Kind, int]]) -> None:
        """Makes room on the disk, and in the page cache."""
        for key in [key for key in self._made if key not in wanted]:
            shutil.rmtree(self._made.pop(key).folder)


def measure(case: Case, chosen: dict[str, Receiver], rounds: int, data: Data, folder: Path) -> Runs:
    """Runs the receivers of a case in turn. A failed run gives its words, and the rest goes on."""
    runs: dict[str, list[Measured | str]] = {name: [] for name in chosen}
    warm, sent = data.of(SMALL, _WARM), data.of(case.kind, case.count)
    for number in range(rounds):
        for name, receiver in chosen.items():
            few = case.few.get(name, case.count)
            what = sent.first(few) if few < case.count else sent
            try:
                result: Measured | str = run(case, receiver, warm, what, folder / "receiver")
            except Failed as failed:
                result = str(failed)
            words = result if isinstance(result, str) else f"{result.rate:.0f} instances/s"
            say(f"{case.name}, round {number + 1} of {rounds}, {receiver.title}: {words}")
            runs[name].append(result)
    return runs


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.receive", description=words)
    names = [case.name for case in CASES]
    everyone = list(receivers())
    add = parser.add_argument
    add(
        "--case",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"only this one, may be repeated: {', '.join(names)}",
    )
    add(
        "--receiver",
        action="append",
        choices=everyone,
        metavar="NAME",
        help=f"of the peers only this one, may be repeated: {', '.join(everyone)}",
    )
    add("--rounds", type=int, help="how often each receiver's turn comes (5)")
    add("--quick", action="store_true", help=f"{_QUICK_ROUNDS} rounds of an eighth of the data")
    add("--instances", type=int, help="at most so many instances in each case")
    add("--dir", help="where data and archives lie while it runs (the temporary folder)")
    add("--serve", default="", metavar="FLAGS", help="more flags for `plainpacs serve`, in quotes")
    add("--markdown", action="store_true", help="at the end, all in one Markdown table")
    return parser.parse_args(given)  # fmt: skip


def cases_of(options: argparse.Namespace) -> list[Case]:
    chosen = []
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        count = max(4, case.count // _QUICK_SHARE) if options.quick else case.count
        count = min(count, options.instances or count)
        chosen.append(dataclasses.replace(case, count=count))
    return chosen


def receivers_of(
    case: Case, options: argparse.Namespace, every: dict[str, Receiver]
) -> dict[str, Receiver]:
    chosen = {}
    for name in dict.fromkeys((case.subject, *(options.receiver or case.peers))):
        if every[name].program is None:
            say(f"{case.name}: {every[name].title} is left out: it is not installed")
            continue
        chosen[name] = every[name]
    return chosen


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if dcmtk("storescu") is None:
        say("DCMTK's storescu, which sends, is not installed (apt install dcmtk)")
        return 3
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else 5)
    every, cases = receivers(tuple(shlex.split(options.serve))), cases_of(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = []
    with tempfile.TemporaryDirectory(prefix="plainpacs-receive-", dir=options.dir) as place:
        folder = Path(place)
        facts = machine.description(folder)
        facts += [("rounds", str(rounds)), ("load at the start", f"{os.getloadavg()[0]:.1f}")]
        data = Data(folder)
        for at, case in enumerate(cases):
            runs = measure(case, receivers_of(case, options, every), rounds, data, folder)
            results.append((case, runs))
            data.keep_only([(SMALL, _WARM), *((one.kind, one.count) for one in cases[at + 1 :])])
            print_case(case, runs, every)
    print(EXPLANATION)
    for name, value in facts:
        print(f"{name}: {value}")
    if options.markdown:
        print_markdown(results, every, facts)
    return int(any(any(problems(one)) for _, runs in results for one in runs.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(130)
