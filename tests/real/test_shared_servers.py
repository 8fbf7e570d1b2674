"""Real Dovecots that share their maildrops, one of them killed and started again; and one that takes one session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.peers.dovecot import dovecot
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, settings
from tests.peers.raw import RawClient

pytestmark = pytest.mark.real

Start = Callable[..., Proxy]


async def log_in(proxy: Proxy, user: str, password: str) -> RawClient:
    """A client in TRANSACTION."""
    client = RawClient(proxy.port(), seconds=60)
    await client.__aenter__()
    assert (await client.login(user, password)).startswith(b"+OK")
    return client


async def leave(client: RawClient) -> None:
    assert (await client.command("QUIT")).startswith(b"+OK")
    await client.__aexit__(None, None, None)


def ports(proxy: Proxy) -> list[int]:
    """Of the servers, login by login."""
    return [record["destination.port"] for record in proxy.audit("login")]


def states(proxy: Proxy) -> list[str]:
    return [record["popproxy.state"] for record in proxy.audit("backend_state")]


async def test_a_server_is_killed_and_comes_back_step_by_step(start_proxy: Start) -> None:
    with dovecot() as first, dovecot() as second:
        users = Path("users")
        (second.directory / users).write_bytes((first.directory / users).read_bytes())
        password = first.users["alice"]
        pool = {
            "servers": [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"], "shared": True,
            "balance": {"failures": 1, "retry": "200ms", "slow_start": "100s"},
        }  # fmt: skip
        proxy = await asyncio.to_thread(start_proxy, settings(f"127.0.0.1:{first.port}", pool=pool))
        for _ in range(2):
            await leave(await log_in(proxy, "alice", password))
        await asyncio.to_thread(first.stop)
        for _ in range(2):
            await leave(await log_in(proxy, "alice", password))
        await asyncio.to_thread(wait_until, lambda: states(proxy) == ["down"], "it to be found down")
        await asyncio.to_thread(first.start)
        await asyncio.to_thread(wait_until, lambda: states(proxy) == ["down", "up"], "it to be found up")
        for _ in range(12):
            await leave(await log_in(proxy, "alice", password))
        await asyncio.to_thread(wait_until, lambda: len(ports(proxy)) == 16, "the records of all logins")
        chosen = ports(proxy)
        assert chosen[:4] == [first.port] * 2 + [second.port] * 2
        assert chosen[4] == first.port, "one login for a trial"
        assert chosen[5:].count(second.port) >= 5, "then a share that grows"


async def test_a_server_that_hangs_costs_nobody_his_login_and_is_used_again(start_proxy: Start) -> None:
    with dovecot() as first, dovecot() as second:
        (second.directory / "users").write_bytes((first.directory / "users").read_bytes())
        password = first.users["alice"]
        pool = {
            "servers": [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"], "shared": True,
            "balance": {"retry": "200ms", "slow_start": "0s", "next_after": "1s"},
        }  # fmt: skip
        complete = settings(f"127.0.0.1:{first.port}", pool=pool, timeouts={"connect": "3s"})
        proxy = await asyncio.to_thread(start_proxy, complete)
        await leave(await log_in(proxy, "alice", password))
        first.freeze()
        try:
            clients = await asyncio.gather(*(log_in(proxy, "bob", first.users["bob"]) for _ in range(4)))
            await asyncio.gather(*map(leave, clients))
            await asyncio.to_thread(wait_until, lambda: states(proxy)[:1] == ["down"], "it to be found down")
        finally:
            first.thaw()
        await asyncio.to_thread(wait_until, lambda: states(proxy)[-1] == "up", "it to be found up")
        await leave(await log_in(proxy, "alice", password))
        await asyncio.to_thread(wait_until, lambda: len(ports(proxy)) == 6, "the records of all logins")
        assert ports(proxy) == [first.port, *[second.port] * 4, first.port]
        assert "bob" not in "".join(line for line in first.log().splitlines() if "Login" in line), (
            "no password went there"
        )


async def test_users_take_turns_at_a_server_that_takes_one_session(start_proxy: Start) -> None:
    with dovecot() as only:
        pool = {"balance": {"sessions": 1}}
        proxy = await asyncio.to_thread(start_proxy, settings(f"127.0.0.1:{only.port}", pool=pool))
        order: list[str] = []

        async def visit(user: str) -> None:
            client = await log_in(proxy, user, only.users[user])
            order.append(user)
            await leave(client)

        def waits(number: int) -> bool:
            return proxy.metrics()['popproxy_queue_waiting{pool="main"}'] == number

        inside = await log_in(proxy, "alice", only.users["alice"])
        visits = []
        for number, user in enumerate(("alice", "alice", "alice", "bob"), 1):
            visits.append(asyncio.create_task(visit(user)))
            await asyncio.to_thread(wait_until, partial(waits, number), "the login to wait")
        await leave(inside)
        await asyncio.gather(*visits)
        assert order == ["alice", "bob", "alice", "alice"], "who came last was not last: it was his turn"
