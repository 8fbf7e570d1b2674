"""A real HAProxy in front of popproxy: the client's own address by the PROXY protocol, from trusted peers only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account, Poplib, Transport
from tests.peers.dovecot import Dovecot
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
