"""C-FIND: queries of the Patient Root and Study Root models, on all levels (PS3.4 C.4.1).

``question`` understands what is asked, ``indexer.levels`` finds it, ``answers`` writes it down, and
the answers go out as they are found. Nothing is held but the few that are sent together, so that
the first comes at once, and a peer that cancels gets few more.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Iterator

from pynetdicom.service_class import QueryRetrieveServiceClass

from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.identifier import BadIdentifier, read
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import NotAnArchive
from plainpacs.indexer.index import catalogue
from plainpacs.indexer.index.merge import Record
from plainpacs.indexer.query import find
from plainpacs.indexer.query.query import Condition, Query, values_of
from plainpacs.scp.network.dimse import find_response
from plainpacs.scp.query_retrieve.find_request import CannotMatch, Question, read_question
from plainpacs.scp.query_retrieve.find_response import Template
from plainpacs.scp.query_retrieve.model import UNIQUE_KEYS, NotOfThisModel
from plainpacs.scp.receiver.services import Asked

_LOG = logging.getLogger("plainpacs.scp")

_PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
_RELATIONAL, _COMBINED = 0, 1
"""The bytes of extended negotiation (PS3.4 C.5.1.1)."""

_MOST_TOGETHER = 50
"""Answers that go out, at most, before it is looked whether the peer cancelled."""
_BYTES_TOGETHER = 1 << 16
_SECONDS_TOGETHER = 0.05


class FindStatus(enum.IntEnum):
    """The Status of a C-FIND-RSP (PS3.4 Table C.4-1); which of the codes ``Cxxx`` means what is for
    each implementation to say."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    CANNOT_READ_IDENTIFIER = 0xC001
    CANNOT_MATCH_VALUE = 0xC002
    CANCELLED = 0xFE00
    PENDING = 0xFF00
    PENDING_KEYS_NOT_SUPPORTED = 0xFF01


class _Refused(Exception):
    """The query ends with this status. The words are ours alone; ``tag``: of the element that is
    wrong, 0 when none is."""

    def __init__(self, status: FindStatus, words: str, tag: int = 0) -> None:
        super().__init__(words)
        self.status = status
        self.tag = tag


class Find(Asked, QueryRetrieveServiceClass):
    """Answers a C-FIND."""

    def serve(self) -> None:
        catalogue.remember()
        began = time.monotonic()
        try:
            question = _understood(self)
            if question.missing:
                self.note_once(
                    f"a query at level {question.level.value} without one {question.missing}, "
                    "answered as relational; flag to refuse it: --strict-queries"
                )
            number, cancelled = _answer(self, question)
        except _Refused as refused:
            words = "refused: %s: %04X a query: %s; no flag changes it"
            _LOG.warning(words, self.caller, refused.status, refused)
            self.answer(refused.status, str(refused), tag=refused.tag)
            return
        _LOG.debug(
            "query: %s: %d answers at level %s in %.3f s%s",
            self.caller,
            number,
            question.level.value,
            time.monotonic() - began,
            ", then cancelled" if cancelled else "",
        )
        self.answer(FindStatus.CANCELLED if cancelled else FindStatus.SUCCESS)


def _understood(asked: Asked) -> Question:
    if asked.request.AffectedSOPClassUID != asked.context.abstract_syntax:
        words = "the SOP Class is not that of the context"
        raise _Refused(FindStatus.SOP_CLASS_NOT_SUPPORTED, words)
    titles = asked.settings.aet
    title = asked.caller.called_ae if asked.caller.called_ae in titles else titles[0]
    try:
        return read_question(
            read(asked.data, asked.context.transfer_syntax, default_for(asked.caller.calling_ae)),
            title,
            patient_root=asked.context.abstract_syntax == _PATIENT_ROOT,
            relational=_is_agreed(asked, _RELATIONAL),
            combined=_is_agreed(asked, _COMBINED),
            strict=asked.settings.strict_queries == "on",
        )
    except BadIdentifier as error:
        raise _Refused(FindStatus.CANNOT_READ_IDENTIFIER, str(error), error.tag) from None
    except NotOfThisModel as error:
        raise _Refused(FindStatus.IDENTIFIER_DOES_NOT_MATCH, str(error), error.tag) from None
    except CannotMatch as error:
        raise _Refused(FindStatus.CANNOT_MATCH_VALUE, str(error), error.tag) from None


def _is_agreed(asked: Asked, what: int) -> bool:
    return asked.agreed[what : what + 1] == b"\1"


# --- the answers ----------------------------------------------------------------------------------


def _answer(asked: Asked, question: Question) -> tuple[int, bool]:
    """How many answers were sent, and whether the peer cancelled the rest."""
    association, context = asked.assoc, asked.context
    message_id = asked.request.MessageID
    status = FindStatus.PENDING if question.complete else FindStatus.PENDING_KEYS_NOT_SUPPORTED
    pending = find_response(context.abstract_syntax, message_id, status)
    template = Template(
        question.columns,
        question.repertoire,
        asked.archive.root,
        explicit=context.transfer_syntax == EXPLICIT_VR_LITTLE_ENDIAN,
    )
    number, together = 0, 1
    answers: list[bytes] = []
    size, since = 0, time.monotonic()
    for record in _records(asked, question):
        answers.append(template.encode(record))
        size += len(answers[-1])
        late = time.monotonic() - since > _SECONDS_TOGETHER
        if len(answers) < together and size < _BYTES_TOGETHER and not late:
            continue
        if asked.is_cancelled(message_id):
            return number, True
        association.send_several(context.id, pending, answers)
        number += len(answers)
        together = min(2 * together, _MOST_TOGETHER)
        answers, size, since = [], 0, time.monotonic()
    if asked.is_cancelled(message_id):
        return number, True
    if answers:
        association.send_several(context.id, pending, answers)
    return number + len(answers), False


def _records(asked: Asked, question: Question) -> Iterator[Record]:
    """Raises _Refused when the archive cannot be read."""
    root = asked.archive.root
    query, below = question.query(), question.query_below()
    unique = UNIQUE_KEYS[question.level]
    try:
        chosen = None
        if below is not None:
            chosen = {record.get(unique) for record in find.find(root, below, _note)}
        for record in find.find(root, query, _note):
            if chosen is None or record.get(unique) in chosen:
                yield _as_asked(record, query)
    except (NotAnArchive, OSError):
        words = "the archive cannot be read"
        raise _Refused(FindStatus.OUT_OF_RESOURCES, words) from None


def _note(words: str) -> None:
    _LOG.info("query: %s", words)


def _as_asked(record: Record, query: Query) -> Record:
    """Where instances of a study disagree, the value that matches instead of the one most have: an
    answer has to match what was asked."""
    marks = record.get("by_another_value", ())
    for condition in query.conditions:
        if isinstance(condition, Condition) and condition.keywords[0] in marks:
            keyword = condition.keywords[0]
            for value in values_of(record, keyword):
                if condition.met_by({keyword: value}):
                    record[keyword] = value
                    break
    return record
