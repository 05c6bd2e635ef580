"""The lines of the sidecar manifests: one JSON object per stored instance, only ever appended.

A manifest can be made again from the ``.dcm`` files, so a line that was lost is no instance lost.
Readers take every line that parses and is not damaged, and skip the rest, wherever it stands. A
line ends with a checksum of its own, so that damage in a line is never taken for damage in a file.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import orjson

from plainpacs.archive.dicom.attributes import KEPT, KeptAttribute
from plainpacs.archive.tree.root import stamp

Line = dict[str, Any]
Kept = TypeVar("Kept")
"""A line in the form in which it is kept in memory."""

ORIGIN_C_STORE = "c-store"
ORIGIN_IMPORT = "import"
ORIGIN_RECOVERED = "recovered"
ORIGIN_CORRECTED = "corrected"
DIGESTS = ("blake3", "sha256")

# What a line says that is no attribute of the instance.
_OWN = {"file", "bytes", "dataset_offset", "stored", "transfer_syntax", "removed", "restored"}
_OWN |= {"calling_ae", "called_ae", "peer", "origin", "reason", "reread", "crc32", *DIGESTS}

_CHECKSUM = b',"crc32":"'
_TAIL = len(_CHECKSUM) + len('01234567"}')


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an instance came from. AE titles without padding; ``peer`` is a network address.

    ``stored`` is nanoseconds since 1970, when it is known from elsewhere (another archive).
    """

    calling_ae: str = ""
    called_ae: str = ""
    peer: str = ""
    origin: str = ORIGIN_C_STORE
    stored: int | None = None


class FileFacts(NamedTuple):
    """What a manifest line says of the file itself. ``stored`` as in ``root.stamp``."""

    file: str
    size: int
    dataset_offset: int
    digest_name: str
    digest: str
    stored: str
    transfer_syntax: str


def line_of(
    facts: FileFacts, provenance: Provenance, attributes: dict[str, Any], reread: str = ""
) -> bytes:
    """The manifest line, newline included. ``reread``: when the attributes were read from the file
    again, as in ``root.stamp``; of lines that say the same of the file the latest counts."""
    line: Line = {
        "file": facts.file,
        # Here it makes the bytes of the line greater than those of the lines before.
        **({"reread": reread} if reread else {}),
        "bytes": facts.size,
        "dataset_offset": facts.dataset_offset,
        facts.digest_name: facts.digest,
        "stored": facts.stored,
        "transfer_syntax": facts.transfer_syntax,
    }
    for name in ("calling_ae", "called_ae", "peer"):
        if value := getattr(provenance, name):
            line[name] = value
    line["origin"] = provenance.origin
    line.update(attributes)
    return encoded(line)


def said_by(line: Line, name: str) -> tuple[FileFacts, Provenance, dict[str, Any]] | None:
    """What ``line_of`` was given, of the file ``name``; None when the line does not say all."""
    digest, value = digest_of(line)
    size, offset = line.get("bytes"), line.get("dataset_offset")
    stored, syntax = line.get("stored"), line.get("transfer_syntax")
    if not (digest and isinstance(size, int) and isinstance(offset, int)):
        return None
    if not (isinstance(stored, str) and isinstance(syntax, str)):
        return None
    return (
        FileFacts(name, size, offset, digest, value, stored, syntax),
        provenance_of(line),
        {key: value for key, value in line.items() if key not in _OWN},
    )


def digest_of(line: Line) -> tuple[str, str]:
    """The name of the digest in ``line`` and its value; both empty when it has none."""
    for name in DIGESTS:
        if isinstance(value := line.get(name), str):
            return name, value
    return "", ""


def provenance_of(line: Line, otherwise: str = ORIGIN_RECOVERED) -> Provenance:
    """Who sent the instance of ``line``; its origin is ``otherwise`` where the line names none."""
    calling_ae, called_ae, peer, origin = (
        str(line.get(key) or "") for key in ("calling_ae", "called_ae", "peer", "origin")
    )
    return Provenance(calling_ae, called_ae, peer, origin or otherwise)


def encoded(line: Line) -> bytes:
    """``line`` as it stands in a manifest, with its checksum and newline."""
    if "crc32" in line:
        line = {key: value for key, value in line.items() if key != "crc32"}
    body = orjson.dumps(line)[:-1]
    return b'%b%b%08x"}\n' % (body, _CHECKSUM, zlib.crc32(body))


def lines_in(data: bytes, damaged: list[Line] | None = None) -> Iterator[tuple[Line, bytes]]:
    """Every line of a manifest that is one, with its bytes; removals included.

    Those that name a file and are not what was written are left out, and added to ``damaged``.
    """
    for raw in data.split(b"\n"):
        if raw[:1] != b"{":
            continue
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(line.get("file"), str):
            continue
        if _is_intact(line, raw):
            yield line, raw
        elif damaged is not None:
            damaged.append(line)


def _has_checksum(raw: bytes) -> bool:
    return raw[-_TAIL:].startswith(_CHECKSUM)


def _is_intact(line: Line, raw: bytes) -> bool:
    """By its checksum; of a line without one (older, or by other hands), by the types in it."""
    if "crc32" in line:
        return raw[-_TAIL:] == b'%b%08x"}' % (_CHECKSUM, zlib.crc32(raw[:-_TAIL]))
    if "bytes" in line and "stored" not in line:
        return False
    if not line.keys() & {"bytes", "removed", "restored"}:
        return False
    return all(key not in _TYPES or _TYPES[key](value) for key, value in line.items())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_stamp(value: object) -> bool:
    if not isinstance(value, str) or not _STAMP.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _type_of(kept: KeptAttribute) -> Callable[[object], bool]:
    types = {"IS": (int,), "US": (int,), "DS": (int, float), "SQ": (dict,)}.get(kept.vr, (str,))
    if not kept.multiple:
        return lambda value: type(value) in types
    return lambda value: isinstance(value, list) and all(type(one) in types for one in value)


_STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TYPES: dict[str, Callable[[object], bool]] = {
    **{kept.keyword: _type_of(kept) for kept in KEPT},
    **dict.fromkeys(("transfer_syntax", "calling_ae", "called_ae", "peer", "origin"), _is_text),
    **dict.fromkeys(("bytes", "dataset_offset"), _is_size),
    **dict.fromkeys(("stored", "removed", "restored"), _is_stamp),
    **dict.fromkeys(DIGESTS, _is_digest),
}


def removal_in_force(lines: Iterable[Line]) -> str | None:
    """When the instance was removed, of which ``lines`` are all there are, from every node.

    None when none of them is a removal, or it was stored or restored since: a removal is in force
    when its stamp is later than every ``stored`` and ``restored``.
    """
    removed = kept = ""
    for line in lines:
        removed = max(removed, _stamp_in(line, "removed"))
        kept = max(kept, _stamp_in(line, "stored"), _stamp_in(line, "restored"))
    return removed if removed > kept else None


def later_than(lines: Iterable[Line]) -> str:
    """The stamp of now; where that is no later than what ``lines`` say, the one after theirs."""
    latest = max(
        (_stamp_in(line, key) for line in lines for key in ("stored", "restored", "removed")),
        default="",
    )
    now = stamp(time.time_ns())
    if now > latest:
        return now
    try:
        moment = datetime.fromisoformat(latest)
    except ValueError:  # no stamp of ours
        return now
    return stamp(round(moment.timestamp() * 1000 + 1) * 1_000_000)


def _told(line: Line) -> tuple[object, str, bool]:
    return line.get("bytes"), _stamp_in(line, "stored"), line.get("origin") == ORIGIN_RECOVERED


def best_line(lines: Iterable[Line], size: int, mtime: int) -> Line | None:
    """Of the ``lines`` for one file the one that counts; None when none is valid.

    ``size`` in bytes and ``mtime`` in nanoseconds are the file's. See ``best_of``.
    """
    return best_of(lines, size, mtime, _told, orjson.dumps)


def best_of(
    lines: Iterable[Kept],
    size: int,
    mtime: int,
    told: Callable[[Kept], tuple[object, str, bool]],
    raw: Callable[[Kept], bytes],
) -> Kept | None:
    """``best_line`` of lines kept in another form: ``told`` returns a line's ``bytes`` and
    ``stored``, and whether it was recovered; ``raw`` returns the line itself.

    A line is valid when its ``bytes`` is the file's size. Of several valid lines, one whose
    ``stored`` is the file's mtime counts; then one that is not ``recovered``; then the latest; then
    one with a checksum; then the one with the greatest bytes.
    """
    valid = []
    for line in lines:
        its_size, stored, recovered = told(line)
        if its_size == size and stored:
            valid.append((line, stored, recovered))
    if len(valid) < 2:  # as nearly always
        return valid[0][0] if valid else None
    written = stamp(mtime)

    def rank(one: tuple[Kept, str, bool]) -> tuple[bool, bool, str, bool, bytes]:
        line, stored, recovered = one
        data = raw(line)
        return stored == written, not recovered, stored, _has_checksum(data), data

    return max(valid, key=rank)[0]


def _stamp_in(line: Line, key: str) -> str:
    # Stamps have one form (``root.stamp``), so that the order of the text is that of time.
    value = line.get(key)
    return value if isinstance(value, str) else ""
