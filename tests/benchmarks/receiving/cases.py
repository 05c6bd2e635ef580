"""The cases that are measured, and what plainpacs is to reach in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.benchmarks.receiving.data import CT, MULTIFRAME, SMALL, TINY, Kind

TIMES_PYNETDICOM = {"pynetdicom": 3.0}


@dataclass(frozen=True, slots=True)
class Case:
    """One sort of sending. ``subject`` is what is compared with each of ``peers``.

    ``targets``: the least ratio of the subject's rate to a peer's. ``few``: a peer that takes 40 ms
    for each instance is sent only so many. ``contexts``: instances are sent by our own sender, one
    association for each, proposing so many presentation contexts. ``sender_nodelay`` and
    ``receiver_nodelay``: TCP_NODELAY=1 in the environment of the one and the other.
    """

    name: str
    title: str
    kind: Kind
    count: int
    subject: str
    peers: tuple[str, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    senders: int = 1
    sender_nodelay: bool = True
    receiver_nodelay: bool = True
    few: Mapping[str, int] = field(default_factory=dict)
    contexts: int | None = None
    most_megabytes: int | None = None


CASES = (
    Case(
        "ct", "one sender, --sync off", CT, 800, "plainpacs-off",
        ("storescp", "storescp-pdu", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 1.15},
    ),
    Case(
        "ct-4", "4 senders, --sync off", CT, 800, "plainpacs-off",
        ("storescp-fork", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp-fork": 1.0},
        senders=4,
    ),
    Case(
        "small", "one sender, --sync off", SMALL, 800, "plainpacs-off",
        ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 1.15},
    ),
    Case(
        "tiny", "one sender, --sync off", TINY, 800, "plainpacs-off",
        ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 1.15},
    ),
    Case(
        "tiny-4", "4 senders, --sync off", TINY, 800, "plainpacs-off",
        ("storescp-fork", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp-fork": 0.8},
        senders=4,
    ),
    Case(
        "large", "one sender, --sync off", MULTIFRAME, 4, "plainpacs-off",
        ("storescp", "storescp-pdu", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 2.5},
        most_megabytes=100,
    ),
    Case(
        "sync", "one sender, full sync (the default)", CT, 800, "plainpacs",
        ("orthanc", "storescp", "pynetdicom"), TIMES_PYNETDICOM | {"orthanc": 2.0},
    ),
    Case(
        "sync-4", "4 senders, full sync (the default)", CT, 800, "plainpacs",
        ("orthanc", "storescp-fork", "pynetdicom"), TIMES_PYNETDICOM | {"orthanc": 2.0},
        senders=4,
    ),
    Case(
        "delay", "sender without TCP_NODELAY, --sync off", CT, 800, "plainpacs-off",
        ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM, sender_nodelay=False,
    ),
    # storescp sends its answers in two pieces. Without TCP_NODELAY the second waits until the
    # sender has acknowledged the first, which it does after 40 ms.
    Case(
        "defaults", "nobody with TCP_NODELAY, --sync off", CT, 800, "plainpacs-off",
        ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 20.0},
        sender_nodelay=False, receiver_nodelay=False, few={"storescp": 60},
    ),
    Case(
        "associations", "one association (4 contexts) for each, --sync off", CT, 800,
        "plainpacs-off", ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM | {"storescp": 1.0},
        contexts=4,
    ),
    Case(
        "associations-128", "one association (128 contexts) for each, --sync off", CT, 800,
        "plainpacs-off", ("storescp", "pynetdicom", "raw"), TIMES_PYNETDICOM, contexts=128,
    ),
    # Long enough for the indexer, which waits 2 s after a study's first instance, to be at work.
    Case(
        "indexer", "one sender, --sync off", CT, 3000, "plainpacs-off", ("no-indexer",),
        {"no-indexer": 0.9},
    ),
    Case(
        "indexer-small", "one sender, --sync off", SMALL, 8000, "plainpacs-off", ("no-indexer",),
        {"no-indexer": 0.9},
    ),
    Case(
        "services", "one sender, --sync off", CT, 1600, "plainpacs-off", ("no-services",),
        {"no-services": 0.97},
    ),
    Case(
        "services-small", "one sender, --sync off", SMALL, 3200, "plainpacs-off", ("no-services",),
        {"no-services": 0.97},
    ),
    Case(
        "services-associations", "one association (4 contexts) for each, --sync off", CT, 1600,
        "plainpacs-off", ("no-services",), {"no-services": 0.97}, contexts=4,
    ),
)  # fmt: skip
