"""Who may associate and who may query: names, addresses, how many at once, and TLS.

``Access`` is made from the settings and never changes; a reload puts another in its place, and each
connection keeps to the one it began with. A refusal is a row of ``status.REJECTIONS``.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from plainpacs.archive.app.ae_address import Address
from plainpacs.archive.app.settings import Settings
from plainpacs.scp.network import answers, remote_aes
from plainpacs.scp.network.answers import Rejection
from plainpacs.scp.network.tls import server_context

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
ANY_SCP = "ANY-SCP"
"""What DCMTK's clients call whom they were not told to call otherwise."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Access:
    """The rules in force for a connection. Addresses are as ``server`` shows them."""

    aet: tuple[str, ...]
    any_called: bool
    calling: frozenset[str]
    """Empty: all."""
    networks: tuple[_Network, ...]
    """Empty: all."""
    bound: Mapping[str, tuple[_Network, ...]]
    """Calling AE titles that may come from these networks only."""
    max_associations: int
    max_per_peer: int
    tls: ssl.SSLContext | None
    query_retrieve: str
    nodes: tuple[Address, ...]

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """Reads the certificates too. Raises BadSettings."""
        bound: dict[str, tuple[_Network, ...]] = {}
        for binding in settings.ae_addresses:
            title, _, network = binding.rpartition("=")
            bound[title] = (*bound.get(title, ()), ipaddress.ip_network(network))
        return cls(
            aet=settings.aet,
            any_called=settings.called_ae == "any",
            calling=frozenset(settings.calling_ae),
            networks=tuple(map(ipaddress.ip_network, settings.allow_peers)),
            bound=bound,
            max_associations=settings.max_associations,
            # So that no one address, silent or busy, shuts all others out.
            max_per_peer=settings.max_associations_per_peer or (settings.max_associations + 1) // 2,
            tls=server_context(settings),
            query_retrieve=settings.query_retrieve,
            nodes=remote_aes.known(settings),
        )

    def is_stranger(self, peer: str) -> bool:
        """Whether whoever is at the address ``peer`` is refused, whatever is asked for."""
        return bool(self.networks) and not _lies_in(peer, self.networks)

    def rejection(
        self, calling_ae: str, called_ae: str, application: str, peer: str
    ) -> Rejection | None:
        """Why an association is refused for who calls whom from where; None when it is not."""
        if self.is_stranger(peer):
            return answers.ADDRESS_NOT_ALLOWED
        if application != APPLICATION_CONTEXT:
            return answers.APPLICATION_CONTEXT_UNKNOWN
        if not self.any_called and called_ae not in (*self.aet, ANY_SCP):
            return answers.CALLED_AE_NOT_OURS
        if self.calling and calling_ae not in self.calling:
            return answers.CALLING_AE_NOT_ALLOWED
        networks = self.bound.get(calling_ae)
        if networks is not None and not _lies_in(peer, networks):
            return answers.CALLING_AE_FROM_ELSEWHERE
        return None

    def query_refusal(self, calling_ae: str, peer: str) -> str:
        """Why queries and retrieves of ``calling_ae`` at the address ``peer`` are refused; empty
        when they are answered. Looks up the node's host name, which may take seconds.
        """
        address = _address(peer)
        if self.query_retrieve == "any" or (address is not None and address.is_loopback):
            return ""
        host = next((one.host for one in self.nodes if one.ae_title == calling_ae), None)
        if host is None:
            return "the calling AE title is not in the nodes"
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return f"the host of its node, {host}, cannot be looked up ({error})"
        if address in [_address(str(one[4][0])) for one in found]:
            return ""
        return f"the address of its node is {host}"


def _lies_in(peer: str, networks: tuple[_Network, ...]) -> bool:
    address = _address(peer)
    return address is not None and any(address in network for network in networks)


def _address(text: str) -> _Address | None:
    """Without its zone, and as IPv4 where it is IPv4 mapped into IPv6; None when it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
