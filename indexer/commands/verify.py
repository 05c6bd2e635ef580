"""The command ``verify``: whether all is as it should be. Mending it: ``repair``."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime

import click
import orjson

from plainpacs.archive.app.context import Context
from plainpacs.archive.errors import BadQuery, BadSettings, NoMatch
from plainpacs.archive.store.manifest import DIGESTS
from plainpacs.archive.tree.root import read_marker
from plainpacs.archive.tree.targets import Target
from plainpacs.archive.verify.checks import Rubbish, SetAside, TwoPlaces
from plainpacs.archive.verify.finding import Finding
from plainpacs.archive.verify.verify import Check, Options, Progress, Verification
from plainpacs.indexer.index import instance_shards
from plainpacs.indexer.output import formats, humanize, naming
from plainpacs.indexer.output.formats import note
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.output.progress import ProgressBar
from plainpacs.indexer.service.verify import IndexCheck

_SAVE_EVERY = 1.0
_GIVE_WAY = 0.0005


def checks(root: str, options: Options) -> list[Check]:
    """What goes beyond an instance, as far as ``options`` mean it."""
    found: list[Check] = [TwoPlaces(root), IndexCheck(root, options), SetAside(root, options, note)]
    return [*found, Rubbish(root, note)] if options.whole else found


format_option = formats.format_choice("table", "jsonl")


# --- the options --------------------------------------------------------------------------------


def targets_of(root: str, named: tuple[str, ...], *, last: bool) -> tuple[Target, ...]:
    """Where the studies, series and instances lie, or should. Raises BadQuery, NoMatch."""
    if last:
        return tuple(naming.targets(naming.some(root, named, last=last)))
    # An instance whose file is missing is known by the shards.
    known = {uid: places for uid in named if (places := instance_shards.find(root, uid))}
    meant, unknown = naming.found(root, named, elsewhere=known.keys)
    if unknown:
        raise NoMatch(f"no study, series or instance {', '.join(unknown)} here")
    should = [one._replace(places=tuple(known.get(one.uid, ()))) for one in meant]
    return tuple(dict.fromkeys(naming.targets([*meant, *should])))


def _since(text: str | None) -> int | None:
    """In nanoseconds. Raises BadQuery."""
    if text is None:
        return None
    from plainpacs.indexer.query import query  # seldom needed  # noqa: PLC0415

    try:
        asked = query.parse((), text, ()).stored
    except BadQuery as error:
        raise BadQuery(str(error).replace("--stored", "--since")) from None
    first = asked[0] if asked else ""
    return round(datetime.fromisoformat(first).timestamp() * 1000) * 1_000_000 if first else None


class _State:
    """How far a run got, in a file the user names, for the next to go on from."""

    def __init__(self, path: str | None, root: str) -> None:
        self._path = path
        self._node = read_marker(root).node
        self._saved = 0.0
        self.after = self._load()

    def _load(self) -> str:
        if self._path is None:
            return ""
        try:
            with open(self._path, "rb") as file:
                state = orjson.loads(file.read() or b"{}")
        except FileNotFoundError:
            return ""
        except (OSError, orjson.JSONDecodeError) as error:
            raise BadSettings(f"--resume {self._path} is no state of verify: {error}") from None
        if state and state.get("node") != self._node:
            raise BadSettings(f"--resume {self._path} is of another archive")
        return str(state.get("after", ""))

    def save(self, after: str, *, now: bool = False) -> None:
        """Once a second at most, unless ``now``. Empty: all is done."""
        if self._path is None or not (now or time.monotonic() - self._saved > _SAVE_EVERY):
            return
        self._saved = time.monotonic()
        state = {"node": self._node, "after": after}
        try:
            with open(self._path, "wb") as file:
                file.write(orjson.dumps(state, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise BadSettings(f"cannot write {self._path}: {error.strerror}") from None


# --- verify -------------------------------------------------------------------------------------


@click.command()
@naming.optional
@click.option("--fast", is_flag=True, help="Leave the digests out: names, sizes, lines, indexes.")
@click.option("--since", metavar="WHEN", help="Only what was stored since: today, 7d, 20240228.")
@click.option("--rate", metavar="MB/S", type=click.FloatRange(0.001), help="Read no faster.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 256), help="Threads that read.  [the cores]"
)
@click.option("--resume", metavar="FILE", help="Keep in FILE how far it got, and go on from there.")
@click.option(
    "--sums",
    "sums_",
    type=click.Choice(DIGESTS),
    help="Print lists for b3sum -c, sha256sum -c.",
)
@format_option
@click.pass_obj
def verify(
    context: Context,
    /,
    *,
    named: tuple[str, ...],
    last: bool,
    fast: bool,
    since: str | None,
    rate: float | None,
    threads: int | None,
    resume: str | None,
    sums_: str | None,
    format_: str | None,
) -> None:
    """Read everything again, or what is named, and report what is not as it should be.

    Name studies, series and instances by UID, by the beginning or end of one (4 characters or
    more), or name studies by TERMs as of `ls`.

    Nothing is changed: a copy or a read-only mount will do, and `serve` may be at work. A
    finding is damage, needs attention, or is a note. Exit status 1 is for damage alone;
    archive/FORMAT.md says what each kind means, and each says what to do.

    With --resume, what was read before is not read again, but all the rest is looked at. With
    --sums, nothing is verified: the digests in the manifests are listed, to check a copy with.

    \b
    Example:  plainpacs verify
              plainpacs verify --sums blake3 > ~/sums; cd /backup/dicom; b3sum -c ~/sums
    """
    root = context.archive_path()
    state = _State(resume, root)
    options = Options(
        targets_of(root, named, last=last),
        _since(since),
        fast,
        threads or os.cpu_count() or 1,
        rate * 1e6 if rate else None,
        state.after,
    )
    if sums_:
        _print_sums(root, sums_, options)
        return
    form = formats.chosen(format_)

    def save(progress: Progress) -> None:
        state.save(progress.reached)

    # Threads that hash need the interpreter for a moment at a time: whoever has it gives way soon.
    sys.setswitchinterval(_GIVE_WAY)
    verification = Verification(root, options, checks(root, options), save)
    progress = verification.progress
    try:
        with gauge(verification, root, options) as shown:
            for finding in verification:
                with shown.printing():
                    print_finding(finding, form)
        state.save("", now=True)
    except KeyboardInterrupt:
        state.save(progress.reached, now=True)
        note("interrupted" + ("; the same command again goes on" if resume else ""))
        sys.exit(130)
    note(summary(progress))
    sys.exit(1 if progress.damage else 0)


def print_finding(finding: Finding, form: str, done: str = "") -> None:
    """One finding, and what ``repair`` does about it."""
    if form == "jsonl":
        formats.write_jsonl([orjson.dumps(finding.as_dict() | ({"repair": done} if done else {}))])
        return
    kind = f"{finding.severity.value:<9}  {finding.kind.value:<19}"
    lines = [f"{kind}  {finding.path}", f"    {finding.words}"]
    formats.write_text(map(visible, [*lines, f"    -> {done}"] if done else lines))


def summary(progress: Progress) -> str:
    """One line for the user."""
    return (
        f"{progress.instances:,} instances in {progress.studies:,} studies, "
        f"{humanize.size(progress.reader.bytes)} read, {progress.findings:,} findings, "
        f"{progress.damage:,} of them damage"
    )


def gauge(verification: Verification, root: str, options: Options) -> ProgressBar:
    """How far it is, of what the indexes know when all is verified."""
    progress = verification.progress
    total = None
    if options.whole and sys.stderr.isatty():
        # Only here: what it needs takes a while to load.
        from plainpacs.indexer.service.status import status_of  # noqa: PLC0415 - as just said

        total = status_of(root, lambda _: None).instances
    return ProgressBar("verifying", total, lambda: (progress.instances, progress.reader.bytes))


def _print_sums(root: str, name: str, options: Options) -> None:
    from plainpacs.archive.verify.checksums import sums  # only here  # noqa: PLC0415

    left = 0
    lines: list[str] = []
    for one in sums(root, name, options):
        if one.digest:
            lines.append(one.line)
        else:
            left += 1
            note(f"{one.path} is not listed: what was stored is not known, or it is not that")
        if len(lines) == 256:
            formats.write_text(lines)
            lines.clear()
    formats.write_text(lines)
    if left:
        note(f"{left} instances are not listed; `plainpacs verify` says more")
    sys.exit(1 if left else 0)
