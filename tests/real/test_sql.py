"""Users in a real PostgreSQL, and in SQLite, in front of two real Dovecots; then the database dies and stalls."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import hash_password
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.postgresql import Postgresql, postgresql
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, proxies, settings
from tests.real.directory_rig import LATER, WRONG, attempt, reasons, wrong

DEADLINE = 3
QUERY = "SELECT password, server, backend_user, disabled FROM users WHERE login = :user"


@dataclass(frozen=True)
class Site:
    """alice's mail is on the first Dovecot, bob's on the second. Listener sqlite asks a copy of the table."""

    database: Postgresql
    first: Dovecot
    second: Dovecot
    proxy: Proxy


def _tables(first: Dovecot, second: Dovecot, disabled: str, no: str, yes: str) -> str:
    alice, bob = (hash_password(password.encode()) for password in (first.users["alice"], second.users["bob"]))
    return f"""
        CREATE TABLE users (login text, password text, server text, backend_user text, disabled {disabled});
        INSERT INTO users VALUES ('alice@example.com', '{alice}', '127.0.0.1:{first.port}', 'alice', {no}),
            ('b.jones@example.com', '{bob}', '127.0.0.1:{second.port}', 'bob', {no}),
            ('locked@example.com', '{alice}', NULL, NULL, {yes}),
            ('broken@example.com', '{{FOO}}bar', NULL, NULL, {no}),
            ('twin@example.com', '{alice}', NULL, NULL, {no}), ('twin@example.com', '{alice}', NULL, NULL, {no})
    """


@pytest.fixture(scope="module")
def site(dovecot_server: Dovecot, authority: Authority, server_certificate: CertificateFiles) -> Iterator[Site]:
    first = dovecot_server
    with dovecot() as second, public_directory("sqlite") as directory, proxies() as start:
        first.deliver("alice", [b"Subject: one\n\n1\n"])
        second.deliver("bob", [b"Subject: one\n\n1\n", b"Subject: two\n\n2\n"])
        file = directory / "users.db"
        with contextlib.closing(sqlite3.connect(file)) as users:
            users.executescript(_tables(first, second, "int", "0", "1"))
        with postgresql(server_certificate, _tables(first, second, "boolean", "false", "true")) as server:
            yield Site(server, first, second, start(_settings(server, first, second, authority, file)))


def _settings(server: Postgresql, first: Dovecot, second: Dovecot, authority: Authority, file: Path) -> dict[str, Any]:
    complete = settings(f"127.0.0.1:{first.port}", listener={"authenticate": ["shop"]})
    (listener,) = complete["listeners"]
    complete["listeners"].append({**listener, "name": "direct", "authenticate": ["passthrough"]})
    complete["listeners"].append({**listener, "name": "sqlite", "authenticate": ["copy"]})
    complete["pools"]["second"] = {"servers": [f"127.0.0.1:{second.port}"], "tls": "none", "allow_cleartext": True}
    complete["routing"] = {"default": "main"}
    section = {
        "url": server.url(), "password": {"file": str(server.password_file)}, "ca": str(authority.ca), "query": QUERY,
    }  # fmt: skip
    complete["directories"] = {
        "shop": {"sql": section, "deadline": f"{DEADLINE}s", "connections": 2},
        "copy": {"sql": {"url": f"sqlite:{file}", "query": QUERY}},
    }
    return complete


@pytest.mark.parametrize("listener", ["pop3", "sqlite"])
async def test_users_get_their_own_maildrop_on_their_own_server(site: Site, listener: str) -> None:
    tried = await attempt(site.proxy, "alice@example.com", site.first.users["alice"], listener)
    assert (tried.reply[:3], tried.messages) == (b"+OK", 1)
    tried = await attempt(site.proxy, "B.Jones@Example.com", site.second.users["bob"], listener)
    assert (tried.reply[:3], tried.messages) == (b"+OK", 2)


@pytest.mark.parametrize("listener", ["pop3", "sqlite"])
async def test_refusals_look_alike_and_the_audit_log_knows_better(site: Site, listener: str) -> None:
    disabled = await attempt(site.proxy, "locked@example.com", site.first.users["alice"], listener)
    twin = await attempt(site.proxy, "twin@example.com", site.first.users["alice"], listener)
    unknown = await wrong(site.proxy, "nobody@example.com", listener)
    bad = await wrong(site.proxy, "alice@example.com", listener)
    assert {disabled.reply, twin.reply, unknown, bad} == {WRONG}
    await reasons(site.proxy, "disabled", "ambiguous", "bad_credentials", "bad_credentials")


async def test_a_hash_that_is_none_is_ours(site: Site) -> None:
    assert await wrong(site.proxy, "broken@example.com") == LATER
    await reasons(site.proxy, "unavailable")


@pytest.mark.parametrize("trouble", ["down", "silent"])
async def test_a_database_in_trouble_is_nobodys_wrong_password(site: Site, trouble: str) -> None:
    await asyncio.to_thread(site.database.stop if trouble == "down" else site.database.freeze)
    try:
        pending = [
            asyncio.ensure_future(attempt(site.proxy, "alice@example.com", site.first.users["alice"])) for _ in range(4)
        ]
        for listener, user in (("direct", "alice"), ("sqlite", "alice@example.com"), ("direct", "alice")):
            assert (await attempt(site.proxy, user, site.first.users["alice"], listener)).reply.startswith(b"+OK")
        tried = await asyncio.gather(*pending)
        assert {one.reply for one in tried} == {LATER}
        assert max(one.seconds for one in tried) < DEADLINE * 4
    finally:
        await asyncio.to_thread(site.database.start if trouble == "down" else site.database.thaw)
    async with asyncio.timeout(30):
        while not (await attempt(site.proxy, "alice@example.com", site.first.users["alice"])).reply.startswith(b"+OK"):
            pass


async def test_outages_are_counted(site: Site) -> None:
    await asyncio.to_thread(site.database.stop)
    try:
        assert (await attempt(site.proxy, "alice@example.com", canary())).reply == LATER
    finally:
        await asyncio.to_thread(site.database.start)
    metrics = site.proxy.metrics()
    assert metrics['popproxy_directory_duration_seconds_count{directory="shop",outcome="unavailable"}'] >= 1
    assert metrics['popproxy_auth_duration_seconds_count{authenticator="sql"}'] >= 1


async def test_without_sqlalchemy_the_start_says_what_to_install(
    site: Site, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "sqlalchemy.py").write_text("raise ImportError('no SQLAlchemy here')\n")
    configuration = _settings(site.database, site.first, site.second, authority, tmp_path / "users.db")

    def serve() -> str:
        with proxies() as start, pytest.raises(AssertionError) as caught:
            start(configuration, env={"PYTHONPATH": str(tmp_path)})
        return str(caught.value)

    said = await asyncio.to_thread(serve)
    assert "pip install 'popproxy[sql]'" in said
    assert "no SQLAlchemy here" in said
