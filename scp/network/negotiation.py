"""Which presentation contexts are accepted, and with which transfer syntax. Pure functions.

Two rules (design.md section 6). *Abstract syntax*: Verification, and everything that may be the
storage of a patient's instance: storage SOP Classes, private ones, unknown ones where DICOM puts
storage, and unknown ones that the peer declares to be storage (PS3.7 D.3.3.6). Refused are other
services, and objects that belong to no study, for which the tree has no place. *Transfer syntax*:
what the sender prefers, so that it need not convert, except where another choice keeps more.

>>> proposed = build_context("1.2.840.10008.1.1", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
>>> supported([proposed]), proposed.transfer_syntax
([Verification SOP Class], ['1.2.840.10008.1.2.1'])
"""

from __future__ import annotations

import enum
import re
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext, build_context

from plainpacs.archive.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from plainpacs.archive.tree.identity import strip_padding

_NOT_OFFERED = "1.2.840.10008.1.2.4.94"
"""Stands in a context that has no transfer syntax: one that is never accepted."""
VERIFICATION = "1.2.840.10008.1.1"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
STORAGE_SERVICE = "1.2.840.10008.4.2"


_GETS = frozenset((PATIENT_ROOT_GET, STUDY_ROOT_GET))
_NEVER_SENT = _GETS | {VERIFICATION}

_UID = re.compile(r"[0-9][0-9.]{0,63}", re.ASCII)
_DICOM = "1.2.840.10008."
_STORAGE = "1.2.840.10008.5.1.4.1.1."

# Below the storage root, and not the storage of a patient's instance (PS3.4 GG.3, and Annexes HH,
# II, BB and others): protocols, approvals, inventories and their services.
_NOT_A_PATIENTS = frozenset(
    _STORAGE + tail
    for tail in (
        *("200.1", "200.3", "200.4", "200.5", "200.6", "200.7"),
        *("201.1", "201.2", "201.3", "201.4", "201.5", "201.6"),
    )
)

# Instances of a study that DICOM registered elsewhere: RT delivery instructions, and the retired
# hardcopy and stored print objects that old archives still hold.
_STORAGE_ELSEWHERE = frozenset(
    {
        "1.2.840.10008.5.1.4.34.1",
        "1.2.840.10008.5.1.4.34.7",
        "1.2.840.10008.5.1.4.34.10",
        "1.2.840.10008.5.1.1.27",
        "1.2.840.10008.5.1.1.29",
        "1.2.840.10008.5.1.1.30",
    }
)

# The pixels are not in the data set: a 0000 would promise what we do not have.
_PIXELS_ELSEWHERE = frozenset(
    {
        "1.2.840.10008.1.2.4.94",  # JPIP Referenced
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.204",  # JPIP HTJ2K Referenced
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
        "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110-20 Uncompressed Progressive Active Video
        "1.2.840.10008.1.2.7.2",  # SMPTE ST 2110-20 Uncompressed Interlaced Active Video
        "1.2.840.10008.1.2.7.3",  # SMPTE ST 2110-30 PCM Digital Audio
    }
)


class Result(enum.IntEnum):
    """The Result/Reason of a presentation context (PS3.8 Table 9-18)."""

    ACCEPTED = 0
    USER_REJECTION = 1
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class Context(NamedTuple):
    """A context that was accepted, and as pynetdicom has it."""

    id: int
    abstract_syntax: str
    transfer_syntax: str
    negotiated: PresentationContext

    @classmethod
    def of(cls, accepted: PresentationContext) -> Context:
        number, abstract, syntax = accepted.as_tuple
        return cls(number, str(abstract), str(syntax), accepted)


def supported(
    proposed: list[PresentationContext],
    declared: Mapping[str, str] | None = None,
    roles: Mapping[str, tuple[bool, bool]] | None = None,
    services: Container[str] = (),
) -> list[PresentationContext]:
    """What pynetdicom is to negotiate the ``proposed`` contexts with. Of the transfer syntaxes in
    each of those the one is left that is to be accepted, if there is one.

    ``services`` are the SOP Classes served besides Verification and storage. ``declared`` is the
    SOP Class Common Extended Negotiation: SOP Class UID to Service Class UID. ``roles``: whether
    the peer wants to be SCU, and SCP. It may be SCP of what we would send in a C-GET, where a
    context for that is there; nothing else. An id that comes again keeps its first context.
    """
    _once_each(proposed)
    names = [strip_padding(str(one.abstract_syntax or "")) for one in proposed]
    retrieving = any(uid in _GETS and uid in services for uid in names)
    found: dict[str, PresentationContext] = {}
    choices: dict[tuple[str, ...], str | None] = {}  # senders repeat one list
    for context, abstract in zip(proposed, names, strict=True):
        context.abstract_syntax = UID(abstract)
        offered = tuple(strip_padding(str(uid)) for uid in context.transfer_syntax)
        if not offered:
            context.transfer_syntax = [UID(_NOT_OFFERED)]
        to_peer = (
            retrieving
            and abstract not in _NEVER_SENT
            and (roles or {}).get(abstract, (True, False))[1]
        )
        if abstract in services:
            usable = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
            choice = next((uid for uid in usable if uid in offered), None)
        elif not is_accepted(abstract, (declared or {}).get(abstract)):
            continue
        elif to_peer and EXPLICIT_VR_LITTLE_ENDIAN in offered:
            # Nearly everything that we may have to send can become that, and seldom is it in what
            # the peer likes best.
            choice = EXPLICIT_VR_LITTLE_ENDIAN
        else:
            if offered not in choices:
                choices[offered] = choose_transfer_syntax(uid for uid in offered if uid)
            choice = choices[offered]
        ours = found.get(abstract)
        if ours is None:
            ours = found[abstract] = build_context(abstract, [])
            ours.scu_role, ours.scp_role = True, bool(to_peer)
        if choice is not None:
            context.transfer_syntax = [UID(choice)]
            ours.add_transfer_syntax(choice)
    return list(found.values())


def _once_each(proposed: list[PresentationContext]) -> None:
    seen: set[int | None] = set()
    for context in proposed.copy():
        if context.context_id in seen:
            proposed.remove(context)
        seen.add(context.context_id)


def is_accepted(abstract_syntax: str, declared_service: str | None = None) -> bool:
    """Whether a context for ``abstract_syntax`` is accepted."""
    return abstract_syntax == VERIFICATION or is_storage(abstract_syntax, declared_service)


def is_storage(sop_class: str, declared_service: str | None = None) -> bool:
    """Whether instances of ``sop_class`` can be stored: they can have a patient and a study.

    >>> is_storage("1.2.840.10008.5.1.4.1.1.2"), is_storage("1.2.840.10008.5.1.4.1.2.2.1")
    (True, False)
    """
    # Longer ones are none, and are not to be remembered.
    return len(sop_class) <= 64 and _is_storage(sop_class, declared_service == STORAGE_SERVICE)


@lru_cache(maxsize=1024)
def _is_storage(sop_class: str, declared: bool) -> bool:
    if not _UID.fullmatch(sop_class) or f"{sop_class}." == _DICOM:
        return False
    if not sop_class.startswith(_DICOM):
        return True  # private: only its owner knows, and a modality that offers it means storage
    if sop_class.startswith(_STORAGE):
        return sop_class not in _NOT_A_PATIENTS
    if sop_class in _STORAGE_ELSEWHERE:
        return True
    return declared and not UID(sop_class).type


def choose_transfer_syntax(offered: Iterable[str]) -> str | None:
    """The one to accept of those ``offered`` in one context, None when there is none.

    The first, because senders put what they prefer or have there. But: Explicit VR Little Endian
    goes before implicit (which loses the VRs of private elements) and big endian (retired); a
    private syntax is accepted only when it is the sole one offered, since no other program may
    read it; and none of those where the pixels are elsewhere.
    """
    distinct = list(dict.fromkeys(offered))
    if len(distinct) > 1:
        distinct = [uid for uid in distinct if uid.startswith(_DICOM)]
    usable = [uid for uid in distinct if uid not in _PIXELS_ELSEWHERE]
    if not usable:
        return None
    first = usable[0]
    poorer = first in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
    if poorer and EXPLICIT_VR_LITTLE_ENDIAN in usable:
        return EXPLICIT_VR_LITTLE_ENDIAN
    return first


def name_of(uid: str) -> str:
    """The registered name of ``uid``, else the UID itself, for people."""
    return str(UID(uid).name)
