"""A site of many replicas in one process and in no time: popproxy's own shared state, on a clock that jumps.

python -m tests.helm.simulation [REPLICAS]        the figures that helm/popproxy/README.md quotes

Each replica has the MirroredState and the Throttle that a popproxy with Redis has. In Redis's place is the store in
memory, a round trip away, which counts what it is asked, and which can be away. Only seeded chance, so every run is the
same.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from popproxy.auth.throttle import Throttle, leaks, lifetimes
from popproxy.config.model import Limits
from popproxy.config.model_abuse import Penalties
from popproxy.observe.metrics import Metrics
from popproxy.session.limits import take_session
from popproxy.state.memory_store import Member, MemoryStore
from popproxy.state.mirrored import MirroredState
from popproxy.state.shared import Leak, Lease
from popproxy.state.store import Heard, Neighbours, Operation, StoreAway, Told
from popproxy.types import Secret

T = TypeVar("T")
ROUND_TRIP = 0.001
"""Seconds to Redis and back."""
LIFETIME = 3.0
"""Seconds after which what a dead replica held is free: shared_state.lifetime, as short as it may be."""

KNOWN_EVERYWHERE = 0.75
"""Seconds after which every replica knows what one has counted."""


class _Jumping(selectors.DefaultSelector):
    """Nobody is waited for: the clock jumps to the next timer instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits for nothing")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a clock of its own."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since it was made."""
        return self._jumping.now


def simulate(work: Coroutine[Any, Any, T], seed: int = 1) -> T:
    """Runs it to its end, on a virtual clock."""
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


@dataclass(slots=True)
class Traffic:
    """What Redis has been asked."""

    calls: Counter[str] = field(default_factory=Counter)  # of scripts
    operations: Counter[str] = field(default_factory=Counter)
    told: int = 0  # changes that members have told
    heard: int = 0  # changes that members have been told


class _Distant:
    """A Store: one member's way to the site's."""

    def __init__(self, site: Site) -> None:
        self.neighbours = Neighbours()
        self._site = site
        self.member: Member | None = None
        self.dead = False

    @property
    def secret(self) -> bytes | None:
        return self._site.store.secret

    async def open(self, leaks: Mapping[str, Leak]) -> None:
        await self._travel()
        if self.member is None or self.member not in self._site.store.members:
            self.member = self._site.store.join(leaks)

    async def close(self) -> None:
        if self.member is not None:
            self.member.leave()

    async def execute(self, operations: Sequence[Operation]) -> list[int]:
        await self._travel()
        assert self.member is not None
        self._site.traffic.calls["operations"] += 1
        self._site.traffic.operations.update(type(operation).__name__ for operation in operations)
        return self.member.execute(operations)

    async def exchange(self, told: Told) -> Heard:
        await self._travel()
        assert self.member is not None
        heard = self.member.exchange(told)
        traffic = self._site.traffic
        traffic.calls["exchange"] += 1
        traffic.told += len(told.changes)
        traffic.heard += len(heard.changes)
        return heard

    async def _travel(self) -> None:
        await asyncio.sleep(ROUND_TRIP)
        if self._site.away or self.dead:
            raise StoreAway("the simulation has taken it away", "refused")


class Replica:
    """One popproxy, as far as it shares."""

    def __init__(self, site: Site) -> None:
        self._limits = site.limits
        self._way = _Distant(site)
        clock = asyncio.get_running_loop().time
        self.state = MirroredState(
            self._way, leaks(site.penalties), lifetimes(site.penalties), site.metrics, kind="redis", clock=clock
        )
        self.throttle = Throttle(site.penalties, self.state)

    async def login(self, user: str, address: str, seconds: float) -> bool:
        """A right password, and a session of so many seconds. False if a limit stands against it."""
        lease = await self.begin(user, address)
        if lease is None:
            return False
        await asyncio.sleep(seconds)
        lease.release()
        return True

    async def begin(self, user: str, address: str) -> Lease | None:
        """The beginning of a session."""
        guess = self.throttle.guess(user, address)
        try:
            if await guess.refused() is not None:
                return None
            guess.right()
            return await take_session(self.state, self._limits, user, address)
        finally:
            guess.close()

    async def guess(self, user: str, address: str, password: str) -> bool:
        """A wrong password. Was it looked at?"""
        guess = self.throttle.guess(user, address)
        try:
            if await guess.refused() is not None:
                return False
            await guess.wrong(Secret(password))
            return True
        finally:
            guess.close()

    async def die(self) -> None:
        """SIGKILL: it says nothing any more, and after its lifetime the store forgets it."""
        self._way.dead = True
        await asyncio.sleep(LIFETIME)
        if self._way.member is not None:
            self._way.member.leave()


class Site:
    """Replicas around one store."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.penalties = Penalties()
        self.metrics = Metrics([], [])
        self.store = MemoryStore(asyncio.get_running_loop().time)
        self.traffic = Traffic()
        self.away = False
        self.replicas: list[Replica] = []

    async def start(self, replicas: int) -> None:
        """So many, not all in one moment."""
        self.replicas = [Replica(self) for _ in range(replicas)]
        for replica in self.replicas:
            await replica.state.start()
        await asyncio.sleep(1.0)

    async def stop(self) -> None:
        """End them all."""
        await asyncio.gather(*(replica.state.stop() for replica in self.replicas))

    def members(self) -> int:
        """How many the store knows."""
        return len(self.store.members)

    @contextmanager
    def observed(self) -> Iterator[Traffic]:
        """What goes on meanwhile."""
        self.traffic = Traffic()
        yield self.traffic

    async def logins(self, count: int, seconds: float, length: float) -> int:
        """`count` logins of as many users at replicas of their own choice, over `seconds`; how many got in."""

        async def one(number: int) -> bool:
            await asyncio.sleep(random.uniform(0, seconds))
            replica = random.choice(self.replicas)
            return await replica.login(f"user{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", length)

        return sum(await asyncio.gather(*(one(number) for number in range(count))))


@asynccontextmanager
async def site_of(replicas: int) -> AsyncIterator[Site]:
    """A site that has come to rest."""
    site = Site()
    await site.start(replicas)
    yield site
    await site.stop()


async def report(replicas: int) -> list[str]:
    """What README.md says of such a site, as lines."""
    async with site_of(replicas) as site:
        return await _observations(site, replicas)


async def _observations(site: Site, replicas: int) -> list[str]:
    with site.observed() as idle:
        await asyncio.sleep(5)
    lines = [f"{replicas} replicas that do nothing: {idle.calls['exchange'] / 5:.0f} calls a second"]
    count = 5000
    with site.observed() as busy:
        inside = await site.logins(count, 5, 2)
        await asyncio.sleep(1)
    made = ", ".join(f"{word} {number / count:.2f}" for word, number in sorted(busy.operations.items()))
    calls = busy.calls["operations"] / count
    lines.append(f"{inside} of {count} logins in 5 s: operations a login: {made}, in {calls:.2f} calls")
    with site.observed() as guessed:
        looked_at = sum(
            [await site.replicas[n % replicas].guess("alice", "192.0.2.1", f"wrong {n}") for n in range(10)]
        )
        await asyncio.sleep(1)
    lines.append(f"{looked_at} wrong passwords: {guessed.told} changes told, {guessed.heard} heard")
    burst = await asyncio.gather(*(
        replica.guess("bob", "192.0.2.2", f"wrong {number}-{turn}")
        for number, replica in enumerate(site.replicas[: replicas // 10])
        for turn in range(5)
    ))  # fmt: skip
    await asyncio.sleep(KNOWN_EVERYWHERE)
    later = [await replica.guess("bob", "192.0.2.2", "another") for replica in site.replicas]
    lines.append(f"a burst of {len(burst)} at {replicas // 10} replicas at once: {sum(burst)} looked at")
    lines.append(f"{KNOWN_EVERYWHERE} s later one at each replica: {sum(later)} looked at")
    return lines


if __name__ == "__main__":
    print("\n".join(simulate(report(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))))
