"""Addresses of servers by their names, remembered for as long as the name service says."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

from popproxy.errors import ConnectFailed
from popproxy.types import Address

SHORTEST: Final = 1.0
"""Seconds for which an answer holds at least: the name service is not asked for each of a thousand logins."""
SILENCE: Final = 10.0
"""Seconds for which an older answer serves without a question, when the name service has not answered the last one."""
PATIENCE: Final = 1.0
"""Seconds to wait for an answer, where an older one could serve."""

Lookup = Callable[[str], Awaitable[tuple[list[str], float]]]
"""IP addresses of a host, and for how many seconds that holds. Raises ConnectFailed."""


class Resolver:
    """Host names to addresses. Older answers serve while the name service is silent, or knows nothing any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lookup: Lookup) -> None:
        self._loop = loop
        self._lookup = lookup
        self._known: dict[Address, tuple[float, list[Address]]] = {}
        self._asking: dict[Address, asyncio.Task[list[Address]]] = {}

    def known(self, address: Address) -> list[Address] | None:
        """The answer to `resolve`, if it needs no question."""
        known = self._known.get(address)
        if known is not None and known[0] > self._loop.time():
            return known[1]
        if known is None and _is_ip(address.host):
            self._known[address] = (inf, [address])
            return [address]
        return None

    async def resolve(self, address: Address) -> list[Address]:
        """Addresses to try, in order. Raises ConnectFailed(reason="dns")."""
        old = self._known.get(address)
        task = self._asking.get(address)
        if task is None:  # one question for all sessions that want the same name
            task = self._asking[address] = self._loop.create_task(self._ask(address))
            task.add_done_callback(lambda done: self._asked(address, done))
        if old is not None:
            await asyncio.wait((task,), timeout=PATIENCE)
            if not task.done():
                return self.stale(address) or old[1]
        return await asyncio.shield(task)

    def stale(self, address: Address) -> list[Address] | None:
        """The last answer, however old; it serves for a while now. For when the name service is silent."""
        old = self._known.get(address)
        if old is None:
            return None
        self._known[address] = (max(old[0], self._loop.time() + SILENCE), old[1])
        return old[1]

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking.values():
            task.cancel()

    async def _ask(self, address: Address) -> list[Address]:
        try:
            hosts, ttl = await self._lookup(address.host)
        except ConnectFailed:
            old = self._known.get(address)
            if old is None:
                raise
            found, ttl = old[1], SILENCE
        else:
            found = [Address(host, address.port) for host in hosts]
        self._known[address] = (self._loop.time() + max(ttl, SHORTEST), found)
        return found

    def _asked(self, address: Address, task: asyncio.Task[list[Address]]) -> None:
        self._asking.pop(address, None)
        if not task.cancelled():
            task.exception()  # has been told to whoever still waited


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
