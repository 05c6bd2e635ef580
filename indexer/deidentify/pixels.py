"""What cannot be cleaned, and the pixels as they go out: decoded they are the same."""

from __future__ import annotations

from collections.abc import Iterator

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.dicom.dictionary import tag_of
from plainpacs.archive.dicom.element_tree import Elements
from plainpacs.archive.dicom.elements import UNDEFINED, WIDTHS, head, swapped
from plainpacs.archive.dicom.flatten import Leaf

PIXELS, DOCUMENTS = "pixels", "documents"
UNCLEANED = {
    PIXELS: "images that may show names",
    DOCUMENTS: "encapsulated documents, recorded voice",
}
"""The kinds of what cannot be cleaned."""

_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Secondary capture; ultrasound, with its retired forms; endoscopy, photography and their videos.
_SHOWING_CLASSES = tuple(
    _STORAGE + tail
    for tail in (
        *("7", "7.1", "7.2", "7.3", "7.4", "3", "3.1", "6", "6.1", "6.2", "6.3"),
        *("77.1.1", "77.1.1.1", "77.1.4", "77.1.4.1", "77.1.2.1"),
    )
)
_SHOWING_MODALITIES = frozenset(
    ("US", "IVUS", "EC", "ES", "XC", "SC", "OT", "HC", "DOC", "OPV", "DMS", "IVOCT")
)
# Digitized film, scanned documents, video, workstations and drawings (PS3.3 C.8.6.1.1).
_SHOWING_CONVERSIONS = {"DF", "DI", "DV", "SD", "SI", "WSD", "DRW"}
# What scanners call pictures of their screens, and the pictures of a slide with its label.
_SHOWING_TYPES = ("SCREEN", "SAVE", "LABEL", "OVERVIEW", "DOSE_INFO", "CAPTURE")
_VIDEO = tuple(f"1.2.840.10008.1.2.4.10{digit}" for digit in range(10))
_VOICE = _STORAGE + "9.4."
_BURNED_IN = tag_of("BurnedInAnnotation")
_DOCUMENT = tag_of("EncapsulatedDocument")
_MIME_TYPE = tag_of("MIMETypeOfEncapsulatedDocument")
_MODALITY, _IMAGE_TYPE = tag_of("Modality"), tag_of("ImageType")
_CONVERSION = tag_of("ConversionType")


def uncleaned(
    elements: Elements, sop_class: str, transfer_syntax: str, *, has_pixels: bool
) -> tuple[str, str]:
    """(kind, why) of what cannot be cleaned in an instance; two empty texts when all can be."""
    if _DOCUMENT in elements:
        return DOCUMENTS, f"it is a document ({_text(elements, _MIME_TYPE) or 'of unknown kind'})"
    if sop_class.startswith(_VOICE) or _text(elements, _MODALITY) == "AU":
        return DOCUMENTS, "it is a recording of a voice"
    if not has_pixels:
        return "", ""
    if any(_overlay_in_pixels(elements)):
        return PIXELS, "there is an overlay among the bits of its pixels"
    burned_in = _text(elements, _BURNED_IN)
    if burned_in == "YES":
        return PIXELS, "BurnedInAnnotation is YES"
    if burned_in == "NO":
        return "", ""
    not_no = f"and BurnedInAnnotation is {burned_in or 'not there'}"
    if transfer_syntax.startswith(_VIDEO):
        return PIXELS, f"it is a video, {not_no}"
    if sop_class in _SHOWING_CLASSES:
        return PIXELS, f"its SOP Class is one whose images often show names, {not_no}"
    if (modality := _text(elements, _MODALITY)) in _SHOWING_MODALITIES:
        return PIXELS, f"images of modality {modality} often show names, {not_no}"
    if (conversion := _text(elements, _CONVERSION)) in _SHOWING_CONVERSIONS:
        return PIXELS, f"its ConversionType is {conversion}, {not_no}"
    kinds = _text(elements, _IMAGE_TYPE)
    if any(kind in kinds for kind in _SHOWING_TYPES):
        return PIXELS, f"its ImageType is {kinds}, {not_no}"
    return "", ""


def _text(elements: Elements, tag: int) -> str:
    element = elements.get(tag)
    value = element.value if element else None
    return value.decode("latin-1").strip("\0 ").upper() if isinstance(value, bytes) else ""


def _overlay_in_pixels(elements: Elements) -> Iterator[bool]:
    for group in range(0x6000, 0x6020, 2):
        position, data = elements.get(group << 16 | 0x0102), group << 16 | 0x3000
        if position is not None and isinstance(position.value, bytes):
            yield data not in elements and any(position.value)


# --- the pixels -----------------------------------------------------------------------------------


def encoded(data: memoryview, leaves: list[Leaf]) -> Iterator[Buffer]:
    """The pixel data of ``data`` in Explicit VR Little Endian, piece by piece; fragments stay
    fragments, with their offset tables. Comments inside of JPEG streams are blanked."""
    for leaf in leaves:
        tag = leaf.path[0]
        if len(leaf.path) > 1 or tag not in (*_PIXEL_TAGS, *_OFFSET_TABLES):
            continue
        value = data[leaf.start : leaf.end]
        if leaf.encapsulated:
            yield head(tag, "OB", UNDEFINED, explicit=True)
            yield from _fragments(value)
            yield _DELIMITER
            continue
        vr = _vr(tag, leaf.vr)
        yield head(tag, vr, len(value) + len(value) % 2, explicit=True)
        yield value if leaf.little_endian else swapped(bytes(value), WIDTHS.get(vr, 1))
        if len(value) % 2:
            yield b"\0"


def _vr(tag: int, vr: str) -> str:
    if tag in _OFFSET_TABLES:
        return "OV"
    if tag == 0x7FE00010:
        return vr if vr in ("OB", "OW") else "OW"
    return "OF" if tag == 0x7FE00008 else "OD"


def _fragments(value: memoryview) -> Iterator[Buffer]:
    """The items of an encapsulated value, whose lengths are known to fit."""
    pos = 0
    while pos < len(value):
        end = pos + 8 + int.from_bytes(value[pos + 4 : pos + 8], "little")
        yield value[pos : pos + 8]
        yield from _without_comments(value[pos + 8 : end])
        pos = end


_JPEG, _JPEG_2000 = b"\xff\xd8\xff", b"\xff\x4f\xff"
# APP0 (JFIF), APP2 (ICC profile), APP8 (SPIFF, colour transform) and APP14 (Adobe) tell a decoder
# something; the other APPn and COM tell people something.
_COMMENTS = frozenset((0xE1, *range(0xE3, 0xE8), *range(0xE9, 0xEE), 0xEF, 0xFE))
_SCAN, _END, _TILE = 0xDA, 0xD9, 0x90
_COMMENT_2000 = 0x64


def _without_comments(stream: memoryview) -> Iterator[Buffer]:
    """A JPEG, JPEG-LS or JPEG 2000 stream with zeros in its comments (ISO 10918-1 B.2.4.5, 15444-1
    A.9.2); anything else as it is."""
    start = bytes(stream[:3])
    if start not in (_JPEG, _JPEG_2000):
        yield stream
        return
    pos, cleaned = 2, bytearray()
    while pos + 4 <= len(stream) and stream[pos] == 0xFF:
        marker = stream[pos + 1]
        if marker == 0xFF:  # it may be preceded by any number of these
            pos += 1
            continue
        if marker in ((_SCAN, _END) if start == _JPEG else (_TILE,)):
            break
        after = pos + 2 + int.from_bytes(stream[pos + 2 : pos + 4])
        skipped = 4 if start == _JPEG else 6
        comment = marker in _COMMENTS if start == _JPEG else marker == _COMMENT_2000
        if comment and pos + skipped < after <= len(stream):
            cleaned += bytes(stream[len(cleaned) : pos + skipped]) + bytes(after - pos - skipped)
        pos = after
    if cleaned:
        yield cleaned
    yield stream[len(cleaned) :]
