"""An auth_http responder in front of two real Dovecots; a real nginx asks it the same; then it dies and stalls."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.auth_http import Account, Responder, responder
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account as MailAccount
from tests.peers.clients import Curl
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.process import Process, accepts, free_port, public_directory, require
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.raw import RawClient
from tests.real.directory_rig import LATER, WRONG, attempt, reasons, wrong

DEADLINE = 3
OWN = canary("ajones")


@dataclass(frozen=True)
class Site:
    """alice's mail is on the first Dovecot, bob's on the second, where the responder knows another password for him."""

    service: Responder
    first: Dovecot
    second: Dovecot
    proxy: Proxy
    nginx: int


def _at(server: Dovecot, **headers: str) -> dict[str, str]:
    return {"Auth-Server": "127.0.0.1", "Auth-Port": str(server.port), **headers}


@pytest.fixture(scope="module")
def site(dovecot_server: Dovecot, server_certificate: CertificateFiles) -> Iterator[Site]:
    first = dovecot_server
    with dovecot() as second, proxies() as start:
        first.deliver("alice", [b"Subject: one\n\n1\n"])
        second.deliver("bob", [b"Subject: one\n\n1\n", b"Subject: two\n\n2\n"])
        users = {
            "alice": Account(first.users["alice"], _at(first)),
            "b.jones@example.com": Account(OWN, _at(second, **{"Auth-User": "bob", "Auth-Pass": second.users["bob"]})),
            "carol": Account(canary("carol"), {"Auth-Server": "192.0.2.1", "Auth-Port": "110"}),
        }
        with responder(users) as service, nginx(service.url) as port:
            yield Site(service, first, second, start(_settings(service, first, second, server_certificate)), port)


@contextlib.contextmanager
def nginx(url: str) -> Iterator[int]:
    """A real nginx that asks the same service; its port."""
    port = free_port()
    with public_directory("nginx") as directory:
        (directory / "nginx.conf").write_text(
            f"load_module modules/ngx_mail_module.so;\ndaemon off;\nuser nobody nogroup;\npid {directory}/pid;\n"
            f"error_log {directory}/log info;\nevents {{}}\nmail {{\n  server_name localhost;\n  auth_http {url};\n"
            f"  server {{ protocol pop3; listen 127.0.0.1:{port}; pop3_auth plain apop cram-md5; }}\n}}\n"
        )
        command: list[str | Path] = [
            require("nginx"),
            "-c",
            directory / "nginx.conf",
            "-p",
            "/usr/share/nginx",
            "-e",
            directory / "log",
        ]
        process = Process("nginx", command, directory / "out", directory)
        try:
            process.wait_for(lambda: accepts(port), "nginx to listen")
            yield port
        finally:
            process.stop()


def _settings(service: Responder, first: Dovecot, second: Dovecot, certificate: CertificateFiles) -> dict[str, Any]:
    own = {"authenticate": ["web"], "apop": True, "sasl": ["CRAM-MD5"]}
    complete = settings(f"127.0.0.1:{first.port}", certificate, listener=own)
    listener = complete["listeners"][0]
    plain = {"apop": False, "sasl": []}
    complete["listeners"].append({**listener, **plain, "name": "direct", "authenticate": ["passthrough"]})
    complete["listeners"].append({**listener, **plain, "name": "cached", "authenticate": ["remembered"]})
    complete["pools"]["second"] = {"servers": [f"127.0.0.1:{second.port}"], "tls": "none", "allow_cleartext": True}
    complete["routing"] = {"default": "main"}
    complete["directories"] = {"web": {"http": {"url": service.url}, "deadline": f"{DEADLINE}s", "connections": 2}}
    complete["directories"]["remembered"] = {**complete["directories"]["web"], "cache": "1h"}
    return complete


async def test_users_get_their_own_maildrop_on_their_own_server(site: Site) -> None:
    tried = await attempt(site.proxy, "alice", site.first.users["alice"])
    assert (tried.reply[:3], tried.messages) == (b"+OK", 1)
    tried = await attempt(site.proxy, "B.Jones@Example.com", OWN)
    assert (tried.reply[:3], tried.messages) == (b"+OK", 2)


def test_apop_opens_the_maildrop_with_the_password_that_the_service_gives(
    site: Site, home: Path, authority: Authority
) -> None:
    target = MailAccount(site.proxy.port(), "alice", site.first.users["alice"], authority.ca, auth="apop")
    assert Curl().fetch(target, home) == [b"Subject: one\r\n\r\n1\r\n"]
    assert site.proxy.audit("login")[-1]["auth.mechanism"] == "APOP"


async def _dialogue(port: int, way: str, password: str) -> bytes:
    """One login of alice, and the last answer to it."""
    async with RawClient(port) as client:
        greeting = await client.line()
        match way:
            case "user":
                await client.command("USER alice")
                return await client.command(f"PASS {password}")
            case "plain":
                return await client.command(
                    f"AUTH PLAIN {b64encode(f'{chr(0)}alice{chr(0)}{password}'.encode()).decode()}"
                )
            case "apop":
                timestamp = greeting[greeting.index(b"<") :].strip()
                return await client.command(f"APOP alice {hashlib.md5(timestamp + password.encode()).hexdigest()}")
            case _:
                challenge = b64decode((await client.command("AUTH CRAM-MD5"))[2:])
                response = f"alice {hmac.digest(password.encode(), challenge, 'md5').hex()}"
                return await client.command(b64encode(response.encode()))


@pytest.mark.parametrize("way", ["user", "plain", "apop", "cram-md5"])
async def test_nginx_and_popproxy_tell_the_service_the_same(site: Site, way: str) -> None:
    """The same dialogue with both, with the right password and a wrong one; what differs is HTTP's own."""
    told: list[list[dict[str, str]]] = []
    for port in (site.nginx, site.proxy.port()):
        before = len(site.service.requests)
        assert (await _dialogue(port, way, site.first.users["alice"])).startswith(b"+OK")
        assert (await _dialogue(port, way, "wrong pass%word")).startswith(b"-ERR")
        told.append(site.service.requests[before:])
    for request in (*told[0], *told[1]):
        for name in ("Host", "User-Agent", "Accept", "Connection"):
            request.pop(name, None)
        if "Auth-Salt" in request:  # of each connection's own
            request["Auth-Salt"] = request["Auth-Salt"][0] + request["Auth-Salt"][-1]
            request["Auth-Pass"] = str(len(request["Auth-Pass"]))
    assert told[0] == told[1]
    assert len(told[0]) == 2


async def test_refusals_look_alike_and_trouble_is_ours(site: Site) -> None:
    assert {await wrong(site.proxy, "alice"), await wrong(site.proxy, "nobody")} == {WRONG}
    await reasons(site.proxy, "bad_credentials", "bad_credentials")
    site.service.says = b"HTTP/1.0 500 Oops\r\nAuth-Status: OK\r\n\r\n"
    try:
        assert (await attempt(site.proxy, "alice", site.first.users["alice"])).reply == LATER
    finally:
        site.service.says = None
    await reasons(site.proxy, "unavailable")


async def test_a_server_that_no_pool_has_is_our_mistake(site: Site) -> None:
    tried = await attempt(site.proxy, "carol", site.service.users["carol"].password)
    assert tried.reply.startswith(b"-ERR [SYS/PERM]")
    await reasons(site.proxy, "no_route")
    assert "192.0.2.1:110" in site.proxy.log()


async def test_who_was_let_in_a_moment_ago_gets_in_while_the_service_is_down(site: Site) -> None:
    password = site.first.users["alice"]
    assert (await attempt(site.proxy, "alice", password, "cached")).reply.startswith(b"+OK")
    site.service.stop()
    try:
        for _ in range(2):
            tried = await attempt(site.proxy, "alice", password, "cached")
            assert (tried.reply[:3], tried.messages) == (b"+OK", 1)
        assert await wrong(site.proxy, "alice", "cached") == LATER
        assert (await attempt(site.proxy, "alice", password)).reply == LATER  # a directory without a cache
    finally:
        site.service.start()
    metrics = await asyncio.to_thread(site.proxy.metrics)
    assert metrics['popproxy_auth_cache_total{outcome="hit",source="remembered"}'] == 2
    assert metrics['popproxy_auth_cache_total{outcome="hit",source="web"}'] == 0


@pytest.fixture
def placed(site: Site) -> Iterator[Proxy]:
    """A proxy whose servers judge passwords, and whose service only says where the mail is."""
    complete = settings(f"127.0.0.1:{site.first.port}", listener={"authenticate": ["passthrough"]})
    complete["pools"]["second"] = {"servers": [f"127.0.0.1:{site.second.port}"], "tls": "none", "allow_cleartext": True}
    complete["routing"] = {"default": "main", "directories": ["web"], "cache": "0s"}
    complete["directories"] = {"web": {"http": {"url": site.service.url}, "deadline": f"{DEADLINE}s"}}
    with proxies() as start:
        yield start(complete)


async def test_a_service_that_only_says_where_mail_is_and_is_remembered_while_it_is_down(
    site: Site, placed: Proxy
) -> None:
    # a password in the answer is nothing to log in with: nobody has proved anything
    site.service.users["bob"] = Account("", _at(site.second, **{"Auth-Pass": site.second.users["bob"]}))
    assert await wrong(placed, "bob") == WRONG
    bob, alice = site.second.users["bob"], site.first.users["alice"]
    assert (await attempt(placed, "bob", bob)).messages == 2
    assert site.service.requests[-1]["Auth-Method"] == "none"
    assert site.service.requests[-1]["Auth-Pass"] == ""
    site.service.stop()
    try:
        assert (await attempt(placed, "bob", bob)).messages == 2
        assert (await attempt(placed, "alice", alice)).reply == LATER  # nobody has asked for her: no guess at a server
    finally:
        site.service.start()
    assert (await attempt(placed, "alice", alice)).messages == 1
    explained = await asyncio.to_thread(placed.command, "explain", "bob")
    assert "web: asked where the mail of bob is" in explained.stdout


@pytest.mark.parametrize("trouble", ["down", "silent"])
async def test_a_service_in_trouble_is_nobodys_wrong_password(site: Site, trouble: str) -> None:
    (site.service.stop if trouble == "down" else site.service.freeze)()
    try:
        pending = [asyncio.ensure_future(attempt(site.proxy, "alice", site.first.users["alice"])) for _ in range(4)]
        for _ in range(3):
            assert (await attempt(site.proxy, "alice", site.first.users["alice"], "direct")).reply.startswith(b"+OK")
        tried = await asyncio.gather(*pending)
        assert {one.reply for one in tried} == {LATER}
        assert max(one.seconds for one in tried) < DEADLINE * 4
    finally:
        (site.service.start if trouble == "down" else site.service.thaw)()
    async with asyncio.timeout(30):
        while not (await attempt(site.proxy, "alice", site.first.users["alice"])).reply.startswith(b"+OK"):
            pass
    metrics = await asyncio.to_thread(site.proxy.metrics)
    assert metrics['popproxy_directory_duration_seconds_count{directory="web",outcome="unavailable"}'] >= 1
    assert metrics['popproxy_auth_duration_seconds_count{authenticator="http"}'] >= 1
