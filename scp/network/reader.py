"""Reading a peer: from the bytes of its PDUs to whole messages (PS3.8 9.3.5 and Annex E).

This is the path that every byte of every instance takes, and nothing else about associations. The
bytes are received into one buffer; the fragments of a data set are moved together in it, over the
headers between them, and handed on from there: whole when it is small, else piece by piece, when
there is time because the peer is slower, or when there is no room. What a peer claims of lengths is
checked before it counts.
"""

from __future__ import annotations

import enum
import mmap
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from plainpacs.scp.network.connection import Transport
from plainpacs.scp.network.dimse import (
    COMMAND_BIT,
    LAST_BIT,
    LONGEST_COMMAND,
    Command,
    Message,
    ProtocolError,
    Reason,
    Spill,
    read_command,
)

HEADER = struct.Struct(">BxL")
"""Type and length of what follows: the first six bytes of every PDU."""
_VALUE = struct.Struct(">LBB")
"""Length, context id and message control header of a presentation data value."""

MOST_GATHERED = 4 << 20
"""Bytes of a data set that are held in memory before it is spilled."""
_SPILLED_AT_ONCE = 1 << 20
_HANDED_ON_IN_WAITING = 1 << 17
_RECEIVED_AT_ONCE = 1 << 18
_LONGEST_REQUEST = 1 << 20
_TLS_HANDSHAKE = 22
"""What a TLS client's first byte is (RFC 8446 5.1); no PDU has it."""
# 128 contexts with all syntaxes fit in it, and so does any fragment of a command.
_BUFFER = MOST_GATHERED + _RECEIVED_AT_ONCE


class PDU(enum.IntEnum):
    """The types of PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


ABORT_BY_USER = HEADER.pack(PDU.ABORT, 4) + bytes(4)
"""An A-ABORT because we want to end; the reason means nothing then (PS3.8 9.3.8)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer has to keep to. Times in seconds, lengths in bytes."""

    pdu_timeout: float
    """For a PDU, from its first byte; and for an association to be requested (ARTIM)."""
    idle_timeout: float
    announced_pdu: int

    @property
    def longest_pdu(self) -> int:
        # Some senders count the PDU's own header, or that of a value, as outside the limit.
        return self.announced_pdu + 64


class PeerTimeout(Exception):
    """The peer let a deadline pass: ``idle`` between PDUs, else within one."""

    def __init__(self, words: str, *, idle: bool) -> None:
        super().__init__(words)
        self.idle = idle


class ConnectionLost(Exception):
    """The peer closed the connection, or it broke."""


class MessageReader:
    """What one peer sends. ``spill`` gives where a data set goes to that is handed on in pieces.

    Every method may raise ProtocolError, PeerTimeout, ConnectionLost and Stopping.
    """

    def __init__(
        self,
        connection: Transport,
        limits: Limits,
        spill: Callable[[int, Command], Spill],
        ends: Collection[PDU] = (PDU.RELEASE_RQ, PDU.ABORT),
    ) -> None:
        """``ends``: the PDUs other than P-DATA-TF that an association may go on with."""
        self._connection = connection
        self._ends = ends
        self._limits, self._flag = limits, "--idle-timeout"
        self._begin_spill = spill
        self._view = _take_buffer()
        self._full = MOST_GATHERED
        self._at = self._end = 0  # received and not read yet
        self._data = self._data_end = 0  # the data set gathered so far, always before that
        self._pdu_left = 0  # bytes of the current P-DATA-TF not read yet
        self._deadline = 0.0  # of the current PDU; 0.0 as long as it was not waited for
        self._context_id = 0
        self._command: Command | None = None
        self._spill: Spill | None = None

    def close(self) -> None:
        """Leaves nothing of a data set that was not whole, and reads no more."""
        self._drop()
        view, self._view = self._view, memoryview(b"")
        if len(_SPARE) < _MOST_SPARE:
            _SPARE.append(view)

    def _drop(self) -> None:
        if self._spill is not None:
            self._spill.discard()
            self._spill = None

    def read_first(self, kinds: Collection[int], most: int | None = None) -> bytes:
        """The whole PDU that asks for an association, or answers ours: one of these ``kinds``.

        Of one that is longer than ``most`` its beginning, after which nothing more can be read.
        """
        self._deadline = time.monotonic() + self._limits.pdu_timeout
        self._need(HEADER.size)
        kind, length = HEADER.unpack_from(self._view, self._at)
        if kind == _TLS_HANDSHAKE:
            raise ProtocolError(
                "TLS came to a port without; serve with --tls-cert, or set the peer to no TLS"
            )
        if kind not in kinds:
            raise _unexpected(kind, "before an association")
        if length > _LONGEST_REQUEST:
            raise ProtocolError(f"a PDU of {length} bytes before an association")
        if most is not None:
            length = min(length, most - HEADER.size)
        return self._whole(length)

    def expect_within(self, idle: float, flag: str = "--pdu-timeout") -> None:
        """From now on the peer may be silent for so long only; ``flag`` says so in words."""
        self._limits, self._flag = replace(self._limits, idle_timeout=idle), flag

    def has_begun(self) -> bool:
        """Whether something of the next message has come. Does not wait; as of ``read``, the data
        set before is valid no more."""
        if self._at != self._end or self._pdu_left:
            return True
        self._data = self._data_end = self._at = self._end = 0
        try:
            got = self._connection.receive(self._view[:_RECEIVED_AT_ONCE])
        except OSError as error:
            raise ConnectionLost(error.strerror) from None
        if got is None:
            return False
        if not got:
            raise ConnectionLost
        self._end = got
        return True

    def read(self) -> Message | bytes:
        """The next message, or the whole of another PDU: one of ``ends``.

        The data set is valid until the next call.
        """
        self._drop()
        self._full = MOST_GATHERED
        self._command = None
        self._data = self._data_end = self._at
        encoded = b""
        while True:
            while not self._pdu_left:
                control = self._begin_pdu()
                if control is not None:
                    return control
            context_id, header, length = self._begin_value()
            if header & COMMAND_BIT:
                if self._command is not None:
                    raise ProtocolError("a command came before the data set was complete")
                if encoded and context_id != self._context_id:
                    raise ProtocolError("fragments of one command came on different contexts")
                if len(encoded) + length > LONGEST_COMMAND:
                    raise ProtocolError("a command set is longer than any can be")
                self._context_id = context_id
                self._need(length)
                encoded += self._view[self._at : self._at + length]
                self._at += length
                self._pdu_left -= length
                if not header & LAST_BIT:
                    continue
                self._command = read_command(encoded)
                if not self._command.has_data_set:
                    return Message(context_id, self._command, None)
                self._data = self._data_end = self._at
            else:
                if self._command is None:
                    raise ProtocolError("a data set came without a command")
                if context_id != self._context_id:
                    raise ProtocolError("a data set came on another context than its command")
                self._gather(length)
                if header & LAST_BIT:
                    return Message(context_id, self._command, self._data_set())

    # --- headers ------------------------------------------------------------------------------

    def _begin_pdu(self) -> bytes | None:
        self._deadline = 0.0
        self._need(HEADER.size)
        kind, length = HEADER.unpack_from(self._view, self._at)
        if kind == PDU.P_DATA_TF:
            if length > self._limits.longest_pdu:
                raise ProtocolError(f"a P-DATA PDU of {length} bytes")
            self._pdu_left = length
            self._at += HEADER.size
            return None
        if kind not in self._ends:
            raise _unexpected(kind, "within an association")
        if length != 4:
            raise ProtocolError(f"a PDU of type {kind} and {length} bytes")
        return self._whole(length)

    def _whole(self, length: int) -> bytes:
        """The PDU that begins here, with ``length`` bytes behind its header."""
        self._need(HEADER.size + length)
        begin = self._at
        self._at += HEADER.size + length
        return bytes(self._view[begin : self._at])

    def _begin_value(self) -> tuple[int, int, int]:
        """Context id, message control header and length of the next fragment."""
        if self._pdu_left < _VALUE.size:
            raise ProtocolError("a PDU ends within a presentation data value")
        self._need(_VALUE.size)
        length, context_id, header = _VALUE.unpack_from(self._view, self._at)
        if length < 2 or length + 4 > self._pdu_left:
            raise ProtocolError("a presentation data value has an impossible length")
        self._at += _VALUE.size
        self._pdu_left -= _VALUE.size
        return context_id, header, length - 2

    # --- bytes --------------------------------------------------------------------------------

    def _gather(self, length: int) -> None:
        """Adds the next ``length`` bytes to the data set."""
        while length:
            if self._at == self._end:
                self._receive()
            taken = min(self._end - self._at, length)
            if self._data_end != self._at:
                self._view[self._data_end : self._data_end + taken] = self._view[
                    self._at : self._at + taken
                ]
            self._data_end += taken
            self._at += taken
            self._pdu_left -= taken
            length -= taken

    def _data_set(self) -> memoryview | Spill:
        if self._spill is None:
            return self._view[self._data : self._data_end].toreadonly()
        self._spill.write(self._view[self._data : self._data_end])
        return self._spill

    def _need(self, length: int) -> None:
        while self._end - self._at < length:
            self._receive()

    def _receive(self) -> None:
        """Receives something, behind what is there."""
        if self._at == self._end:
            # Nothing is between: straight to where it belongs, if it goes on with the data set.
            if self._data == self._data_end:
                self._data = self._data_end = 0
            self._at = self._end = self._data_end
        if self._end >= self._full:
            self._make_room()
        into = self._view[self._end : self._end + _RECEIVED_AT_ONCE]
        try:
            while (got := self._connection.receive(into)) is None:
                self._wait()
        except OSError as error:
            raise ConnectionLost(error.strerror) from None
        if not got:
            raise ConnectionLost
        self._end += got

    def _make_room(self) -> None:
        """Hands a large data set on, and moves what is still needed to the beginning."""
        if self._data_end - self._data >= self._full // 2:
            self._hand_on()
        if self._data == self._data_end:
            self._data = self._data_end = self._at
        moved = self._data
        self._view[: self._end - moved] = self._view[moved : self._end]
        self._data, self._data_end = 0, self._data_end - moved
        self._at, self._end = self._at - moved, self._end - moved

    def _hand_on(self) -> None:
        """Hands on what is gathered of the data set."""
        assert self._command is not None, "it announced the data set"
        if self._spill is None:
            self._spill = self._begin_spill(self._context_id, self._command)
            self._full = _SPILLED_AT_ONCE
        self._spill.write(self._view[self._data : self._data_end])
        self._data = self._data_end

    def _wait(self) -> None:
        """Waits for more, as long as the peer may take."""
        if self._data_end - self._data >= _HANDED_ON_IN_WAITING:
            # Writing and hashing costs nothing while the peer is busy too: between the last byte of
            # a CT slice and its answer lie 0.7 ms instead of 1.6.
            self._hand_on()
            return
        begun = self._pdu_left or self._at != self._end
        if begun and not self._deadline:
            self._deadline = time.monotonic() + self._limits.pdu_timeout
        pdu, idle = self._limits.pdu_timeout, self._limits.idle_timeout
        try:
            self._connection.wait(self._deadline - time.monotonic() if self._deadline else idle)
        except TimeoutError:
            if begun:
                words = f"a PDU did not arrive within {pdu:g} s (--pdu-timeout)"
            else:
                words = f"silent for {pdu if self._deadline else idle:g} s ({self._flag})"
            raise PeerTimeout(words, idle=not begun) from None


_SPARE: list[memoryview] = []
_MOST_SPARE = 2


def _take_buffer() -> memoryview:
    """Memory for one reader. That of an earlier one, if there is any: its pages are there, and in
    the processor's cache, where a sender opens one association for each instance."""
    try:
        return _SPARE.pop()
    except IndexError:
        # Anonymous memory, of which only what is used is ever there.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return memoryview(mmap.mmap(-1, _BUFFER, flags=flags))


def _unexpected(kind: int, when: str) -> ProtocolError:
    if kind in PDU.__members__.values():
        return ProtocolError(f"a PDU of type {kind} {when}", Reason.UNEXPECTED_PDU)
    return ProtocolError(f"a PDU of unknown type {kind}", Reason.UNRECOGNIZED_PDU)
