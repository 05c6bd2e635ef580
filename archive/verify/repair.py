"""Mending what ``verify`` found: what is safe, from the files themselves, never by guessing.

Nothing is lost. Killed anywhere, an instance is in at least one place, whole, and the same command
again finishes. Each instance is examined once more before it is touched: what is no longer so is
left alone.
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from plainpacs.archive.removal.remove import Removal
from plainpacs.archive.store import audit
from plainpacs.archive.store.forbidden import Forbidden
from plainpacs.archive.store.incoming_cleanup import mark_published
from plainpacs.archive.store.writer import Writer
from plainpacs.archive.tree import durable, layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.listing import instance_file, studies_in
from plainpacs.archive.tree.targets import Target, identity, present
from plainpacs.archive.verify.finding import Finding, FindingKind, Severity
from plainpacs.archive.verify.instance import Reader, examine
from plainpacs.archive.verify.repair_instance import InstanceMender, Mended, Opened
from plainpacs.archive.verify.study import StudyLook, look, stored_line

_ASIDE = "move it to conflicts, so that it can be stored again"
_LINE = "make its line again from the file"
_INDEX = "index it again"
PLANNED = {
    FindingKind.SIZE_DIFFERS: _ASIDE,
    FindingKind.DIGEST_DIFFERS: _ASIDE,
    FindingKind.UNREADABLE: "move it to conflicts",
    FindingKind.FILE_WITHOUT_LINE: _LINE,
    FindingKind.DAMAGED_LINE: _LINE,
    FindingKind.WRONG_PLACE: "move it there; to conflicts, if another instance is there",
    FindingKind.WRONG_FILE_META: "write it anew with right File Meta, and this one to conflicts",
    FindingKind.STALE_INDEX: _INDEX,
    FindingKind.MISSING_INDEX: _INDEX,
    FindingKind.INCOMING_RUBBISH: "clear it away",
}
INDEXES = (FindingKind.STALE_INDEX, FindingKind.MISSING_INDEX)
LEFT = "left as it is"
_NO_LONGER = "it is no longer so"


class Trust(enum.Enum):
    """What the user says is right where a file and its manifest line disagree and neither tells."""

    FILE = "file"
    LINE = "line"


_TRUSTING = {Trust.FILE: _LINE, Trust.LINE: _ASIDE}


def plan(finding: Finding, forbidden: Forbidden, trust: Trust | None = None) -> str:
    """What ``repair`` would do about it; empty when that is for the user."""
    if finding.kind is FindingKind.LINE_DISAGREES and trust:
        return _TRUSTING[trust]
    if finding.kind is FindingKind.REMOVED_REAPPEARED and forbidden.covers(
        finding.study, finding.series, finding.instance
    ):
        return "move it to the trash, as it is forbidden"
    return PLANNED.get(finding.kind, "")


class Mender:
    """Mends an archive it is open on for writing. Made by ``Mender.open``; a context manager."""

    def __init__(self, writer: Writer, digest: str, trust: Trust | None) -> None:
        self._writer = writer
        self._trust = trust
        self._digest = digest
        self._reader = Reader()
        self._forbidden = Forbidden.load(writer.root)
        self._instances = InstanceMender(writer, self._reader, digest)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        node: str | None = None,
        digest: str = "blake3",
        trust: Trust | None = None,
    ) -> Mender:
        """Raises NotAnArchive, UnsuitableFileSystem, InUse, StorageUnavailable."""
        writer = Writer.open(path, node, mark_published)
        try:
            return cls(writer, digest, trust)
        except BaseException:
            writer.close()
            raise

    def __enter__(self) -> Mender:
        return self

    def __exit__(self, *_: object) -> None:
        self._instances.close()
        self._writer.close()

    def mend(self, findings: Iterable[Finding]) -> Iterator[tuple[Finding, Mended]]:
        """Mends each of ``findings``, in the order of the tree; says what was done.

        What was moved or written anew is to be indexed then: its studies are marked pending. What
        is for the user comes last.
        Raises StorageUnavailable when the archive takes no more.
        """
        ordered = sorted(findings, key=_order)
        for_us = [one for one in ordered if plan(one, self._forbidden, self._trust)]
        yield from self._mend_all(for_us)
        # After that: some may have gone with what was mended.
        yield from self._left([one for one in ordered if one not in for_us])

    def _mend_all(self, findings: list[Finding]) -> Iterator[tuple[Finding, Mended]]:
        for (month, study), some in groupby(findings, key=_study):
            seen = look(self._writer.path, month, study) if study else None
            for finding in some:
                done = self._mend(finding, seen)
                self._record(finding, done)
                yield finding, done

    def _left(self, findings: list[Finding]) -> Iterator[tuple[Finding, Mended]]:
        places = Counter(
            one.instance
            for one in findings
            if one.kind is FindingKind.TWO_PLACES and self._exists(one.path)
        )
        for (month, study), some in groupby(findings, key=_study):
            seen = look(self._writer.path, month, study) if study else None
            for one in some:
                if one.kind is FindingKind.TWO_PLACES:
                    still = places[one.instance] > 1
                elif one.kind is FindingKind.MISSING_FILE and seen:
                    subject = seen.subject(one.key)
                    again = examine(self._writer.path, subject, self._reader, self._forbidden)
                    still = again is not None and again.kind is one.kind
                else:
                    still = True
                matters = one.severity is not Severity.NOTE
                yield one, Mended(LEFT, left=matters) if still else Mended(_NO_LONGER)

    def _exists(self, path: str) -> bool:
        return os.path.lexists(os.path.join(self._writer.path, path))

    def _record(self, finding: Finding, done: Mended) -> None:
        audit.record(
            self._writer,
            "repair",
            kind=finding.kind.value,
            path=finding.path,
            StudyInstanceUID=finding.study or None,
            SOPInstanceUID=finding.instance or None,
            done=done.words,
        )

    def _mend(self, finding: Finding, seen: StudyLook | None) -> Mended:
        try:
            if finding.kind in INDEXES:
                return self._mend_index(finding)
            if finding.kind is FindingKind.INCOMING_RUBBISH:
                return self._clear(finding.path)
            if finding.kind is FindingKind.REMOVED_REAPPEARED:
                return self._take_out(finding.key)
            assert seen is not None, "a finding of an instance names its study"
            return self._mend_instance(finding, seen)
        except FileNotFoundError:
            return Mended("it is no longer there")
        except OSError as error:
            self._writer.check()
            return Mended(f"could not be mended: {error.strerror}", left=True)

    def _mend_instance(self, finding: Finding, seen: StudyLook) -> Mended:
        key = finding.key
        folder = durable.open_folder(layout.series_folder(key), folder=self._writer.root)
        try:
            fd = durable.open_file(layout.instance_name(key.instance), folder=folder)
            try:
                facts = os.fstat(fd)
                file = instance_file(facts)
                subject = seen.subject(key, file)
                again = examine(self._writer.path, subject, self._reader, self._forbidden)
                if again is None or again.kind is not finding.kind:
                    return Mended(_NO_LONGER, left=again is not None)
                line = stored_line(file, subject.lines)
                one = Opened(key, folder, fd, identity(facts), subject.lines, line)
                return self._by_kind(finding.kind, one)
            finally:
                os.close(fd)
        finally:
            os.close(folder)

    def _by_kind(self, kind: FindingKind, one: Opened) -> Mended:
        if kind is FindingKind.DAMAGED_LINE or (
            kind is FindingKind.LINE_DISAGREES and self._trust is Trust.FILE
        ):
            return self._instances.write_line(one)
        if kind is FindingKind.FILE_WITHOUT_LINE:
            self._instances.mark(one.key.month, one.key.study)
            return Mended("marked to be indexed, which makes its line")
        if kind is FindingKind.WRONG_PLACE:
            return self._instances.move(one)
        if kind is FindingKind.WRONG_FILE_META:
            return self._instances.rewrite(one)
        return self._instances.put_aside(one, kind)

    def _take_out(self, key: InstanceKey) -> Mended:
        target = Target(key.month, key.study, key.series, key.instance)
        node, digest = self._writer.node, self._digest
        with Removal.open(self._writer.path, node=node, digest=digest) as removal:
            gone = removal.remove(present(removal.root, [target]))
        return Mended(f"moved to {gone[0].path}" if gone else "it is no longer there")

    def _mend_index(self, finding: Finding) -> Mended:
        if not finding.month:
            return Mended("every index is made again", rebuild=True)
        studies = [finding.study] if finding.study else studies_in(self._writer.path, finding.month)
        for study in studies:
            self._instances.mark(finding.month, study)
        return Mended("marked to be indexed")

    def _clear(self, path: str) -> Mended:
        name = path.removeprefix(f"{layout.INCOMING}/")
        if not name.startswith((f"{self._writer.node}.", "try.")):
            return Mended("left to its own node: repair there, with --node NAME", left=True)
        try:
            self._writer.sweep_folder(path, mark_published)
        except NotADirectoryError:  # a file on which the file system was tried
            durable.unlink(path, folder=self._writer.root)
        return Mended("cleared away")


def _order(finding: Finding) -> tuple[str, str, str, str]:
    return finding.month, finding.study, finding.series, finding.path


def _study(finding: Finding) -> tuple[str, str]:
    return finding.month, finding.study
