"""What was sent, and what was promised about it: the side of the senders."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.support.peer import CT, EVRLE, data_set, element

MONTH = "202401"


@dataclass(slots=True)
class Instance:
    """One that was sent or began to be. ``promised``: it was answered with 0000.

    ``digest`` is of its data set; what DCMTK encodes anew is known by its pixel data only.
    """

    study: str
    series: str
    sop: str
    size: int
    digest: bytes = b""
    promised: bool = False

    @property
    def path(self) -> str:
        return f"{MONTH}/{self.study}/{self.series}/{self.sop}.dcm"

    def pixels(self) -> bytes:
        """Of ``size`` bytes, and no other instance's."""
        return hashlib.shake_128(self.sop.encode()).digest(64) * (self.size // 64)

    def data_set(self, variant: bytes = b"") -> bytes:
        """The data set; with ``variant``, another one under the same UID."""
        head = data_set(self.sop, self.series, self.study, CT, 0)[: -len(_NO_PIXELS)]
        return head + element(0x7FE0, 0x0010, b"OW", variant + self.pixels())


_NO_PIXELS = element(0x7FE0, 0x0010, b"OW", b"")


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class Study:
    """``closed``: nothing is sent to it any more, since that time of the monotonic clock."""

    uid: str
    instances: dict[str, Instance] = field(default_factory=dict)
    variants: set[str] = field(default_factory=set)
    """Paths under ``conflicts`` that were promised."""
    closed: float = 0.0


class Ledger:
    """Shared by all threads. ``counts`` is what the summary prints."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.removed: set[str] = set()
        self._studies: dict[str, Study] = {}
        self._lock = threading.Lock()
        self._numbers = iter(range(1, 1 << 62))

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def find(self, words: str) -> None:
        """Notes a finding."""
        with self._lock:
            if words not in self.findings:
                self.findings.append(words)

    def new_study(self) -> Study:
        with self._lock:
            study = Study(f"1.2.3.9.{next(self._numbers)}")
            self._studies[study.uid] = study
            return study

    def planned(self, study: Study, number: int, size: int) -> Instance:
        """An instance that is about to be sent, the ``number``-th of its study."""
        series = f"{study.uid}.{number % 3 + 1}"
        instance = Instance(study.uid, series, f"{series}.{number}", size - size % 64)
        instance.digest = digest(instance.data_set())
        with self._lock:
            study.instances[instance.sop] = instance
        return instance

    def promised(self, instance: Instance) -> None:
        with self._lock:
            self.counts["stores answered 0000"] += 1
            instance.promised = True

    def promised_variant(self, study: Study, instance: Instance, data: bytes) -> None:
        from blake3 import blake3

        name = blake3(EVRLE.encode() + b"\0" + data).hexdigest()
        folder = f".plainpacs/conflicts/{MONTH}/{instance.study}/{instance.series}"
        with self._lock:
            self.counts["variants answered 0000"] += 1
            study.variants.add(f"{folder}/{instance.sop}~{name}")

    def close(self, study: Study) -> None:
        with self._lock:
            study.closed = time.monotonic()

    def closed_since(self, seconds: float) -> list[Study]:
        """Studies closed at least so long ago, the oldest first."""
        before = time.monotonic() - seconds
        with self._lock:
            found = [study for study in self._studies.values() if 0 < study.closed < before]
        return sorted(found, key=lambda study: study.closed)

    def forget(self, study: Study) -> None:
        """It is about to be removed from the archive."""
        with self._lock:
            self.removed.add(study.uid)
            del self._studies[study.uid]

    def promises(self) -> list[Instance]:
        """All that were promised and not removed."""
        with self._lock:
            every = [one for study in self._studies.values() for one in study.instances.values()]
        return [one for one in every if one.promised]

    def studies(self) -> list[Study]:
        with self._lock:
            return list(self._studies.values())

    def instance(self, study: str, sop: str) -> Instance | None:
        with self._lock:
            found = self._studies.get(study)
            return found.instances.get(sop) if found else None
