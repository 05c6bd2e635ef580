"""Mutated data sets and files through header reading and import: nothing may surprise us.

    python -m tests.fuzzing [--cases N] [--seed N] [--first N]
    python -m tests.fuzzing --seed 1 --first 4711 --cases 1 [--keep FOLDER]     one case again

Each case is a function of the seed number, its own number and the seeds at hand (``seeds``,
``bombs``; the real ones depend on $PLAINPACS_TEST_DATA): the second line repeats it, and keeps
its bytes. Of the cases 70 % are data sets for ``read_header``, in every kind of transfer syntax,
15 % files for ``read_part10`` and what follows, 15 % files for ``Archive.import_file`` on a file
system in memory.

A finding is: an exception that is no PlainpacsError, more than a second of processor time, more
than 64 MB of memory beyond what it was after the warm-up (at any moment), an answer that JSON does
not give back or that differs with the kind of buffer, a path that leads out of the archive, or an
import that leaves anything but whole files in their places, each with its line.
Exit status 1 when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzzing.bombs import bombs
from tests.fuzzing.checks import Finding, Importer, check_data_set, check_file
from tests.fuzzing.mutators import changed_bytes, changed_elements
from tests.fuzzing.seeds import BIG, DEFLATED, EXPLICIT, IMPLICIT, JPEG, Seed, deflate, real_seeds

MOST_SECONDS = 1.0
MOST_GROWTH = 64 << 20
_GIVE_UP_SECONDS = 30
_MOST_FINDINGS = 20
_SYNTAXES = (EXPLICIT, IMPLICIT, BIG, DEFLATED, JPEG, "1.2.840.10008.1.2.4.205", "1.2.3", "")


@dataclass(frozen=True, slots=True)
class Case:
    """``kind`` is data set, file or import; a data set's ``content`` is encoded in ``syntax``."""

    number: int
    kind: str
    seed: str
    syntax: str
    content: bytes
    whole: bool
    complete: bool


Checked = Callable[[Case, Importer], str]


class Cases:
    """The cases of one seed number."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.seeds: list[Seed] = real_seeds() + bombs()
        # The large ones take a hundred times as long, and are not better for being many.
        weights = (0.003 if len(seed.data) > 100_000 else 1.0 for seed in self.seeds)
        self._weights = list(itertools.accumulate(weights))

    def case(self, number: int) -> Case:
        rng = Random(f"{self._number}/{number}")
        seed, other = rng.choices(self.seeds, cum_weights=self._weights, k=2)
        data = seed.data
        if seed.elements and rng.random() < 0.7:
            data = changed_elements(rng, seed, other)
        if rng.random() < 0.6:
            data = changed_bytes(rng, data, other.data)
        if seed.syntax == DEFLATED or rng.random() < 0.02:
            data = deflate(data)
            if rng.random() < 0.4:
                data = changed_bytes(rng, data, other.data)
        syntax = seed.syntax.removesuffix(" as it is")
        kind = rng.choices(("data set", "file", "import"), (70, 15, 15))[0]
        if kind == "data set" and rng.random() < 0.15:
            syntax = rng.choice(_SYNTAXES)
        if kind != "data set":
            meta = other.meta if rng.random() < 0.05 else seed.meta
            if meta and rng.random() < 0.3:
                meta = changed_bytes(rng, meta, other.meta)
            data = meta + data
        return Case(number, kind, seed.name, syntax, data, rng.random() < 0.5, rng.random() < 0.9)


# --- running --------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of a run. Times are of the processor, in seconds; memory is in bytes."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    growth: int = 0
    seconds: float = 0.0

    def timed(self, took: float, case: Case) -> None:
        if len(self.slowest) < 5 or took > self.slowest[-1][0]:
            self.slowest.append((took, case.number, f"{case.kind} of {case.seed}"))
            self.slowest = sorted(self.slowest, reverse=True)[:5]

    def lines(self) -> list[str]:
        kinds = [f"{count:>9} {name}" for name, count in sorted(self.outcomes.items())]
        slow = [f"{took:9.3f} s case {number}, {what}" for took, number, what in self.slowest]
        return [
            f"{self.cases} cases in {self.seconds:.0f} s, {len(self.findings)} findings, memory "
            f"grew by {self.growth / 2**20:.1f} MB at most",
            *kinds,
            "slowest, processor time:",
            *slow,
            *self.findings,
        ]


def _memory(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) << 10


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _alarm(*_: object) -> None:
    raise Finding(f"it hangs: {_GIVE_UP_SECONDS} s")


def run(
    cases: Cases,
    numbers: range,
    folder: str,
    *,
    keep: str | None = None,
    checked: Checked | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Puts the cases of these ``numbers`` through ``checked``, which is what reads them.

    ``keep``: the folder for the file of each finding, or of the one case.
    """
    tally, began, said = Tally(), time.monotonic(), time.monotonic()
    importer = Importer(folder)
    warm = min(5000, max(1, len(numbers) // 10))
    before = 0
    previous = signal.signal(signal.SIGALRM, _alarm)
    try:
        for number in numbers:
            case = cases.case(number)
            known = len(tally.findings)
            tally.timed(_one(case, importer, tally, checked or _checked), case)
            if keep and (len(numbers) == 1 or len(tally.findings) > known):
                Path(keep, f"case-{number}").write_bytes(case.content)
            tally.cases += 1
            if tally.cases == warm:
                _forget_peak()
                before = _memory("VmRSS")
            if len(tally.findings) >= _MOST_FINDINGS:
                break
            if time.monotonic() - said > 30:
                said = time.monotonic()
                now = _memory("VmRSS") - before
                say(f"{tally.cases} cases, {len(tally.findings)} findings, {now >> 20} MB more")
        with _finding_of(tally, "the last archive"):
            importer.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    tally.growth = max(0, _memory("VmHWM") - before)
    if tally.growth > MOST_GROWTH and len(numbers) > warm:
        tally.findings.append(f"memory grew by {tally.growth >> 20} MB")
    tally.seconds = time.monotonic() - began
    return tally


def _one(case: Case, importer: Importer, tally: Tally, checked: Checked) -> float:
    """Puts a case through; returns the seconds of processor time it took."""
    signal.setitimer(signal.ITIMER_REAL, _GIVE_UP_SECONDS)
    began = time.process_time()
    with _finding_of(tally, f"case {case.number}, {case.kind} of {case.seed}"):
        outcome = checked(case, importer)
        tally.outcomes[f"{case.kind}: {outcome}"] += 1
    took = time.process_time() - began
    signal.setitimer(signal.ITIMER_REAL, 0)
    if took > MOST_SECONDS:
        tally.findings.append(f"case {case.number}, {case.kind} of {case.seed}: {took:.1f} s")
    return took


def _checked(case: Case, importer: Importer) -> str:
    match case.kind:
        case "data set":
            return check_data_set(case.content, case.syntax, case.whole, case.complete)
        case "file":
            return check_file(case.content)
        case _:
            return importer.check(case.content)


@contextlib.contextmanager
def _finding_of(tally: Tally, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, it is a finding
        where = "".join(traceback.format_exception(error)[-3:]).rstrip()
        tally.findings.append(f"{what}: {where}")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=words)
    parser.add_argument("--cases", type=int, default=100_000, help="how many (100,000)")
    parser.add_argument("--seed", type=int, default=1, help="another number, other cases (1)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (0)")
    parser.add_argument("--keep", help="folder for the file of each finding, or of the one case")
    parser.add_argument("--dir", default="/dev/shm", help="where the archives lie (/dev/shm)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which clears up
    cases = Cases(options.seed)
    numbers = range(options.first, options.first + options.cases)

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    say(f"{len(cases.seeds)} seeds, seed number {options.seed}")
    with tempfile.TemporaryDirectory(prefix="plainpacs-fuzz-", dir=options.dir) as folder:
        tally = run(cases, numbers, folder, keep=options.keep, say=say)
    print("\n".join(tally.lines()))
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
