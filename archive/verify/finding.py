"""What ``verify`` finds: one thing that is not as it should be, where, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey


class Severity(enum.Enum):
    """What a finding means for whoever watches: ``DAMAGE`` needs somebody now, ``ATTENTION`` a
    decision or a repair some time, ``NOTE`` nothing."""

    DAMAGE = "damage"
    ATTENTION = "attention"
    NOTE = "note"


class FindingKind(enum.Enum):
    """The kinds, by the words that stand for them everywhere."""

    MISSING_FILE = "missing-file"
    """A manifest has an instance's line, it was not removed, and its file is not there."""
    SIZE_DIFFERS = "size-differs"
    """The file has another length than what was stored."""
    DIGEST_DIFFERS = "digest-differs"
    """The file has other bytes than what was stored."""
    FILE_WITHOUT_LINE = "file-without-line"
    """An instance lies in its place and no manifest has a line for it."""
    DAMAGED_LINE = "damaged-line"
    """The manifest line of an instance is damaged; its file is there and can be read."""
    LINE_DISAGREES = "line-disagrees"
    """A file and its line disagree, and nothing tells which of them is damaged."""
    UNREADABLE = "unreadable"
    """A file without a line cannot be read as DICOM."""
    READ_ERROR = "read-error"
    """The system cannot read a file or folder: the disk, or permissions."""
    WRONG_PLACE = "wrong-place"
    """By its own UIDs and StudyDate the instance belongs elsewhere in the tree."""
    WRONG_FILE_META = "wrong-file-meta"
    """The File Meta Information is not what was stored, or there is none that can be used."""
    FILE_META_DISAGREES = "file-meta-disagrees"
    """The File Meta Information came so: it names other UIDs than the data set."""
    TWO_PLACES = "two-places"
    """One SOP Instance UID lies at several places."""
    REMOVED_REAPPEARED = "removed-reappeared"
    """An instance is there that was removed, or forbidden."""
    STALE_INDEX = "stale-index"
    """An index says something else than a fresh one would."""
    MISSING_INDEX = "missing-index"
    """An index is not there."""
    CONFLICT_WAITING = "conflict-waiting"
    """Something is kept aside and waits to be decided."""
    INCOMING_RUBBISH = "incoming-rubbish"
    """Unfinished work of a process that is gone."""


_SEVERITIES = {
    FindingKind.FILE_WITHOUT_LINE: Severity.ATTENTION,
    FindingKind.TWO_PLACES: Severity.ATTENTION,
    FindingKind.REMOVED_REAPPEARED: Severity.ATTENTION,
    FindingKind.STALE_INDEX: Severity.ATTENTION,
    FindingKind.MISSING_INDEX: Severity.ATTENTION,
    FindingKind.CONFLICT_WAITING: Severity.ATTENTION,
    FindingKind.FILE_META_DISAGREES: Severity.NOTE,
    FindingKind.INCOMING_RUBBISH: Severity.NOTE,
}
"""All others are damage."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """``path`` is relative to ROOT; the UIDs are empty where none is meant or known.

    ``words`` say what is wrong and what to do, without patient data.
    """

    month: str
    study: str
    series: str
    instance: str
    path: str
    kind: FindingKind
    words: str

    @classmethod
    def of_instance(cls, kind: FindingKind, key: InstanceKey, words: str) -> Finding:
        path = layout.instance_path(key)
        return cls(key.month, key.study, key.series, key.instance, path, kind, words)

    @classmethod
    def of_study(cls, kind: FindingKind, month: str, study: str, path: str, words: str) -> Finding:
        return cls(month, study, "", "", path, kind, words)

    @classmethod
    def of_path(cls, kind: FindingKind, path: str, words: str, month: str = "") -> Finding:
        return cls(month, "", "", "", path, kind, words)

    @property
    def severity(self) -> Severity:
        return _SEVERITIES.get(self.kind, Severity.DAMAGE)

    @property
    def key(self) -> InstanceKey:
        """Of the instance it is about."""
        return InstanceKey(self.month, self.study, self.series, self.instance)

    def as_dict(self) -> dict[str, str]:
        """The object of ``--format jsonl``: kind, severity, path and words, UIDs by keyword."""
        named = {
            "month": self.month,
            "StudyInstanceUID": self.study,
            "SeriesInstanceUID": self.series,
            "SOPInstanceUID": self.instance,
        }
        return {
            "kind": self.kind.value,
            "severity": self.severity.value,
            "path": self.path,
            **{name: value for name, value in named.items() if value},
            "words": self.words,
        }
