"""Applications elsewhere, by name: the settings' table ``nodes``, and how to speak to them."""

from __future__ import annotations

import difflib

from plainpacs.archive.app.ae_address import Address, Security
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import BadSettings
from plainpacs.scp.network.requestor import Node
from plainpacs.scp.network.tls import client_context


def known(settings: Settings) -> tuple[Address, ...]:
    """Every one in the table, in its order."""
    return tuple(map(Address.parse, settings.nodes))


def find(settings: Settings, ae_title: str) -> Node | None:
    """That of the AE title, to the letter (PS3.5 6.2); None when the table has none.

    Raises BadSettings when its TLS cannot be: a certificate that is missing.
    """
    address = next((one for one in known(settings) if one.ae_title == ae_title), None)
    return None if address is None else _node(address, settings)


def named(settings: Settings, text: str) -> Node:
    """What a person means by ``text``: an AE title of the table, in whatever case, or
    ``AET@HOST:PORT``, as ``Address.parse`` reads it. Raises BadSettings.
    """
    addresses = {address.ae_title: address for address in known(settings)}
    lower = {title.lower(): title for title in reversed(addresses)}
    title = text if text in addresses else lower.get(text.lower())
    if title is not None:
        return _node(addresses[title], settings)
    if "@" in text:
        try:
            return _node(Address.parse(text), settings)
        except ValueError as error:
            raise BadSettings(str(error)) from None
    near = difflib.get_close_matches(text.lower(), lower, 1, 0.0)
    hint = f"the nearest is {lower[near[0]]}" if near else "none is set (--nodes)"
    raise BadSettings(f"{text!r} is no node of the settings: {hint}; or write AET@HOST:PORT")


def _node(address: Address, settings: Settings) -> Node:
    tls = None
    if address.security is not Security.NONE:
        any_name = address.security is Security.TLS_ANY_NAME
        tls = client_context(settings, any_name=any_name)
    return Node(address.ae_title, address.host, address.port, tls)
