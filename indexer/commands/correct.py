"""The command ``correct``: what instances say of their patient and study, corrected."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import orjson

from plainpacs.archive.app import settings
from plainpacs.archive.app.context import Context
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import NoMatch, RefusedInstance
from plainpacs.archive.store import audit
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import open_root
from plainpacs.archive.tree.targets import Present, Target, present
from plainpacs.indexer.output import naming
from plainpacs.indexer.output.formats import note

_NAMED = 20
_OF_PATIENT = ("PatientName", "PatientBirthDate", "PatientSex")


@click.command()
@click.argument("arguments", metavar="[UID|TERM|KEY=VALUE]...", nargs=-1)
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="A TERM of `ls` whose KEY can be corrected, too: --where PatientID=P1.",
)
@click.option(
    "--merge",
    nargs=2,
    metavar="PATIENT-ID INTO",
    help="Give all of PATIENT-ID the ID, name, birth date and sex that INTO has.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be corrected; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask: only whole UIDs and KEY=VALUE count.")
@settings.options("node", "digest")
@click.pass_obj
def correct(
    context: Context,
    /,
    *,
    arguments: tuple[str, ...],
    where: tuple[str, ...],
    merge: tuple[str, str] | None,
    dry_run: bool,
    yes: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Correct patient and study attributes of instances that are stored.

    KEY is PatientName, PatientID, PatientBirthDate, PatientSex, AccessionNumber or
    StudyDescription; an empty VALUE empties it. Name what is to be corrected by UIDs, each by the
    beginning or end of it, or by TERMs as of `ls`. A TERM with one of these KEYs goes with --where.

    The corrected instances are published under the same UIDs. Pixels and everything else stay bit
    for bit; Original Attributes Sequence says what was before, who changed it and when. The
    instances as they were are kept aside: `plainpacs conflicts --keep second` takes the correction
    back, `--keep first` moves them to the trash. Values inside sequences are not touched.

    --merge makes one patient of two IDs. Interrupted, the same command again goes on.

    \b
    Examples:  plainpacs correct 1.2.840.113619.2.55.3 PatientName='Doe^Jane' PatientSex=F
               plainpacs correct --where AccessionNumber=A17 AccessionNumber=A18
               plainpacs correct --merge P-17 P-0017
    """
    path = context.archive_path()
    # Loaded when the command runs: they take a while.
    from plainpacs.archive.dicom.amend import CORRECTABLE  # noqa: PLC0415 - as just said

    given = [text.partition("=") for text in arguments]
    values = {key: value.strip() for key, equals, value in given if equals and key in CORRECTABLE}
    terms = [*where, *("".join(one) for one in given if not (one[1] and one[0] in CORRECTABLE))]
    if merge:
        if terms or values:
            raise click.UsageError("--merge names the patients itself: leave the rest out")
        terms, values = [f"PatientID={merge[0].strip()}"], _of_patient(path, merge[1].strip())
    else:
        _check(terms, values)
    meant, unknown = naming.found(path, terms, whole=yes)
    if unknown:
        raise NoMatch(f"no study, series or instance {', '.join(unknown)} here")
    chosen = settings.load(flags, config)
    targets = naming.targets(meant)
    instances = _present(path, targets)
    for target in targets[:_NAMED]:
        note(target.path)
    if (more := len(targets) - _NAMED) > 0:
        note(f"and {more:,} more")
    words = ", ".join(
        f"{key}={value}" if sys.stderr.isatty() else key for key, value in values.items()
    )
    if dry_run:
        note(f"{len(instances):,} instances would be corrected: {words}")
        return
    if not yes:
        naming.confirm(f"Correct {words} of {len(instances):,} instances?", "--yes, or --dry-run")
    sys.exit(_correct(path, instances, values, merge[0].strip() if merge else None, chosen))


def _present(path: str, targets: Sequence[Target]) -> list[Present]:
    root = open_root(path)
    try:
        return present(root, targets)
    finally:
        os.close(root)


def _correct(
    path: str,
    instances: Sequence[Present],
    values: dict[str, str],
    patient: str | None,
    chosen: Settings,
) -> int:
    """The exit status."""
    from plainpacs.archive.conflicts.correct import correct as correct_one  # noqa: PLC0415 - slow
    from plainpacs.archive.dicom.amend import Modification  # noqa: PLC0415 - slow
    from plainpacs.archive.store.publish import REPLACE  # noqa: PLC0415 - slow
    from plainpacs.archive.store.store import Archive  # noqa: PLC0415 - slow
    from plainpacs.indexer.service.refresh import refresh  # noqa: PLC0415 - slow
    from plainpacs.indexer.service.removal import repeatable  # noqa: PLC0415 - slow

    corrected: Counter[tuple[str, str]] = Counter()
    failed = 0
    with (
        repeatable(),
        Archive.open(path, node=chosen.node, digest=chosen.digest, on_conflict=REPLACE) as archive,
    ):
        root = open_root(path)
        try:
            moment = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
            by = Modification(moment, f"plainpacs {archive.node} {audit.login_name()}"[:64])
            for one in instances:
                try:
                    if correct_one(archive, root, one, values, by, patient=patient):
                        corrected[one.key.month, one.key.study] += 1
                except RefusedInstance as error:
                    failed += 1
                    note(f"{layout.instance_path(one.key)} stays as it is: {error}")
        finally:
            os.close(root)
            for (_, study), count in corrected.items():
                audit.record(
                    archive.audit,
                    "correct",
                    StudyInstanceUID=study,
                    instances=count,
                    attributes=sorted(values),
                )
    refresh(path, corrected.keys(), node=chosen.node, digest=chosen.digest)
    number = corrected.total()
    note(
        f"{number:,} instances corrected, {failed:,} failed, {len(instances) - number - failed:,} "
        "left alone (they say so already, or are another patient's)"
    )
    if number:
        note("as they were, they are kept aside: plainpacs conflicts --keep first|second decides")
    return 1 if failed or not number else 0


def _check(terms: Sequence[str], values: dict[str, str]) -> None:
    from plainpacs.archive.dicom.amend import CORRECTABLE, checked  # noqa: PLC0415 - as above

    if not values:
        raise click.UsageError(f"nothing to correct: give KEY=VALUE of {', '.join(CORRECTABLE)}")
    if not terms:
        raise click.UsageError("which study? Name it by UID, by TERMs, or by --where KEY=VALUE")
    for keyword, value in values.items():
        try:
            checked(keyword, value)
        except ValueError as error:
            raise click.UsageError(f"invalid {keyword} {value!r}: {error}") from None


def _of_patient(path: str, patient: str) -> dict[str, str]:
    """What the archive has of a patient: the attributes of the study that came last."""
    meant, _ = naming.found(path, [f"PatientID={patient}"], whole=True)
    records = [orjson.loads(one.line) for one in meant if one.line]
    records = [one for one in records if one.get("PatientID") == patient]
    if not records:
        raise NoMatch(f"no patient {patient!r} here: to change an ID, correct PatientID")
    latest = max(records, key=lambda one: str(one.get("last_stored", "")))
    return {"PatientID": patient, **{key: str(latest.get(key, "")) for key in _OF_PATIENT}}
