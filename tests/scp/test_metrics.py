"""``/metrics`` and ``/healthz`` of the running service."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from plainpacs.archive.app.extras import how_to_install
from plainpacs.archive.app.settings import Settings
from plainpacs.archive.errors import InUse
from plainpacs.archive.store.free_space import Reserve
from plainpacs.archive.store.store import Archive
from plainpacs.scp.daemon.metrics import MetricsServer, Probe
from plainpacs.scp.receiver.receiver import Receiver
from tests.support.archives import eventually, new_archive
from tests.support.peer import STUDY, Peer, data_set
from tests.support.receiver import Start
from tests.support.serve import Serve, Service


def fetch(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics_port(service: Service) -> int:
    found = eventually(lambda: re.search(r"metrics on \S+ port (\d+)", service.said))
    return int(found[1])


def values(port: int) -> dict[str, float]:
    """Each sample by its name and label's value, as Prometheus reads them."""
    code, text = fetch(port, "/metrics")
    assert code == 200
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            label = " ".join(sample.labels.values())
            found[f"{sample.name} {label}".strip().removeprefix("plainpacs_")] = sample.value
    return found


def use(service: Service) -> None:
    """Two stored, one again, one conflict; two refused; associations of every kind."""
    with Peer(service.port) as peer:
        for sop, size in (("1.1", 64), ("1.2", 64), ("1.1", 64), ("1.1", 99)):
            assert peer.store(data_set(sop, size=size), sop=sop) == 0
        assert peer.store(data_set(study="")) == 0xC000
        assert peer.store(data_set(sop_class="1.2.3")) == 0xA900
        peer.release()
    with Peer(service.port, called="OTHER"):
        pass
    with Peer(service.port) as peer:
        assert peer.echo() == 0  # and away without a release


EXPECTED = {
    "instances_total stored": 2,
    "instances_total duplicate": 1,
    "instances_total conflict": 1,
    "refusals_total C000": 1,
    "refusals_total A900": 1,
    "refusals_total 1/1/7": 1,
    "associations_total accepted": 3,
    "associations_total rejected": 1,
    "associations_total aborted": 1,
    "associations_open": 1,
    "received_bytes_total": 3 * len(data_set("1.1")) + len(data_set("1.1", size=99)),
    "indexer_up": 1,
    "healthy": 1,
}


@pytest.mark.parametrize("receivers", ["1", "3"])
def test_it_counts_what_happens_in_all_processes(serve: Serve, receivers: str) -> None:
    service = serve("--receivers", receivers, "--metrics-port", "0")
    port = metrics_port(service)
    service.indexer()
    use(service)
    with Peer(service.port) as peer:
        assert peer.echo() == 0

        def as_expected() -> bool:
            seen = values(port)
            return {name: seen.get(name) for name in EXPECTED} == EXPECTED

        try:
            eventually(as_expected)
        except pytest.fail.Exception:
            seen = values(port)
            assert {name: seen.get(name) for name in EXPECTED} == EXPECTED
        eventually(lambda: values(port)["pending_studies"] == 0)
        free = values(port)["free_bytes"]
        assert abs(free - shutil.disk_usage(service.root).free) < 1 << 30
    _, text = fetch(port, "/metrics")
    for said in ("SECRET", "TESTER", "127.0.0.1", STUDY):
        assert said not in text
    assert service.stop() == 0


def test_counts_go_on_when_a_receiver_dies(serve: Serve) -> None:
    service = serve("--receivers", "2", "--metrics-port", "0")
    port = metrics_port(service)
    use(service)
    eventually(lambda: values(port)["instances_total stored"] == 2)
    for pid in service.receivers():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.said.count("started again") >= 2)
    with Peer(service.port) as peer:
        assert peer.store(data_set("1.7"), sop="1.7") == 0
    eventually(lambda: values(port)["instances_total stored"] == 3)
    assert service.stop() == 0


def test_healthz_follows_the_indexer(serve: Serve) -> None:
    service = serve("--metrics-port", "0")
    port = metrics_port(service)
    eventually(lambda: fetch(port, "/healthz") == (200, "ok\n"))
    os.kill(service.indexer(), signal.SIGSTOP)  # it holds its place: alive, for all we know
    assert fetch(port, "/healthz")[0] == 200
    os.kill(service.indexer(), signal.SIGKILL)
    eventually(lambda: fetch(port, "/healthz") == (503, "no indexer is at work\n"))
    eventually(lambda: fetch(port, "/healthz")[0] == 200)
    assert service.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_healthz_misses_the_root(serve: Serve) -> None:
    service = serve("--metrics-port", "0", "--receivers", "2")
    port = metrics_port(service)
    eventually(lambda: fetch(port, "/healthz")[0] == 200)
    away = service.root.with_name("away")
    service.root.rename(away)

    def misses_it() -> bool:
        code, text = fetch(port, "/healthz")
        return code == 503 and "no longer the archive" in text

    eventually(misses_it)
    away.rename(service.root)
    eventually(lambda: fetch(port, "/healthz")[0] == 200)
    assert service.stop() == 0


@pytest.fixture
def running_metrics(start: Start) -> Iterator[tuple[Receiver, MetricsServer]]:
    running = start()
    server = MetricsServer("127.0.0.1", 0)
    server.start(running.archive, running.receiver)
    yield running.receiver, server
    server.close()


def faults_of(
    root: str, reserve: str = "0", then: Callable[[], object] = lambda: None
) -> list[str]:
    """What a probe finds of a receiver on ``root`` after ``then`` was called."""
    receiver = Receiver(Settings(port=0, bind="127.0.0.1", receivers=1))
    try:
        with Archive.open(root, reserve=Reserve.parse(reserve)) as archive:
            receiver.start(archive)
            then()
            probe = Probe(archive, receiver)
            found = probe.faults()
            probe.close()
            receiver.stop()
            return found
    except BaseException:
        receiver.stop()
        raise


def test_healthz_heeds_the_reserve(tmp_path: Path) -> None:
    [full, indexer] = faults_of(new_archive(tmp_path / "a"), "1000000T")
    assert "less is free" in full
    assert indexer == "no indexer is at work"


def test_a_read_only_file_system_is_not_well(tmp_path: Path) -> None:
    """As after an error of the disk: what is open stays open, and the mount is read-only."""
    root = new_archive(tmp_path / "a")
    bind = ["mount", "--bind", root, root]
    if os.getuid() != 0 or subprocess.run(bind, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    subprocess.run(["umount", root], check=True)

    def turn_read_only() -> None:
        subprocess.run(bind, check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)

    try:
        assert "the file system of the archive is read-only" in faults_of(root, "0", turn_read_only)
    finally:
        subprocess.run(["umount", root], check=True)


def test_other_paths_and_methods(running_metrics: tuple[Receiver, MetricsServer]) -> None:
    port = running_metrics[1].port
    assert fetch(port, "/")[0] == 404
    assert fetch(port, "/../etc/passwd")[0] == 404
    assert fetch(port, "/metrics?x=1")[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: peer.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(b"DELETE / HTTP/1.0\r\n\r\n")
        assert b" 501 " in peer.recv(4096)


def test_who_says_nothing_holds_no_one_up(
    running_metrics: tuple[Receiver, MetricsServer], capfd: pytest.CaptureFixture[str]
) -> None:
    port = running_metrics[1].port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    assert fetch(port, "/metrics")[0] == 200
    for one in silent[:4]:
        one.sendall(b"\0\xff\r\n\r\n")
    for one in silent:
        one.close()
    assert fetch(port, "/metrics")[0] == 200
    assert capfd.readouterr().err == ""


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    root = new_archive(tmp_path / "a")
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from plainpacs.archive.app.cli import main\n"
        f"main(['serve', '--port', '0', {root!r}, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, "--metrics-port", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert how_to_install("metrics") in done.stderr


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InUse, match="--metrics-port"):
            MetricsServer("127.0.0.1", port)


def test_nothing_listens_unless_asked_to(serve: Serve) -> None:
    service = serve()
    assert service.port
    assert "metrics" not in service.said
    assert service.stop() == 0


def test_healthz_misses_the_receivers(serve: Serve) -> None:
    service = serve("--metrics-port", "0", "--receivers", "2")
    port = metrics_port(service)

    def killed() -> bool:
        for pid in service.receivers():
            os.kill(pid, signal.SIGKILL)
        return fetch(port, "/healthz") == (503, "no receiver process runs\n")

    eventually(lambda: fetch(port, "/healthz")[0] == 200)
    eventually(killed)
    eventually(lambda: fetch(port, "/healthz")[0] == 200)
    assert service.stop() == 0
