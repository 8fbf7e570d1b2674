"""PAM with its real modules decides who gets in, in front of a real Dovecot; then a stack hangs, and a worker dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.dovecot import Dovecot
from tests.peers.pam import UNIX, LocalUser, PamSystem, pam_system
from tests.peers.proxy import Proxy, proxies, settings
from tests.real.directory_rig import LATER, WRONG, attempt, reasons, wrong

DEADLINE = 3
HANGS = "auth required pam_exec.so quiet /bin/sleep 600\naccount required pam_permit.so\n"


@dataclass(frozen=True)
class Site:
    """alice's password is the same for Dovecot and for the system."""

    system: PamSystem
    backend: Dovecot
    proxy: Proxy

    @property
    def password(self) -> str:
        return self.backend.users["alice"]


@pytest.fixture(scope="module")
def site(dovecot_server: Dovecot) -> Iterator[Site]:
    dovecot_server.deliver("alice", [b"Subject: one\n\n1\n"])
    password = dovecot_server.users["alice"]
    users = {"alice": LocalUser(password), "bob": LocalUser(password, expires="1"), "carol": LocalUser(password, 0)}
    with pam_system(users, {"popproxy": UNIX, "hangs": HANGS}) as system, proxies() as start:
        yield Site(system, dovecot_server, system.run(lambda: start(_settings(dovecot_server))))


def _settings(backend: Dovecot) -> dict[str, Any]:
    complete = settings(f"127.0.0.1:{backend.port}", listener={"authenticate": ["system"]})
    (listener,) = complete["listeners"]
    complete["listeners"].append({**listener, "name": "direct", "authenticate": ["passthrough"]})
    complete["listeners"].append({**listener, "name": "hangs", "authenticate": ["hanging"]})
    complete["routing"] = {"default": "main", "default_backend_user": "{local}"}
    complete["directories"] = {
        "system": {"pam": {"user": "{local}"}, "deadline": "30s"},
        "hanging": {"pam": {"service": "hangs"}, "deadline": f"{DEADLINE}s", "connections": 2},
    }
    return complete


async def test_users_of_the_system(site: Site) -> None:
    for name in ("alice", "Alice@Example.com"):
        tried = await attempt(site.proxy, name, site.password)
        assert (tried.reply[:3], tried.messages) == (b"+OK", 1)


async def test_refusals_look_alike_and_the_audit_log_knows_better(site: Site) -> None:
    expired = await attempt(site.proxy, "bob", site.password)
    stale = await attempt(site.proxy, "carol", site.password)
    unknown, bad = await wrong(site.proxy, "nobody-of-this-name"), await wrong(site.proxy, "alice")
    assert {expired.reply, stale.reply, unknown, bad} == {WRONG}
    await reasons(site.proxy, "account_expired", "password_expired", "bad_credentials", "bad_credentials")


async def test_a_stack_that_hangs_is_nobodys_wrong_password_and_stops_nobody_else(site: Site) -> None:
    pending = [asyncio.ensure_future(attempt(site.proxy, "alice", site.password, "hangs")) for _ in range(4)]
    for listener in ("direct", "pop3", "direct"):
        assert (await attempt(site.proxy, "alice", site.password, listener)).reply.startswith(b"+OK")
    tried = await asyncio.gather(*pending)
    assert {one.reply for one in tried} == {LATER}
    assert max(one.seconds for one in tried) < DEADLINE * 4
    metrics = await asyncio.to_thread(site.proxy.metrics)
    assert metrics['popproxy_directory_duration_seconds_count{directory="hanging",outcome="unavailable"}'] == 4
    assert metrics['popproxy_auth_duration_seconds_count{authenticator="pam"}'] >= 4


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _workers(parent: int) -> list[int]:
    """The processes that answer: children of a dispatcher, which is the child of a keeper, a child of popproxy."""
    found = [parent]
    for _ in range(3):
        found = [child for pid in found for child in _children(pid)]
    return found


async def test_a_worker_that_dies_is_nobodys_wrong_password(site: Site) -> None:
    """It is killed while it asks, and the next one takes its place."""
    pending = asyncio.ensure_future(attempt(site.proxy, "alice", site.password, "hangs"))
    asleep: list[int] = []
    async with asyncio.timeout(60):
        while not asleep and not pending.done():
            await asyncio.sleep(0.02)
            asleep = [pid for pid in _workers(site.proxy.worker) if _children(pid)]
    assert asleep
    os.kill(asleep[0], signal.SIGKILL)
    assert (await pending).reply == LATER
    assert (await attempt(site.proxy, "alice", site.password)).reply.startswith(b"+OK")


def _effective_user(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    return int(line.split()[2])


def test_only_what_asks_pam_stays_root(site: Site) -> None:
    workers = _workers(site.proxy.worker)
    assert workers
    assert {_effective_user(pid) for pid in workers} == {0}
    assert _effective_user(site.proxy.worker) != 0


def test_check_and_explain(site: Site) -> None:
    checked = site.system.run(lambda: site.proxy.command("check"))
    said = " ".join(checked.stdout.split())
    assert "the service popproxy answers, and refuses somebody unknown" in said
    assert "the service hangs was asked in vain: no answer within" in said
    explained = site.system.run(lambda: site.proxy.command("explain", "alice"))
    assert "system: PAM decides about alice" in explained.stdout
    assert explained.returncode == 0
