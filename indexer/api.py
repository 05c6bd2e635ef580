"""The reading API: what ``import plainpacs`` gives.

>>> import plainpacs
>>> archive = plainpacs.open("/srv/dicom")                        # doctest: +SKIP
>>> for study in archive.studies("Modality=MR", PatientID="DEV"):  # doctest: +SKIP
...     print(study.StudyInstanceUID, study.path)
...     for series in study.series:
...         for instance in series.instances:
...             data_set = instance.dcmread(stop_before_pixels=True)
>>> table = pandas.DataFrame(archive.studies().dicts())            # doctest: +SKIP

It reads the indexes, as ``plainpacs ls`` does, and never writes: it works on an archive that
``serve`` writes to, on a copy, and on a read-only mount. What is not indexed yet is not found.
When an index is missing or damaged, the answer comes from the manifests, and the logger
``plainpacs`` says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from plainpacs.archive.errors import NoMatch
from plainpacs.archive.tree.root import find_archive
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query.find import Level, find, find_in_study
from plainpacs.indexer.query.query import Query, asked, parse
from plainpacs.indexer.query.sorting import sort_keys

if TYPE_CHECKING:
    import pydicom

__all__ = ["ArchiveReader", "Instance", "Results", "Series", "Study", "open_archive"]

Value = str | int | float
"""What an attribute is compared with: a value, or a pattern or range as in ``plainpacs ls``."""

_note = logging.getLogger("plainpacs").warning


def open_archive(root: str | os.PathLike[str] | None = None) -> ArchiveReader:
    """The archive in the folder ``root``, for reading; exported as ``plainpacs.open``.

    Without ``root``: the one that ``$PLAINPACS_ARCHIVE`` names, else the nearest folder above the
    working folder that is an archive. Nothing is held open, so there is nothing to close.

    Raises NotAnArchive when the folder is missing or is not an archive.
    """
    return ArchiveReader(os.path.abspath(find_archive(None if root is None else os.fspath(root))))


class _Found:
    """A study, series or instance: its attributes by DICOM keyword.

    Values are as in ``study.json`` and the manifests (``archive/FORMAT.md``): text and dates as
    str, IS and US as int, DS as float, and a list where DICOM allows several values. A series has
    the attributes of its study too, an instance those of its series and study.
    """

    _level: ClassVar[Level]

    def __init__(self, root: str, record: Record) -> None:
        self._root = root
        self._record = record

    def __getattr__(self, keyword: str) -> Any:
        """Raises AttributeError for an attribute that it lacks, as pydicom does: see ``get``."""
        if not keyword.startswith("_") and keyword in self._record:
            return self._record[keyword]
        raise AttributeError(f"this {self._level.name.lower()} has no {keyword}")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._record]

    def __repr__(self) -> str:
        return f"<plainpacs.{type(self).__name__} {self._record.get(_UID[self._level], '')}>"

    def get(self, keyword: str, default: Any = None) -> Any:
        """The attribute ``keyword``; ``default`` when it is empty or not kept in the indexes."""
        return self._record.get(keyword, default)

    @property
    def paths(self) -> list[Path]:
        """Its folders; of an instance, its file. A study whose instances have different
        StudyDates lies in several months, and has a folder in each."""
        places = self._record.get("paths") or [self._record["path"]]
        return [Path(self._root, place) for place in places]

    @property
    def path(self) -> Path:
        """Its folder; of an instance, its file. Raises NoMatch when there are several ``paths``."""
        first, *others = self.paths
        if others:
            raise NoMatch(f"{self!r} lies in {len(others) + 1} folders: use paths")
        return first

    def dict(self) -> dict[str, Any]:
        """Its attributes, in a dict of its own, with ``path`` (an instance) or ``paths`` (str)."""
        whole = dict(self._record)
        for key in whole.keys() & {"path", "paths"}:
            whole[key] = list(map(str, self.paths)) if key == "paths" else str(self.path)
        return whole

    def _within(self, found: type[_AFound], query: Query) -> Results[_AFound]:
        """What is in it that the query means."""
        places = self._record.get("paths", ())
        months = [str(place).split("/", 1)[0] for place in places]
        study = str(self._record["StudyInstanceUID"])
        look = partial(find_in_study, self._root, study, months, query, _note)
        return Results(self._root, found, look)


_AFound = TypeVar("_AFound", bound=_Found)


class Instance(_Found):
    """An instance; also has what its manifest line says of it (``stored``, ``calling_ae`` …)."""

    _level = Level.INSTANCE

    def dcmread(self, **options: Any) -> pydicom.FileDataset:
        """``pydicom.dcmread`` of its file, with those options. Raises what that raises, and
        FileNotFoundError when the instance was removed meanwhile."""
        from pydicom import dcmread  # noqa: PLC0415 - slow to load, and not always needed

        return dcmread(self.path, **options)


class Series(_Found):
    """A series."""

    _level = Level.SERIES

    @property
    def instances(self) -> Results[Instance]:
        """Its instances, by InstanceNumber."""
        return self._within(
            Instance, asked({"SeriesInstanceUID": self.SeriesInstanceUID}, Level.INSTANCE)
        )


class Study(_Found):
    """A study."""

    _level = Level.STUDY

    @property
    def series(self) -> Results[Series]:
        """Its series, by SeriesNumber."""
        return self._within(Series, Query(level=Level.SERIES))

    @property
    def instances(self) -> Results[Instance]:
        """The instances of all its series, by SeriesNumber and InstanceNumber."""
        return self._within(Instance, Query(level=Level.INSTANCE))


_UID: Mapping[Level, str] = {
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}


class Results(Generic[_AFound]):
    """Studies, series or instances: to be iterated over as often as you like. Each time, the
    archive is read anew, one after the other as they are found."""

    def __init__(
        self, root: str, found: type[_AFound], look: Callable[[], Iterator[Record]]
    ) -> None:
        self._root = root
        self._found = found
        self._look = look

    def __iter__(self) -> Iterator[_AFound]:
        """Raises NotAnArchive when the archive is no longer there."""
        return (self._found(self._root, record) for record in self._look())

    def dicts(self) -> list[dict[str, Any]]:
        """A dict for each, of its attributes: what ``pandas.DataFrame`` makes a table of.

        Raises NotAnArchive when the archive is no longer there.
        """
        return [one.dict() for one in self]


class ArchiveReader:
    """An archive that is only read. ``root``: the absolute path of its folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"plainpacs.open({str(self.root)!r})"

    def studies(
        self,
        *terms: str,
        stored: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
        **keys: Value | Iterable[Value],
    ) -> Results[Study]:
        """The studies that match all terms and keys; all studies, if there are none.

        ``terms`` are those of ``plainpacs ls``: ``"KEY=VALUE"``, or a word that is looked for in
        the patient's name and ID, accession number, description and UID. ``keys`` are the same
        with a DICOM keyword as the argument's name: ``PatientID="P1"``, ``StudyDate="20240101-"``;
        of several values any may match: ``Modality=("CT", "MR")``. ``stored``: when it was stored,
        as in ``ls --stored``. ``sort``: as in ``ls --sort``; without it the newest comes first.

        Raises BadQuery for a key that does not exist, or a value that is none of its values.
        """
        query = parse([*terms, *_terms(keys)], stored, level=Level.STUDY)
        return self._find(Study, query, sort, limit)

    def series(
        self,
        *terms: str,
        stored: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
        **keys: Value | Iterable[Value],
    ) -> Results[Series]:
        """The series that match; see ``studies``. Takes the keys of series as well."""
        query = parse([*terms, *_terms(keys)], stored, level=Level.SERIES)
        return self._find(Series, query, sort, limit)

    def instances(
        self,
        *terms: str,
        stored: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
        **keys: Value | Iterable[Value],
    ) -> Results[Instance]:
        """The instances that match; see ``studies``. Takes the keys of series and instances as
        well."""
        query = parse([*terms, *_terms(keys)], stored, level=Level.INSTANCE)
        return self._find(Instance, query, sort, limit)

    def study(self, uid: str) -> Study:
        """The study with this UID. Raises NoMatch when it is not in the indexes."""
        for study in self.studies(StudyInstanceUID=uid):
            return study
        raise NoMatch(f"no study {uid} in {self.root}")

    def _find(
        self, found: type[_AFound], query: Query, sort: str | None, limit: int | None
    ) -> Results[_AFound]:
        root, order = str(self.root), () if sort is None else sort_keys(sort, query.level)
        return Results(root, found, partial(find, root, query, _note, sort=order, limit=limit))


def _terms(keys: Mapping[str, Value | Iterable[Value]]) -> Iterator[str]:
    for keyword, value in keys.items():
        several = (value,) if isinstance(value, (str, int, float)) else value
        yield from (f"{keyword}={one}" for one in several)
