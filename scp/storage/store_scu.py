"""Instances to a peer by C-STORE, one after the other, each on the context that suits it best.

    for sent in deliver(node, "PLAINPACS", instances, limits=limits):
        ...

A data set goes out as it lies on disk wherever the peer takes its transfer syntax; else it is
converted, where that can be, on its way.
"""

from __future__ import annotations

import enum
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pynetdicom.presentation import PresentationContext, PresentationContextTuple

from plainpacs.archive.buffer import Buffer
from plainpacs.archive.errors import UnreadableDataSet
from plainpacs.scp.network.dimse import ProtocolError, store_request
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.exchange import Exchange
from plainpacs.scp.network.negotiation import name_of
from plainpacs.scp.network.reader import ConnectionLost, Limits, PeerTimeout
from plainpacs.scp.network.requestor import NoAssociation, Node, Requestor
from plainpacs.scp.storage.contexts import TARGETS, Batch, batches
from plainpacs.scp.storage.convert import CannotConvert, Converter, can_become
from plainpacs.scp.storage.instance_file import File, Outgoing

_READ_BEFOREHAND = 4 << 20
"""Bytes: what is no longer is read whole before any of it is sent."""
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MOST_LOSSES = 2


class Step(enum.Enum):
    """How far an instance came."""

    FILE = "file"
    """It could not be read."""
    ASSOCIATION = "association"
    """There was none, or it was lost."""
    CONTEXT = "context"
    """The peer takes no transfer syntax that it is in or can be converted to."""
    CONVERSION = "conversion"
    """It could not be converted."""
    STATUS = "status"
    """The peer answered."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of ``instance``. ``status`` is what the peer answered, if it did.

    ``why``: in words of ours, where it did not get so far.
    ``converted``: not in the transfer syntax of the file. ``size``: bytes of the data set.
    """

    instance: Outgoing
    step: Step
    status: int | None = None
    why: str = ""
    converted: bool = False
    size: int = 0

    @property
    def is_success(self) -> bool:
        return self.status == 0

    @property
    def is_warning(self) -> bool:
        """Whether it is stored, but not without a word (PS3.4 B.2.3, PS3.7 C.4)."""
        status = self.status
        return status is not None and (0xB000 <= status <= 0xBFFF or status in _WARNINGS)


_WARNINGS = (0x0001, 0x0107, 0x0116)


OpenFile = Callable[[str, memoryview], File]
"""Opens the file at a path, as ``File`` does with these two."""


class BrokenFile(Exception):
    """The file could not be read to its end amid its being sent: the association must end."""


# --- one association ------------------------------------------------------------------------------


class Sender:
    """Stores instances over ``association``, on those of its ``contexts`` that are for it.

    ``originator``: AE title and message ID of the C-MOVE that they are sent for (PS3.7 9.3.1).
    ``open_file`` may open something else than what lies at the path of an instance.
    """

    def __init__(
        self,
        association: Exchange,
        contexts: Iterable[PresentationContextTuple],
        converter: Converter,
        *,
        originator: tuple[str, int] | None = None,
        priority: int = 0,
        open_file: OpenFile = File,
    ) -> None:
        self._open_file = open_file
        self._association = association
        self._converter = converter
        self._by_class: dict[str, dict[str, PresentationContextTuple]] = {}
        for context in contexts:
            of_class = self._by_class.setdefault(context.abstract_syntax, {})
            of_class.setdefault(context.transfer_syntax, context)
        self._priority, self._originator = priority, originator
        self._messages = 0
        self._ahead: _Ready | None = None
        # Anonymous memory, of which only what is used is ever there.
        self._buffer = memoryview(mmap.mmap(-1, _READ_BEFOREHAND, flags=_ANONYMOUS))

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def send(self, instance: Outgoing, following: Outgoing | None = None) -> Sent:
        """Sends it, and waits for the answer. Raises what the association raises, and BrokenFile.

        ``following``: the one to be sent next, which is read while the peer is busy with this one.
        """
        ready, self._ahead = self._ahead, None
        if ready is None or ready.instance is not instance:
            ready = self._prepared(instance)
        with ready:
            if ready.context is None:
                return ready.outcome
            self._messages = self._messages % 0xFFFF + 1
            command = store_request(
                *(self._messages, instance.sop_class, instance.sop_instance),
                *(self._priority, self._originator),
            )
            self._association.send_message(ready.context.context_id, command, ready.data)
        if following is not None:
            self._ahead = self._prepared(following)
        answer = self._association.await_answer(self._messages)
        return replace(ready.outcome, status=answer.status)

    def _prepared(self, instance: Outgoing) -> _Ready:
        """Raises nothing."""
        if instance.fault:
            return _Ready(_unreadable(instance))
        try:
            file = self._open_file(instance.path, self._buffer)
        except FileNotFoundError:
            return _Ready(Sent(instance, Step.FILE, why="its file is gone"))
        except OSError as error:
            why = f"its file cannot be read: {error.strerror}"
            return _Ready(Sent(instance, Step.FILE, why=why))
        except UnreadableDataSet as error:
            return _Ready(Sent(instance, Step.FILE, why=str(error)))
        ready = self._with_data(instance, file)
        if ready.file is None:
            file.close()
        return ready

    def _with_data(self, instance: Outgoing, file: File) -> _Ready:
        syntax, size = file.transfer_syntax, file.size - file.offset
        context = self._context(instance.sop_class, syntax)
        if context is None:
            why = f"the peer does not take {name_of(instance.sop_class)} in {name_of(syntax)}"
            return _Ready(Sent(instance, Step.CONTEXT, why=why))
        converted = context.transfer_syntax != syntax
        outcome = Sent(instance, Step.STATUS, converted=converted, size=size)
        try:
            if converted:
                pieces = self._converter.convert(file, context.transfer_syntax)
                return _Ready(outcome, context, _guarded(pieces), file)
            if file.size <= len(self._buffer):
                return _Ready(outcome, context, list(file.data_set()))
            return _Ready(outcome, context, _guarded(file.data_set()), file)
        except CannotConvert as error:
            return _Ready(Sent(instance, Step.CONVERSION, why=str(error)))
        except OSError as error:
            why = f"its file cannot be read: {error.strerror or error}"
            return _Ready(Sent(instance, Step.FILE, why=why))

    def _context(self, sop_class: str, syntax: str) -> PresentationContextTuple | None:
        accepted = self._by_class.get(sop_class, {})
        if syntax in accepted:
            return accepted[syntax]
        for target in TARGETS:
            if target in accepted and can_become(syntax, target):
                return accepted[target]
        return None


@dataclass(frozen=True, slots=True)
class _Ready:
    """An instance that can be sent on ``context``, with its data set; or that cannot, and then
    there is none, and the outcome is known. ``file``: what has to stay open until then."""

    outcome: Sent
    context: PresentationContextTuple | None = None
    data: Iterable[Buffer] = ()
    file: File | None = None

    @property
    def instance(self) -> Outgoing:
        return self.outcome.instance

    def __enter__(self) -> _Ready:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _unreadable(instance: Outgoing) -> Sent:
    return Sent(instance, Step.FILE, why=instance.fault)


def _guarded(pieces: Iterator[Buffer]) -> Iterator[Buffer]:
    """What goes wrong amid them is BrokenFile: errors of the disk are not to be taken for errors of
    the connection."""
    try:
        yield from pieces
    except OSError as error:
        raise BrokenFile(str(error)) from error


# --- to a node ------------------------------------------------------------------------------------


def deliver(
    node: Node,
    calling_ae: str,
    instances: Iterable[Outgoing],
    *,
    limits: Limits,
    originator: tuple[str, int] | None = None,
    priority: int = 0,
    stopping: int = -1,
    open_file: OpenFile = File,
) -> Iterator[Sent]:
    """Sends the ``instances`` to ``node``, and tells of each what became of it.

    Over one association for each set of contexts. One that is lost is opened again, and the
    instance in hand sent again; an instance on which two are lost is left out; when nothing comes
    through in between, the rest is given up. Closing the iterator ends the association in hand.
    Raises Stopping.
    """
    instances = list(instances)
    yield from (_unreadable(one) for one in instances if one.fault)
    with Converter() as converter:
        for batch in batches(one for one in instances if not one.fault):
            delivery = _Delivery(node, calling_ae, limits, converter, stopping, open_file)
            yield from delivery.run(batch, originator, priority)


@dataclass(slots=True)
class _Delivery:
    node: Node
    calling_ae: str
    limits: Limits
    converter: Converter
    stopping: int
    open_file: OpenFile
    losses: int = 0
    """Since something came through."""

    def run(
        self, batch: Batch, originator: tuple[str, int] | None, priority: int
    ) -> Iterator[Sent]:
        waiting = deque(batch.instances)
        while waiting:
            try:
                with (
                    self._open(batch.contexts) as association,
                    Sender(
                        association,
                        association.contexts.values(),
                        self.converter,
                        originator=originator,
                        priority=priority,
                        open_file=self.open_file,
                    ) as sender,
                ):
                    while waiting:
                        following = waiting[1] if len(waiting) > 1 else None
                        sent = sender.send(waiting[0], following)
                        self.losses = 0
                        waiting.popleft()
                        try:
                            yield sent
                        except GeneratorExit:
                            return  # whose end is the association's, in order
            except BrokenFile as broken:
                yield Sent(waiting.popleft(), Step.FILE, why=f"its file cannot be read: {broken}")
            except (NoAssociation, PeerTimeout) as error:
                yield from _given_up(waiting, str(error))
                return
            except (ConnectionLost, Ended, ProtocolError, OSError) as error:
                self.losses += 1
                why = f"{self.node}: the association was lost: {_words(error)}"
                if self.losses == _MOST_LOSSES:
                    yield Sent(waiting.popleft(), Step.ASSOCIATION, why=why)
                elif self.losses > _MOST_LOSSES:
                    yield from _given_up(waiting, why)
                    return

    def _open(self, contexts: Sequence[PresentationContext]) -> Requestor:
        return Requestor.open(
            self.node, self.calling_ae, contexts, limits=self.limits, stopping=self.stopping
        )


def _given_up(waiting: deque[Outgoing], why: str) -> Iterator[Sent]:
    while waiting:
        yield Sent(waiting.popleft(), Step.ASSOCIATION, why=why)


def _words(error: BaseException) -> str:
    if isinstance(error, Ended):
        return f"the peer ended it ({error})"
    return str(error) or "the peer closed the connection"
