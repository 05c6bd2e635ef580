"""The presentation contexts that instances are to come back on, in a C-GET (PS3.4 C.4.3).

The peer sends each instance in the transfer syntax it has it in, if that has a context of its own;
what shares a context with others is the peer's choice. As there are 128 contexts at most, syntaxes
share when there are many SOP Classes.

>>> [len(one.transfer_syntax) for one in storage_contexts(["1.2.3"], most=4)][:3]
[2, 1, 1]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydicom.uid import AllTransferSyntaxes
from pynetdicom.presentation import PresentationContext, build_context

from plainpacs.archive.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from plainpacs.scp.network.negotiation import choose_transfer_syntax

MOST_CONTEXTS = 128
_FEW = 5
_JPEG = "1.2.840.10008.1.2.4."
_COMPRESSED = (
    *(_JPEG + "70", _JPEG + "57", _JPEG + "50", _JPEG + "51", _JPEG + "80", _JPEG + "81"),
    *(_JPEG + "90", _JPEG + "91", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"),
    *(EXPLICIT_VR_BIG_ENDIAN, _JPEG + "201", _JPEG + "202", _JPEG + "203", _JPEG + "100"),
    *(_JPEG + "101", _JPEG + "102", _JPEG + "103", _JPEG + "107", _JPEG + "108"),
    *(_JPEG + "104", _JPEG + "105"),
)
"""What archives hold, the usual before the rare."""
_UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_RETIRED = (
    *(f"{_JPEG}{number}" for number in (*range(52, 57), *range(58, 67))),
    *("1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2"),
    "1.2.840.10008.1.20",
)
"""Of PS3.6 Table A-1, what ``AllTransferSyntaxes`` lacks and old archives may hold."""
_OTHERS = (
    *_COMPRESSED,
    *(
        str(uid)
        for uid in (*AllTransferSyntaxes, *_RETIRED)
        if uid not in (*_UNCOMPRESSED, *_COMPRESSED)
        and choose_transfer_syntax((uid,))  # else the pixels would be elsewhere
    ),
)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
USUAL = tuple(
    _STORAGE + tail
    for tail in (
        *("2", "4", "7", "1", "1.1", "1.2", "6.1", "3.1", "20", "128", "12.1", "12.2", "2.1"),
        *("4.1", "88.11", "88.22", "88.33", "88.59", "88.67", "88.71", "11.1", "66.4", "104.1"),
        *("481.2", "481.3", "481.5", "481.1", "7.1", "7.2", "7.3", "7.4", "13.1.3", "13.1.1"),
        *("77.1.1", "77.1.2", "77.1.4", "77.1.6", "9.1.1", "130", "128.1", "4.2", "66", "66.1"),
        *("481.4", "481.8", "77.1.5.1", "77.1.5.4", "66.5", "9.1.2", "9.2.1", "88.65", "11.2"),
        *("77.1.1.1", "77.1.2.1", "77.1.4.1", "2.2", "4.3", "1.1.1", "1.3", "1.3.1", "66.2"),
    )
)
"""The SOP Classes to offer when a peer does not tell what it has."""


def storage_contexts(
    sop_classes: Collection[str], most: int = MOST_CONTEXTS - 1
) -> list[PresentationContext]:
    """Contexts for the SOP Classes, ``most`` at most."""
    classes = list(dict.fromkeys(sop_classes))[:most]
    share = most // max(len(classes), 1)
    return [
        build_context(sop_class, list(syntaxes))
        for sop_class in classes
        for syntaxes in _groups(share)
    ]


def _groups(share: int) -> Iterator[tuple[str, ...]]:
    """The transfer syntaxes of one SOP Class, as ``share`` contexts or fewer."""
    # Where there are but few, the uncompressed ones share one, so that the others have more.
    few = share < _FEW
    groups: list[tuple[str, ...]] = [_UNCOMPRESSED] if few else [(uid,) for uid in _UNCOMPRESSED]
    groups += [(uid,) for uid in _OTHERS]
    yield from groups[: share - 1]
    if rest := tuple(uid for group in groups[share - 1 :] for uid in group):
        yield rest
