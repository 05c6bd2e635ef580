"""The pages for people: the list of studies, a study with its series, and a series' images.

Everything that came with an instance is escaped, and shown without characters that turn text round
or hide it. Nothing but the viewer needs JavaScript.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plainpacs.archive.dicom.attributes import Level
from plainpacs.archive.errors import BadQuery, PlainpacsError
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.merge import Record, by_number
from plainpacs.indexer.output import humanize
from plainpacs.indexer.output.printable import visible
from plainpacs.indexer.query.find import find, record_of
from plainpacs.indexer.query.query import parse
from plainpacs.indexer.query.search import studies
from plainpacs.indexer.service.status import count_pending
from plainpacs.scp.web.places import Place, Tree, missing, place_of

A_PAGE = 50
_MOST_PAGES = 1_000_000
_MOST_FRAMES = 100_000
"""Of an instance; one that says it has more is shown by its middle one."""
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_BASE = "/dicom-web"
_STATIC = {"page.css": "text/css", "viewer.js": "text/javascript", "icon.svg": "image/svg+xml"}
_PROBLEMS = {
    404: (
        "Nothing is here",
        "No such study or series is in the archive. It may have been removed.",
    ),
    503: (
        "The archive cannot be read",
        "Its disk may not be mounted, or the folder was moved. The log of the server says more.",
    ),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
}


class Row(NamedTuple):
    """A study as the list shows it."""

    url: str
    uid: str
    picture: str
    name: str
    patient_id: str
    born: str
    date: str
    time: str
    description: str
    modalities: str
    instances: str
    size: str
    conflicting: bool


class Pages:
    """The pages of a tree. Thread-safe."""

    def __init__(self, tree: Tree, *, has_ohif: bool, storescu: str) -> None:
        """``storescu``: a command that sends to the receiver of this archive."""
        self._tree = tree
        loader = PackageLoader("plainpacs.scp.web", "templates")
        self._templates = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals["has_ohif"] = has_ohif
        self._storescu = storescu

    def problem(self, error: HTTPException) -> Response:
        """What is wrong, as a page."""
        said = f"{error.detail[:1].upper()}{error.detail[1:]}."
        title, words = _PROBLEMS.get(error.status_code, ("This cannot be shown", said))
        return self._page("problem.html", error.status_code, title=title, words=words)

    def static(self, request: Request) -> Response:
        """A file of the page's own."""
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404, "there is no such file")
        with open(os.path.join(os.path.dirname(__file__), "static", name), "rb") as file:
            data = file.read()
        return Response(data, 200, {"Cache-Control": "no-cache"}, _STATIC[name])

    def studies(self, request: Request) -> Response:
        """The list, searched with the words of ``ls``."""
        query = request.query_params
        asked = {
            name: query.get(name, "").strip()[:200] for name in ("q", "from", "to", "modality")
        }
        number = query.get("page", "1")
        page = int(number) if number.isdecimal() and len(number) < 8 else 1
        page = max(1, min(page, _MOST_PAGES))
        problem = ""
        found: list[Record] = []
        unindexed: list[str] = []
        self._tree.check()
        try:
            wanted = parse(_terms(asked))
            start = (page - 1) * A_PAGE
            hits = islice(
                studies(self._tree.path, wanted, unindexed.append), start, start + A_PAGE + 1
            )
            found = [record_of(one) for one in hits]
        except BadQuery as error:
            problem = (
                visible(str(error))
                .replace("`plainpacs ls --help` lists them", "")
                .replace(" ()", "")
            )
        rows = [_row(one) for one in found[:A_PAGE]]
        filtered = any(asked.values())
        return self._page(
            "studies.html",
            400 if problem else 200,
            title="Studies",
            rows=rows,
            asked=asked,
            filtered=filtered,
            problem=problem,
            page=page,
            earlier=_address(asked, page - 1) if page > 1 else "",
            later=_address(asked, page + 1) if len(found) > A_PAGE else "",
            first=(page - 1) * A_PAGE + 1,
            storescu=self._storescu,
            waiting=self._waiting(months_unindexed=bool(unindexed)),
        )

    def _waiting(self, *, months_unindexed: bool) -> str:
        """What to do about studies that are not indexed, where nothing indexes them."""
        pending = count_pending(self._tree.path) or 0
        if not pending and not months_unindexed:
            return ""
        if is_locked(self._tree.root, layout.INDEXER_LOCK):
            return f"{_counted(pending, 'study')} are being indexed." if pending else ""
        what = (
            f"{_counted(pending, 'study')} may be missing here" if pending else "this list is slow"
        )
        command = f"plainpacs index --once -a {shlex.quote(self._tree.path)}"
        return f"Not all of this archive is indexed, so {what}. Run: {command}"

    def study(self, request: Request) -> Response:
        """A study with its series."""
        place = place_of(request)
        record = self._record(place)
        series = [_series(place, one) for one in sorted(record["series"], key=by_number)]
        return self._page("study.html", title=_row(record).name, study=_row(record), series=series,
                          facts=_facts(record))  # fmt: skip

    def series(self, request: Request) -> Response:
        """The images of a series, one after the other."""
        place = place_of(request)
        record = self._record(place)
        query = find(
            self._tree.path,
            parse([f"StudyInstanceUID={place.study}", f"SeriesInstanceUID={place.series}"],
                  level=Level.INSTANCE),
            self._tree.note,
        )  # fmt: skip
        images = [_image(one) for one in query]
        if not images:
            raise missing(place)
        count = sum(frames for _, frames in images)
        number = request.query_params.get("image", "1")
        at = int(number) if number.isdecimal() and len(number) < 10 else 1
        at = max(1, min(at, count))
        same = [one for one in record["series"] if one.get("SeriesInstanceUID") == place.series]
        own: Record = same[0] if same else {"SeriesInstanceUID": place.series}
        return self._page(
            "series.html",
            title=_series(place, own)["title"],
            study=_row(record),
            series=_series(place, own),
            base=quote(f"{_BASE}{place.url}/instances/"),
            images=images,
            count=count,
            at=at,
            picture=_picture_of(images, at),
        )

    def _record(self, place: Place) -> Record:
        try:
            return lookup.study(self._tree.path, place.study, self._tree.note)
        except PlainpacsError:
            self._tree.check()
            raise missing(place) from None

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(**values)
        return Response(text, status, _HEADERS, "text/html; charset=utf-8")


def _terms(asked: Mapping[str, str]) -> list[str]:
    """What the form asks, as terms of ``ls``. Raises BadQuery."""
    terms = asked["q"].split()
    low, high = (one.replace("-", "") for one in (asked["from"], asked["to"]))
    for name in ("from", "to"):
        if asked[name] and not _DATE.fullmatch(asked[name]):
            raise BadQuery("a date is written as 2024-01-31")
    if low or high:
        terms.append(f"StudyDate={low}-{high}" if low != high else f"StudyDate={low}")
    if asked["modality"]:
        terms.append(f"ModalitiesInStudy={asked['modality'].replace('=', '')}")
    return terms


def _address(asked: Mapping[str, str], page: int) -> str:
    given = {name: value for name, value in asked.items() if value}
    return "/?" + urlencode({**given, "page": page})


def _counted(count: object, thing: str) -> str:
    """``1 instance``, ``800 instances``; empty for what is no number."""
    if not isinstance(count, int):
        return ""
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"


def _shown(record: Mapping[str, Any], keyword: str) -> str:
    return visible(humanize.text(record, keyword))


def _row(record: Record) -> Row:
    uid = str(record.get("StudyInstanceUID", ""))
    count = record.get("NumberOfStudyRelatedInstances")
    size = record.get("bytes")
    return Row(
        url=f"/studies/{quote(uid)}",
        uid=uid,
        picture=f"/dicom-web/studies/{quote(uid)}/thumbnail?viewport=96,96",
        name=visible(humanize.person_name(record.get("PatientName"))) or "(no name)",
        patient_id=_shown(record, "PatientID"),
        born=visible(humanize.date(record.get("PatientBirthDate"))),
        date=visible(humanize.date(record.get("StudyDate"))),
        time=visible(humanize.time_of_day(record.get("StudyTime"))),
        description=_shown(record, "StudyDescription"),
        modalities=_shown(record, "ModalitiesInStudy").replace(", ", " "),
        instances=f"{count:,}" if isinstance(count, int) else "",
        size=humanize.size(size) if isinstance(size, int) else "",
        conflicting=bool(record.get("conflicting")),
    )


def _series(place: Place, record: Record) -> dict[str, str]:
    uid = quote(str(record.get("SeriesInstanceUID", "")))
    words = [_shown(record, key) for key in ("SeriesDescription", "ProtocolName")]
    number = _shown(record, "SeriesNumber")
    description = next(filter(None, words), "")
    return {
        "url": f"/studies/{quote(place.study)}/series/{uid}",
        "picture": f"{_BASE}/studies/{quote(place.study)}/series/{uid}/thumbnail?viewport=192,192",
        "number": number,
        "modality": _shown(record, "Modality"),
        "description": description,
        "title": description or f"Series {number}".strip(),
        "count": _counted(record.get("NumberOfSeriesRelatedInstances"), "instance"),
        "body_part": _shown(record, "BodyPartExamined"),
    }


def _facts(record: Record) -> list[tuple[str, str]]:
    named = (
        ("Accession number", "AccessionNumber"),
        ("Referring physician", "ReferringPhysicianName"),
        ("Institution", "InstitutionName"),
        ("Study ID", "StudyID"),
        ("Study UID", "StudyInstanceUID"),
    )
    found = []
    for label, keyword in named:
        value = record.get(keyword)
        is_name = keyword.endswith("PhysicianName")
        shown = visible(humanize.person_name(value)) if is_name else _shown(record, keyword)
        if shown:
            found.append((label, shown))
    return found


def _image(record: Record) -> tuple[str, int]:
    """The UID of an instance, and how many frames it has."""
    count = record.get("NumberOfFrames")
    frames = count if isinstance(count, int) and 1 < count <= _MOST_FRAMES else 1
    return quote(layout.instance_of(str(record.get("file", ""))) or ""), frames


def _picture_of(images: list[tuple[str, int]], at: int) -> str:
    """The address, below the instances of the series, of the picture ``at``, from 1 on."""
    for uid, frames in images:
        if at <= frames:
            return f"{uid}/frames/{at}/rendered" if frames > 1 else f"{uid}/rendered"
        at -= frames
    raise IndexError(at)
