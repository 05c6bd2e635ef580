"""Where other DICOM applications are, as settings and commands write it.

>>> Address.parse("PACS@10.0.0.5:11112/tls")
Address(ae_title='PACS', host='10.0.0.5', port=11112, security=<Security.TLS: 'tls'>)
>>> str(Address.parse(" WS @ [fd00::7]:104 "))
'WS@[fd00::7]:104'
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

_ADDRESS = re.compile(r"(?:\[([^][/]+)\]|([^][:/@\s]+)):([0-9]{1,5})(?:/([a-z-]+))?", re.ASCII)


class Security(enum.Enum):
    """How a connection is made."""

    NONE = ""
    TLS = "tls"
    """The peer's certificate has to name its host."""
    TLS_ANY_NAME = "tls-any-name"
    """Whatever it names: certificates of devices often name no host."""


@dataclass(frozen=True, slots=True)
class Address:
    """The application ``ae_title`` at a host and port."""

    ae_title: str
    host: str
    port: int
    security: Security = Security.NONE

    @classmethod
    def parse(cls, text: str) -> Address:
        """From ``AET@HOST:PORT``, with ``/tls`` or ``/tls-any-name`` behind it if it is to be.

        An IPv6 address stands in brackets. Raises ValueError in words for the user.
        """
        title, at, where = text.strip().rpartition("@")
        match = _ADDRESS.fullmatch(where.strip())
        if not at or match is None:
            raise ValueError(f"{text} is not of the form AET@HOST:PORT, nor with /tls behind it")
        bracketed, plain, port, word = match.groups()
        if not 1 <= int(port) <= 65535:
            raise ValueError(f"{text}: a port lies between 1 and 65535")
        words = [security.value for security in Security if security.value]
        if word and word not in words:
            raise ValueError(f"{text}: behind the port stands nothing, or /{' or /'.join(words)}")
        return cls(ae_title(title), bracketed or plain, int(port), Security(word or ""))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        security = f"/{self.security.value}" if self.security.value else ""
        return f"{self.ae_title}@{host}:{self.port}{security}"


def ae_title(text: str) -> str:
    """``text`` as an AE title (PS3.5 6.2), without its padding. Raises ValueError."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters, no backslash")
    return title
