"""TLS: real handshakes with certificates made here, peers of three kinds, and every way to fail."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from pynetdicom import AE

from plainpacs.archive.app.settings import load
from plainpacs.archive.errors import BadSettings
from plainpacs.scp.network import reader
from plainpacs.scp.network.connection import Connection
from plainpacs.scp.network.tls import TLSConnection, server_context
from tests.support.archives import eventually, instances_in, part10
from tests.support.peer import (
    ABORT,
    ACCEPT,
    CONTEXTS,
    CT,
    EVRLE,
    RELEASE_RP,
    RELEASE_RQ,
    SOP,
    Peer,
    associate_rq,
    command,
    context_item,
    data_set,
    dcmtk,
    message,
    pdu,
)
from tests.support.receiver import Running, Start, wait_until
from tests.support.serve import Serve

SERVE = ["plainpacs", "serve", "--create"]
README = Path(__file__).resolve().parents[2] / "scp/README.md"
LARGE = reader.MOST_GATHERED + (3 << 20)


# --- certificates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    cert: str
    key: str


class Authority:
    """Certifies with the ``openssl`` command; EC keys, because they are made at once."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.cert = str(folder / f"{name}.pem")
        self._key = str(folder / f"{name}.key")
        openssl(
            *("req", "-x509", *NEW_KEY, "-keyout", self._key, "-out", self.cert),
            *("-days", "30", "-subj", f"/CN={name}"),
        )

    def certify(self, name: str, days: int = 30) -> Certificate:
        made = [str(self._folder / f"{self._name}.{name}.{end}") for end in ("key", "csr", "pem")]
        key, request, cert = made
        openssl("req", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", request, "-out", cert, "-days", str(days)),
            *("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial"),
        )
        return Certificate(cert, key)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str) -> None:
    if shutil.which("openssl") is None:
        words = "the openssl command is not installed (apt install openssl)"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class Certificates:
    ca: Authority
    other: Authority
    server: Certificate
    second: Certificate
    client: Certificate
    expired: Certificate
    stranger: Certificate
    """By the other authority."""

    def serving(self, **more: object) -> dict[str, object]:
        """Settings of a receiver with TLS."""
        return {"tls_cert": self.server.cert, "tls_key": self.server.key, **more}

    def verifying(self) -> dict[str, object]:
        return self.serving(tls_ca=self.ca.cert, tls_verify="on")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = Authority(folder, "ca"), Authority(folder, "other")
    return Certificates(
        *(ca, other, ca.certify("server"), ca.certify("second"), ca.certify("client")),
        *(ca.certify("expired", -1), other.certify("stranger")),
    )


def client(
    trusts: Authority | None,
    shows: Certificate | None = None,
    version: ssl.TLSVersion | None = None,
    suites: str = "",
) -> ssl.SSLContext:
    """How a peer speaks TLS; trusting nobody it takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if trusts is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(trusts.cert)
    if shows is not None:
        context.load_cert_chain(shows.cert, shows.key)
    if suites:
        context.set_ciphers(suites)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def kept(running: Running) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in running.instances()}


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [r.getMessage() for r in caplog.records if r.levelname != "INFO"]
    return [line for line in lines if not line.startswith("refused contexts")]


def only_refusal(running: Running, caplog: pytest.LogCaptureFixture) -> str:
    """The one line there is once the receiver has stopped."""
    wait_until(lambda: refusals(caplog))
    running.stop()
    [line] = refusals(caplog)
    return line


# --- peers ----------------------------------------------------------------------------------------


def test_what_the_readme_says_to_try(serve: Serve, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    [block] = [one for one in blocks if "--tls-cert" in one]
    block = block.replace("\\\n", "").replace("~", str(tmp_path))
    make, begin, send = (shlex.split(line) for line in block.splitlines())
    assert (make[0], begin[:3], send[0]) == (
        "openssl",
        ["plainpacs", "serve", "--create"],
        "storescu",
    )
    openssl(*make[1:])
    service = serve(*begin[3:-1])
    (tmp_path / "FILE").write_bytes(part10())
    send[send.index("11112")] = str(service.port)
    named = (str(tmp_path / word) if word == "FILE" else word for word in send[1:])
    done = dcmtk("storescu", *named)
    assert done.returncode == 0, done.stderr
    assert "try: storescu +tla +cf CA.pem -aec DRDCM" in service.said
    assert len(instances_in(service.root)) == 1


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("size", [500_000, LARGE])
def test_dcmtk_stores(
    start: Start, certificates: Certificates, tmp_path: Path, verify: bool, size: int
) -> None:
    running = start(**certificates.verifying() if verify else certificates.serving())
    path = tmp_path / "one.dcm"
    path.write_bytes(part10(PixelData=bytes(range(256)) * (size // 256)))
    mine = certificates.client
    shown = ["+tls", mine.key, mine.cert] if verify else ["+tla"]
    arguments = [*shown, "+cf", certificates.ca.cert, "-aec", "DRDCM", "127.0.0.1"]
    done = dcmtk("storescu", *arguments, str(running.port), str(path))
    assert done.returncode == 0, done.stderr
    [content] = kept(running).values()
    assert content.endswith(bytes(range(256)) * (size // 256))


def test_pynetdicom_stores(start: Start, certificates: Certificates) -> None:
    import pydicom

    running = start(**certificates.verifying())
    entity = AE("PYNETDICOM")
    entity.add_requested_context(CT, EVRLE)
    speaks = client(certificates.ca, certificates.client)
    association = entity.associate(
        "127.0.0.1", running.port, ae_title="DRDCM", tls_args=(speaks, "server")
    )
    assert association.is_established
    sent = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    assert association.send_c_store(sent).Status == 0
    association.release()
    assert list(kept(running)) == [sent.SOPInstanceUID]


@pytest.mark.parametrize(
    ("version", "suite"),
    [
        (ssl.TLSVersion.TLSv1_3, ""),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
def test_objects_of_any_size_arrive_as_they_were_sent(
    start: Start, certificates: Certificates, version: ssl.TLSVersion, suite: str
) -> None:
    running = start(**certificates.serving())
    sent = {f"{SOP}.{size}": data_set(f"{SOP}.{size}", size=size) for size in (0, 70_001, LARGE)}
    with Peer(running.port, tls=client(certificates.ca, None, version, suite)) as peer:
        for sop, data in sent.items():
            assert peer.store(data, sop=sop, longest=1 << 17) == 0
            assert peer.store(data, sop=sop, longest=4096) == 0, "and again, in small PDUs"
        assert peer.echo() == 0
        peer.release()
    found = kept(running)
    assert set(found) == set(sent)
    assert all(found[sop].endswith(data) for sop, data in sent.items())


def test_records_of_one_byte_and_many_messages_in_one_record(
    start: Start, certificates: Certificates
) -> None:
    running = start(**certificates.serving())
    request = associate_rq(context_item(1, CT, [EVRLE]))
    with Peer(running.port, b"", tls=client(certificates.ca)) as peer:
        for byte in request:
            peer.send(bytes((byte,)))
        assert peer.receive()[0] == ACCEPT
        # All in one record: nothing more comes by the network that could wake who waits.
        three = [message(1, command(sop=f"1.{n}".encode()), data_set(f"1.{n}")) for n in range(3)]
        peer.send(b"".join(three) + pdu(RELEASE_RQ))
        assert [peer.status() for _ in range(3)] == [0, 0, 0]
        assert peer.receive()[0] == RELEASE_RP
    assert len(kept(running)) == 3


def test_many_at_once(start: Start, certificates: Certificates) -> None:
    running = start(**certificates.serving())
    speaks = client(certificates.ca)
    failed: list[BaseException] = []

    def send(number: int) -> None:
        try:
            with Peer(running.port, tls=speaks) as peer:
                for count in range(5):
                    sop = f"1.{number}.{count}"
                    assert peer.store(data_set(sop, size=100_000), sop=sop) == 0
                peer.release()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(kept(running)) == 40


def test_peers_that_do_not_read_their_answers_stop_at_the_deadline(
    start: Start, certificates: Certificates
) -> None:
    running = start(pdu_timeout=1.0, send_buffer=4096, **certificates.serving())
    with Peer(running.port, tls=client(certificates.ca), receive_buffer=4096) as peer:
        echo = message(3, command(0x30, b"1.2.840.10008.1.1", None, data=False), None)
        with pytest.raises(OSError, match=r"(?i)reset|pipe|eof"):  # noqa: PT012 - sent till it ends
            while True:
                peer.send(echo * 100)
        wait_until(lambda: not at_work(), 20)


def at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "association" in thread.name]


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_release_ends_with_a_close_notify(
    start: Start, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    running = start(**certificates.serving())
    raw = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    secure = client(certificates.ca, None, version).wrap_socket(raw, suppress_ragged_eofs=False)
    with secure:
        secure.sendall(associate_rq(b"".join(context_item(*c) for c in CONTEXTS)))
        assert secure.recv(1 << 16)[0] == ACCEPT
        secure.sendall(pdu(RELEASE_RQ))
        assert secure.recv(1 << 16)[0] == RELEASE_RP
        assert secure.recv(10) == b"", "an end that TLS itself vouches for"
        secure.unwrap().close()
    wait_until(lambda: not at_work())


@pytest.mark.parametrize("size", [100_000, LARGE])
def test_a_connection_that_is_cut_within_an_object_leaves_nothing(
    start: Start, certificates: Certificates, size: int
) -> None:
    running = start(**certificates.serving())
    before = running.tree()
    for end in ("close", "close_notify", "reset", "rubbish"):
        with Peer(running.port, tls=client(certificates.ca)) as peer:
            peer.send(message(1, command(), data_set(size=size))[:-100])
            assert isinstance(peer.socket, ssl.SSLSocket)
            if end == "close_notify":
                peer.socket.setblocking(False)
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.socket.unwrap()
            elif end == "reset":
                linger = struct.pack("ii", 1, 0)
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif end == "rubbish":
                os.write(peer.socket.fileno(), bytes(1000))
        wait_until(lambda: not at_work())
        assert running.tree() == before, end
    with Peer(running.port, tls=client(certificates.ca)) as peer:
        assert peer.store(data_set()) == 0


def test_a_stop_aborts_and_waits_for_nobody(start: Start, certificates: Certificates) -> None:
    running = start(**certificates.serving())
    with (
        Peer(running.port, tls=client(certificates.ca)) as peer,
        Peer(running.port, b"") as silent,
        Peer(running.port, b"") as begun,
    ):
        begun.send(b"\x16\x03\x01\x02\x00\x01")
        assert peer.echo() == 0
        wait_until(lambda: len(at_work()) == 3)
        before = time.monotonic()
        running.stop()
        assert time.monotonic() - before < 5
        assert peer.receive()[0] == ABORT
        assert silent.receive()[0] == 0


def test_deadlines_hold_within_an_association(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plainpacs.scp")
    running = start(pdu_timeout=0.3, idle_timeout=0.6, **certificates.serving())
    with Peer(running.port, tls=client(certificates.ca)) as peer:
        assert peer.echo() == 0
        assert peer.receive()[0] == ABORT
    with Peer(running.port, tls=client(certificates.ca)) as peer:
        peer.send(message(1, command(), data_set())[:-10])
        assert peer.receive()[0] == ABORT
    with Peer(running.port, b"", tls=client(certificates.ca)) as peer:
        assert peer.receive()[0] == 0, "no association was requested"
    running.stop()
    for flag in ("--idle-timeout", "--pdu-timeout"):
        assert flag in caplog.text


# --- handshakes that fail -------------------------------------------------------------------------


def handshake(port: int, speaks: ssl.SSLContext) -> None:
    """Fails with what the client is told."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as raw,
        speaks.wrap_socket(raw) as secure,
    ):
        secure.sendall(associate_rq(context_item(1, CT, [EVRLE])))
        if not secure.recv(10):  # in TLS 1.3 a client is done before its certificate is judged
            raise ConnectionResetError


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("shows", "words", "flag"),
    [
        ("none", "TLS the peer showed no certificate", "--no-tls-verify"),
        ("stranger", "not accepted: unable to get local issuer certificate", "--tls-ca"),
        ("expired", "not accepted: certificate has expired", "--tls-ca"),
    ],
)
def test_a_certificate_that_is_not_accepted(
    start: Start,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    *,
    version: ssl.TLSVersion,
    shows: str,
    words: str,
    flag: str,
) -> None:
    running = start(**certificates.verifying())
    shown = None if shows == "none" else getattr(certificates, shows)
    with pytest.raises(OSError, match=r"(?i)alert"):
        handshake(running.port, client(certificates.ca, shown, version))
    with Peer(running.port, tls=client(certificates.ca, certificates.client)) as peer:
        assert peer.echo() == 0
        peer.release()
    line = only_refusal(running, caplog)
    assert line.startswith("refused association: somebody at 127.0.0.1: TLS ")
    assert words in line
    assert flag in line
    if shows == "none":
        return
    # Not required: but one that is shown is looked at all the same.
    lenient = start(**certificates.serving(tls_ca=certificates.ca.cert))
    with pytest.raises(OSError, match=r"(?i)alert"):
        handshake(lenient.port, client(certificates.ca, shown, version))
    with Peer(lenient.port, tls=client(certificates.ca)) as peer:
        assert peer.echo() == 0


def test_a_device_s_own_certificate_may_be_trusted(
    start: Start, certificates: Certificates
) -> None:
    trusted = certificates.serving(tls_ca=certificates.stranger.cert, tls_verify="on")
    running = start(**trusted)
    with Peer(running.port, tls=client(certificates.ca, certificates.stranger)) as peer:
        assert peer.echo() == 0
    with pytest.raises(OSError, match=r"(?i)alert"):
        handshake(running.port, client(certificates.ca, certificates.client))


def old_client(version: ssl.TLSVersion) -> ssl.SSLContext:
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context = client(None, None, version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def test_what_is_older_than_1_2_is_refused(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        running = start(**certificates.serving())
        caplog.clear()
        with pytest.raises(OSError, match=r"(?i)version"):
            handshake(running.port, old_client(version))
        line = only_refusal(running, caplog)
        assert "TLS the peer speaks no TLS from 1.2 on; no flag changes it" in line


@pytest.mark.parametrize(
    "suite", ["ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "AES128-SHA"]
)
def test_suites_that_are_not_the_profile_s_are_refused(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture, suite: str
) -> None:
    running = start(**certificates.serving())
    with pytest.raises(OSError, match=r"(?i)handshake.failure"):
        handshake(running.port, client(None, None, ssl.TLSVersion.TLSv1_2, suite))
    line = only_refusal(running, caplog)
    assert "no cipher suite of BCP 195" in line


def test_a_peer_that_does_not_trust_us_is_named(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(**certificates.serving())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(running.port, client(certificates.other))
    line = only_refusal(running, caplog)
    assert "TLS the peer ended the handshake" in line
    assert "unknown ca" in line
    assert "--tls-cert" in line


@pytest.mark.parametrize(
    ("sent", "words", "answer"),
    [
        (associate_rq(context_item(1, CT, [EVRLE])), "DICOM came without", ABORT),
        (b"GET / HTTP/1.0\r\n\r\n", "what came is HTTP", None),
        (b"\xff" * 100, "what came is not TLS", None),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "", None),
        (b"\x16\x03", "the peer ended the handshake", None),
    ],
)
def test_what_is_not_tls_is_one_clear_line(
    start: Start,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    *,
    sent: bytes,
    words: str,
    answer: int | None,
) -> None:
    running = start(**certificates.serving())
    with Peer(running.port, b"") as peer:
        peer.send(sent)
        peer.socket.shutdown(socket.SHUT_WR)
        kind, _ = peer.receive()
    assert answer is None or kind == answer
    line = only_refusal(running, caplog)
    assert words in line


def test_who_only_looks_whether_the_port_is_open_is_no_warning(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(pdu_timeout=0.2, **certificates.serving())
    for wait in (False, True):
        with Peer(running.port, b"") as peer:
            if wait:
                assert peer.receive()[0] == 0
    running.stop()
    assert refusals(caplog) == []


def test_stalled_handshakes_hold_nobody_up_and_end(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(pdu_timeout=2.0, **certificates.serving())
    hello = hello_of(client(certificates.ca))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for at in (*range(1, len(hello), 12), len(hello)):
            stack.enter_context(Peer(running.port, b"")).send(hello[:at])
        stalled = len(hello) // 12
        assert stalled > 10
        wait_until(lambda: len(at_work()) >= stalled)
        drip = stack.enter_context(Peer(running.port, b""))
        with Peer(running.port, tls=client(certificates.ca)) as peer:
            assert peer.store(data_set()) == 0
            peer.release()
        assert time.monotonic() - began < 2, "none of them was waited for"
        with contextlib.suppress(OSError):  # byte by byte, and never done
            for byte in hello[:-1]:
                drip.send(bytes((byte,)))
                time.sleep(0.02)  # the slow peer itself, not a wait for something
                assert time.monotonic() - began < 10
        wait_until(lambda: not at_work())
        assert time.monotonic() - began < 10
    assert caplog.text.count("TLS no handshake within 2 s (--pdu-timeout)") >= stalled


def hello_of(speaks: ssl.SSLContext) -> bytes:
    """A client's first message."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    speaker = speaks.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        speaker.do_handshake()
    return outgoing.read()


def test_an_address_that_is_not_allowed_is_told_so_by_tls_too(
    start: Start, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(allow_peers=("10.0.0.0/8",), **certificates.serving())
    with Peer(running.port, tls=client(certificates.ca)) as peer:
        assert peer.answer[1][1:4] == b"\1\1\3"
    line = only_refusal(running, caplog)
    assert "TESTER at 127.0.0.1 to DRDCM: 1/1/3" in line


def test_renegotiation_is_refused(start: Start, certificates: Certificates) -> None:
    running = start(**certificates.serving())
    arguments = ["s_client", "-connect", f"127.0.0.1:{running.port}", "-tls1_2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        ["openssl", *arguments], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for line in process.stdout:  # once it is through with telling of the handshake
            if b"Extended master secret" in line:
                break
        process.stdin.write(b"R\n")
        process.stdin.flush()
        said = process.stdout.read()
        process.stdin.close()
    assert b"no renegotiation" in said


# --- what is kept of sessions ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_stays_in_memory(certificates: Certificates, version: ssl.TLSVersion) -> None:
    context = server_context(load(certificates.verifying(), environ={}))
    assert context is not None
    speaks = client(certificates.ca, certificates.client, version)
    stopping, stop = os.pipe()
    for _ in range(20):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        ours.close()
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs.close()
            theirs = server.accept()[0]
        thread = threading.Thread(target=say_hello_and_end, args=(speaks, ours))
        thread.start()
        secured = TLSConnection(Connection(theirs, stopping), context, 20.0)
        secured.handshake()
        secured.await_close(20.0)
        secured.close()
        thread.join()
    os.close(stop)
    os.close(stopping)
    assert context.session_stats()["accept_good"] == 20
    assert context.session_stats()["number"] == 0


def say_hello_and_end(speaks: ssl.SSLContext, peer: socket.socket) -> None:
    with speaks.wrap_socket(peer) as secure:
        assert secure.recv(10) == b""
        secure.unwrap().close()


# --- settings -------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused_at_the_start(
    certificates: Certificates, tmp_path: Path
) -> None:
    server, empty, locked = certificates.server, tmp_path / "empty", tmp_path / "locked.key"
    empty.write_text("")
    openssl(
        *("ec", "-in", server.key, "-out", str(locked)),
        *("-aes128", "-passout", "pass:secret"),
    )
    weak = tmp_path / "weak.pem"
    openssl(
        *("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=weak"),
        *("-keyout", str(weak) + ".key", "-out", str(weak)),
    )
    for given, words in (
        ({"tls_key": server.key}, "--tls-key is given without --tls-cert"),
        ({"tls_ca": certificates.ca.cert}, "--tls-ca is given without --tls-cert"),
        ({"tls_verify": "on"}, "--tls-verify is given without --tls-cert"),
        (certificates.serving(tls_verify="on"), "--tls-verify needs --tls-ca"),
        ({"tls_cert": "/nowhere"}, "--tls-cert /nowhere: No such file"),
        ({"tls_cert": server.cert}, "--tls-key"),
        (certificates.serving(tls_key="/nowhere"), "--tls-key /nowhere: No such file"),
        (certificates.serving(tls_ca="/nowhere"), "--tls-ca /nowhere: No such file"),
        (certificates.serving(tls_cert=str(empty)), "--tls-cert"),
        (certificates.serving(tls_ca=str(empty)), "no certificate (PEM)"),
        (certificates.serving(tls_key=certificates.client.key), "not that of the certificate"),
        (certificates.serving(tls_key=str(locked)), "pass phrase"),
        ({"tls_cert": str(weak), "tls_key": f"{weak}.key"}, "the key is too small"),
    ):
        with pytest.raises(BadSettings, match="--tls") as caught:
            server_context(load(given, environ={}))
        assert words in str(caught.value), given
    both = tmp_path / "both.pem"
    both.write_bytes(Path(server.cert).read_bytes() + Path(server.key).read_bytes())
    assert server_context(load({"tls_cert": str(both)}, environ={})) is not None


def test_a_bad_certificate_is_said_in_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    root = tmp_path / "new"
    command_line = [sys.executable, "-m", "plainpacs", "serve", "--create"]
    done = subprocess.run(
        [*command_line, "--port", "0", "--tls-cert", "/nowhere", str(root)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "plainpacs: --tls-cert /nowhere: No such file or directory\n"
    assert not root.exists()


# --- read anew ------------------------------------------------------------------------------------


def shown_by(port: int, trusts: Authority) -> bytes:
    """The certificate that the service shows."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as raw,
        client(trusts).wrap_socket(raw) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certificate.cert).read_text())


@pytest.mark.parametrize("receivers", ["1", "2"])
def test_certificates_are_read_anew_at_a_hangup(
    serve: Serve, certificates: Certificates, tmp_path: Path, receivers: str
) -> None:
    cert, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))

    def put(certificate: Certificate, authority: Authority) -> None:
        for path, source in (
            (cert, certificate.cert),
            (key, certificate.key),
            (ca, authority.cert),
        ):
            path.write_bytes(Path(source).read_bytes())

    put(certificates.server, certificates.ca)
    config = tmp_path / "plainpacs.toml"
    config.write_text(f'tls_cert = "{cert}"\ntls_key = "{key}"\ntls_ca = "{ca}"\n')
    service = serve("--config", str(config), "--receivers", receivers, "--bind", "127.0.0.1")
    port = service.port

    def shown() -> set[bytes]:
        return {shown_by(port, certificates.ca) for _ in range(6)}

    def hang_up() -> None:
        before = service.said.count("SIGHUP")
        service.process.send_signal(1)
        eventually(lambda: service.said.count("SIGHUP") > before)

    assert shown() == {der(certificates.server)}
    # With threads, each has read its certificate; one that is late would read the next already.
    eventually(lambda: all(len(os.listdir(f"/proc/{one}/task")) > 1 for one in service.receivers()))
    speaks = client(certificates.ca, certificates.client)
    with Peer(port, tls=speaks) as running:
        put(certificates.second, certificates.ca)
        assert shown() == {der(certificates.server)}, "not before it is told"
        hang_up()
        eventually(lambda: shown() == {der(certificates.second)})
        assert running.store(data_set()) == 0, "a running association goes on"

        key.write_text("no key")
        hang_up()
        assert "ERROR SIGHUP: the settings stay as they were: --tls-cert" in service.said
        assert shown() == {der(certificates.second)}
        key.write_bytes(Path(certificates.second.key).read_bytes())

        # Who certifies peers, too; and that they have to be certified.
        put(certificates.second, certificates.other)
        config.write_text(config.read_text() + "tls_verify = true\n")
        hang_up()
        trusted = client(certificates.ca, certificates.stranger)

        def only_the_other() -> bool:
            for _ in range(4):
                with Peer(port, tls=trusted) as peer:
                    assert peer.echo() == 0
                with contextlib.suppress(OSError):
                    handshake(port, speaks)
                    return False
            return True

        eventually(only_the_other)
        assert running.store(data_set("1.9"), sop="1.9") == 0
        running.release()
    assert len(instances_in(service.root)) == 2
    assert service.stop() == 0
    assert "Traceback" not in service.said
    assert service.said.count(" ERROR ") == 1
