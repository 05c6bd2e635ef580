"""What one peer can take from the others: places, by silence."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.support.peer import (
    ABORT,
    ACCEPT,
    CT,
    EVRLE,
    REJECT,
    Peer,
    context_item,
    data_set,
)
from tests.support.receiver import Start, wait_until

CONTEXT = context_item(1, CT, [EVRLE])

# --- places ---------------------------------------------------------------------------------------


def test_who_sends_nothing_has_the_time_of_a_pdu(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    running = start(pdu_timeout=0.4, idle_timeout=20.0)
    with Peer(running.port) as silent, Peer(running.port) as busy:
        assert busy.echo() == 0
        began = time.monotonic()
        assert silent.receive()[0] == ABORT
        assert time.monotonic() - began < 5
        wait_until(lambda: "silent for 0.4 s (--pdu-timeout)" in caplog.text)
        assert busy.echo() == 0  # which said something once


def test_after_the_first_message_silence_is_idle(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    running = start(pdu_timeout=0.2, idle_timeout=0.8)
    with Peer(running.port) as peer:
        assert peer.store(data_set()) == 0
        began = time.monotonic()
        assert peer.receive()[0] == ABORT
        assert time.monotonic() - began > 0.6
        wait_until(lambda: "silent for 0.8 s (--idle-timeout)" in caplog.text)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"max_associations": 6}, 3),
        ({"max_associations": 5}, 3),
        ({"max_associations": 1}, 1),
        ({"max_associations": 6, "max_associations_per_peer": 5}, 5),
    ],
)
def test_one_address_has_half_of_the_places(
    start: Start, settings: dict[str, int], most: int
) -> None:
    running = start(**settings)
    with contextlib.ExitStack() as stack:
        for _ in range(most):
            peer = stack.enter_context(Peer(running.port, source="127.0.0.2"))
            assert peer.answer[0] == ACCEPT
        peer = stack.enter_context(Peer(running.port, source="127.0.0.2"))
        assert peer.answer[0] == REJECT
        if most < settings["max_associations"]:
            other = stack.enter_context(Peer(running.port, source="127.0.0.3"))
            assert other.echo() == 0
