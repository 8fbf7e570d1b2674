"""Places at servers that may have only so many connections at a time: taking one, waiting for one, giving it back.

They are leases of the state that sessions share, so that all workers together keep to the limit, those of an earlier
configuration too, and with Redis all replicas. Where nobody else shares it, a place that is given back goes to whose
turn it is. Otherwise it goes back to all, and who has logins waiting asks for one again and again: the users of one
process take turns, and among the processes it is up to chance.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from popproxy.backend.balancer import Member, State
from popproxy.backend.waiting import Waiter, WaitingQueue
from popproxy.errors import BackendError
from popproxy.state.shared import Lease, SharedState

PAUSE = 0.05
"""Seconds, about, between two questions whether there is a place again."""
_OWNER = "\1places at "  # control characters are in no user's name


class Place:
    """A connection that one may have at `member`, until `release`."""

    __slots__ = ("_lease", "_places", "member")

    def __init__(self, places: Places, member: Member, lease: Lease) -> None:
        self.member = member
        self._lease = lease
        self._places: Places | None = places

    def release(self) -> None:
        """Give it back. Not an error the second time."""
        places, self._places = self._places, None
        if places is not None:
            places.freed(self.member, self._lease)


class Places:
    """Those of the pool with this name. At most `most` logins wait, for `seconds` each."""

    def __init__(self, pool: str, most: int, seconds: float, state: SharedState) -> None:
        self.queue = WaitingQueue(most)
        self._owner = f"{_OWNER}{pool}"
        self._seconds = seconds
        self._state = state
        self._asking: asyncio.Task[None] | None = None

    async def enter(self, user: str, wanted: Sequence[Member]) -> Place:
        """A place at the first of `wanted` that has one, or at whichever has one in the user's turn.

        Raises BackendError if there is none in time, or too many wait.
        """
        for member in wanted:
            place = await self.take(member)
            if place is not None:
                return place
        return await self._wait(user, wanted)

    async def take(self, member: Member) -> Place | None:
        """A place that is free, if there is one and nobody waits for it."""
        return None if self.queue.wants(member) else await self._take(member)

    def freed(self, member: Member, lease: Lease) -> None:
        """A place is given back."""
        if member.order is State.UP and self._state.status().members == 1:
            waiter = self.queue.next(member)
            if waiter is not None:
                waiter.granted(Place(self, member, lease))
                return
        member.connections -= 1
        lease.release()

    # ---- pieces ----

    async def _take(self, member: Member) -> Place | None:
        if member.full or member.limit is None:
            return None
        member.connections += 1
        taken: Lease | str = ""
        try:
            taken = await self._state.acquire(self._owner, ((member.label, member.limit),))
        finally:
            if isinstance(taken, str):
                member.connections -= 1
        return None if isinstance(taken, str) else Place(self, member, taken)

    async def _wait(self, user: str, wanted: Sequence[Member]) -> Place:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Place] = loop.create_future()

        def granted(place: Place) -> None:
            if future.done():
                place.release()  # he has just given up: it is the next one's turn
            else:
                future.set_result(place)

        waiter = Waiter(user, wanted, granted)
        if not self.queue.join(waiter):
            raise BackendError("too many logins wait for a place at the servers", "connect", "limit")
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        try:
            async with asyncio.timeout(self._seconds):
                return await future
        except BaseException as error:
            self.queue.leave(waiter)
            if future.done() and not future.cancelled():
                future.result().release()
            if isinstance(error, TimeoutError):
                raise BackendError("no place at the servers in time", "connect", "limit") from None
            raise

    async def _ask(self) -> None:
        """While somebody waits: are there places again?"""
        while len(self.queue):
            for member in self.queue.wanted():
                while member.order is State.UP and self.queue.wants(member):
                    place = await self._take(member)
                    if place is None:
                        break
                    waiter = self.queue.next(member)
                    if waiter is None:  # he has given up meanwhile
                        place.release()
                    else:
                        waiter.granted(place)
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - so that processes take turns
