"""An established association as services use it: messages out, messages in, and C-CANCEL.

It is the same whichever side asked for the association. A data set that is sent is cut into PDUs of
the length the peer takes, and never copied together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from plainpacs.archive.buffer import Buffer
from plainpacs.scp.network import pdu
from plainpacs.scp.network.connection import Transport
from plainpacs.scp.network.dimse import (
    LAST_BIT,
    RESPONSE,
    Command,
    CommandField,
    Message,
    ProtocolError,
    command_fragments,
)
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.reader import PDU, MessageReader

_LONGEST_SENT = 1 << 18
"""Bytes of a PDU to a peer that takes longer ones, or any."""
_SENT_AT_ONCE = 1 << 18
"""Bytes that the peer has to take within the time for a PDU."""
_VALUE_HEADER = 6


class Channel:
    """``longest_pdu`` is what the peer announced (PS3.8 D.1), 0 for any. Times in seconds.

    Every method may raise ProtocolError, PeerTimeout, ConnectionLost, Stopping and OSError; those
    that read, Ended too.
    """

    def __init__(
        self, connection: Transport, reader: MessageReader, longest_pdu: int, seconds: float
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._seconds = seconds
        self._longest_pdu = longest_pdu
        self._cancelled: set[int] = set()

    @property
    def stopping(self) -> int:
        """The descriptor that is readable once there is nothing more to wait for; negative: none.
        For associations that are asked for on behalf of this one."""
        return self._connection.stopping

    def send(
        self, context_id: int, command_set: bytes, data_set: Iterable[Buffer] | None = None
    ) -> None:
        """Sends a message, with ``data_set`` if its command says that there is one."""
        buffers: list[Buffer] = [
            pdu.data(context_id, fragment)
            for fragment in command_fragments(command_set, self._longest_pdu)
        ]
        if data_set is None:
            self._connection.send_all(buffers, self._seconds)
            return
        waiting = 0
        for pieces, length in self._values(context_id, data_set):
            buffers += pieces
            waiting += length
            if waiting >= _SENT_AT_ONCE:
                self._connection.send_all(buffers, self._seconds)
                buffers, waiting = [], 0
        self._connection.send_all(buffers, self._seconds)

    def send_several(self, context_id: int, command_set: bytes, data_sets: Iterable[bytes]) -> None:
        """Sends messages of the same command set, each with one of the ``data_sets``, together.

        For small ones: they are copied into one piece, which takes a tenth of the time.
        """
        command = b"".join(
            pdu.data(context_id, fragment)
            for fragment in command_fragments(command_set, self._longest_pdu)
        )
        encoded: list[Buffer] = []
        for data_set in data_sets:
            encoded.append(command)
            for pieces, _ in self._values(context_id, (data_set,)):
                encoded += pieces
        self._connection.send(b"".join(encoded), self._seconds)

    def _values(
        self, context_id: int, data_set: Iterable[Buffer]
    ) -> Iterator[tuple[list[Buffer], int]]:
        """P-DATA-TFs, a few at a time: their headers and what goes into them, and how long that is
        without the headers."""
        # What a peer announces may be anything: pieces are held until they fill a PDU.
        longest = min(self._longest_pdu or _LONGEST_SENT, _LONGEST_SENT)
        step = max(longest - _VALUE_HEADER, 16) & ~1  # fragments have even lengths (PS3.8 E.2)
        full, most = pdu.data_header(context_id, 0, step), max(_SENT_AT_ONCE // step, 1)
        pieces: list[Buffer] = []
        length = 0
        for buffer in data_set:
            view = memoryview(buffer).cast("B")
            at = 0
            while at < len(view):
                if length == step:
                    yield [full, *pieces], step
                    pieces, length = [], 0
                # Less than all of it, because the last of all PDUs has another header.
                whole = 0 if length else min((len(view) - at - 1) // step, most)
                if whole:
                    found: list[Buffer] = [full] * (2 * whole)
                    end = at + whole * step
                    found[1::2] = [view[one : one + step] for one in range(at, end, step)]
                    yield found, end - at
                    at = end
                taken = view[at : at + step - length]
                pieces.append(taken)
                length += len(taken)
                at += len(taken)
        yield [pdu.data_header(context_id, LAST_BIT, length), *pieces], length

    def read(self) -> Message:
        """The next message. Its data set is valid until something is read again."""
        message = self._reader.read()
        if isinstance(message, bytes):
            raise Ended(PDU(message[0]))
        return message

    def is_silent_for(self, seconds: float) -> bool:
        """Whether the peer says nothing for so long. What it says is left to be read; the data set
        of the request is valid no more."""
        deadline = time.monotonic() + seconds
        while not self._reader.has_begun():
            try:
                self._connection.wait(deadline - time.monotonic())
            except TimeoutError:
                return True
        return False

    def heed_stop(self) -> None:
        """Raises Stopping once the receiver stops; does not wait."""
        with contextlib.suppress(TimeoutError):
            self._connection.wait(0.0)

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer cancelled its request ``message_id`` (C-CANCEL, PS3.7 9.3.2.3).

        Does not wait; raises Stopping once the receiver stops. The data set of the request is valid
        no more.
        """
        while message_id not in self._cancelled and self._reader.has_begun():
            self._take(self.read())
        self.heed_stop()
        with contextlib.suppress(KeyError):
            self._cancelled.remove(message_id)
            return True
        return False

    def request(
        self,
        context_id: int,
        command_set: bytes,
        message_id: int,
        data_set: Iterable[Buffer] | None = None,
    ) -> Command:
        """Sends a request of ours, with that message id, and gives the response to it."""
        self.send(context_id, command_set, data_set)
        return self.answer(message_id)

    def answer(self, message_id: int) -> Command:
        """The response to the request of ours that was sent with that message id."""
        while True:
            message = self.read()
            command = message.command
            if command.field & RESPONSE and command.message_id == message_id:
                return command
            self._take(message)

    def send_message(
        self, context_id: int, command_set: bytes, data_set: Iterable[Buffer] | None = None
    ) -> None:
        self.send(context_id, command_set, data_set)

    await_answer = answer

    def _take(self, message: Message) -> None:
        """What comes while a service is at work: nothing else is allowed (PS3.7 D.3.3.3)."""
        if message.command.field != CommandField.C_CANCEL_RQ:
            raise ProtocolError("a message came before the last request was answered")
        self._cancelled.add(message.command.message_id)
