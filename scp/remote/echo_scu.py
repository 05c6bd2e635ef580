"""C-ECHO (PS3.4 Annex A): is a peer there, and does it know us?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is loaded

from plainpacs.scp.network.peer_status import told
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node, Requestor
from plainpacs.scp.remote.calling import UNCOMPRESSED, Failed, saying_what_was_lost


def echo(node: Node, calling_ae: str, limits: Limits, times: int = 1) -> Iterator[float]:
    """The seconds that it took to associate (with the connection, and TLS), then those of each
    C-ECHO. Raises NoAssociation, Failed."""
    began = time.monotonic()
    context = build_context(Verification, UNCOMPRESSED)
    with Requestor.open(node, calling_ae, [context], limits=limits) as association:
        yield time.monotonic() - began
        for number in range(1, times + 1):
            began = time.monotonic()
            with saying_what_was_lost(node):
                answer = association.send_c_echo(number)
            if answer.Status:
                raise Failed(node, "status", told("C-ECHO", answer))
            yield time.monotonic() - began
