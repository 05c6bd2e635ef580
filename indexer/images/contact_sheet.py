"""A contact sheet: a study on one page, a tile for each series, so that a person can look.

A tile shows the middle image of its series, or says why there is none. Neither the page nor its
file says whose study it is, unless asked for; what is burned into an image is shown.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from plainpacs.archive.tree import layout
from plainpacs.indexer.images.render import Picture, Renderer
from plainpacs.indexer.images.representative import is_image, middle
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, count, merge
from plainpacs.indexer.output import humanize
from plainpacs.indexer.output.printable import visible

MOST_TILES = 200
_BOX = 240  # pixels, of the image in a tile
_GAP = 12
_LINE = 18
_TEXT = 14
_CAPTION_LINES = 2
_COLUMNS = 6
_BACK, _EMPTY, _LIGHT, _DIM = (16, 16, 16), (40, 40, 40), (230, 230, 230), (160, 160, 160)
# For what the built-in font lacks; Pillow looks for them where the system keeps its fonts.
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Tile:
    """A series: the instance to be shown (its path in the archive), and what is said below it."""

    path: str
    caption: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """``png``: the file. ``shown`` of ``series`` have a tile; ``missing`` of those no picture."""

    png: bytes
    series: int
    shown: int
    missing: int


def contact_sheet(root: str, study: str, note: Note, *, names: bool = False) -> Sheet:
    """The sheet of a study; ``names``: with the patient's name and ID. Raises NoMatch."""
    parts = lookup.study_parts(root, study, note)
    tiles = _tiles(lookup.with_instances(root, parts, note))
    record = merge(parts)
    with Renderer() as renderer:
        pictures = [
            renderer.picture(os.path.join(root, tile.path), _BOX) for tile in tiles[:MOST_TILES]
        ]
    png = _drawn(_title(record, names=names), list(zip(tiles, pictures, strict=False)))
    missing = sum(1 for picture in pictures if not picture.data)
    return Sheet(png, len(tiles), len(pictures), missing)


# --- what is on it --------------------------------------------------------------------------------


def _tiles(parts: Sequence[tuple[str, Record]]) -> list[Tile]:
    """One for each series that has instances, by its number."""
    attributes: dict[str, Record] = {}
    instances: dict[str, list[tuple[str, Record]]] = {}
    for month, part in parts:
        for series in part["series"]:
            uid = str(series.get("SeriesInstanceUID", ""))
            attributes.setdefault(uid, series)
            folder = f"{layout.study_folder(month, part['StudyInstanceUID'])}/{uid}"
            instances.setdefault(uid, []).extend(
                (f"{folder}/{line['file']}", line) for line in series["instances"]
            )
    found = [uid for uid, some in instances.items() if some]
    found.sort(key=lambda uid: (count(attributes[uid], "SeriesNumber"), uid))
    return [Tile(_shown(instances[uid]), _caption(attributes[uid], instances[uid]))
            for uid in found]  # fmt: skip


def _shown(instances: Sequence[tuple[str, Record]]) -> str:
    """The path of the instance that stands for its series."""
    line = middle([one for _, one in instances])
    return next(path for path, one in instances if one is line)


def _caption(series: Mapping[str, Any], instances: Sequence[tuple[str, Record]]) -> tuple[str, ...]:
    images = [line for _, line in instances if is_image(line)]
    frames = sum(max(1, count(line, "NumberOfFrames")) for line in images)
    much = _counted(len(images), "image") if images else _counted(len(instances), "instance")
    if frames > len(images):
        much += f", {_counted(frames, 'frame')}"
    first = (humanize.text(series, "SeriesNumber"), humanize.text(series, "Modality"), much)
    words = (humanize.text(series, key) for key in ("SeriesDescription", "ProtocolName"))
    return "  ".join(part for part in first if part), next(filter(None, words), "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _title(record: Mapping[str, Any], *, names: bool) -> list[str]:
    modalities = "+".join(str(one) for one in record.get("ModalitiesInStudy") or ())
    parts = [
        humanize.date(record.get("StudyDate")) or "undated",
        humanize.time_of_day(record.get("StudyTime")),
        modalities,
        humanize.text(record, "StudyDescription"),
    ]
    lines = ["  ".join(part for part in parts if part), str(record.get("StudyInstanceUID", ""))]
    if names:
        who = humanize.person_name(record.get("PatientName")) or "unnamed"
        born = humanize.date(record.get("PatientBirthDate"))
        lines.insert(0, f"{who} [{humanize.text(record, 'PatientID')}]  {born}".strip())
    return lines


# --- drawing --------------------------------------------------------------------------------------


def _drawn(title: Sequence[str], tiles: Sequence[tuple[Tile, Picture]]) -> bytes:
    """The page as a PNG file."""
    # Few series stand side by side; many fill a page that is not much higher than wide.
    columns = min(_COLUMNS, max(2, len(tiles)))
    rows = -(-len(tiles) // columns)
    wide, high = _BOX + _GAP, _BOX + _GAP + _CAPTION_LINES * _LINE + 6
    top = _GAP + len(title) * (_LINE + 4) + _GAP
    page = Image.new("RGB", (_GAP + columns * wide, top + rows * high), _BACK)
    draw = ImageDraw.Draw(page)
    room = page.width - 2 * _GAP
    for number, line in enumerate(title):
        at = _GAP, _GAP + number * (_LINE + 4)
        _write(draw, at, line, _LIGHT if number == 0 else _DIM, room)
    for number, (tile, picture) in enumerate(tiles):
        left, above = _GAP + number % columns * wide, top + number // columns * high
        _draw_picture(page, draw, (left, above), picture)
        for below, line in enumerate(tile.caption):
            at = left, above + _BOX + 4 + below * _LINE
            _write(draw, at, line, _LIGHT if below == 0 else _DIM, _BOX)
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_picture(
    page: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], picture: Picture
) -> None:
    left, top = at
    if picture.data:
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.data)
        page.paste(image, (left + (_BOX - picture.width) // 2, top + (_BOX - picture.height) // 2))
        return
    draw.rectangle((left, top, left + _BOX - 1, top + _BOX - 1), fill=_EMPTY)
    lines = _wrapped(draw, picture.why, _BOX - 2 * _GAP)
    for number, line in enumerate(lines):
        down = top + _BOX // 2 + (number * 2 - len(lines)) * _LINE // 2
        _write(draw, (left + _GAP, down), line, _DIM, _BOX - 2 * _GAP)


def _wrapped(draw: ImageDraw.ImageDraw, words: str, room: int) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, _font(longer)) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, fill: tuple[int, int, int], room: int
) -> None:
    """One line, cut where there is no more room."""
    shown = visible(text)[:300]
    font = _font(shown)
    if draw.textlength(shown, font) > room:
        while shown and draw.textlength(shown + "…", font) > room:
            shown = shown[:-1]
        shown += "…"
    draw.text(at, shown, fill, font)


def _font(text: str) -> Font:
    """One that has the characters, where this machine has one."""
    if text.isascii():
        return _BUILT_IN
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _TEXT)
        except OSError:
            continue
    return _BUILT_IN


_BUILT_IN = ImageFont.load_default(_TEXT)
