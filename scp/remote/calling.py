"""What the commands that call others have in common: whom, as whom, and how failures are said.

A failure names the step that it happened at: connect, TLS, association (all three from
``requestor``), context, or status; and an association that was lost says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from plainpacs.archive.app import settings
from plainpacs.archive.app.ae_address import ae_title
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from plainpacs.archive.errors import BadSettings, PlainpacsError
from plainpacs.scp.network import remote_aes
from plainpacs.scp.network.dimse import ProtocolError
from plainpacs.scp.network.engine import Ended
from plainpacs.scp.network.reader import ConnectionLost, Limits, PeerTimeout
from plainpacs.scp.network.requestor import Node

F = TypeVar("F", bound=Callable[..., Any])

UNCOMPRESSED = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
"""What requests and their identifiers are proposed in."""

LOST = (Ended, ConnectionLost, PeerTimeout, ProtocolError, OSError)
"""What is raised when an association is of no use any more."""


class Failed(PlainpacsError):
    """A peer could not do what was asked. ``step``: context, status, answer, or association."""

    exit_code = 3

    def __init__(self, node: Node, step: str, why: str) -> None:
        super().__init__(f"{node}: {step}: {why}")
        self.step = step
        self.why = why


@dataclass(frozen=True, slots=True)
class Calling:
    """Who calls whom, and how long is waited."""

    node: Node
    ae_title: str
    limits: Limits
    settings: Settings


def options(*more: str) -> Callable[[F], F]:
    """Gives a click command what ``calling`` takes, and the settings ``more``, as keyword
    arguments."""
    named = ("aet", "nodes", "tls_ca", "tls_cert", "tls_key", "max_pdu", "pdu_timeout")

    def decorate(command: F) -> F:
        command = settings.options(*named, "idle_timeout", "default_charset", *more)(command)
        return click.option(
            "--as", "as_", metavar="AET", help="AE title to call as.  [the first of --aet]"
        )(command)

    return decorate


def calling(node: str, as_: str | None, config: str | None, flags: Mapping[str, Any]) -> Calling:
    """From what the user gave; see ``options``. Raises BadSettings."""
    chosen = settings.in_force(flags, config)
    try:
        title = ae_title(as_) if as_ is not None else chosen.aet[0]
    except ValueError as error:
        raise BadSettings(f"--as {as_!r} cannot be: {error}") from None
    limits = Limits(chosen.pdu_timeout, chosen.idle_timeout, chosen.max_pdu)
    return Calling(remote_aes.named(chosen, node), title, limits, chosen)


@contextlib.contextmanager
def saying_what_was_lost(node: Node) -> Iterator[None]:
    """Raises Failed for what ends an association amid a service. To be put around nothing but
    what goes over the association: an OSError may mean other things elsewhere."""
    try:
        yield
    except LOST as error:
        raise Failed(node, "association", lost(error)) from None


def lost(error: BaseException) -> str:
    """How an association was lost, in words."""
    if isinstance(error, Ended):
        return "the peer ended it before it had answered"
    if isinstance(error, ConnectionLost):
        return f"the connection was lost{f': {error}' if str(error) not in ('', 'None') else ''}"
    if isinstance(error, PeerTimeout):
        return f"the peer did not answer: {error}"
    if isinstance(error, ProtocolError):
        return f"the peer broke the protocol: {error}"
    return f"the connection broke: {getattr(error, 'strerror', None) or error}"
