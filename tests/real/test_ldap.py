"""A real slapd decides who gets in and where the mail is, in front of two real Dovecots; then it dies and stalls."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.slapd import PEOPLE, SERVICE, SUFFIX, Person, Slapd, slapd
from tests.real.directory_rig import LATER, WRONG, attempt, reasons, wrong

STRICT = f"pwdPolicySubentry: cn=strict,{SUFFIX}\n"
DEADLINE = 3


@dataclass(frozen=True)
class Site:
    """alice's mail is on the first Dovecot, bob's on the second; carol's server is in no pool."""

    directory: Slapd
    first: Dovecot
    second: Dovecot
    proxy: Proxy


@pytest.fixture(scope="module")
def site(dovecot_server: Dovecot, authority: Authority, server_certificate: CertificateFiles) -> Iterator[Site]:
    with dovecot() as second:
        first = dovecot_server
        first.deliver("alice", [b"Subject: one\n\n1\n"])
        second.deliver("bob", [b"Subject: one\n\n1\n", b"Subject: two\n\n2\n"])
        people = [
            Person("alice", "alice@example.com", f"mailHost: 127.0.0.1:{first.port}\n", first.users["alice"]),
            Person("bob", "b.jones@example.com", f"mailHost: 127.0.0.1:{second.port}\n", second.users["bob"]),
            Person("carol", "carol@example.com", "mailHost: mail.elsewhere.example\n"),
            Person("locked", "locked@example.com", STRICT),
            Person("twin1", "twin@example.com"),
            Person("twin2", "twin@example.com"),
        ]
        with slapd(authority, server_certificate, people) as server, proxies() as start:
            yield Site(server, first, second, start(_settings(server, first, second, authority)))


def _settings(server: Slapd, first: Dovecot, second: Dovecot, authority: Authority) -> dict[str, object]:
    complete = settings(f"127.0.0.1:{first.port}", listener={"authenticate": ["corp"]})
    (listener,) = complete["listeners"]
    complete["listeners"].append({**listener, "name": "direct", "authenticate": ["passthrough"]})
    complete["listeners"].append({**listener, "name": "either", "authenticate": ["corp", "passthrough"]})
    link = {"tls": "none", "allow_cleartext": True}
    complete["pools"]["second"] = {"servers": [f"127.0.0.1:{second.port}"], **link}
    complete["routing"] = {"default": "main"}
    corp = {
        "servers": [f"127.0.0.1:{server.port}"], "ca": str(authority.ca), "base": PEOPLE,
        "filter": "(&(objectClass=inetOrgPerson)(mail={user}))",
        "account": {"dn": SERVICE, "password": {"file": str(server.account_file)}},
        "attributes": {"server": "mailHost", "backend_user": "uid", "mailbox": "mail"},
    }  # fmt: skip
    complete["directories"] = {"corp": {"ldap": corp, "deadline": f"{DEADLINE}s", "connections": 2}}
    return complete


async def test_users_get_their_own_maildrop_on_their_own_server(site: Site) -> None:
    tried = await attempt(site.proxy, "alice@example.com", site.first.users["alice"])
    assert (tried.reply[:3], tried.messages) == (b"+OK", 1)
    tried = await attempt(site.proxy, "B.Jones@Example.com", site.second.users["bob"])
    assert (tried.reply[:3], tried.messages) == (b"+OK", 2)
    records = await asyncio.to_thread(site.proxy.settled)
    login = [record for record in records if record["event.action"] == "login"][-1]
    assert login["user.name"] == "b.jones@example.com"
    assert login["popproxy.mailbox"] == "bob"
    assert login["popproxy.pool"] == "second"


async def test_refusals_look_alike_and_the_audit_log_knows_better(site: Site) -> None:
    await wrong(site.proxy, "locked@example.com")
    locked = await attempt(site.proxy, "locked@example.com", site.directory.passwords["locked"])
    twin = await attempt(site.proxy, "twin@example.com", site.directory.passwords["twin1"])
    unknown = await wrong(site.proxy, "nobody@example.com")
    bad = await wrong(site.proxy, "alice@example.com")
    assert {locked.reply, twin.reply, unknown, bad} == {WRONG}
    await reasons(site.proxy, "account_locked", "ambiguous", "bad_credentials", "bad_credentials")
    assert "more than one entry matches" in site.proxy.log()


async def test_an_empty_password_gets_nowhere(site: Site) -> None:
    before = len(site.directory.log())
    assert (await attempt(site.proxy, "alice@example.com", "")).reply != b"+OK"
    assert "BIND" not in site.directory.log()[before:]


async def test_a_server_that_no_pool_has_is_told_as_ours(site: Site) -> None:
    tried = await attempt(site.proxy, "carol@example.com", site.directory.passwords["carol"])
    assert tried.reply.startswith(b"-ERR [SYS/PERM]")
    assert "the directory names a place that no pool has" in site.proxy.log()


async def test_whom_the_directory_does_not_know_the_next_one_may(site: Site) -> None:
    tried = await attempt(site.proxy, "bob", site.first.users["bob"], "either")
    assert tried.reply.startswith(b"+OK")
    assert await wrong(site.proxy, "alice@example.com", "either") == WRONG


@pytest.mark.parametrize("trouble", ["down", "silent"])
async def test_a_directory_in_trouble_is_nobodys_wrong_password(site: Site, trouble: str) -> None:
    """With another listener, and with those that have logged in before, nothing is wrong."""
    await asyncio.to_thread(site.directory.stop if trouble == "down" else site.directory.freeze)
    try:
        later = [attempt(site.proxy, "alice@example.com", site.first.users["alice"]) for _ in range(3)]
        later.append(attempt(site.proxy, "alice@example.com", site.first.users["alice"], "either"))
        pending = [asyncio.ensure_future(one) for one in later]
        for _ in range(5):
            direct = await attempt(site.proxy, "alice", site.first.users["alice"], "direct")
            assert direct.reply.startswith(b"+OK")
        tried = await asyncio.gather(*pending)
        assert {one.reply for one in tried} == {LATER}
        assert max(one.seconds for one in tried) < DEADLINE * 4
    finally:
        await asyncio.to_thread(site.directory.start if trouble == "down" else site.directory.thaw)
    tried_again = await attempt(site.proxy, "alice@example.com", site.first.users["alice"])
    assert tried_again.reply.startswith(b"+OK")


async def test_outages_are_counted_and_recorded(site: Site) -> None:
    await asyncio.to_thread(site.directory.stop)
    try:
        assert (await attempt(site.proxy, "alice@example.com", canary())).reply == LATER
    finally:
        await asyncio.to_thread(site.directory.start)
    assert await wrong(site.proxy, "alice@example.com") == WRONG
    await reasons(site.proxy, "unavailable", "bad_credentials")
    metrics = site.proxy.metrics()
    for outcome in ("unavailable", "refused"):
        name = f'popproxy_directory_duration_seconds_count{{directory="corp",outcome="{outcome}"}}'
        assert metrics[name] >= 1
    assert metrics['popproxy_auth_duration_seconds_count{authenticator="ldap"}'] >= 2
    assert metrics['popproxy_executor_busy{pool="corp"}'] == 0
    assert "Can't contact LDAP server" in site.proxy.log()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_dead_workers_and_a_dead_dispatcher_are_replaced(site: Site) -> None:
    assert await wrong(site.proxy, "alice@example.com") == WRONG
    (keeper,) = _children(site.proxy.worker)
    (dispatcher,) = _children(keeper)
    for worker in _children(dispatcher):
        os.kill(worker, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: not _children(dispatcher), "the dispatcher to notice")
    assert await wrong(site.proxy, "alice@example.com") == WRONG
    os.kill(dispatcher, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: _children(keeper) not in ([], [dispatcher]), "another dispatcher")
    assert await wrong(site.proxy, "alice@example.com") == WRONG


async def test_the_helper_runs_as_the_service_and_ends_with_it(site: Site, authority: Authority) -> None:
    with proxies() as start:
        configuration = _settings(site.directory, site.first, site.second, authority)
        proxy = await asyncio.to_thread(start, configuration)
        assert await wrong(proxy, "alice@example.com") == WRONG
        (keeper,) = _children(proxy.worker)
        (dispatcher,) = _children(keeper)
        processes = [keeper, dispatcher, *_children(dispatcher)]
        owners = {re.findall(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0] for pid in processes}
        assert owners == {str(Path(f"/proc/{proxy.worker}").stat().st_uid)}
        await asyncio.to_thread(proxy.stop)
    await asyncio.to_thread(wait_until, lambda: not any(map(_runs, processes)), "every process to end")


async def test_without_bonsai_the_start_says_what_to_install(site: Site, authority: Authority, tmp_path: Path) -> None:
    """Nothing of LDAP is imported unless it is configured, and then its absence is told at once."""
    (tmp_path / "bonsai.py").write_text("raise ImportError('no bonsai here')\n")
    done = await asyncio.to_thread(_serve_with, tmp_path, _settings(site.directory, site.first, site.second, authority))
    assert "pip install 'popproxy[ldap]'" in done
    assert "no bonsai here" in done


def _serve_with(modules: Path, configuration: dict[str, object]) -> str:
    with proxies() as start, pytest.raises(AssertionError) as caught:
        start(configuration, env={"PYTHONPATH": str(modules)})
    return str(caught.value)
