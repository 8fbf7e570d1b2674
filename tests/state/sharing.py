"""Processes that share state, as a test sees them: members of one store, which can end, and lose it for a while."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, Protocol

from popproxy.observe.metrics import Metrics
from popproxy.state.local import LocalState
from popproxy.state.mirrored import MirroredState
from popproxy.state.redis_client import RedisPlace
from popproxy.state.redis_store import RedisStore
from popproxy.state.shared import Leak, SharedState
from popproxy.state.workers import StateServer, SupervisorStore
from popproxy.types import Address, Secret
from tests.peers.redis import Redis

LEAKS = {"address": Leak(0.001, 3600), "user": Leak(0.001, 3600)}
LIFETIMES = {"known": 1000.0}
PATIENCE = 60.0
"""Seconds that a test waits for what comes within one."""


async def until(condition: Callable[[], object] | Callable[[], Awaitable[object]]) -> None:
    """Wait for it to be true."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.02)


class Sharing(Protocol):
    """A store and its members."""

    async def member(self) -> SharedState:
        """One more process."""
        ...

    async def kill(self, member: SharedState) -> None:
        """End one without a word."""
        ...

    async def lose(self) -> None:
        """Let the store be away, with all that it knows."""
        ...

    async def find(self) -> None:
        """Let it be back, and empty."""
        ...

    async def end(self) -> None:
        """End it all."""
        ...


class Memory:
    """One process: the only member that there can be."""

    async def member(self) -> SharedState:
        return LocalState(LEAKS, LIFETIMES)

    async def kill(self, member: SharedState) -> None:
        raise NotImplementedError

    async def lose(self) -> None:
        raise NotImplementedError

    async def find(self) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        pass


class Workers:
    """Workers of a supervisor; all of them live in this process, but what they say goes through sockets."""

    def __init__(self) -> None:
        self.server = StateServer()
        self.members: dict[MirroredState, SupervisorStore] = {}
        self._ends: list[socket.socket] = []

    async def member(self) -> MirroredState:
        near, far = socket.socketpair()
        self._ends.append(far.dup())
        await self.server.attach(far)
        store = SupervisorStore(near)
        state = MirroredState(store, LEAKS, LIFETIMES, Metrics([], []), kind="workers")
        await state.start()
        self.members[state] = store
        return state

    async def kill(self, member: SharedState) -> None:
        assert isinstance(member, MirroredState)
        member._ending.set()
        transport = self.members.pop(member).transport
        assert transport is not None
        transport.abort()

    async def lose(self) -> None:
        """As if another program took over, that has the sockets but knows nothing: see `find`."""
        for worker in list(self.server._workers):
            assert worker.transport is not None
            worker.transport.pause_reading()

    async def find(self) -> None:
        before, self.server = self.server, StateServer()
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.getpeername()
                self._ends.append(end.dup())
                await self.server.attach(end)
        for worker in list(before._workers):
            assert worker.transport is not None
            worker.transport.abort()  # which closes its descriptor, and shuts nothing down

    async def end(self) -> None:
        for member in self.members:
            await member.stop()
        self.server.close()
        for end in self._ends:
            end.close()


class OverRedis:
    """Replicas and a real Redis; a cluster knows slots, and a node behind a sentinel is asked for."""

    def __init__(self, kind: Literal["node", "sentinel", "cluster"]) -> None:
        self.redis = Redis(cluster=kind == "cluster")
        self.redis.start()
        at = Address("127.0.0.1", self.redis.port)
        if kind == "sentinel":
            at = Address("127.0.0.1", self.redis.start_sentinel("mail"))
        self.place = RedisPlace(kind, (at,), primary="mail", timeout=2.0)
        self.members: list[MirroredState] = []

    async def member(self) -> MirroredState:
        metrics = Metrics([], [])
        store = RedisStore(self.place, Secret(b"k" * 32), metrics, prefix="popproxy", lifetime=3.0)
        state = MirroredState(store, LEAKS, LIFETIMES, metrics, kind="redis")
        await state.start()
        assert state.status().up
        self.members.append(state)
        return state

    async def kill(self, member: SharedState) -> None:
        assert isinstance(member, MirroredState)
        member._ending.set()
        self.members.remove(member)

    async def lose(self) -> None:
        await asyncio.to_thread(self.redis.stop)

    async def find(self) -> None:
        await asyncio.to_thread(self.redis.start)

    async def end(self) -> None:
        for member in self.members:
            await member.stop()
        self.redis.__exit__(None, None, None)
