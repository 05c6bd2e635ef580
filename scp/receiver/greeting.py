"""What a receiver says of itself: where it listens, as whom, and who may send and query."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from plainpacs.archive.app.ae_address import Address
from plainpacs.archive.app.settings import Settings

_NAMES_SHOWN = 5


def greeting(root: str, settings: Settings, port: int) -> str:
    """What is said on start: where, as whom, to whom, and a client's command line that works."""
    listening = f"{settings.bind or 'all addresses'}, port {port}"
    called = "any called AE title" if settings.called_ae == "any" else "or called ANY-SCP"
    return "\n".join(
        (
            f"plainpacs serves {root}",
            f"as {', '.join(settings.aet)} ({called}) on {listening} of {socket.gethostname()}",
            f"may send: {_senders(settings)}",
            f"may query and retrieve: {_queriers(settings)}",
            f"try: {storescu_line(settings, port)}",
        )
    )


def storescu_line(settings: Settings, port: int) -> str:
    """A command that sends a file, spelled so that DCMTK's storescu takes it and pynetdicom's."""
    caller = f" -aet {settings.calling_ae[0]}" if settings.calling_ae else ""
    if settings.tls_cert:  # DCMTK's storescu; pynetdicom's speaks no TLS
        shown = " +tls KEY.pem CERTIFICATE.pem" if settings.tls_verify == "on" else " +tla"
        caller = f"{shown} +cf CA.pem{caller}"
    return f"storescu{caller} -aec {settings.aet[0]} {settings.bind or '127.0.0.1'} {port} FILE"


def _senders(settings: Settings) -> str:
    who = f"AE title {_few(settings.calling_ae)}" if settings.calling_ae else "any application"
    if settings.allow_peers:
        who += f" at {_few(settings.allow_peers)}"
    if settings.tls_verify == "on":
        who += " with a trusted certificate"
    if settings.ae_addresses:
        bound = dict.fromkeys(one.rpartition("=")[0] for one in settings.ae_addresses)
        who += f"; {_few(tuple(bound))} from the addresses of --ae-addresses alone"
    return who if who != "any application" else f"{who} (restrict it: --calling-ae, --allow-peers)"


def _queriers(settings: Settings) -> str:
    if settings.query_retrieve == "off":
        return "nobody (--query-retrieve off)"
    if settings.query_retrieve == "any":
        return "whoever may send (--query-retrieve any)"
    if settings.nodes:
        titles = [Address.parse(node).ae_title for node in settings.nodes]
        return f"this machine and the nodes {_few(titles)}"
    return "this machine only (allow others: --nodes AET@HOST:PORT)"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" * (len(names) > _NAMES_SHOWN)
    return ", ".join(names[:_NAMES_SHOWN]) + more
