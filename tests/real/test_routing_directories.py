"""Where mail is, asked of a real slapd, a real PostgreSQL and an auth_http responder: well, slow, down, silent, lying.

Who a user is says the users file, so nobody is to blame for what a directory says of his mail. Everybody whom no
directory knows is on the first server. Whatever happens, nobody is shown another maildrop than his own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from tests.peers.auth_http import Account, Responder, responder
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.hashes import ssha512
from tests.peers.postgresql import Postgresql, postgresql
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.scripted import ScriptedBackend, in_thread
from tests.peers.slapd import PEOPLE, SERVICE, Person, slapd
from tests.real.directory_rig import LATER, attempt

pytestmark = pytest.mark.real

LIES = ("gone", "several", "control", "garbage")
"""Users of whom the directory says: a place that no pool has, two of them, a name with a line end, nonsense."""
OURS = ("unavailable", "no_route", "ambiguous")
"""Reasons in the audit log for what is no fault of the user's."""
SLOW = 0.5
"""Seconds."""


class Peer(Protocol):
    """What all three can do."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


@dataclass(frozen=True)
class Site:
    """alice's, bob's and carol's mail is on the second server, that of the rest on the first."""

    directory: Peer
    first: ScriptedBackend
    second: ScriptedBackend
    proxy: Proxy
    password: str

    def logins(self, user: str) -> tuple[int, int]:
        """Of this user, at the first server and at the second."""
        first, second = (
            sum(session.logged_in and session.user == user for session in server.sessions)
            for server in (self.first, self.second)
        )
        return first, second

    async def log_in(self, user: str) -> bytes:
        return (await attempt(self.proxy, user, self.password)).reply


def _ldap(second: int, authority: Authority, certificate: CertificateFiles) -> Any:
    at, control = f"mailHost: 127.0.0.1:{second}\n", base64.b64encode(b"x\r\nDELE 1").decode()
    people = [
        *(Person(user, more=at) for user in ("alice", "bob", "carol")),
        Person("gone", more="l: nowhere\n"),
        Person("several", more="l: second\nl: main\n"),
        Person("control", more=f"{at}description:: {control}\n"),
        Person("garbage", more="mailHost: not a server\n"),
        Person("plain"),
    ]
    return slapd(authority, certificate, people)


def _sql(second: int, certificate: CertificateFiles) -> Any:
    at = f"'127.0.0.1:{second}', NULL"
    return postgresql(certificate, f"""
        CREATE TABLE users (login text, server text, pool text, backend_user text);
        INSERT INTO users VALUES ('alice', {at}, NULL), ('bob', {at}, NULL), ('carol', {at}, NULL),
            ('gone', NULL, 'nowhere', NULL), ('several', {at}, NULL), ('several', '127.0.0.1:9', NULL, NULL),
            ('control', {at}, E'x\\r\\nDELE 1'), ('garbage', 'not a server', NULL, NULL), ('plain', NULL, NULL, NULL)
    """)  # fmt: skip


def _http(second: int) -> Any:
    at = {"Auth-Server": "127.0.0.1", "Auth-Port": str(second)}
    users = {user: Account("", at) for user in ("alice", "bob", "carol")}
    users["gone"] = Account("", {"Auth-Server": "192.0.2.9", "Auth-Port": "110"})
    users["several"] = Account("", {**at, "auth-server": "127.0.0.2"})
    users["control"] = Account("", {**at, "Auth-User": "x\x01y"})
    users["garbage"] = Account("", {"Auth-Server": "not a server"})
    users["plain"] = Account("")
    return responder(users)


def _section(kind: str, peer: Any, authority: Authority) -> dict[str, Any]:
    if kind == "ldap":
        return {
            "servers": [f"127.0.0.1:{peer.port}"], "ca": str(authority.ca), "base": PEOPLE, "filter": "(uid={local})",
            "account": {"dn": SERVICE, "password": {"file": str(peer.account_file)}},
            "attributes": {"server": "mailHost", "pool": "l", "backend_user": "description"},
        }  # fmt: skip
    if kind == "sql":
        assert isinstance(peer, Postgresql)
        return {
            "url": peer.url(), "password": {"file": str(peer.password_file)}, "ca": str(authority.ca),
            "query": "SELECT server, pool, backend_user FROM users WHERE login = :user",
        }  # fmt: skip
    assert isinstance(peer, Responder)
    return {"url": peer.url}


@pytest.fixture(scope="module", params=["ldap", "sql", "http"])
def site(request: pytest.FixtureRequest, authority: Authority, server_certificate: CertificateFiles) -> Iterator[Site]:
    kind, password = request.param, canary("routed")
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(in_thread(ScriptedBackend())) for _ in range(2))
        peer = stack.enter_context(
            _ldap(second.port, authority, server_certificate) if kind == "ldap"
            else _sql(second.port, server_certificate) if kind == "sql" else _http(second.port)
        )  # fmt: skip
        files = stack.enter_context(public_directory("routed"))
        digest = ssha512(password)
        users = files / "users"
        users.write_text("".join(f"{user}:{digest}\n" for user in ("alice", "bob", "carol", "plain", "nobody", *LIES)))
        users.chmod(0o644)
        complete = settings(first.address, listener={"authenticate": ["users"]}, users={"file": str(users)})
        complete["pools"]["second"] = {"servers": [second.address], "tls": "none", "allow_cleartext": True}
        complete["directories"] = {"corp": {kind: _section(kind, peer, authority), "deadline": "3s", "connections": 2}}
        complete["routing"] = {"default": "main", "directories": ["corp"], "cache": "0s"}
        start = stack.enter_context(proxies())
        yield Site(peer, first, second, start(complete), password)


async def test_everybody_is_taken_where_his_mail_is(site: Site) -> None:
    assert (await site.log_in("alice")).startswith(b"+OK")
    assert (await site.log_in("plain")).startswith(b"+OK"), "the directory knows him, and not where his mail is"
    assert (await site.log_in("nobody")).startswith(b"+OK"), "the directory does not know him: the rules decide"
    assert [site.logins(user) for user in ("alice", "plain", "nobody")] == [(0, 1), (1, 0), (1, 0)]


@pytest.mark.parametrize("user", LIES)
async def test_lies_are_nobodys_wrong_password_and_lead_to_no_maildrop(site: Site, user: str) -> None:
    before = len(site.proxy.audit("auth"))
    assert (await site.log_in(user)).startswith(b"-ERR [SYS/")
    await asyncio.to_thread(wait_until, lambda: len(site.proxy.audit("auth")) > before, "the record")
    assert {record.get("event.reason") for record in site.proxy.audit("auth")[before:]} <= set(OURS)
    for server in (site.first, site.second):
        assert not any(b"PASS" in line or b"DELE" in line for one in server.sessions for line in one.lines
                       if one.user in (user, "x"))  # fmt: skip
        assert not any(line.startswith(b"DELE") for line in server.lines)


@pytest.mark.parametrize("trouble", ["down", "silent"])
async def test_who_was_asked_for_before_is_served_and_nobody_else_is_shown_an_empty_maildrop(
    site: Site, trouble: str
) -> None:
    stranger = {"down": "bob", "silent": "carol"}[trouble]
    assert (await site.log_in("alice")).startswith(b"+OK")
    before = site.logins("alice")
    await asyncio.to_thread(site.directory.stop if trouble == "down" else site.directory.freeze)
    try:
        replies = await asyncio.gather(*(site.log_in(user) for user in ("alice", stranger, "alice")))
        assert [reply[:3] for reply in replies] == [b"+OK", b"-ER", b"+OK"]
        assert replies[1] == LATER
        assert site.logins(stranger) == (0, 0)
        assert site.logins("alice") == (before[0], before[1] + 2)
    finally:
        await asyncio.to_thread(site.directory.start if trouble == "down" else site.directory.thaw)
    assert (await site.log_in(stranger)).startswith(b"+OK")
    assert site.logins(stranger) == (0, 1)


async def test_a_slow_answer_counts_like_any_other(site: Site) -> None:
    before = site.logins("alice")
    await asyncio.to_thread(site.directory.freeze)
    thaw = threading.Timer(SLOW, site.directory.thaw)
    thaw.start()
    try:
        assert (await site.log_in("alice")).startswith(b"+OK")
    finally:
        thaw.join()
    assert site.logins("alice") == (before[0], before[1] + 1)
