"""Who may associate: callers, addresses, limits, each refusal one line; and reading them anew."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from plainpacs.archive.app.settings import Settings, load, reloaded
from plainpacs.archive.errors import BadSettings
from plainpacs.scp.network import answers as status
from plainpacs.scp.receiver.access import APPLICATION_CONTEXT, Access
from plainpacs.scp.receiver.admission import Admission, Admissions
from tests.support.archives import eventually
from tests.support.peer import ACCEPT, CONTEXTS, SOP, Peer, associate_rq, context_item, data_set
from tests.support.receiver import Start, wait_until
from tests.support.serve import Serve, Service

CALLER, ADDRESS = b"\1\1\3", b"\1\1\3"
LIMIT = b"\2\3\2"


def why(peer: Peer) -> bytes:
    """Result, source and reason of an A-ASSOCIATE-RJ; empty when accepted."""
    kind, body = peer.answer
    return b"" if kind == ACCEPT else body[1:4]


def loaded(**values: object) -> Settings:
    return load(values, environ={})


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("10.0.0.0/8, 192.168.1.7", ("10.0.0.0/8", "192.168.1.7/32")),
        (["fd00::/8", "::1"], ("fd00::/8", "::1/128")),
        ("::ffff:10.0.0.0/104", ("10.0.0.0/8",)),
        ("::ffff:10.1.2.3", ("10.1.2.3/32",)),
        ("", ()),
    ],
)
def test_networks_are_kept_in_one_spelling(given: object, kept: tuple[str, ...]) -> None:
    settings = loaded(allow_peers=given)
    assert settings.allow_peers == kept
    assert loaded(allow_peers=list(kept)) == settings, "as receiver processes are told them"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("CT1=10.0.0.5,CT1=10.1.0.0/16,M=::1", ("CT1=10.0.0.5/32", "CT1=10.1.0.0/16", "M=::1/128")),
        ({"CT1": ["10.0.0.5", "fd00::/8"], "A=B": "10.0.0.6"},
         ("CT1=10.0.0.5/32", "CT1=fd00::/8", "A=B=10.0.0.6/32")),
        ({}, ()),
    ],
)  # fmt: skip
def test_bindings_come_as_text_or_as_a_table(given: object, kept: tuple[str, ...]) -> None:
    settings = loaded(ae_addresses=given)
    assert settings.ae_addresses == kept
    assert loaded(ae_addresses=list(kept)) == settings


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("allow_peers", "10.0.0.300", "no IP address"),
        ("allow_peers", "10.0.0.5/8", "10.0.0.0/8"),
        ("allow_peers", "modality.example", "no IP address"),
        ("ae_addresses", "CT1", "AE=ADDRESS"),
        ("ae_addresses", {"CT1": []}, "no address"),
        ("ae_addresses", {"A" * 17: "10.0.0.1"}, "AE title"),
        ("ae_addresses", "CT1=localhost", "no IP address"),
        ("max_associations_per_peer", "-1", "between 0"),
        ("tls_verify", "perhaps", "on, off"),
    ],
)
def test_impossible_rules_are_named(name: str, given: object, words: str) -> None:
    with pytest.raises(BadSettings, match=re.escape(words)) as caught:
        loaded(**{name: given})
    assert f"--{name.replace('_', '-')}" in str(caught.value)


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "peer", "calling", "expected"),
    [
        ({}, "203.0.113.9", "X", None),
        ({"allow_peers": "10.0.0.0/8"}, "10.200.3.4", "X", None),
        ({"allow_peers": "10.0.0.0/8"}, "11.0.0.1", "X", status.ADDRESS_NOT_ALLOWED),
        ({"allow_peers": "10.0.0.0/8"}, "::ffff:10.0.0.1", "X", None),
        ({"allow_peers": "10.0.0.0/8"}, "fd00::1", "X", status.ADDRESS_NOT_ALLOWED),
        ({"allow_peers": "10.0.0.0/8,fd00::/8"}, "fd00::1", "X", None),
        ({"allow_peers": "::/0"}, "10.0.0.1", "X", status.ADDRESS_NOT_ALLOWED),
        ({"allow_peers": "::ffff:0:0/96"}, "10.0.0.1", "X", None),
        ({"ae_addresses": "CT1=10.0.0.5"}, "10.0.0.5", "CT1", None),
        ({"ae_addresses": "CT1=10.0.0.5"}, "10.0.0.6", "CT1", status.CALLING_AE_FROM_ELSEWHERE),
        ({"ae_addresses": "CT1=10.0.0.5"}, "10.0.0.6", "MR1", None),
        ({"ae_addresses": "CT1=10.0.0.5,CT1=10.0.0.6"}, "10.0.0.6", "CT1", None),
        ({"calling_ae": "CT1"}, "10.0.0.5", "CT2", status.CALLING_AE_NOT_ALLOWED),
        ({"calling_ae": "CT1"}, "10.0.0.5", "ct1", status.CALLING_AE_NOT_ALLOWED),
        (
            {"calling_ae": "CT1", "allow_peers": "10.0.0.0/8"},
            *("11.0.0.5", "CT2", status.ADDRESS_NOT_ALLOWED),
        ),
        ({"allow_peers": "10.0.0.0/8"}, "not an address", "X", status.ADDRESS_NOT_ALLOWED),
    ],
)
def test_who_is_refused(
    rules: dict[str, object], peer: str, calling: str, expected: status.Rejection | None
) -> None:
    access = Access.of(loaded(**rules))
    assert access.rejection(calling, "DRDCM", APPLICATION_CONTEXT, peer) == expected
    assert access.is_stranger(peer) == (expected is status.ADDRESS_NOT_ALLOWED)


HOSTS = {"pacs.example": ["10.0.0.7", "fd00::7"], "ws": ["10.0.0.8"]}


def looked_up(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
    try:
        host_addresses = HOSTS[host] if "." not in host or "example" in host else [host]
    except KeyError:
        raise socket.gaierror("Name or service not known") from None
    return [(0, 0, 0, "", (address, 0)) for address in host_addresses]


@pytest.mark.parametrize(
    ("nodes", "calling", "peer", "why"),
    [
        ("", "X", "127.0.0.1", ""),
        ("", "X", "::1", ""),
        ("", "X", "127.4.5.6", ""),
        ("", "X", "::ffff:127.0.0.1", ""),
        ("", "X", "10.0.0.5", "not in the nodes"),
        ("X@10.0.0.5:104", "X", "10.0.0.5", ""),
        ("X@10.0.0.5:104", "X", "::ffff:10.0.0.5", ""),
        ("X@10.0.0.5:104", "X", "10.0.0.6", "its node is 10.0.0.5"),
        ("X@10.0.0.5:104", "x", "10.0.0.5", "not in the nodes"),
        ("X@10.0.0.5:104,Y@10.0.0.6:104", "Y", "10.0.0.5", "its node is 10.0.0.6"),
        ("X@pacs.example:104/tls", "X", "10.0.0.7", ""),
        ("X@pacs.example:104", "X", "fd00::7", ""),
        ("X@pacs.example:104", "X", "10.0.0.8", "its node is pacs.example"),
        ("X@gone:104", "X", "10.0.0.8", "gone, cannot be looked up"),
        ("", "X", "not an address", "not in the nodes"),
    ],
)
def test_who_may_query(
    monkeypatch: pytest.MonkeyPatch, nodes: str, calling: str, peer: str, why: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    refused = Access.of(loaded(nodes=nodes)).query_refusal(calling, peer)
    assert why in refused
    assert bool(refused) == bool(why)
    assert not Access.of(loaded(nodes=nodes, query_retrieve="any")).query_refusal(calling, peer)


def test_a_name_that_no_resolver_takes_refuses_and_nothing_else() -> None:
    access = Access.of(loaded(nodes=f"X@{'a' * 64}.example:104"))
    assert "cannot be looked up" in access.query_refusal("X", "10.0.0.5")


def test_what_a_reload_takes_over_and_what_it_cannot() -> None:
    before = loaded(port=1, calling_ae="A")
    merged, others = reloaded(before, loaded(port=2, calling_ae="B", max_pdu=8192))
    assert (merged.port, merged.calling_ae) == (1, ("B",))
    assert others == ["port", "max_pdu"]


# --- the limits, across processes -----------------------------------------------------------------


def test_admissions_count_by_address_for_all_processes() -> None:
    one = Admissions.create(2)
    with contextlib.closing(one):
        two = Admissions(one.fd, 2, slot=1)
        for admissions in (one, two):
            assert admissions.admit("10.0.0.1", 6, 3) is Admission.ADMITTED
        assert two.admit("::1", 6, 3) is Admission.ADMITTED
        assert one.admit("10.0.0.1", 6, 3) is Admission.ADMITTED
        for admissions in (one, two):
            assert admissions.admit("10.0.0.1", 6, 3) is Admission.FULL_FOR_PEER
            assert admissions.admit("10.0.0.1", 4, 3) is Admission.FULL
        one.dismiss("10.0.0.1")
        assert two.admit("10.0.0.1", 6, 3) is Admission.ADMITTED
        two.dismiss("10.0.0.1")  # not the last of its list: another takes the place
        two.dismiss("10.0.0.1")
        assert two.admit("::1", 6, 2) is Admission.ADMITTED
        assert one.admit("::1", 6, 2) is Admission.FULL_FOR_PEER
        # A process that died: the one in its place has none.
        again = Admissions(one.fd, 2, slot=1)
        again.clear()
        assert one.admit("::1", 6, 2) is Admission.ADMITTED


def test_admissions_have_room_for_every_association_there_may_be() -> None:
    admissions = Admissions.create(1)
    with contextlib.closing(admissions):
        for _ in range(3):
            assert admissions.admit("10.0.0.1", 3) is Admission.ADMITTED
        assert admissions.admit("10.0.0.1", 3) is Admission.FULL
        admissions.write_note(b"note")
        assert admissions.notes() == [b"note"], "the list and the notes lie apart"
        for _ in range(3):
            admissions.dismiss("10.0.0.1")
        assert admissions.admit("10.0.0.1", 1) is Admission.ADMITTED


# --- over the network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected", "flag"),
    [
        ({"calling_ae": ("CT1",)}, CALLER, "--calling-ae TESTER"),
        ({"allow_peers": ("10.0.0.0/8",)}, ADDRESS, "--allow-peers with 127.0.0.1"),
        (
            {"ae_addresses": ("TESTER=127.0.0.9/32",)},
            *(CALLER, "--ae-addresses with TESTER=127.0.0.1"),
        ),
        ({"aet": ("OTHER",)}, b"\1\1\7", "--aet DRDCM or --called-ae any"),
        ({"max_associations": 1}, LIMIT, "--max-associations N"),
        ({"max_associations_per_peer": 1}, LIMIT, "--max-associations-per-peer N"),
    ],
)
def test_each_refusal_is_one_line_with_who_and_which_flag(
    start: Start,
    caplog: pytest.LogCaptureFixture,
    rules: dict[str, object],
    expected: bytes,
    flag: str,
) -> None:
    running = start(**rules)
    with contextlib.ExitStack() as stack:
        if expected == LIMIT:
            first = stack.enter_context(Peer(running.port))
            assert why(first) == b""
            assert first.echo() == 0
        caplog.clear()
        other = stack.enter_context(Peer(running.port))
        assert why(other) == expected
        if expected == LIMIT:
            assert first.echo() == 0
    running.stop()
    [line] = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    code = "/".join(map(str, expected))
    assert line.startswith(f"refused association: TESTER at 127.0.0.1 to DRDCM: {code} ")
    assert line.endswith(flag)


def test_an_address_alone_is_refused_before_the_contexts_are_read(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(allow_peers=("10.0.0.0/8",))
    contexts = b"".join(context_item(*c) for c in CONTEXTS)
    with Peer(running.port, associate_rq(contexts)[: 6 + 68]) as peer:
        assert why(peer) == ADDRESS
    running.stop()
    assert "TESTER at 127.0.0.1 to DRDCM: 1/1/3 the peer's address is not allowed" in caplog.text


def test_a_name_that_is_bound_works_from_its_address_alone(start: Start) -> None:
    running = start(ae_addresses=("CT1=127.0.0.2/32",))
    for source, calling, expected in (
        ("127.0.0.2", "CT1", b""),
        ("127.0.0.3", "CT1", CALLER),
        ("127.0.0.3", "CT2", b""),
    ):
        with Peer(running.port, calling=calling, source=source) as peer:
            assert why(peer) == expected


def test_ipv4_by_way_of_ipv6_is_ipv4(start: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    running = start(bind="", allow_peers=("127.0.0.0/8",))
    with Peer(running.port) as peer:
        assert why(peer) == b""
    with Peer(running.port, to="::1") as peer:
        assert why(peer) == ADDRESS
    both = start(bind="", allow_peers=("::1/128",))
    with Peer(both.port, to="::1") as peer:
        assert why(peer) == b""
    with Peer(both.port) as peer:
        assert why(peer) == ADDRESS


def test_the_limit_of_one_address_leaves_room_for_others(start: Start) -> None:
    running = start(max_associations_per_peer=2)
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(Peer(running.port, source="127.0.0.2")) for _ in range(2)]
        with Peer(running.port, source="127.0.0.2") as beyond:
            assert why(beyond) == LIMIT
        with Peer(running.port, source="127.0.0.3") as other:
            assert why(other) == b""
        ours[0].release()
        wait_until(lambda: why(stack.enter_context(Peer(running.port, source="127.0.0.2"))) == b"")


def test_connections_that_say_nothing_from_one_address_shut_no_other_out(start: Start) -> None:
    running = start(max_associations=4, max_associations_per_peer=2)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(Peer(running.port, b"", source="127.0.0.2")) for _ in range(100)
        ]
        with Peer(running.port, source="127.0.0.3") as other:
            assert other.store(data_set()) == 0
        assert silent


def test_a_name_with_a_line_break_makes_no_second_line(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(calling_ae=("CT1",))
    with Peer(running.port, calling="X\nfake line") as peer:
        assert why(peer) == CALLER
    running.stop()
    [line] = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert "\n" not in line
    assert "X?fake line" in line


def test_tls_at_a_port_without_is_one_clear_line(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(196)
    with Peer(running.port, hello) as peer:
        assert peer.answer[0] in (0, 7)
    running.stop()
    [line] = [r.getMessage() for r in caplog.records]
    assert "TLS came to a port without" in line
    assert "--tls-cert" in line


# --- read anew ------------------------------------------------------------------------------------


def hang_up(service: Service, words: str) -> str:
    """Sends a SIGHUP and waits for what is said after it; the line."""
    before = len(service.said)
    service.process.send_signal(signal.SIGHUP)
    line = eventually(lambda: re.search(rf"^.*{words}.*$", service.said[before:], re.MULTILINE))
    return str(line[0])


@pytest.mark.parametrize("receivers", ["1", "2"])
def test_the_rules_are_read_anew_at_a_hangup(serve: Serve, tmp_path: Path, receivers: str) -> None:
    config = tmp_path / "plainpacs.toml"
    config.write_text("max_associations = 20\n")
    service = serve("--config", str(config), "--receivers", receivers, "--bind", "127.0.0.1")

    def answers(calling: str = "TESTER") -> set[bytes]:
        """Of both processes, where there are two."""
        found = set()
        for _ in range(6):
            with Peer(service.port, calling=calling, source="127.0.0.2") as peer:
                found.add(why(peer))
        return found

    assert answers() == {b""}
    with Peer(service.port, source="127.0.0.3") as running:
        config.write_text('calling_ae = ["CT1"]\nmax_pdu = 8192\n')
        line = hang_up(service, "SIGHUP")
        assert line.endswith("read again; a restart is needed for max_pdu")
        eventually(lambda: answers() == {CALLER})
        assert answers("CT1") == {b""}
        assert running.store(data_set()) == 0, "running associations go on"

        config.write_text('calling_ae = ["CT1"\n')
        assert " ERROR " in hang_up(service, "SIGHUP")
        config.write_text("calling_aes = ['X']\n")
        assert "the nearest is calling_ae" in hang_up(service, "SIGHUP")
        config.write_text("tls_cert = '/nowhere'\n")
        assert "--tls-cert /nowhere: No such file" in hang_up(service, "SIGHUP")
        assert answers("CT1") == {b""}
        assert answers() == {CALLER}, "the old rules stay"

        config.write_text("max_associations_per_peer = 1\n")
        hang_up(service, "read again")
        eventually(
            lambda: (
                why_from(service, "127.0.0.3") == LIMIT and why_from(service, "127.0.0.4") == b""
            )
        )
        assert running.store(data_set("1.9"), sop="1.9") == 0
    assert service.said.count(" ERROR ") == 3
    assert service.stop() == 0
    assert "Traceback" not in service.said


def why_from(service: Service, source: str) -> bytes:
    with Peer(service.port, source=source) as peer:
        return why(peer)


def test_the_limit_of_one_address_is_of_all_processes_together(serve: Serve) -> None:
    service = serve("--receivers", "3", "--max-associations-per-peer", "4")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(service.port)) for _ in range(4)]
        for number, peer in enumerate(peers):
            sop = f"{SOP}.{number}"
            assert peer.store(data_set(sop), sop=sop) == 0
        for _ in range(5):
            assert why_from(service, "127.0.0.1") == LIMIT
        assert why_from(service, "127.0.0.2") == b""
    assert service.stop() == 0


def test_a_receiver_started_again_has_the_rules_read_since(serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "plainpacs.toml"
    config.write_text("")
    service = serve("--config", str(config), "--receivers", "2")
    first = eventually(lambda: len(found := service.receivers()) == 2 and found)
    assert why_from(service, "127.0.0.1") == b""
    config.write_text("allow_peers = ['10.0.0.0/8']\n")
    hang_up(service, "read again")
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(found := service.receivers()) == 2 and not {*found} & {*first})
    for _ in range(6):
        assert why_from(service, "127.0.0.1") == ADDRESS
    assert service.stop() == 0
    [note] = service.root.glob(".plainpacs/service.*.json")
    assert json.loads(note.read_bytes())["last_refusals"][0]["status"] == "1/1/3"


def test_a_hangup_to_a_receiver_process_does_not_end_it(serve: Serve) -> None:
    service = serve("--receivers", "2")
    first = eventually(lambda: len(found := service.receivers()) == 2 and found)
    # Once it accepts, each has four threads.
    eventually(lambda: all(len(os.listdir(f"/proc/{pid}/task")) >= 4 for pid in first))
    with Peer(service.port) as peer:
        for pid in first:
            os.kill(pid, signal.SIGHUP)
        assert peer.echo() == 0
    assert sorted(service.receivers()) == sorted(first)
    assert service.stop() == 0
