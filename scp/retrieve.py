"""C-MOVE and C-GET: what is asked for goes out, here or elsewhere (PS3.4 C.4.2 and C.4.3).

Both are one course: understand the identifier, find the instances, send them one after the other,
tell how it goes, heed a cancel before each, and end with the counts. They differ in where to: over
the same association, on the contexts whose SCP the peer is, or over associations of our own to a
node of the settings.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import struct
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from plainpacs.archive.errors import BadSettings, PlainpacsError
from plainpacs.scp import nodes
from plainpacs.scp.converting import Converter
from plainpacs.scp.dimse import Element, ProtocolError, Reason, response
from plainpacs.scp.identifiers import BadIdentifier, encode, read
from plainpacs.scp.negotiation import PATIENT_ROOT_GET
from plainpacs.scp.outgoing import Outgoing
from plainpacs.scp.reading import Limits
from plainpacs.scp.requestor import Node
from plainpacs.scp.sending import BrokenFile, Sender, Sent, Step, deliver
from plainpacs.scp.services import Asked
from plainpacs.scp.status import LONGEST_COMMENT
from plainpacs.scp.wanted import NotOfThisModel, instances, read_wanted

_LOG = logging.getLogger("plainpacs.scp")

_PATIENT_ROOTS = (PATIENT_ROOT_GET, "1.2.840.10008.5.1.4.1.2.1.2")
_PROGRESS_SECONDS = 0.5
_MOST_COUNTED = 0xFFFF
_LONGEST_LIST = 0xFFFE
"""Bytes of a UI in explicit VR: about a thousand UIDs."""
_REASONS_LOGGED = 3


class RetrieveStatus(enum.IntEnum):
    """The Status of a C-MOVE-RSP or C-GET-RSP (PS3.4 Tables C.4-2 and C.4-3)."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    CANNOT_CALCULATE_MATCHES = 0xA701
    CANNOT_PERFORM = 0xA702
    DESTINATION_UNKNOWN = 0xA801
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    SOME_FAILED = 0xB000
    CANNOT_READ_IDENTIFIER = 0xC001
    CANCELLED = 0xFE00
    PENDING = 0xFF00


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


def move(asked: Asked) -> bytes | None:
    """Answers a C-MOVE; see ``services.Service``."""
    try:
        node = _destination(asked)
        found = _found(asked)
    except _Refused as refused:
        return _refusal(asked, "C-MOVE", refused)
    settings = asked.settings
    called = asked.caller.called_ae
    sent = deliver(
        node,
        called if called in settings.aet else settings.aet[0],
        found,
        limits=Limits(settings.pdu_timeout, settings.idle_timeout, settings.max_pdu),
        originator=(asked.caller.calling_ae, asked.command.message_id),
        priority=asked.command.number(Element.PRIORITY) or 0,
        stopping=asked.channel.stopping,
    )
    return _run(asked, "C-MOVE", found, sent, node)


def get(asked: Asked) -> bytes | None:
    """Answers a C-GET; see ``services.Service``."""
    try:
        found = _found(asked)
    except _Refused as refused:
        return _refusal(asked, "C-GET", refused)
    return _run(asked, "C-GET", found, _to_the_peer(asked, found))


def _to_the_peer(asked: Asked, found: list[Outgoing]) -> Iterator[Sent]:
    ours = [
        context
        for context in asked.contexts.values()
        if (role := asked.roles.get(context.abstract_syntax)) is not None and role.scp
    ]
    priority = asked.command.number(Element.PRIORITY) or 0
    with (
        Converter() as converter,
        Sender(asked.channel, ours, converter, priority=priority) as sender,
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
    title = asked.command.text(Element.MOVE_DESTINATION)
    try:
        node = nodes.find(asked.settings, title)
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
    if asked.command.sop_class != context.abstract_syntax:
        words = "the SOP Class is not that of the context"
        raise _Refused(RetrieveStatus.SOP_CLASS_NOT_SUPPORTED, words)
    try:
        identifier = read(asked.data, context.transfer_syntax)
        wanted = read_wanted(identifier, patient_root=context.abstract_syntax in _PATIENT_ROOTS)
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


def _refusal(asked: Asked, operation: str, refused: _Refused) -> bytes:
    words = "refused: %s: %04X a %s: %s; %s"
    _LOG.warning(words, asked.caller, refused.status, operation, refused, refused.remedy)
    offending = struct.pack("<HH", refused.tag >> 16, refused.tag & 0xFFFF)
    return response(
        asked.command,
        refused.status,
        str(refused)[:LONGEST_COMMENT],
        more={Element.OFFENDING_ELEMENT: offending} if refused.tag else None,
    )


# --- the course -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Course:
    """How far a retrieve has come."""

    remaining: int
    completed: int = 0
    warned: int = 0
    failed: list[str] = field(default_factory=list)
    """The UIDs of the instances."""
    size: int = 0
    by_study: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, sent: Sent) -> None:
        self.remaining -= 1
        if sent.gone:
            return  # it was removed since: there is nothing to be sent
        counts = self.by_study.setdefault(sent.instance.study, Counter())
        if sent.is_success or sent.is_warning:
            counts["sent"] += 1
            self.size += sent.size
            self.completed += sent.is_success
            self.warned += sent.is_warning
            return
        counts["failed"] += 1
        self.failed.append(sent.instance.sop_instance)
        refused = sent.step is Step.STATUS
        self.reasons[f"the peer answered {sent.status:04X}" if refused else sent.why] += 1

    def status(self) -> RetrieveStatus:
        """At the end."""
        if self.failed and not (self.completed or self.warned):
            return RetrieveStatus.CANNOT_PERFORM
        some = self.failed or self.warned
        return RetrieveStatus.SOME_FAILED if some else RetrieveStatus.SUCCESS

    def counts(self, status: RetrieveStatus) -> dict[Element, int | str | bytes]:
        """Those that a response with this status has; as far as 16 bits go."""
        counts = {
            Element.COMPLETED_SUB_OPERATIONS: self.completed,
            Element.FAILED_SUB_OPERATIONS: len(self.failed),
            Element.WARNING_SUB_OPERATIONS: self.warned,
        }
        if status in (RetrieveStatus.PENDING, RetrieveStatus.CANCELLED):
            counts[Element.REMAINING_SUB_OPERATIONS] = self.remaining
        return {element: min(number, _MOST_COUNTED) for element, number in counts.items()}


def _run(
    asked: Asked,
    operation: str,
    found: list[Outgoing],
    results: Iterator[Sent],
    node: Node | None = None,
) -> bytes | None:
    """Sends what was ``found`` by way of ``results``, and answers."""
    began = time.monotonic()
    course = _Course(len(found))
    how = "broken off"
    try:
        with _closing(results):
            cancelled = _proceed(asked, course, results)
        how = "cancelled" if cancelled else "done"
        return _finish(asked, course, RetrieveStatus.CANCELLED if cancelled else course.status())
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


def _proceed(asked: Asked, course: _Course, results: Iterator[Sent]) -> bool:
    """Whether the peer cancelled what was left."""
    channel, message_id = asked.channel, asked.command.message_id
    if channel.is_cancelled(message_id):
        return True
    told = -_PROGRESS_SECONDS
    for sent in results:
        course.add(sent)
        if not course.remaining:
            continue  # so that ``results`` comes to its end
        if channel.is_cancelled(message_id):
            return True
        now = time.monotonic()
        if now - told >= _PROGRESS_SECONDS:
            told = now
            pending = RetrieveStatus.PENDING
            command = response(asked.command, pending, more=course.counts(pending))
            channel.send(asked.context.id, command)
    return False


def _finish(asked: Asked, course: _Course, status: RetrieveStatus) -> bytes | None:
    """The last response, with the Failed SOP Instance UID List if there is one."""
    failed = _list_of(course.failed)
    comment = ""
    if status is RetrieveStatus.CANNOT_PERFORM:
        (why, _) = course.reasons.most_common(1)[0]
        comment = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in why)
    command = response(
        asked.command,
        status,
        comment[:LONGEST_COMMENT].rstrip(),
        has_data_set=bool(failed),
        more=course.counts(status),
    )
    if not failed:
        return command
    data = encode({"FailedSOPInstanceUIDList": failed}, asked.context.transfer_syntax)
    asked.channel.send(asked.context.id, command, [data])
    return None


def _list_of(uids: list[str]) -> list[str]:
    """As many of them as one element can hold."""
    length = 0
    for number, uid in enumerate(uids):
        length += len(uid) + 1
        if length > _LONGEST_LIST:
            return uids[:number]
    return uids


def _keep_books(asked: Asked, operation: str, course: _Course, node: Node | None) -> None:
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
