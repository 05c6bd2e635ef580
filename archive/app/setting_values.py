"""What a setting may be: from the text of a flag or variable, or a TOML value, to its value.

Each function raises ValueError, whose words end the sentence "NAME = VALUE cannot be: ...".
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from plainpacs.archive.app.ae_address import Address
from plainpacs.archive.app.ae_address import ae_title as checked_ae_title
from plainpacs.archive.app.hook_command import HookWords
from plainpacs.archive.app.retention_rule import RetentionRule
from plainpacs.archive.dicom.charset import codec_of
from plainpacs.archive.store.free_space import Reserve
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.identity import as_name


def ae_title(value: Any) -> str:
    return checked_ae_title(str(value))


def several(one: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    def parse(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        return tuple(one(item) for item in items if str(item).strip())

    return parse


def ae_titles(value: Any) -> tuple[str, ...]:
    titles = several(ae_title)(value)
    if not titles:
        raise ValueError("at least one AE title is needed")
    return titles


def network(value: Any) -> str:
    text = str(value).strip()
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            wider = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text} is no IP address, nor a network as 10.0.0.0/8") from None
        raise ValueError(f"{text} names one address of {wider}; give either") from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        network = ipaddress.ip_network((mapped, network.prefixlen - 96))
    return str(network)


def ae_addresses(value: Any) -> tuple[str, ...]:
    """``AE=NETWORK`` for each address; in TOML a table of AE titles with one or a list of them."""
    if isinstance(value, dict):
        lists = {title: one if isinstance(one, list) else [one] for title, one in value.items()}
        if empty := [title for title, addresses in lists.items() if not addresses]:
            raise ValueError(f"{empty[0]} has no address")
        pairs = [(title, one) for title, addresses in lists.items() for one in addresses]
    else:
        items = several(str)(value)
        if bare := [item for item in items if "=" not in item]:
            raise ValueError(f"{bare[0]} is not of the form AE=ADDRESS")
        pairs = [(title, one) for title, _, one in (item.rpartition("=") for item in items)]
    return tuple(f"{ae_title(title)}={network(one)}" for title, one in pairs)


def default_charsets(value: Any) -> tuple[str, ...]:
    """A character set for all, ``AE=CHARSET`` for others; in TOML a table, too, of AE titles, with
    ``""`` for all."""
    if isinstance(value, dict):
        value = [f"{title}={term}" if title else term for title, term in value.items()]
    found: dict[str, str] = {}
    for one in several(str)(value):
        title, _, term = (part.strip() for part in one.rpartition("="))
        if not codec_of(term):
            raise ValueError(
                f"{term} is not a known character set; known are the Defined Terms of DICOM, as "
                "ISO_IR 144 or GB18030, and names as GBK, BIG5, EUC-KR, SHIFT_JIS, WINDOWS-1251"
            )
        title = ae_title(title) if title else ""
        if title in found:
            raise ValueError(f"{title or 'that of all'} is named more than once")
        found[title] = term
    return tuple(f"{title}={term}" if title else term for title, term in found.items())


def nodes(value: Any) -> tuple[str, ...]:
    """``AET@HOST:PORT`` for each; in TOML a table of AE titles with ``HOST:PORT``."""
    if isinstance(value, dict):
        value = [f"{title}@{where}" for title, where in value.items()]
    addresses = [Address.parse(text) for text in several(str)(value)]
    titles = [address.ae_title for address in addresses]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise ValueError(f"{repeated[0]} is named more than once")
    return tuple(map(str, addresses))


def retention(value: Any) -> tuple[str, ...]:
    """``NAME=CONDITION TERM...`` for each; in TOML a table of names with the rest."""
    if isinstance(value, dict):
        value = [f"{name}={rule}" for name, rule in value.items()]
    rules = tuple(map(str.strip, several(str)(value)))
    for rule in rules:
        RetentionRule.parse(rule)
    return rules


def uid(value: Any) -> str:
    try:
        return as_name("UID", str(value).strip())
    except Exception as error:
        raise ValueError(str(error)) from None


def choice(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, bool):  # TOML's own true and false
            value = "on" if value else "off"
        word = str(value).lower()
        if word not in words:
            raise ValueError(f"it is one of {', '.join(words)}")
        return word

    return parse


def whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            raise ValueError("it is a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"it lies between {low} and {high}")
        return number

    return parse


def seconds(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError("it is a number of seconds") from None
    if not 0 < number <= 86400:
        raise ValueError("it lies above 0 and at most at 86400 seconds")
    return number


def node(value: Any) -> str:
    if not layout.is_node(str(value)):
        raise ValueError("a node is 1 to 16 lower-case letters and digits")
    return str(value)


def reserve(value: Any) -> str:
    Reserve.parse(str(value))
    return str(value)


def hook(places: Mapping[str, str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        words = shlex.join(map(str, value)) if isinstance(value, list) else str(value).strip()
        if words:
            HookWords.parse(words, places)
        return words

    return parse


def text(value: Any) -> str:
    return str(value)
