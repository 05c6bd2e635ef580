"""Tables of what was measured: medians over the rounds, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.receiving.cases import Case
from tests.benchmarks.receiving.receivers import Receiver
from tests.benchmarks.receiving.run import Measured

Runs = Mapping[str, Sequence[Measured | str]]
"""By the receiver's name, a run for each round; words where one failed."""

EXPLANATION = """\
instances/s: median over the rounds (least to most); ratio: subject ÷ this one in the same round, \
median (least to most).
CPU: processor time of the receiver's processes for each instance, of the indexer after the +.
Peak: most resident memory of all the receiver's processes at once (VmHWM added up, less what they \
share), of the largest of them in brackets, of the indexer after the +."""


def print_case(case: Case, runs: Runs, receivers: Mapping[str, Receiver]) -> None:
    """The table of one case, for people."""
    counts = sorted({one.count for some in runs.values() for one in _good(some)}, reverse=True)
    numbers = " or ".join(map(str, counts)) or "none"
    table = Table(
        title=f"{case.name}: {case.kind.name} x {numbers}, {case.title}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("receiver")
    for heading in ("instances/s", "MB/s", "ratio", "target", "CPU ms", "peak MB"):
        table.add_column(heading, justify="right")
    for name, measured in runs.items():
        good = _good(measured)
        title = receivers[name].title
        if not good:
            table.add_row(title, "failed")
            continue
        table.add_row(
            title,
            f"{_number(_median(good, _rate))} ({_spread(good, _rate)})",
            f"{_median(good, _megabytes_per_second):.0f}",
            *_ratio_and_target(case, name, runs),
            _processor(good, name),
            _memory(case, good, name),
        )
    # Not as wide as the terminal: lines that are cut or folded cannot be compared.
    console = Console(width=140, highlight=False)
    console.print(table)
    for name, measured in runs.items():
        for words in problems(measured):
            console.print(f"  {receivers[name].title}: {words}", markup=False)


def problems(measured: Sequence[Measured | str]) -> Iterable[str]:
    """Runs that failed, and instances that did not arrive."""
    for number, one in enumerate(measured, 1):
        if isinstance(one, str):
            yield f"round {number}: {one}"
        elif one.missing:
            yield f"round {number}: {one.missing} of {one.count} instances did not arrive"


def print_markdown(
    results: Sequence[tuple[Case, Runs]],
    receivers: Mapping[str, Receiver],
    machine: Iterable[tuple[str, str]],
) -> None:
    """One table of all cases, a line for each peer, as the README has it."""
    print()
    print("| case | plainpacs | against | | ratio | target | CPU ms | peak MB |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for case, runs in results:
        ours = _good(runs[case.subject])
        title = f"{case.kind.name}, {case.title}"
        if not ours:
            print(f"| {title} | failed | | | | | | |")
            continue
        for name, measured in runs.items():
            theirs = _good(measured)
            if name == case.subject or not theirs:
                continue
            ratio, target = _ratio_and_target(case, name, runs, spread=False)
            columns = (
                title,
                _number(_median(ours, _rate)),
                receivers[name].title,
                _number(_median(theirs, _rate)),
                ratio,
                target,
                f"{_receiver_ms(ours):.2f}; {_receiver_ms(theirs):.2f}",
                f"{_peak_megabytes(ours):.0f}; {_peak_megabytes(theirs):.0f}",
            )
            print(f"| {' | '.join(columns)} |")
    print()
    print(
        "Instances/s; processor time for each instance and peak memory: ours; theirs. "
        + "; ".join(f"{name}: {value}" for name, value in machine)
        + "."
    )


def _good(measured: Sequence[Measured | str]) -> list[Measured]:
    """The runs that count: all instances arrived."""
    return [one for one in measured if isinstance(one, Measured) and not one.missing]


def _rate(one: Measured) -> float:
    return one.rate


def _megabytes_per_second(one: Measured) -> float:
    return one.bytes / one.seconds / 1e6


def _median(good: Sequence[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(map(of, good))


def _spread(good: Sequence[Measured], of: Callable[[Measured], float]) -> str:
    values = [of(one) for one in good]
    return f"{_number(min(values))}-{_number(max(values))}"


def _number(value: float) -> str:
    """To three digits or the unit."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _receiver_ms(good: Sequence[Measured]) -> float:
    return 1000 * _median(good, lambda one: one.processor.receiver / one.count)


def _peak_megabytes(good: Sequence[Measured]) -> float:
    return _median(good, lambda one: one.memory.receiver) / 1e6


def _ratio_and_target(case: Case, name: str, runs: Runs, *, spread: bool = True) -> tuple[str, str]:
    ratios = [
        ours.rate / theirs.rate
        for pair in zip(runs[case.subject], runs[name], strict=True)
        if len(good := _good(pair)) == 2
        for ours, theirs in (good,)
    ]
    if name == case.subject or not ratios:
        return "", ""
    median = statistics.median(ratios)
    words = f"{median:.2f}" + (f" ({min(ratios):.2f}-{max(ratios):.2f})" if spread else "")
    if name not in case.targets:
        return words, ""
    target = case.targets[name]
    return words, f"≥ {target:g}" + ("" if median >= target else ", short")


def _processor(good: Sequence[Measured], name: str) -> str:
    words = f"{_receiver_ms(good):.2f}"
    if any(one.memory.indexer for one in good):
        indexer = 1000 * _median(good, lambda one: one.processor.indexer / one.count)
        words += f" + {indexer:.2f}"
    return words


def _memory(case: Case, good: Sequence[Measured], name: str) -> str:
    peak = _peak_megabytes(good)
    words = f"{peak:.0f} ({_median(good, lambda one: one.memory.largest) / 1e6:.0f})"
    if any(one.memory.indexer for one in good):
        words += f" + {_median(good, lambda one: one.memory.indexer) / 1e6:.0f}"
    if name == case.subject and case.most_megabytes:
        words += f" ≤ {case.most_megabytes}"
        words += "" if peak <= case.most_megabytes else ", short"
    return words
