"""Messages as P-DATA-TFs (PS3.8 9.3.5, Annex E), of which nothing is copied. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from plainpacs.archive.buffer import Buffer
from plainpacs.scp.network.dimse import COMMAND_BIT, LAST_BIT

_DATA = struct.Struct(">BxLLBB")
_P_DATA_TF = 4
_VALUE_HEADER = 6
_LONGEST_SENT = 1 << 18
"""Bytes of a PDU to a peer that takes longer ones, or any."""
_SENT_AT_ONCE = 1 << 18


def header(context_id: int, control: int, length: int) -> bytes:
    """What comes before ``length`` bytes that fill a P-DATA-TF with one value; ``control`` is its
    message control header."""
    return _DATA.pack(_P_DATA_TF, length + 6, length + 2, context_id, control)


def command(context_id: int, command_set: bytes, longest_pdu: int) -> bytes:
    """The PDUs of a command set. ``longest_pdu`` is what the peer announced (PS3.8 D.1), 0 for any.

    A peer that announces less than any message can fit in is served in small pieces all the same.
    """
    length = len(command_set)
    step = max(longest_pdu - _VALUE_HEADER, 16) if longest_pdu else length
    if length <= step:
        return header(context_id, COMMAND_BIT | LAST_BIT, length) + command_set
    pieces = [command_set[at : at + step] for at in range(0, length, step)]
    last = len(pieces) - 1
    return b"".join(
        header(context_id, COMMAND_BIT | (LAST_BIT if number == last else 0), len(piece)) + piece
        for number, piece in enumerate(pieces)
    )


def data_set(
    context_id: int, pieces_of_it: Iterable[Buffer], longest_pdu: int
) -> Iterator[tuple[list[Buffer], int]]:
    """The PDUs of a data set, a few at a time: their headers and what goes into them, and how long
    that is without the headers."""
    # What a peer announces may be anything: pieces are held until they fill a PDU.
    longest = min(longest_pdu or _LONGEST_SENT, _LONGEST_SENT)
    step = max(longest - _VALUE_HEADER, 16) & ~1  # fragments have even lengths (PS3.8 E.2)
    full, most = header(context_id, 0, step), max(_SENT_AT_ONCE // step, 1)
    pieces: list[Buffer] = []
    length = 0
    for buffer in pieces_of_it:
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
    yield [header(context_id, LAST_BIT, length), *pieces], length
