"""Reading messages from a stream that comes in any pieces, valid or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainpacs.scp.network import reader as reading
from plainpacs.scp.network.connection import Connection
from plainpacs.scp.network.dimse import Command, ProtocolError
from plainpacs.scp.network.reader import PDU, ConnectionLost, Limits, MessageReader
from tests.support.peer import DATA, RELEASE_RQ, command, data_set, message, pdu, pdv

LIMITS = Limits(30.0, 300.0, 1 << 20)


class Pieces(Connection):
    """A connection on which exactly these pieces come, then its end.

    ``waits``: each has to be waited for, in no time.
    """

    def __init__(self, pieces: Iterable[bytes], *, waits: bool) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._waits = waits
        self._waited = False

    def wait(self, seconds: float) -> None:
        self._waited = True

    def receive(self, into: memoryview) -> int | None:
        if self._waits and not self._waited:
            return None
        self._waited = False
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        if len(piece) > len(into):
            self._pieces.insert(0, piece[len(into) :])
            piece = piece[: len(into)]
        into[: len(piece)] = piece
        return len(piece)


class Kept:
    """A spill that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.discarded = 0

    def write(self, piece: memoryview) -> None:
        self.data += piece

    def discard(self) -> None:
        self.discarded += 1


def read_all(
    pieces: Iterable[bytes], spills: list[Kept] | None = None, *, waits: bool = False
) -> Iterator[object]:
    """What is read until the end of the association or the connection, as plain values."""

    def spill(context_id: int, command: Command) -> Kept:
        made = Kept()
        if spills is not None:
            spills.append(made)
        return made

    reader = MessageReader(Pieces(pieces, waits=waits), LIMITS, spill)
    try:
        while True:
            found = reader.read()
            if isinstance(found, bytes):
                yield PDU(found[0])
                return
            data = found.data.data if isinstance(found.data, Kept) else found.data
            told = found.command
            whole = None if data is None else bytes(data)
            yield found.context_id, told.field, told.sop_instance, whole
    except ConnectionLost:
        return
    finally:
        reader.close()


ECHO = message(3, command(0x30, b"1.2.840.10008.1.1", None, data=False), None)
DATA_SET = data_set(size=300)
STREAM = b"".join(
    (
        message(1, command(), DATA_SET),
        ECHO,
        message(1, command(sop=b"1.9"), DATA_SET, longest=100),
        # Everything in one PDU, fragments of nothing included, and another message behind it.
        pdu(
            DATA,
            pdv(1, 1, command()[:20])
            + pdv(1, 1, b"")
            + pdv(1, 3, command()[20:])
            + pdv(1, 0, DATA_SET[:9])
            + pdv(1, 0, b"")
            + pdv(1, 0, DATA_SET[9:])
            + pdv(1, 2, b"")
            + pdv(3, 3, command(0x30, b"1.2.840.10008.1.1", None, data=False)),
        ),
        pdu(DATA, b""),
        ECHO,
        pdu(RELEASE_RQ),
    )
)
STORED = (1, 1, "1.2.3.1.1.1", DATA_SET)
ECHOED = (3, 0x30, "", None)
EXPECTED = [STORED, ECHOED, (1, 1, "1.9", DATA_SET), STORED, ECHOED, ECHOED, PDU.RELEASE_RQ]


def test_a_stream_cut_anywhere_reads_the_same() -> None:
    for at in range(len(STREAM) + 1):
        assert list(read_all((STREAM[:at], STREAM[at:]), waits=bool(at % 2))) == EXPECTED


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 12, 13, 64, 1 << 20])
def test_a_stream_in_pieces_of_any_size_reads_the_same(size: int) -> None:
    pieces = (STREAM[at : at + size] for at in range(0, len(STREAM), size))
    assert list(read_all(pieces)) == EXPECTED


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_cut_in_many_places_reads_the_same(cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert list(read_all(pieces)) == EXPECTED


@given(st.data())
def test_no_stream_breaks_the_reader(data: st.DataObject) -> None:
    stream = bytearray(STREAM)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        end = at + data.draw(st.integers(0, 30))
        stream[at:end] = data.draw(st.binary(max_size=40))
        stream = stream or bytearray(1)
    cut = data.draw(st.integers(0, len(stream)))
    with contextlib.suppress(ProtocolError):
        list(read_all((bytes(stream[:cut]), bytes(stream[cut:]))))


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(stream: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        list(read_all((stream,)))


# --- what does not fit in memory ------------------------------------------------------------------


def content(size: int) -> bytes:
    return bytes(number % 251 for number in range(4096)) * (size // 4096) + b"\7" * (size % 4096)


@pytest.mark.parametrize("extra", [-70000, -1, 0, 1, 70001, 3 << 20])
@pytest.mark.parametrize("longest", [16384, 131072, (1 << 20) + 6])
@pytest.mark.parametrize(("piece", "waits"), [(65536, False), (1 << 22, False), (100_000, True)])
def test_large_data_sets_come_whole(extra: int, longest: int, piece: int, waits: bool) -> None:
    large = content(reading.MOST_GATHERED + extra)
    stream = message(1, command(), large, longest)
    stream = ECHO + stream + ECHO + stream + message(1, command(), DATA_SET) + pdu(RELEASE_RQ)
    spills: list[Kept] = []
    pieces = (stream[at : at + piece] for at in range(0, len(stream), piece))
    found = list(read_all(pieces, spills, waits=waits))
    stored = (1, 1, "1.2.3.1.1.1", large)
    assert found == [ECHOED, stored, ECHOED, stored, STORED, PDU.RELEASE_RQ]
    assert all(one.discarded for one in spills)
    assert len(spills) == 2 or (extra < (1 << 18) and not waits)


def test_a_large_data_set_that_ends_early_is_discarded() -> None:
    spills: list[Kept] = []
    stream = message(1, command(), content(6 << 20))[:-100]
    assert list(read_all((stream,), spills)) == []
    assert [one.discarded for one in spills] == [1]


def test_many_messages_at_once_are_read_without_going_beyond_the_buffer() -> None:
    one = message(1, command(), content(50_000), 16384)
    spills: list[Kept] = []
    found = list(read_all((one * 300,), spills))
    assert found == [(1, 1, "1.2.3.1.1.1", content(50_000))] * 300
    assert not spills
