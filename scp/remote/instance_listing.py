"""Which instances of a study a peer has, by C-FIND down to the level IMAGE."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from plainpacs.archive.dicom.attributes import Level
from plainpacs.scp.remote.find_scu import Finder


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance that the peer has. ``sop_class`` is empty when the peer does not tell."""

    series: str
    instance: str
    sop_class: str = ""


def instances(finder: Finder, study: str, series: Collection[str] = ()) -> Iterator[Listed]:
    """The instances of the study, or of some of its series, each of a series once.

    Raises as ``Finder.find``: Failed with the step "status" where a peer does not know the level.
    """
    for uid in list(series) or series_of(finder, study):
        keys = {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": uid,
            "SOPInstanceUID": "",
            "SOPClassUID": "",
        }
        seen = set()
        for answer in finder.find(Level.INSTANCE, keys):
            instance = answer.data.text("SOPInstanceUID")
            if instance and instance not in seen:
                seen.add(instance)
                yield Listed(uid, instance, answer.data.text("SOPClassUID"))


def series_of(finder: Finder, study: str) -> list[str]:
    """The study's series. Raises as ``Finder.find``."""
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""}
    found = [one.data.text("SeriesInstanceUID") for one in finder.find(Level.SERIES, keys)]
    return list(dict.fromkeys(filter(None, found)))
