"""Guessers before the real program and a real Dovecot, with time compressed: an hour of theirs in seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers.canaries import canary
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.guesser import Guesser, clean_addresses, rightful
from tests.peers.process import public_directory
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.session.rig import users_file

FASTER = 60
"""Minutes of the real configuration are seconds here."""
SECONDS = 6.0


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(users=("alice", "bob")) as made:
        yield made


def guarded(start_proxy: StartProxy, server: Dovecot, **penalties: Any) -> Proxy:
    """The default allowances, faster. Dovecot judges the passwords."""
    compressed = {
        "address": {"free": 20, "per_minute": 20 * FASTER},
        "user_address": {"free": 10, "per_minute": 1 * FASTER},
        "account": {"free": 10, "per_minute": 6 * FASTER, "newcomers": 100},
        "memory": f"{3600 // FASTER}s",
        **penalties,
    }
    return start_proxy(settings(f"127.0.0.1:{server.port}", penalties=compressed, timeouts={"login": "30s"}))


async def judged(proxy: Proxy, guesser: Guesser) -> tuple[int, float]:
    """Wrong passwords that somebody has looked at, as the audit log has it, and in how many seconds."""
    await asyncio.to_thread(proxy.settled)
    seconds = time.monotonic() - guesser.started
    return sum(record.get("event.reason") == "bad_credentials" for record in proxy.audit("auth")), seconds


async def test_one_address_at_many_users(start_proxy: StartProxy, server: Dovecot) -> None:
    proxy = await asyncio.to_thread(guarded, start_proxy, server)
    guesser = Guesser(proxy.port(), [f"user{number}" for number in range(1000)], ["127.0.0.9"] * 16)
    await guesser.run(SECONDS)
    count, seconds = await judged(proxy, guesser)
    assert 20 + SECONDS < count <= 20 + 20 * seconds + 16  # the last ones may have been on their way
    assert guesser.succeeded == 0
    reply, _ = await rightful(proxy.port(), "alice", server.users["alice"], "127.0.0.10")
    assert reply.startswith(b"+OK")


async def test_one_address_at_one_user(start_proxy: StartProxy, server: Dovecot) -> None:
    proxy = await asyncio.to_thread(guarded, start_proxy, server)
    guesser = Guesser(proxy.port(), ["alice"], ["127.0.0.9"] * 16)
    await guesser.run(SECONDS)
    count, seconds = await judged(proxy, guesser)
    assert 10 < count <= 10 + seconds + 16
    assert proxy.metrics()['popproxy_auth_throttled_total{scope="user_address"}'] > 20


async def test_fifty_addresses_at_one_user_who_gets_in_all_the_time(start_proxy: StartProxy, server: Dovecot) -> None:
    proxy = await asyncio.to_thread(guarded, start_proxy, server)
    sources = [f"127.0.1.{number}" for number in range(1, 51)]
    guesser = Guesser(proxy.port(), ["alice"], sources)
    attack = asyncio.create_task(guesser.run(SECONDS))
    clean = clean_addresses()
    replies = []
    while not attack.done():
        replies.append((await rightful(proxy.port(), "alice", server.users["alice"], clean()))[0])
        await asyncio.sleep(0.1)
    await attack
    count, seconds = await judged(proxy, guesser)
    assert len(replies) > 3
    assert all(reply.startswith(b"+OK") for reply in replies), replies
    # one for each address that had not been wrong yet, or what is free and forgiven, whichever is more
    assert count <= max(50 + 10, 10 + 6 * seconds + 16)
    assert proxy.metrics()['popproxy_auth_throttled_total{scope="account"}'] > 50


async def test_ten_thousand_strangers_are_no_series_of_metrics(start_proxy: StartProxy, server: Dovecot) -> None:
    """Each has a name and an address that nobody has seen before, and a wrong password."""
    strangers = 10_000
    with public_directory("strangers") as directory:
        configuration = settings(
            f"127.0.0.1:{server.port}",
            listener={"authenticate": ["users"]},
            users=users_file(directory, alice=canary()),
        )
        proxy = await asyncio.to_thread(start_proxy, configuration)
        before = await asyncio.to_thread(proxy.metrics)
        names = iter(f"stranger{number}" for number in range(strangers))
        clean = clean_addresses("127.99")

        async def come() -> None:
            for name in names:
                reply, _ = await rightful(proxy.port(), name, canary(), clean())
                assert reply == b"-ERR [AUTH] authentication failed\r\n"

        await asyncio.gather(*(come() for _ in range(50)))
        after = await asyncio.to_thread(proxy.metrics)
    assert after['popproxy_penalties_tracked{scope="address"}'] == strangers
    assert after['popproxy_penalties_tracked{scope="account"}'] == strangers
    assert len(after) <= 500
    assert after.keys() == before.keys()
    assert not [name for name in after if "stranger" in name or "127.99" in name]
