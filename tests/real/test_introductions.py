"""Who the client is: told to real servers, and heard from real fronts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import dovecot
from tests.peers.process import Process, accepts, free_port, public_directory, require, wait_until
from tests.peers.proxy import StartProxy, settings

CLIENT = "127.0.0.77"
_TAKES_HEADERS = """
haproxy_trusted_networks = 127.0.0.1
service pop3-login {
  inet_listener pop3 {
    haproxy = yes
  }
  inet_listener pop3s {
    haproxy = yes
  }
}
"""
_BEHIND = """\
global
  log stdout format raw local0 info
defaults
  mode tcp
  log global
  log-format "came from %ci:%cp to %fi:%fp as %[fc_pp_unique_id]"
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen pop3
  bind 127.0.0.1:{port} accept-proxy
  server dovecot 127.0.0.1:{target}
"""


def session(port: int, user: str, password: str, source: str = CLIENT) -> tuple[str, int]:
    """A whole session from `source`; where it came from."""
    with socket.create_connection(("127.0.0.1", port), 20, (source, 0)) as client:
        stream = client.makefile("rwb")
        for line in ("", f"USER {user}\r\n", f"PASS {password}\r\n", "QUIT\r\n"):
            stream.write(line.encode())
            stream.flush()
            answer = stream.readline()
            assert answer.startswith(b"+OK"), answer
        host, port = client.getsockname()
        return host, port


def test_dovecot_that_wants_a_proxy_header_sees_the_client(
    start_proxy: StartProxy, server_certificate: CertificateFiles
) -> None:
    with dovecot(server_certificate, users=("alice", "bob", "carol"), extra=_TAKES_HEADERS) as server:
        link = {"verify": False, "allow_cleartext": False}
        pools: dict[str, dict[str, Any]] = {
            "bob": {"servers": [f"127.0.0.1:{server.port}"], "tls": "stls", "proxy_header": "v2", **link},
            "carol": {"servers": [f"127.0.0.1:{server.tls_port}"], "tls": "implicit", "proxy_header": "v2", **link},
        }
        configuration = settings(f"127.0.0.1:{server.port}", server_certificate, pool={"proxy_header": "v1"})
        configuration["pools"] |= pools
        configuration["routing"] = {"rules": [{"user": name, "pool": name} for name in pools], "default": "main"}
        proxy = start_proxy(configuration)
        for user, password in server.users.items():
            session(proxy.port(), user, password)
            told = server.told(f"Login: user=<{user}>")
            assert f"rip={CLIENT}, lip=127.0.0.1," in told
        checked = proxy.command("check")
        assert f"127.0.0.1:{server.port} answers without TLS" in checked.stdout
        assert f"127.0.0.1:{server.port} answers with TLSv1.3" in checked.stdout
        assert f"127.0.0.1:{server.tls_port} answers with TLSv1.3" in checked.stdout


def test_haproxy_behind_sees_the_client_and_the_name_of_the_session(start_proxy: StartProxy) -> None:
    with dovecot() as server, public_directory("haproxy") as directory:
        port = free_port()
        process = _haproxy(directory, _BEHIND.format(port=port, target=server.port), port)
        try:
            proxy = start_proxy(settings(f"127.0.0.1:{port}", pool={"proxy_header": "v2", "check": {"every": "200ms"}}))
            source = session(proxy.port(), "alice", server.users["alice"])
            record = next(record for record in proxy.settled() if record["event.action"] == "login")
            told = f"came from {source[0]}:{source[1]} to 127.0.0.1:{proxy.port()} as {record['session.id']}"
            wait_until(lambda: told in process.log.read_text(), "HAProxy's line for the session")
            own = "came from 127.0.0.1:"  # the check's: LOCAL
            wait_until(lambda: own in process.log.read_text(), "HAProxy's line for the check")
        finally:
            process.stop()


def _haproxy(directory: Path, text: str, port: int) -> Process:
    file = directory / "haproxy.cfg"
    file.write_text(text)
    process = Process("haproxy", [require("haproxy"), "-db", "-f", file], directory / "haproxy.log", directory)
    process.wait_for(lambda: accepts(port), "HAProxy")
    return process


@pytest.mark.parametrize("link", ["plain", "stls"])
def test_dovecot_in_front_and_dovecot_behind(
    start_proxy: StartProxy, server_certificate: CertificateFiles, link: str
) -> None:
    """XCLIENT from Dovecot's login proxy to popproxy, XCLIENT from popproxy to Dovecot: all three know the client."""
    with dovecot(extra="login_trusted_networks = 127.0.0.1") as server:
        configuration = settings(
            f"127.0.0.1:{server.port}", server_certificate, pool={"xclient": True},
            listener={"xclient": ["127.0.0.1/32"]},
        )  # fmt: skip
        proxy = start_proxy(configuration)
        to = f"proxy=y host=127.0.0.1 port={proxy.port()}{' starttls=any-cert' if link == 'stls' else ''}"
        with dovecot(server_certificate) as front:
            (front.directory / "users").write_text(f"alice:::::::nopassword {to}\n")
            host, port = session(front.port, "alice", server.users["alice"])
            login = next(record for record in proxy.settled() if record["event.action"] == "login")
            assert (login["source.ip"], login["source.port"]) == (host, port)
            assert login["client.nat.ip"] == "127.0.0.1"
            assert login.get("tls.version") == ("1.3" if link == "stls" else None)
            at_front = front.told("alice", "proxy")
            assert f"session=<{login['popproxy.front_session']}>" in at_front
            behind = server.told("Login: user=<alice>")
            assert f"rip={CLIENT}," in behind
            assert f"session=<{login['session.id']}>" in behind
            with pytest.raises(AssertionError, match="-ERR"):
                session(front.port, "alice", "wrong", "127.0.0.78")
            wrong = next(record for record in proxy.sessions(2)[-1] if record["event.action"] == "auth")
            assert (wrong["event.outcome"], wrong["source.ip"]) == ("failure", "127.0.0.78")
