"""What the receiver answers, in one table: association rejections and DIMSE statuses.

``REJECTIONS`` has what ends a request for an association, ``ANSWERS`` what a C-STORE is answered
for each outcome or error. Both are design.md section 6 in code; nothing else in ``scp`` names a
number that goes to a peer for these reasons.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from plainpacs.archive.errors import (
    DataSetMismatch,
    ForbiddenInstance,
    InvalidUID,
    OutOfSpace,
    PlainpacsError,
    StorageUnavailable,
    UnreadableDataSet,
)

LONGEST_COMMENT = 64
"""Error Comment (0000,0902) is an LO: at most 64 characters (PS3.5 6.2)."""


class StoreStatus(enum.IntEnum):
    """The Status (0000,0900) of a response (PS3.7 Annex C, PS3.4 B.2.3)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    UNRECOGNIZED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ: result, source and reason (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int
    what: str
    remedy: str
    """For the log: which flag would change it, or that none does."""
    reference: str = "PS3.8 9.3.4"

    @property
    def code(self) -> str:
        return f"{self.result}/{self.source}/{self.reason}"


CALLED_AE_NOT_OURS = Rejection(
    1,
    1,
    7,
    "the called AE title is none of ours",
    "flag to accept it: --aet {called_ae} or --called-ae any",
)
CALLING_AE_NOT_ALLOWED = Rejection(
    1, 1, 3, "the calling AE title is not allowed", "flag to accept it: --calling-ae {calling_ae}"
)
ADDRESS_NOT_ALLOWED = Rejection(
    1, 1, 3, "the peer's address is not allowed", "flag to accept it: --allow-peers with {peer}"
)
CALLING_AE_FROM_ELSEWHERE = Rejection(
    1,
    1,
    3,
    "the calling AE title is bound to other addresses",
    "flag to accept it: --ae-addresses with {calling_ae}={peer}",
)
APPLICATION_CONTEXT_UNKNOWN = Rejection(
    1,
    1,
    2,
    "the application context is not DICOM's",
    "no flag changes it: the peer does not speak DICOM",
)
TOO_MANY_ASSOCIATIONS = Rejection(
    2, 3, 2, "the limit of associations is reached", "flag to accept more: --max-associations N"
)
TOO_MANY_FROM_PEER = Rejection(
    2,
    3,
    2,
    "the limit of associations from one address is reached",
    "flag to accept more: --max-associations-per-peer N",
)
PROTOCOL_VERSION_UNKNOWN = Rejection(
    1,
    2,
    2,
    "the protocol version is not 1",
    "no flag changes it: the peer does not speak DICOM",
)
"""By the upper layer itself, before the design's rows count."""
NOT_AUTHORIZED = 0x0124
"""Refused: Not authorized (PS3.7 Annex C), of every DIMSE service."""
REJECTIONS = (
    CALLED_AE_NOT_OURS,
    CALLING_AE_NOT_ALLOWED,
    ADDRESS_NOT_ALLOWED,
    CALLING_AE_FROM_ELSEWHERE,
    APPLICATION_CONTEXT_UNKNOWN,
    TOO_MANY_ASSOCIATIONS,
    TOO_MANY_FROM_PEER,
)


class RefusedSOPClass(PlainpacsError):
    """The SOP Class is one that the configuration refuses, or no storage class."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A row: errors of these classes are answered with ``status``."""

    errors: tuple[type[BaseException], ...]
    status: StoreStatus
    reference: str
    comment: str
    """Said to the peer when the error's own words may not be: they could name a path."""
    own_words: bool
    remedy: str


ANSWERS = (
    Answer(
        (RefusedSOPClass,),
        StoreStatus.SOP_CLASS_NOT_SUPPORTED,
        "PS3.7 9.1.1.1.9, C.5.6",
        "SOP Class refused by configuration",
        True,
        "flag to accept it: --refuse-sop-class without it",
    ),
    Answer(
        (DataSetMismatch,),
        StoreStatus.DATA_SET_DOES_NOT_MATCH,
        "PS3.4 B.2.3",
        "Data Set does not match the request",
        True,
        "no flag changes it: the sender has to send what it announces",
    ),
    Answer(
        (UnreadableDataSet, InvalidUID),
        StoreStatus.CANNOT_UNDERSTAND,
        "PS3.4 B.2.3",
        "Data Set cannot be read",
        True,
        "no flag changes it: without usable UIDs there is no place for it",
    ),
    Answer(
        (OutOfSpace,),
        StoreStatus.OUT_OF_RESOURCES,
        "PS3.4 B.2.3",
        "Out of space",
        False,
        "make room, or flag: --reserve with less",
    ),
    Answer(
        (ForbiddenInstance,),
        StoreStatus.CANNOT_UNDERSTAND,
        "PS3.4 B.2.3",
        "Instance was removed for good",
        True,
        "no flag changes it: see `plainpacs forbidden`",
    ),
    Answer(
        (StorageUnavailable, OSError, MemoryError),
        StoreStatus.OUT_OF_RESOURCES,
        "PS3.4 B.2.3",
        "Storage unavailable",
        False,
        "no flag changes it: see `plainpacs status`",
    ),
)
UNFORESEEN = Answer(
    (Exception,),
    StoreStatus.PROCESSING_FAILURE,
    "PS3.7 C.5.15",
    "Processing failure",
    False,
    "no flag changes it: a defect of plainpacs, please report it",
)


def answer_for(error: BaseException) -> Answer:
    """The row of the table for ``error``; anything unforeseen is a processing failure."""
    for row in ANSWERS:
        if isinstance(error, row.errors):
            return row
    return UNFORESEEN


def comment_for(error: BaseException) -> str:
    """The Error Comment for ``error``: at most 64 printable ASCII characters, no patient data.

    Errors whose words are ours alone are quoted; those that may name a path or a value are not.
    """
    row = answer_for(error)
    words = str(error) if row.own_words else row.comment
    printable = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in words)
    return (printable or row.comment)[:LONGEST_COMMENT].rstrip()
