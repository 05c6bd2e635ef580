"""C-MOVE and C-GET: what is asked for goes out, here or elsewhere (PS3.4 C.4.2 and C.4.3).

Both are one course: understand the identifier, find the instances, send them one after the other,
tell how it goes, heed a cancel before each, and end with the counts. They differ in where to: over
the same association, on the contexts whose SCP the peer is, or over associations of our own to a
node of the settings.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import zip_longest

from pynetdicom.service_class import QueryRetrieveServiceClass

from plainpacs.archive.dicom.charset import default_for
from plainpacs.archive.dicom.identifier import BadIdentifier, read
from plainpacs.archive.dicom.identifier_writing import encode
from plainpacs.archive.errors import BadSettings, PlainpacsError
from plainpacs.scp.network import remote_aes
from plainpacs.scp.network.dimse import ProtocolError, Reason
from plainpacs.scp.network.negotiation import PATIENT_ROOT_GET
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node
from plainpacs.scp.query_retrieve.model import NotOfThisModel
from plainpacs.scp.query_retrieve.retrieve_progress import Course, RetrieveStatus
from plainpacs.scp.query_retrieve.retrieve_request import instances, read_wanted
from plainpacs.scp.receiver.services import Asked
from plainpacs.scp.storage.convert import Converter
from plainpacs.scp.storage.instance_file import Outgoing
from plainpacs.scp.storage.store_scu import BrokenFile, Sender, Sent, deliver

_LOG = logging.getLogger("plainpacs.scp")

_PATIENT_ROOTS = (PATIENT_ROOT_GET, "1.2.840.10008.5.1.4.1.2.1.2")
_PROGRESS_SECONDS = 0.5
_REASONS_LOGGED = 3


class _Refused(Exception):
    """The retrieve ends with this status before anything is sent. The words are ours alone;
    ``tag``: of the element that is wrong, 0 when none is."""

    def __init__(
        self, status: RetrieveStatus, words: str, remedy: str = "no flag changes it", tag: int = 0
    ) -> None:
        super().__init__(words)
        self.status = status
        self.remedy = remedy
        self.tag = tag


class Move(Asked, QueryRetrieveServiceClass):
    """Answers a C-MOVE."""

    def serve(self) -> None:
        try:
            node = _destination(self)
            found = _found(self)
        except _Refused as refused:
            _refuse(self, "C-MOVE", refused)
            return
        settings = self.settings
        called = self.caller.called_ae
        sent = deliver(
            node,
            called if called in settings.aet else settings.aet[0],
            found,
            limits=Limits(settings.pdu_timeout, settings.idle_timeout, settings.max_pdu),
            originator=(self.caller.calling_ae, self.request.MessageID),
            priority=self.request.Priority,
            stopping=self.assoc.connection.stopping,
        )
        _run(self, "C-MOVE", found, sent, node)


class Get(Asked, QueryRetrieveServiceClass):
    """Answers a C-GET."""

    def serve(self) -> None:
        try:
            found = _found(self)
        except _Refused as refused:
            _refuse(self, "C-GET", refused)
        else:
            _run(self, "C-GET", found, _to_the_peer(self, found))


def _to_the_peer(asked: Asked, found: list[Outgoing]) -> Iterator[Sent]:
    ours = [context.as_tuple for context in asked.assoc.accepted_contexts if context.as_scu]
    priority = asked.request.Priority
    with (
        Converter() as converter,
        Sender(asked.assoc, ours, converter, priority=priority) as sender,
    ):
        for one, following in zip_longest(found, found[1:]):
            try:
                sent = sender.send(one, following)
            except BrokenFile as broken:
                words = f"an instance cannot be read to its end: {broken}"
                raise ProtocolError(words, Reason.NOT_SPECIFIED) from broken
            yield sent


# --- what is asked --------------------------------------------------------------------------------


def _destination(asked: Asked) -> Node:
    title = str(asked.request.MoveDestination or "")
    try:
        node = remote_aes.find(asked.settings, title)
    except BadSettings as error:
        words = "the destination's certificates cannot be used"
        raise _Refused(RetrieveStatus.CANNOT_PERFORM, words, str(error)) from None
    if node is None:
        shown = title if title.isascii() and title.isprintable() else "?"
        words = "the Move Destination is unknown"
        remedy = f"flag to add it: --nodes {shown}@HOST:PORT"
        raise _Refused(RetrieveStatus.DESTINATION_UNKNOWN, words, remedy)
    return node


def _found(asked: Asked) -> list[Outgoing]:
    context = asked.context
    if asked.request.AffectedSOPClassUID != context.abstract_syntax:
        words = "the SOP Class is not that of the context"
        raise _Refused(RetrieveStatus.SOP_CLASS_NOT_SUPPORTED, words)
    try:
        identifier = read(asked.data, context.transfer_syntax, default_for(asked.caller.calling_ae))
        wanted = read_wanted(
            identifier,
            patient_root=context.abstract_syntax in _PATIENT_ROOTS,
            strict=asked.settings.strict_queries == "on",
        )
    except BadIdentifier as error:
        status = RetrieveStatus.CANNOT_READ_IDENTIFIER
        raise _Refused(status, str(error), tag=error.tag) from None
    except NotOfThisModel as error:
        status = RetrieveStatus.IDENTIFIER_DOES_NOT_MATCH
        raise _Refused(status, str(error), tag=error.tag) from None
    try:
        return list(instances(asked.archive.root, wanted, _LOG.warning))
    except (OSError, PlainpacsError, MemoryError) as error:
        words = "the archive cannot be read now"
        remedy = error.strerror if isinstance(error, OSError) else str(error)
        raise _Refused(RetrieveStatus.CANNOT_CALCULATE_MATCHES, words, remedy or "?") from None


def _refuse(asked: Asked, operation: str, refused: _Refused) -> None:
    words = "refused: %s: %04X a %s: %s; %s"
    _LOG.warning(words, asked.caller, refused.status, operation, refused, refused.remedy)
    asked.answer(refused.status, str(refused), tag=refused.tag)


# --- the course -----------------------------------------------------------------------------------


def _run(
    asked: Asked,
    operation: str,
    found: list[Outgoing],
    results: Iterator[Sent],
    node: Node | None = None,
) -> None:
    """Sends what was ``found`` by way of ``results``, and answers."""
    began = time.monotonic()
    course = Course(len(found))
    how = "broken off"
    try:
        with _closing(results):
            cancelled = _proceed(asked, course, results)
        how = "cancelled" if cancelled else "done"
        _finish(asked, course, RetrieveStatus.CANCELLED if cancelled else course.status())
    except BaseException:
        if course.remaining and node is None:  # it may have come all the same
            course.by_study.setdefault(found[-course.remaining].study, Counter())["unanswered"] += 1
        raise
    finally:
        _keep_books(asked, operation, course, node)
        to = f" to {node}" if node else ""
        _LOG.info(
            "retrieve %s: %s: %s%s: %d sent, %d failed, %d left, %.1f MB in %.1f s",
            *(how, asked.caller, operation, to, course.completed + course.warned),
            *(len(course.failed), course.remaining, course.size / 1e6, time.monotonic() - began),
        )
        for why, number in course.reasons.most_common(_REASONS_LOGGED):
            _LOG.warning("not sent: %s: %d instances: %s", asked.caller, number, why)


@contextlib.contextmanager
def _closing(results: Iterator[Sent]) -> Iterator[None]:
    """Whatever happens, an association of our own ends with it."""
    try:
        yield
    finally:
        if isinstance(results, Generator):
            results.close()


def _proceed(asked: Asked, course: Course, results: Iterator[Sent]) -> bool:
    """Whether the peer cancelled what was left."""
    message_id = asked.request.MessageID
    if asked.is_cancelled(message_id):
        return True
    told = -_PROGRESS_SECONDS
    for sent in results:
        course.add(sent)
        if not course.remaining:
            continue  # so that ``results`` comes to its end
        if asked.is_cancelled(message_id):
            return True
        now = time.monotonic()
        if now - told >= _PROGRESS_SECONDS:
            told = now
            pending = RetrieveStatus.PENDING
            asked.answer(pending, more=course.counts(pending))
    return False


def _finish(asked: Asked, course: Course, status: RetrieveStatus) -> None:
    """The last response, with the Failed SOP Instance UID List if there is one."""
    failed = course.failed_list()
    comment, identifier = "", b""
    if status is RetrieveStatus.CANNOT_PERFORM:
        (why, _) = course.reasons.most_common(1)[0]
        comment = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in why)
    if failed:
        identifier = encode({"FailedSOPInstanceUIDList": failed}, asked.context.transfer_syntax)
    asked.answer(status, comment, identifier=identifier, more=course.counts(status))


def _keep_books(asked: Asked, operation: str, course: Course, node: Node | None) -> None:
    """What of which study went to whom, into the audit log."""
    for study, counts in course.by_study.items():
        asked.archive.audit.write(
            "retrieved",
            what=operation,
            **asked.caller.log_fields(),
            destination=str(node) if node else None,
            StudyInstanceUID=study,
            **counts,
        )
