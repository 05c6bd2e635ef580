"""Which instance stands for a series, or a study, in a list: the image in the middle of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plainpacs.archive.tree import layout
from plainpacs.indexer.index import lookup
from plainpacs.indexer.index.lookup import Note
from plainpacs.indexer.index.merge import Record, by_number, count


def representative(root: str, study: str, series: str, note: Note) -> tuple[str, str] | None:
    """(series, instance) for the study, or its ``series``; None when nothing of it is there.

    Of a study its first series of images, by number.
    """
    parts = [
        (month, record)
        for month in lookup.months_of(root, study)
        if (record := lookup.part_of_study(root, month, study, note)) is not None
    ]
    known = {
        str(one.get("SeriesInstanceUID", "")): one
        for _, record in parts
        for one in record["series"]
    }
    order = [series] if series else [str(one["SeriesInstanceUID"]) for one in
                                     sorted(known.values(), key=by_number)]  # fmt: skip
    other: tuple[str, str] | None = None
    for uid in order:
        found = lookup.with_instances(root, parts, note, [uid])
        lines = [line for _, part in found for one in part["series"] for line in one["instances"]]
        if not lines:
            continue
        line = middle(lines)
        here = uid, layout.instance_of(str(line["file"])) or ""
        if is_image(line):
            return here
        other = other or here
    return other


def middle(lines: Sequence[Record]) -> Record:
    """The image in the middle of a series, of its manifest lines; of anything, without images."""
    images = [line for line in lines if is_image(line)] or list(lines)
    images.sort(key=lambda line: (count(line, "InstanceNumber"), str(line["file"])))
    return images[len(images) // 2]


def is_image(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("Rows"), int)
