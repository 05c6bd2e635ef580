"""C-ECHO (PS3.4 Annex A): is a peer there, and does it know us?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from plainpacs.scp.network.dimse import CommandField, Element, request
from plainpacs.scp.network.negotiation import VERIFICATION, ProposedContext
from plainpacs.scp.network.peer_status import told
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node, Requestor
from plainpacs.scp.remote.calling import UNCOMPRESSED, Failed, saying_what_was_lost

_CONTEXTS = (ProposedContext(1, VERIFICATION, UNCOMPRESSED),)


def echo(node: Node, calling_ae: str, limits: Limits, times: int = 1) -> Iterator[float]:
    """The seconds that it took to associate (with the connection, and TLS), then those of each
    C-ECHO. Raises NoAssociation, Failed."""
    began = time.monotonic()
    with Requestor.open(node, calling_ae, _CONTEXTS, limits=limits) as association:
        yield time.monotonic() - began
        context = next(iter(association.contexts))
        for number in range(1, times + 1):
            began = time.monotonic()
            elements = {Element.AFFECTED_SOP_CLASS_UID: VERIFICATION}
            asked = request(CommandField.C_ECHO_RQ, number, elements, has_data_set=False)
            with saying_what_was_lost(node):
                answer = association.channel.request(context, asked, number)
                status = answer.status
            if status:
                raise Failed(node, "status", told(CommandField.C_ECHO_RQ, answer))
            yield time.monotonic() - began
