"""Leases and penalties at a thousand replicas, by popproxy's own code on a clock that jumps."""

from __future__ import annotations

import asyncio

import pytest

from popproxy.state.mirrored import INTERVAL
from tests.helm.simulation import KNOWN_EVERYWHERE, LIFETIME, simulate, site_of

pytestmark = pytest.mark.long


def test_a_users_limit_holds_at_a_thousand_replicas_and_dead_ones_give_back_what_they_held() -> None:
    async def work() -> None:
        async with site_of(1000) as site:
            limit = site.limits.sessions_per_user
            took = await asyncio.gather(*(
                replica.begin("carol", f"192.0.2.{number}") for number, replica in enumerate(site.replicas[:100])
            ))  # fmt: skip
            holders = [number for number, lease in enumerate(took) if lease is not None]
            assert len(holders) == limit
            dying = [site.replicas[number] for number in holders[:5]]
            deaths = asyncio.gather(*(replica.die() for replica in dying))
            await asyncio.sleep(LIFETIME / 2)
            assert await site.replicas[500].begin("carol", "192.0.2.200") is None
            await deaths
            again = [await site.replicas[600 + number].begin("carol", "192.0.2.201") for number in range(10)]
            assert sum(lease is not None for lease in again) == len(dying)

    simulate(work())


def test_guesses_at_some_replicas_count_at_all_thousand_within_a_second() -> None:
    async def work() -> None:
        async with site_of(1000) as site:
            burst = await asyncio.gather(*(
                replica.guess(f"user{number}", "192.0.2.66", f"wrong {number}")
                for number, replica in enumerate(site.replicas[:100])
            ))  # fmt: skip
            assert sum(burst) == 100, "each replica alone is below what is free: the price of never waiting"
            await asyncio.sleep(KNOWN_EVERYWHERE)
            looked_at = [await replica.guess("dora", "192.0.2.66", "wrong") for replica in site.replicas]
            assert sum(looked_at) == 0
            others = [await replica.guess("dora", "192.0.2.67", "wrong") for replica in site.replicas[:3]]
            assert all(others)

    async def afterwards() -> None:
        # which takes minutes of everybody's exchanges: three replicas do
        async with site_of(3) as site:
            for number in range(30):
                await site.replicas[number % 3].guess(f"user{number}", "192.0.2.66", "wrong")
            await asyncio.sleep(KNOWN_EVERYWHERE)
            assert not await site.replicas[0].guess("dora", "192.0.2.66", "wrong")
            await asyncio.sleep((30 - site.penalties.address.free + 2) * 60 / site.penalties.address.per_minute)
            assert await site.replicas[0].guess("dora", "192.0.2.66", "wrong"), "what was too much is paid off"

    simulate(work())
    simulate(afterwards())


def test_without_redis_each_replica_keeps_to_its_share_and_afterwards_all_is_told() -> None:
    async def work() -> None:
        async with site_of(100) as site:
            limit = site.limits.sessions_per_user
            site.away = True
            await asyncio.sleep(2)
            took = await asyncio.gather(*(
                replica.begin("carol", f"192.0.2.{number}") for number, replica in enumerate(site.replicas * 2)
            ))  # fmt: skip
            leases = [lease for lease in took if lease is not None]
            assert len(leases) == len(site.replicas), "one session at each, and not one more"
            for number in range(site.penalties.address.free):
                assert await site.replicas[0].guess(f"user{number}", "192.0.2.66", "wrong")
            assert not await site.replicas[0].guess("dora", "192.0.2.66", "wrong"), "what is here goes on counting"
            site.away = False
            await asyncio.sleep(3)
            assert not await site.replicas[1].guess("dora", "192.0.2.66", "wrong"), "and is known elsewhere afterwards"
            assert await site.replicas[0].begin("carol", "192.0.2.250") is None
            for lease in leases[: len(leases) - limit + 1]:
                lease.release()
            await asyncio.sleep(1)
            assert await site.replicas[0].begin("carol", "192.0.2.250") is not None
            assert await site.replicas[1].begin("carol", "192.0.2.250") is None

    simulate(work())


@pytest.mark.parametrize(("replicas", "logins", "seconds"), [(4, 4000, 5.0), (100, 300, 1.0)])
def test_what_a_login_asks_of_redis_is_bounded(replicas: int, logins: int, seconds: float) -> None:
    async def work() -> None:
        async with site_of(replicas) as site:
            with site.observed() as traffic:
                assert await site.logins(logins, seconds, 1.0) == logins
                await asyncio.sleep(1)
            operations = traffic.operations
            assert operations["Take"] == logins
            assert operations["Mark"] == logins, "once for a user's new address"
            # two leases are given back; beside that, each replica tells one again with each exchange
            assert 2 * logins <= operations["Hold"] <= 2 * logins + traffic.calls["exchange"]
            assert traffic.calls["operations"] <= 2 * logins + traffic.calls["exchange"]
            assert traffic.calls["exchange"] <= replicas * (seconds + 2.5) / (0.75 * INTERVAL)
            assert traffic.told == 0

    simulate(work())
