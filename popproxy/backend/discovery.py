"""Servers that SRV records name (RFC 2782): asked for as often as the records say, so that they can come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from popproxy.backend.pool import Backend, Pool, Target
from popproxy.errors import BackendError, ConnectFailed
from popproxy.observe.logs import get_logger
from popproxy.types import Address

MOST: Final = 32
"""Servers of one pool."""
SHORTEST: Final = 1.0
"""Seconds for which an answer holds at least."""
LONGEST: Final = 3600.0
"""Seconds for which an answer holds at most: nobody wants to restart for a mistake in a zone."""
AGAIN: Final = 5.0
"""Seconds until the name service is asked again that has not answered."""
_LIGHT: Final = 0.01
"""The weight of a server of weight 0 among others: a very small chance (RFC 2782)."""

log = get_logger("backend")


class Service(Protocol):
    """An SRV record."""

    @property
    def priority(self) -> int:
        """Lower ones first."""
        ...

    @property
    def weight(self) -> int:
        """Among equals."""
        ...

    @property
    def target(self) -> Address:
        """Host name and port."""
        ...


Ask = Callable[[str], Awaitable[tuple[Sequence[Service], float]]]
"""The records of a name, and for how many seconds they hold. Raises ConnectFailed."""
Changed = Callable[[Pool, Sequence[Backend]], None]
"""Told of a pool whose servers have changed, and which of them are new."""


def srv_name(domain: str, tls: str) -> str:
    """Where the records are: below the domain, unless it is such a name itself."""
    return domain if domain.startswith("_") else f"{'_pop3s' if tls == 'implicit' else '_pop3'}._tcp.{domain}"


def targets_of(services: Sequence[Service], domain: str, server_name: str | None) -> list[Target]:
    """What the records mean for a pool.

    Whoever can forge an answer can name any server. So a certificate must carry the target's name only if that lies
    within the domain that was asked for, else the domain itself (RFC 6125 section 6.2.1, RFC 6186 section 6).
    """
    zone = domain.partition("._tcp.")[2] if domain.startswith("_") else domain
    best: dict[Address, Service] = {}
    for service in sorted(services, key=lambda one: (one.priority, -one.weight)):
        best.setdefault(service.target, service)
    chosen = list(best.values())[:MOST]
    weighed = any(service.weight for service in chosen)
    found = []
    for service in chosen:
        host = service.target.host
        ours = host == zone or host.endswith(f".{zone}")
        weight = service.weight or (_LIGHT if weighed else 1)
        found.append(Target(service.target, service.priority, weight, server_name or (host if ours else zone)))
    return found


class Discovery:
    """Keeps the pools that have `srv` up to date."""

    def __init__(self, ask: Ask, changed: Changed) -> None:
        self._ask = ask
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, pools: Iterable[Pool]) -> None:
        """From now on."""
        self._tasks = [asyncio.create_task(self._watch(pool)) for pool in pools if pool.config.srv is not None]

    async def close(self) -> None:
        """No longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, pool: Pool) -> None:
        domain, before = pool.config.srv, ""
        assert domain is not None
        name = srv_name(domain, pool.config.tls)
        while True:
            try:
                said, seconds = await self._look(pool, domain, name)
            except Exception:  # a bug of ours must not be the end of looking
                log.exception("cannot look for servers", pool=pool.name, records=name)
                said, seconds = before, AGAIN
            if said != before:
                before = said
                (log.info if said.startswith("servers") else log.warning)(said, pool=pool.name, records=name)
            await asyncio.sleep(seconds)

    async def _look(self, pool: Pool, domain: str, name: str) -> tuple[str, float]:
        """Ask once. What came of it, and for how long that holds."""
        try:
            services, ttl = await self._ask(name)
        except ConnectFailed as error:
            if not pool.backends:
                pool.none(str(error))
            return f"{error}; what is known goes on to serve", AGAIN
        seconds = min(max(ttl, SHORTEST), LONGEST)
        if not services:
            pool.none(f"{name} says that there is no such service")
            self._changed(pool, ())
            return f"{name} says that there is no such service", seconds
        had = pool.backends
        try:
            new = pool.offer(targets_of(services, domain, pool.config.server_name))
        except BackendError as error:
            return str(error), seconds
        if new or len(pool.backends) != len(had):
            self._changed(pool, new)
        return f"servers: {', '.join(sorted(backend.label for backend in pool.backends))}", seconds
