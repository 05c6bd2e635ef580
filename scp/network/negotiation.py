"""Which presentation contexts are accepted, and with which transfer syntax. Pure functions.

Two rules (design.md section 6). *Abstract syntax*: Verification, and everything that may be the
storage of a patient's instance: storage SOP Classes, private ones, unknown ones where DICOM puts
storage, and unknown ones that the peer declares to be storage (PS3.7 D.3.3.6). Refused are other
services, and objects that belong to no study, for which the tree has no place. *Transfer syntax*:
what the sender prefers, so that it need not convert, except where another choice keeps more.

>>> proposed = ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",))
>>> negotiate([proposed])
[ContextResult(id=1, abstract_syntax='1.2.840.10008.1.1', transfer_syntax='1.2.840.10008.1.2', \
result=<Result.ACCEPTED: 0>)]
"""

from __future__ import annotations

import enum
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from plainpacs.archive.dicom.uid_registry import REGISTERED
from plainpacs.archive.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from plainpacs.archive.tree.identity import strip_padding

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


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as the peer proposed it (PS3.8 9.3.2.2)."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """Our answer to one. ``transfer_syntax`` means nothing unless accepted (PS3.8 9.3.3.2)."""

    id: int
    abstract_syntax: str
    transfer_syntax: str
    result: Result


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU role selection for an abstract syntax, as the requestor's roles (PS3.7 D.3.3.4)."""

    scu: bool
    scp: bool


def negotiate(
    proposed: Iterable[ProposedContext],
    declared: Mapping[str, str] | None = None,
    roles: Mapping[str, Role] | None = None,
    services: Container[str] = (),
) -> list[ContextResult]:
    """One result for each context id, in the order proposed.

    ``services`` are the SOP Classes served besides Verification and storage.

    ``declared`` is the SOP Class Common Extended Negotiation: SOP Class UID to Service Class UID.
    ``roles`` are the roles the peer wants; a context it would only be SCP of is rejected, because
    we act as SCU only for C-GET, unless a context for that is there. An id that comes again keeps
    its first result.
    """
    proposed = list(proposed)
    retrieving = any(
        strip_padding(one.abstract_syntax) in _GETS
        and strip_padding(one.abstract_syntax) in services
        for one in proposed
    )
    results: dict[int, ContextResult] = {}
    choices: dict[tuple[str, ...], tuple[str | None, str]] = {}  # senders repeat one list
    for context in proposed:
        if context.id not in results:
            choice = choices.get(context.transfer_syntaxes)
            if choice is None:
                choice = choices[context.transfer_syntaxes] = _choose(context.transfer_syntaxes)
            abstract = strip_padding(context.abstract_syntax)
            if abstract in services:
                results[context.id] = _judge_service(context, abstract)
            else:
                role = (roles or {}).get(abstract)
                to_peer = retrieving and role is not None and role.scp
                if to_peer:
                    choice = _preferring_explicit(context.transfer_syntaxes, choice)
                reachable = role is None or role.scu or to_peer
                results[context.id] = _judge(context, choice, declared or {}, reachable)
    return list(results.values())


def answered_roles(roles: Mapping[str, Role], results: Iterable[ContextResult]) -> dict[str, Role]:
    """What to answer to role proposals: for accepted abstract syntaxes, the peer is SCU; and SCP of
    what we would send in a C-GET, where a context for that was accepted, too."""
    accepted = {r.abstract_syntax for r in results if r.result is Result.ACCEPTED}
    retrieving = not _GETS.isdisjoint(accepted)
    return {
        uid: Role(role.scu, role.scp and retrieving and uid not in _NEVER_SENT)
        for uid, role in roles.items()
        if uid in accepted
    }


def _choose(transfer_syntaxes: Iterable[str]) -> tuple[str | None, str]:
    """The transfer syntax to accept, if there is one, and the one to name if not."""
    offered = [uid for uid in map(strip_padding, transfer_syntaxes) if uid]
    return choose_transfer_syntax(offered), offered[0] if offered else IMPLICIT_VR_LITTLE_ENDIAN


def _preferring_explicit(
    transfer_syntaxes: Iterable[str], choice: tuple[str | None, str]
) -> tuple[str | None, str]:
    """``choice``, unless Explicit VR Little Endian is offered: nearly everything that we may have
    to send can become that, and seldom is it in what the peer likes best."""
    if EXPLICIT_VR_LITTLE_ENDIAN in map(strip_padding, transfer_syntaxes):
        return EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
    return choice


def _judge_service(context: ProposedContext, abstract: str) -> ContextResult:
    """What is asked and answered is read and written here: uncompressed, little endian."""
    offered = [strip_padding(uid) for uid in context.transfer_syntaxes]
    for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN):
        if syntax in offered:
            return ContextResult(context.id, abstract, syntax, Result.ACCEPTED)
    named = offered[0] if offered else IMPLICIT_VR_LITTLE_ENDIAN
    return ContextResult(context.id, abstract, named, Result.TRANSFER_SYNTAXES_NOT_SUPPORTED)


def _judge(
    context: ProposedContext,
    choice: tuple[str | None, str],
    declared: Mapping[str, str],
    reachable: bool,
) -> ContextResult:
    """``reachable``: somebody may use it, by the roles wanted."""
    abstract = strip_padding(context.abstract_syntax)
    chosen, fallback = choice
    if not is_accepted(abstract, declared.get(abstract)):
        result = Result.ABSTRACT_SYNTAX_NOT_SUPPORTED
    elif chosen is None:
        result = Result.TRANSFER_SYNTAXES_NOT_SUPPORTED
    elif not reachable:
        result = Result.USER_REJECTION
    else:
        result = Result.ACCEPTED
    return ContextResult(context.id, abstract, chosen or fallback, result)


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
    return declared and sop_class not in REGISTERED


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
    entry = REGISTERED.get(uid)
    return entry[0] if entry and entry[0] else uid
