"""``/metrics`` for Prometheus and ``/healthz`` for whoever asks, by HTTP on a port of its own.

Counts are those of the note that ``plainpacs status`` shows: of all receiver processes together,
two seconds old at most, since the start of the service. No patient data, and nothing that a peer
sent: the only labels are outcomes and codes of ours. Not started unless ``metrics_port`` is set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from plainpacs.archive.app.extras import how_to_install
from plainpacs.archive.errors import BadSettings, InUse, PlainpacsError
from plainpacs.archive.store.store import Archive
from plainpacs.archive.tree import layout
from plainpacs.archive.tree.root import is_locked
from plainpacs.indexer.service.status import count_pending

if TYPE_CHECKING:  # an extra: not everybody has it
    from prometheus_client import Metric

_LOG = logging.getLogger("plainpacs.scp")

_REQUEST_SECONDS = 5.0
_MOST_REQUESTS = 16


class Service(Protocol):
    """What is looked at: ``Receiver`` or ``Receivers``."""

    def report(self) -> bytes:
        """The service's note (``tally``), of all processes."""

    def associations(self) -> int:
        """How many there are now."""

    def fault(self) -> str:
        """Why no association could be accepted; empty when one could."""


_ONE_INSTANCE = 1 << 20
"""Bytes for which there is to be room: two slices of a CT."""


class Probe:
    """How the service on ``archive`` is."""

    def __init__(self, archive: Archive, service: Service) -> None:
        self._archive = archive
        self._service = service
        self._root = os.open(archive.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._root)

    def faults(self) -> list[str]:
        """In plain words why it cannot take and index instances; empty when it can."""
        found = []
        try:
            self._archive.check(_ONE_INSTANCE)
            if os.fstatvfs(self._root).f_flag & os.ST_RDONLY:
                found.append("the file system of the archive is read-only")
        except (OSError, PlainpacsError) as error:
            found.append(str(error))
        if fault := self._service.fault():
            found.append(fault)
        if not self._indexer_alive():
            found.append("no indexer is at work")
        return found

    def _indexer_alive(self) -> bool:
        return is_locked(self._root, layout.INDEXER_LOCK)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told; as ``prometheus_client`` asks its collectors."""
        # Only who asked for metrics needs the package, and it takes a tenth of a second to load.
        from prometheus_client.core import (  # noqa: PLC0415 - as said above
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        def gauge(name: str, words: str, value: float) -> Metric:
            return GaugeMetricFamily(f"plainpacs_{name}", words, value=value)

        def counter(name: str, words: str, label: str, values: dict[str, int]) -> Metric:
            family = CounterMetricFamily(f"plainpacs_{name}", words, labels=[label])
            for value, number in values.items():
                family.add_metric([value], number)
            return family

        note: dict[str, Any] = orjson.loads(self._service.report())
        outcomes = {"stored": "stored", "duplicate": "duplicates", "conflict": "conflicts"}
        yield counter(
            "instances",
            "Instances answered with success, by outcome.",
            "outcome",
            {outcome: note[kind] for outcome, kind in outcomes.items()},
        )
        yield counter(
            "refusals",
            "What was refused: instances and operations by status, associations by result/source/"
            "reason, contexts by result.",
            "status",
            note["refusals"],
        )
        yield counter(
            "associations",
            "Associations, by what came of them: accepted ones may yet be aborted.",
            "event",
            {event: note[event] for event in ("accepted", "rejected", "aborted")},
        )
        yield CounterMetricFamily(
            "plainpacs_received_bytes", "Bytes of data sets stored or there.", value=note["bytes"]
        )
        yield gauge("associations_open", "Associations now.", self._service.associations())
        pending = count_pending(self._archive.root)
        if pending is not None:
            yield gauge("pending_studies", "Studies that wait to be indexed.", pending)
        with contextlib.suppress(OSError):
            free = os.fstatvfs(self._root)
            free_bytes = free.f_bavail * free.f_frsize
            yield gauge("free_bytes", "Free on the archive's file system.", free_bytes)
        yield gauge("indexer_up", "1: an indexer is at work.", self._indexer_alive())
        yield gauge("healthy", "1: /healthz says ok.", not self.faults())


class MetricsServer:
    """Answers on ``address`` from the moment it is made to ``close``.

    Raises BadSettings when the package for it is missing, InUse when it cannot listen.
    """

    def __init__(self, address: str, port: int) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise BadSettings(
                f"--metrics-port needs the package prometheus-client: {how_to_install('metrics')}"
            )
        try:
            self._http = _HTTP(address, port)
        except OSError as error:
            raise InUse(
                f"cannot listen on {address} port {port} for metrics: {error.strerror or error}; "
                "give another --metrics-port or --metrics-bind"
            ) from None
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="metrics", kwargs={"poll_interval": 0.2}
        )
        self._probe: Probe | None = None

    def start(self, archive: Archive, service: Service) -> None:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - see Probe.collect

        self._probe = self._http.probe = Probe(archive, service)
        self._http.registry = CollectorRegistry()
        self._http.registry.register(self._probe)
        self._thread.start()

    def close(self) -> None:
        """Also when it was not started. Requests under way are given up."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        if self._probe is not None:
            self._probe.close()


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    probe: Probe
    registry: Any

    def __init__(self, address: str, port: int) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self.address_family = found[0]
        self._places = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__((address, port), _Request)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._places.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("a request for metrics failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    server: _HTTP
    timeout = _REQUEST_SECONDS
    server_version = "plainpacs"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            faults = self.server.probe.faults()
            self._answer(503 if faults else 200, "text/plain", "\n".join(faults or ["ok"]) + "\n")
        elif path == "/metrics":
            from prometheus_client.exposition import (  # noqa: PLC0415 - see Probe.collect
                CONTENT_TYPE_LATEST,
                generate_latest,
            )

            text = generate_latest(self.server.registry).decode()
            self._answer(200, CONTENT_TYPE_LATEST, text)
        else:
            self._answer(404, "text/plain", "there are /metrics and /healthz\n")

    do_HEAD = do_GET  # noqa: N815 - http.server's own name

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        _LOG.debug("metrics: " + format, *args)
