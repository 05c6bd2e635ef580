"""Is the service well? Asked by C-ECHO (PS3.4 Annex A), for health checks of containers.

``python -m plainpacs.scp.daemon.healthcheck [HOST [PORT]]`` ends with 0 when it was answered with
success, else with 1 and why, on one line. It has the settings of the service from the same
variables and file (``PLAINPACS_PORT``, ``PLAINPACS_CONFIG`` …), and calls it by its first AE title,
as the first of the calling AE titles allowed, with TLS where the service has it.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections import deque
from collections.abc import Iterable

from plainpacs.archive.app.settings import Settings, load
from plainpacs.archive.errors import PlainpacsError
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import Node
from plainpacs.scp.remote.echo_scu import echo

_LIMITS = Limits(pdu_timeout=5.0, idle_timeout=5.0, announced_pdu=1 << 14)
_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def check(settings: Settings, host: str = "", port: int = 0) -> None:
    """Asks the service with these ``settings``. Raises NoAssociation, Failed; OSError for a
    certificate that cannot be read."""
    host = host or _ANY_ADDRESS.get(settings.bind, settings.bind)
    node = Node(settings.aet[0], host, port or settings.port, _context(settings))
    calling = settings.calling_ae[0] if settings.calling_ae else "ECHOCHECK"
    deque(echo(node, calling, _LIMITS), maxlen=0)


def _context(settings: Settings) -> ssl.SSLContext | None:
    """TLS where the service has it: encrypted, but whose certificate it is, is not asked."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # The service's own certificate serves as a client's, should it want one (--tls-verify).
    context.load_cert_chain(settings.tls_cert, settings.tls_key or settings.tls_cert)
    return context


def main(arguments: Iterable[str]) -> int:
    """The exit status."""
    host, port = ([*arguments, "", ""])[:2]
    try:
        check(load({}, environ=os.environ), host, int(port or 0))
    except (PlainpacsError, OSError, ValueError) as error:
        print(f"no C-ECHO: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
