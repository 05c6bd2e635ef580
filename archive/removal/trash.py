"""The trash: what its names and lines say. Its layout is that of ``aside``.

What tells an entry apart is when it was removed, so that an instance may lie there several times:
``<SOPInstanceUID>~20240228T023810.123Z``. Its manifest has for each entry the line that counted
when it was taken out, with ``file`` as the entry's name and ``removed``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from plainpacs.archive.dicom.attributes import PATIENT, STUDY
from plainpacs.archive.store import set_aside
from plainpacs.archive.store.manifest import Line, encoded
from plainpacs.archive.store.set_aside import SetAside
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import InstanceKey
from plainpacs.archive.tree.targets import Target

_MARK = re.compile(r"(\d{4})(\d\d)(\d\dT\d\d)(\d\d)(\d\d\.\d{3}Z)", re.ASCII)
_OWN = sorted((PATIENT | STUDY) - {"StudyInstanceUID"})


def entry(key: InstanceKey, removed: str) -> SetAside:
    """Where the instance goes that is removed at this stamp."""
    return SetAside(layout.TRASH, key, removed.replace("-", "").replace(":", ""))


def removed(one: SetAside) -> str:
    """When an entry was removed; empty for a name that is none of ours.

    >>> removed(entry(InstanceKey("202401", "1", "2", "3"), "2024-02-28T02:38:10.123Z"))
    '2024-02-28T02:38:10.123Z'
    """
    found = _MARK.fullmatch(one.mark)
    return "{}-{}-{}:{}:{}".format(*found.groups()) if found else ""


def line_of(one: SetAside, best: Line | None) -> bytes:
    """The line of an entry, newline included. ``best`` is the one that counted in the tree."""
    line = {**(best or {}), "file": one.name, "removed": removed(one)}
    return encoded(line)


def entries(root: int, targets: Iterable[Target]) -> list[SetAside]:
    """What the trash has of the ``targets``; of an instance the latest last. Raises OSError."""
    return [one for one in set_aside.kept(root, layout.TRASH, targets) if removed(one)]


@dataclass(slots=True)
class RemovedStudy:
    """What the trash has of a study, in one month. ``removed``: the latest stamp; ``attributes``
    of its patient and study, as far as the lines tell."""

    target: Target
    removed: str = ""
    series: int = 0
    instances: int = 0
    bytes: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        own = {"removed": self.removed, "StudyInstanceUID": self.target.study}
        path = f"{layout.TRASH}/{self.target.path}"
        counts = {"series": self.series, "instances": self.instances, "bytes": self.bytes}
        return own | counts | {"path": path} | self.attributes


def removed_studies(root: int) -> list[RemovedStudy]:
    """All that is in the trash, what was removed last first. Raises OSError."""
    found = []
    for target in set_aside.studies(root, layout.TRASH):
        some = entries(root, [target])
        if some:
            study = RemovedStudy(
                target,
                max(map(removed, some)),
                len({one.key.series for one in some}),
                len(some),
                sum(one.size for one in some),
            )
            modalities = set()
            for lines in set_aside.lines_of(root, f"{layout.TRASH}/{target.path}", "").values():
                modalities.add(lines[-1].get("Modality"))
                for name in _OWN:
                    if name in lines[-1]:
                        study.attributes.setdefault(name, lines[-1][name])
            study.attributes["ModalitiesInStudy"] = sorted(filter(None, modalities))
            found.append(study)
    return sorted(found, key=lambda study: (study.removed, study.target), reverse=True)
