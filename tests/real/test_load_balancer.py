"""A real HAProxy in front of popproxy: the client's own address by the PROXY protocol, from trusted peers only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account, Poplib, Transport
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.messages import SAMPLES, wire
from tests.peers.process import Process, accepts, free_port, public_directory, require
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.raw import RawClient

_CONFIGURATION = """\
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen pop3
  bind 127.0.0.1:{port}
  server popproxy 127.0.0.1:{target} {header}
"""


@pytest.fixture
def trusting(start_proxy: StartProxy, dovecot_server: Dovecot, server_certificate: CertificateFiles) -> Proxy:
    """Loopback is a network of load balancers."""
    dovecot_server.deliver("alice", SAMPLES)
    extra = {"proxy_protocol": ["127.0.0.1/32"]}
    return start_proxy(settings(f"127.0.0.1:{dovecot_server.port}", server_certificate, listener=extra))


@pytest.fixture
def haproxy() -> Iterator[Path]:
    """A directory for HAProxy."""
    with public_directory("haproxy") as directory:
        yield directory


def _start(directory: Path, target: int, header: str) -> tuple[Process, int]:
    port = free_port()
    file = directory / "haproxy.cfg"
    file.write_text(_CONFIGURATION.format(port=port, target=target, header=header))
    process = Process("haproxy", [require("haproxy"), "-db", "-f", file], directory / "haproxy.log", directory)
    process.wait_for(lambda: accepts(port), "HAProxy")
    return process, port


@pytest.mark.parametrize("header", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("transport", ["plain", "stls", "tls"])
def test_session_through_haproxy_is_recorded_with_the_address_of_the_client(
    trusting: Proxy, haproxy: Path, dovecot_server: Dovecot, authority: Authority, header: str, transport: Transport
) -> None:
    process, port = _start(haproxy, trusting.port("pop3s" if transport == "tls" else "pop3"), header)
    try:
        account = Account(port, "alice", dovecot_server.users["alice"], authority.ca, transport)
        assert Poplib().fetch(account, haproxy) == [wire(message) for message in SAMPLES]
    finally:
        process.stop()

    login = next(record for record in trusting.settled() if record["event.action"] == "login")
    assert login["source.ip"] == "127.0.0.1"
    assert login["client.nat.ip"] == "127.0.0.1"
    assert login["client.nat.port"] != login["source.port"]


def test_server_behind_hears_of_the_client_in_front_of_haproxy(
    start_proxy: StartProxy, haproxy: Path, server_certificate: CertificateFiles
) -> None:
    """PROXY 2 from HAProxy to popproxy, XCLIENT from popproxy to Dovecot, after STLS: its log shows the client."""
    with dovecot(server_certificate, extra="login_trusted_networks = 127.0.0.1") as server:
        pool = {"xclient": True, "tls": "stls", "verify": False, "allow_cleartext": False}
        trusted = {"proxy_protocol": ["127.0.0.1/32"]}
        proxy = start_proxy(settings(f"127.0.0.1:{server.port}", server_certificate, pool=pool, listener=trusted))
        process, port = _start(haproxy, proxy.port(), "send-proxy-v2")
        try:
            with socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.77", 0)) as client:
                source = client.getsockname()[1]
                stream = client.makefile("rwb")
                for line in (b"", b"USER alice\r\n", b"PASS " + server.users["alice"].encode() + b"\r\n", b"QUIT\r\n"):
                    stream.write(line)
                    stream.flush()
                    assert stream.readline().startswith(b"+OK")
        finally:
            process.stop()
        login = next(record for record in proxy.settled() if record["event.action"] == "login")
        assert (login["source.ip"], login["source.port"]) == ("127.0.0.77", source)
        told = server.told("Login: user=<alice>")
        assert "rip=127.0.0.77," in told
        assert f"session=<{login['session.id']}>" in told


async def test_trusted_peer_without_a_header_gets_nothing(trusting: Proxy) -> None:
    async with RawClient(trusting.port()) as client:
        await client.send(b"CAPA\r\n")
        assert await client.rest() == b""


async def test_header_from_an_untrusted_peer_ends_it(start_proxy: StartProxy, dovecot_server: Dovecot) -> None:
    networks = {"proxy_protocol": ["192.0.2.0/24"]}
    proxy = start_proxy(settings(f"127.0.0.1:{dovecot_server.port}", listener=networks))

    async with RawClient(proxy.port()) as client:
        assert (await client.line()).startswith(b"+OK")
        assert (await client.command("PROXY TCP4 192.0.2.7 192.0.2.1 5000 110")).startswith(b"-ERR")
        assert await client.rest() == b""

    [[*_, end]] = await asyncio.to_thread(proxy.sessions)
    assert end["source.ip"] == "127.0.0.1"
