"""Applications elsewhere: how they are written, found by name, and trusted."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from pynetdicom.presentation import build_context

from plainpacs.archive.app.ae_address import Address, Security
from plainpacs.archive.app.settings import Settings, load
from plainpacs.archive.errors import BadSettings
from plainpacs.scp.network import remote_aes as nodes
from plainpacs.scp.network.reader import Limits
from plainpacs.scp.network.requestor import NoAssociation, Node, Requestor
from tests.scp.test_tls import NEW_KEY, Certificates, certificates, openssl
from tests.support.peer import EVRLE, VERIFICATION
from tests.support.receiver import Start

__all__ = ["certificates"]  # the fixture

LIMITS = Limits(pdu_timeout=5.0, idle_timeout=5.0, announced_pdu=1 << 16)
ECHO = (build_context(VERIFICATION, EVRLE),)


@pytest.mark.parametrize(
    "text",
    ["WS@10.0.0.5:104", "A B@host.example:2762/tls", "X@[fd00::7]:11112/tls-any-name", "A@B@h:1"],
)
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("WS", "of the form"),
        ("WS@host", "of the form"),
        ("@host:104", "1 to 16"),
        ("WS@host:0", "1 and 65535"),
        ("WS@host:65536", "1 and 65535"),
        ("WS@host:104/ssl", "/tls-any-name"),
        ("WS@::1:104", "of the form"),
        ("SEVENTEEN-LETTERS@host:104", "1 to 16"),
        ("", "of the form"),
    ],
)
def test_what_is_no_address_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Address.parse(text)


def test_a_table_and_a_list_say_the_same(tmp_path: Path) -> None:
    config = tmp_path / "p.toml"
    config.write_text('[nodes]\nWS = "10.0.0.5:104"\n"A B" = "[::1]:2762/tls"\n')
    table = load({}, str(config), {})
    assert table.nodes == ("WS@10.0.0.5:104", "A B@[::1]:2762/tls")
    assert load({}, None, {"PLAINPACS_NODES": "WS@10.0.0.5:104, A B@[::1]:2762/tls"}) == table
    assert nodes.known(table)[1] == Address("A B", "::1", 2762, Security.TLS)


def test_one_title_has_one_place() -> None:
    with pytest.raises(BadSettings, match="WS is named more than once"):
        load({"nodes": "WS@a:104,PACS@b:104,WS@c:104"}, None, {})


def test_titles_are_found_to_the_letter_and_for_people_in_any_case() -> None:
    settings = Settings(nodes=("Pacs@a:104", "PACS@b:104", "WS@c:104"))
    assert nodes.find(settings, "PACS") == Node("PACS", "b", 104)
    assert nodes.find(settings, "ws") is None
    assert nodes.named(settings, "ws") == Node("WS", "c", 104)
    assert nodes.named(settings, "PACS").host == "b"
    assert nodes.named(settings, "pacs").host == "a"
    assert nodes.named(settings, "CT@d:1") == Node("CT", "d", 1)
    with pytest.raises(BadSettings, match="the nearest is WS"):
        nodes.named(settings, "wss")
    with pytest.raises(BadSettings, match="of the form"):
        nodes.named(settings, "WS@c")
    with pytest.raises(BadSettings, match="none is set"):
        nodes.named(Settings(), "ws")


def associate(port: int, security: str, **trust: str) -> None:
    address = Address.parse(f"DRDCM@127.0.0.1:{port}{security}")
    node = nodes.find(Settings(nodes=(str(address),), **trust), "DRDCM")  # type: ignore[arg-type]  # a test's own
    assert node is not None
    Requestor.open(node, "TESTER", ECHO, limits=LIMITS).release()


def test_a_certificate_has_to_be_trusted_and_to_name_its_host(
    start: Start, certificates: Certificates, tmp_path: Path
) -> None:
    key, cert = str(tmp_path / "own.key"), str(tmp_path / "own.pem")
    own = ("req", "-x509", *NEW_KEY, "-keyout", key, "-out", cert, "-subj", "/CN=device")
    openssl(*own, "-addext", "subjectAltName=IP:127.0.0.1")
    named = start(tls_cert=cert, tls_key=key)
    associate(named.port, "/tls", tls_ca=cert)
    with pytest.raises(NoAssociation, match="certificate is not accepted"):
        associate(named.port, "/tls-any-name", tls_ca=certificates.ca.cert)
    with pytest.raises(NoAssociation, match="certificate is not accepted"):
        associate(named.port, "/tls-any-name")
    nameless = start(**certificates.serving())
    associate(nameless.port, "/tls-any-name", tls_ca=certificates.ca.cert)
    with pytest.raises(NoAssociation, match=r"TLS: .*mismatch") as caught:
        associate(nameless.port, "/tls", tls_ca=certificates.ca.cert)
    assert caught.value.step == "TLS"


def test_our_certificate_is_shown_to_who_asks(start: Start, certificates: Certificates) -> None:
    verifying = start(**certificates.verifying())
    ours = {"tls_cert": certificates.client.cert, "tls_key": certificates.client.key}
    associate(verifying.port, "/tls-any-name", tls_ca=certificates.ca.cert, **ours)
    with pytest.raises(NoAssociation):
        associate(verifying.port, "/tls-any-name", tls_ca=certificates.ca.cert)


def test_trust_for_nodes_alone_needs_no_tls_of_ours(certificates: Certificates) -> None:
    from plainpacs.scp.receiver.access import Access

    trust = {"tls_ca": certificates.ca.cert}
    assert Access.of(load({"nodes": "A@b:1/tls", **trust}, None, {})).tls is None
    with pytest.raises(BadSettings, match="TLS would be off"):
        Access.of(load({"nodes": "A@b:1", **trust}, None, {}))


def test_the_client_speaks_nothing_older_than_1_2(certificates: Certificates) -> None:
    context = nodes.client_context(Settings(tls_ca=certificates.ca.cert))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
