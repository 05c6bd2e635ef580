"""What it is run by: systemd's unit and its notifications, the Dockerfile, the check by C-ECHO.

There is no Docker engine and no systemd where tests run: what they would do is done by hand.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner

from plainpacs.archive.app import cli
from plainpacs.scp.daemon import healthcheck, systemd
from tests.support.archives import eventually, new_archive
from tests.support.peer import Peer, data_set
from tests.support.receiver import Start
from tests.support.serve import COMMAND, Serve

HERE = Path(__file__).resolve().parents[2]
UNIT = HERE / "scp/deploy/plainpacs.service"
PLAINPACS = Path(sys.executable).parent / "plainpacs"


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


# --- sd_notify ------------------------------------------------------------------------------------


class Manager:
    """As systemd is to a service: a datagram socket, and what came in."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(30)
        self.came: list[dict[str, str]] = []

    def until(self, wanted: str) -> dict[str, str]:
        """Waits for a datagram that has ``wanted`` in it."""
        while True:
            words = self.socket.recv(4096).decode()
            self.came.append(dict(line.split("=", 1) for line in words.splitlines()))
            if wanted in self.came[-1]:
                return self.came[-1]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    one = Manager(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with one.socket:
        yield one


@pytest.mark.parametrize("receivers", ["1", "2"])
def test_systemd_is_told_the_course_of_things(
    serve: Serve, manager: Manager, monkeypatch: pytest.MonkeyPatch, receivers: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    began = time.monotonic()
    service = serve("--receivers", receivers)
    ready = manager.until("READY")
    assert ready["STATUS"].startswith("DRDCM on port ")
    with Peer(int(ready["STATUS"].split()[-1])) as peer:
        assert peer.echo() == 0, "ready means ready"
    for _ in range(4):
        manager.until("WATCHDOG")
    assert time.monotonic() - began > 0.6, "not more often than a third of the time"
    service.process.send_signal(signal.SIGHUP)
    assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    manager.until("READY")
    service.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    assert service.process.wait(30) == 0
    assert "could not be told" not in service.said


def test_an_abstract_socket_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"plainpacs-test-{os.getpid()}"
    one = Manager("\0" + name)
    with one.socket:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.say(READY=1)
        assert one.until("READY") == {"READY": "1"}


def test_who_is_not_there_is_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.say(READY=1)
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.say(READY=1)
    assert "could not be told READY=1" in caplog.text


def test_the_watchdog_is_fed_only_while_all_is_well(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    asked: list[bool] = []

    def alive() -> bool:
        asked.append(len(asked) < 2)
        return asked[-1]

    with systemd.watchdog(alive):
        eventually(lambda: len(asked) > 5)
    manager.socket.setblocking(False)
    told = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.until("WATCHDOG")
            told += 1
    assert told == 2


@pytest.mark.parametrize(
    ("usec", "pid"), [("", ""), ("nonsense", ""), ("0", ""), ("-5", ""), ("600000", "1")]
)
def test_a_watchdog_that_is_not_ours_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd._watchdog_seconds() == 0


# --- the unit -------------------------------------------------------------------------------------


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser says
    parser.read_string(UNIT.read_text())
    return parser["Service"]


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """The unit, with our own plainpacs in its place."""
    path = tmp_path / "plainpacs.service"
    path.write_text(UNIT.read_text().replace("/opt/plainpacs/bin/plainpacs", str(PLAINPACS)))
    return str(path)


def test_systemd_takes_the_unit(installed: str) -> None:
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", installed],
        check=False,
        capture_output=True,
        text=True,
    )
    if "unknown option" in done.stderr.lower():
        pytest.skip("an old systemd-analyze")
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_calls_it_well_hardened(installed: str) -> None:
    line = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", installed]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"systemd-analyze cannot say: {done.stderr.strip()}")
    level = re.search(r"exposure level for plainpacs.service: ([\d.]+)", done.stdout)
    assert level
    assert float(level[1]) <= 2.0, done.stdout


def test_the_recipe_at_the_top_of_the_unit_works(tmp_path: Path) -> None:
    """Line by line, from the folder it names; users and what is downloaded apart."""
    recipe = "\n".join(re.findall(r"^#   (.+)$", UNIT.read_text(), re.M))
    assert recipe.count("\n") == 4
    bin_ = tmp_path / "opt/plainpacs/bin"
    for place in ("/opt/plainpacs", "/srv/dicom", "/etc/systemd/system"):
        assert place in recipe
        recipe = recipe.replace(place, f"{tmp_path}{place}")
    recipe = recipe.replace(str(bin_ / "pip"), "pip").replace("-o plainpacs -g plainpacs ", "")
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    stand_ins = f"""
        useradd() {{ true; }}
        systemctl() {{ test "$*" = "enable --now plainpacs"; }}
        pip() {{ test "$*" = "install ." && grep -q 'name = "plainpacs"' pyproject.toml &&
                 ln -s {shlex.quote(str(PLAINPACS))} {shlex.quote(str(bin_))}; }}
        runuser() {{ shift 3; "$@"; }}
        """
    done = subprocess.run(
        ["bash", "-euc", stand_ins + recipe], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "srv/dicom/plainpacs.json").exists()
    assert (tmp_path / "etc/systemd/system/plainpacs.service").read_text() == UNIT.read_text()


def test_the_unit_runs_what_there_is() -> None:
    service = unit()
    assert service["Type"] == "notify"
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/plainpacs")
    assert "--create" not in arguments
    assert CliRunner().invoke(cli.root, [*arguments, "--help"]).exit_code == 0
    kill, *how = shlex.split(service["ExecReload"])
    assert (Path(kill).name, how) == ("kill", ["-HUP", "$MAINPID"])
    assert service["UMask"] == "0027"
    assert service["User"] not in ("root", "")
    assert service["Restart"] == "on-failure"
    written = service["ReadWritePaths"]
    assert service["Environment"] == f"PLAINPACS_ARCHIVE={written}"
    assert f"RequiresMountsFor={written}\n" in UNIT.read_text()
    for name in ("NoNewPrivileges", "PrivateTmp", "MemoryDenyWriteExecute", "ProtectHome"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert "ProcSubset" not in service, "/proc/sys/kernel/random/boot_id is needed"


def allowed_calls() -> set[str]:
    """The system calls that the unit's filters leave."""
    listing = subprocess.run(
        [tool("systemd-analyze"), "syscall-filter", "--no-pager"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    groups: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if line.startswith("@"):
            current = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.append(line.strip())

    def calls(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return set().union(*(calls(one) for one in groups[name]))

    allowed: set[str] = set()
    for line in UNIT.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            for name in value.removeprefix("~").split():
                allowed = allowed - calls(name) if value[0] == "~" else allowed | calls(name)
    assert len(allowed) > 100
    return allowed


def test_it_calls_nothing_that_the_unit_forbids(tmp_path: Path) -> None:
    """A whole life of the service, with everything on, under strace."""
    strace, allowed = tool("strace"), allowed_calls()
    root, trace, log = new_archive(tmp_path / "a"), tmp_path / "trace", tmp_path / "log"
    line = [*COMMAND, "--port", "0", "--receivers", "2", "--metrics-port", "0", root]
    with log.open("wb") as file:
        process = subprocess.Popen([strace, "-f", "-qq", "-o", str(trace), *line], stderr=file)
    try:
        port = eventually(lambda: re.search(r" port (\d+) of ", log.read_text()), 60)[1]
        web = eventually(lambda: re.search(r"metrics on \S+ port (\d+)", log.read_text()), 60)[1]
        with Peer(int(port)) as peer:
            for size in (64, 99, 9 << 20):
                assert peer.store(data_set(size=size)) == 0
            peer.release()
        with socket.create_connection(("127.0.0.1", int(web)), timeout=60) as asking:
            asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.0 200")
        eventually(lambda: list(Path(root).glob("2*/*/study.json")), 60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    text = trace.read_text(errors="replace")
    called = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)(?:\(| resumed)", text, re.M))
    assert {"linkat", "fsync", "accept4", "clone3"} & called >= {"linkat", "fsync", "accept4"}
    assert called <= allowed, called - allowed
    both = re.findall(r"^\d+ +m(?:map|protect)\(.*PROT_WRITE\|PROT_EXEC.*$", text, re.M)
    made = re.findall(r"^\d+ +mprotect\(.*PROT_EXEC.*$", text, re.M)
    assert not both + made, "MemoryDenyWriteExecute"
    families = set(re.findall(r"^\d+ +socket\(AF_([A-Z0-9]+)", text, re.M))
    given = {name.removeprefix("AF_") for name in unit()["RestrictAddressFamilies"].split()}
    assert families <= given


# --- the check by C-ECHO --------------------------------------------------------------------------


def check(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plainpacs.scp.daemon.healthcheck"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_a_service_that_answers_is_well(start: Start) -> None:
    running = start(aet=("PACS1", "PACS2"), calling_ae=("CT9", "CT1"))
    port = str(running.port)
    done = check(PLAINPACS_PORT=port, PLAINPACS_AET="PACS1,PACS2", PLAINPACS_CALLING_AE="CT9,CT1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = check(PLAINPACS_PORT=port)
    assert done.returncode == 1
    assert re.fullmatch(r"no C-ECHO: .*association: .*AE title.*\(1/1/7\)\n", done.stderr)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
        b"\2\0\0\0\0\1x",  # accepted, and then nothing
        b"\2\0\0\0\0\1x" + b"\4\0\0\0\0\6" + b"\0\0\0\2\1\3",  # an answer without a status
        b"\2\0\0\0\0\1x\4\0\0\0\0\x10\0\0\0\x0c\1\3\0\0\0\x09\2\0\0\0\x11\1",  # a failure
        b"\7\0\0\0\0\4\0\0\0\0",
        b"\2\0\xff\xff\xff\xff",
    ],
)
def test_whatever_else_answers_is_not(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                peer = listening.accept()[0]
                peer.recv(1000)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1000):
                    pass
            os._exit(0)
        code = healthcheck.main(["127.0.0.1", str(listening.getsockname()[1])])
        os.waitpid(pid, 0)
    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_nobody_there_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert healthcheck.main(["127.0.0.1", str(port)]) == 1
    assert healthcheck.main(["127.0.0.1", "many"]) == 1
    assert "no C-ECHO" in capsys.readouterr().err


def test_a_service_with_tls_is_checked_with_tls(serve: Serve, tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    made = subprocess.run(
        [
            *(tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-keyout", str(pem), "-out", f"{pem}.crt"),
        ],
        check=False,
        capture_output=True,
    )
    assert made.returncode == 0
    pem.write_bytes(pem.read_bytes() + Path(f"{pem}.crt").read_bytes())
    tls = ("--tls-cert", str(pem), "--tls-ca", str(pem), "--tls-verify")
    service = serve(*tls)
    done = check(PLAINPACS_PORT=str(service.port), PLAINPACS_TLS_CERT=str(pem))
    assert (done.returncode, done.stderr) == (0, "")
    assert check(PLAINPACS_PORT=str(service.port)).returncode == 1
    assert service.stop() == 0


# --- the container --------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile, as (INSTRUCTION, arguments)."""
    text = re.sub(r"^#.*\n", "", (HERE / "Dockerfile").read_text(), flags=re.M)
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def last(word: str) -> str:
    return [rest for name, rest in instructions() if name == word][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps ``path`` from the engine: the last pattern that fits counts."""
    out = False
    for line in (HERE / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        folders = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
        patterns = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch(folder, one) for folder in folders for one in patterns) or (
            pattern.startswith("**/") and any(fnmatch(p, pattern[3:]) for p in path.split("/"))
        ):
            out = not line.startswith("!")
    return out


def copied() -> list[tuple[str, str]]:
    """(source, destination) of what is copied from the folder of the Dockerfile."""
    found = []
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, to = rest.split()
            found += [(source, to) for source in sources]
    return found


def test_the_dockerfile_is_sound() -> None:
    names = [name for name, _ in instructions()]
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    assert set(names) <= known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}, "no ADD, no ARG"
    user = last("USER").partition(":")[0]
    assert user.isdigit(), "so that an engine can see that it is not root"
    assert int(user) > 0
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not any(name in ("RUN", "COPY") for name in names[names.index("USER") :])
    assert last("STOPSIGNAL") == "SIGTERM"
    assert last("EXPOSE") == "11112"
    assert json.loads(last("VOLUME")) == ["/archive"]
    assert "PLAINPACS_ARCHIVE=/archive" in last("ENV")
    text = (HERE / "Dockerfile").read_text()
    assert not re.search(r"password|secret|token|://", text, re.I)
    assert "plainpacs init /archive" in text, "said, as serve makes none"


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(HERE / "Dockerfile")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_image_is_made_of_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    """What the first stage copies is enough to build from."""
    for source, _ in copied():
        assert (HERE / source).exists(), source
        assert not ignored(source), source
    for path in (".git/config", "tests/support/peer.py", "scp/__pycache__/x.pyc", ".env", "x.pem",
                 *(f"archive/{one}" for one in ("plainpacs.json", "202401/1.2/1.2.3/1.2.3.4.dcm",
                                                "undated/1.2/study.json", ".plainpacs/trash/x")),
                 "scp/cd.zip", "indexer/IM0.dcm"):  # fmt: skip
        assert ignored(path), path
    assert not ignored("scp/deploy/plainpacs.service")
    context = tmp_path / "src"
    for source, to in copied():
        if (HERE / source).is_dir():
            leave = shutil.ignore_patterns("__pycache__", ".mypy_cache", ".ruff_cache")
            shutil.copytree(HERE / source, context / to, symlinks=True, ignore=leave)
        else:
            context.mkdir(exist_ok=True)
            shutil.copy(HERE / source, context)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        check=False,
        capture_output=True,
        text=True,
        cwd=context,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    made = set(zipfile.ZipFile(wheel).namelist())
    for name in ("archive", "indexer", "scp"):
        ours = {f"plainpacs/{path.relative_to(HERE)}" for path in (HERE / name).rglob("*.py")}
        assert ours == {
            path for path in made if path.startswith(f"plainpacs/{name}/") and path.endswith(".py")
        }
    assert {"plainpacs/__init__.py", "plainpacs/__main__.py", "plainpacs/py.typed"} <= made
    assert {"plainpacs/archive/FORMAT.md", "plainpacs/scp/deploy/plainpacs.service"} <= made
    assert any("[metrics]" in rest for name, rest in instructions() if name == "RUN")


def test_no_file_of_the_source_is_kept_out_of_the_image() -> None:
    line = [tool("git"), "ls-files", "--", *(source for source, _ in copied())]
    listed = subprocess.run(line, check=False, capture_output=True, text=True, cwd=HERE)
    if listed.returncode:
        pytest.skip("not a clone")
    assert not [path for path in listed.stdout.split() if ignored(path)]


def test_a_life_of_the_container(tmp_path: Path) -> None:
    """`init`, ENTRYPOINT and CMD, the health check and the stop signal, with its environment."""
    entry, arguments = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    health = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PLAINPACS_ARCHIVE": str(tmp_path / "volume"),
        "PLAINPACS_PORT": str(port),
    }

    def run(line: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
        )

    (tmp_path / "volume").mkdir()
    assert run(entry + arguments).returncode == 3, "no archive on the volume: it starts nothing"
    assert run(health).returncode == 1
    assert run([*entry, "init", str(tmp_path / "volume")]).returncode == 0
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(entry + arguments, env=environment, cwd=tmp_path, stderr=log)
    try:
        eventually(lambda: run(health).returncode == 0, 60)
        service.send_signal(getattr(signal, last("STOPSIGNAL")))
        assert service.wait(30) == 0
    finally:
        if service.poll() is None:
            service.kill()
            service.wait()
    assert run(health).returncode == 1
