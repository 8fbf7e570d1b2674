"""Places at servers that may have only so many connections at a time: taking one, waiting for one, giving it back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from popproxy.backend.balancer import Member, State
from popproxy.backend.waiting import Waiter, WaitingQueue
from popproxy.errors import BackendError


class Place:
    """A connection that one may have at `member`, until `release`."""

    __slots__ = ("_places", "member")

    def __init__(self, places: Places, member: Member) -> None:
        self.member = member
        self._places: Places | None = places

    def release(self) -> None:
        """Give it back. Not an error the second time."""
        places, self._places = self._places, None
        if places is not None:
            places.freed(self.member)


class Places:
    """Those of one pool. At most `most` logins wait, for `seconds` each."""

    def __init__(self, most: int, seconds: float) -> None:
        self.queue = WaitingQueue(most)
        self._seconds = seconds

    def take(self, member: Member) -> Place | None:
        """A place that is free, if there is one. Then nobody waits for it: a freed one goes to whose turn it is."""
        if member.full:
            return None
        member.connections += 1
        return Place(self, member)

    async def wait(self, user: str, wanted: Sequence[Member]) -> Place:
        """A place at one of `wanted` in its turn. Raises BackendError if there is none in time, or too many wait."""
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()

        def granted(member: Member) -> None:
            place = Place(self, member)
            if future.done():
                place.release()  # he has just given up: it is the next one's turn
            else:
                future.set_result(place)

        waiter = Waiter(user, wanted, granted)
        if not self.queue.join(waiter):
            raise BackendError("too many logins wait for a place at the servers", "connect", "limit")
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

    def freed(self, member: Member) -> None:
        """A place is given back."""
        if member.order is not State.UP or not self.queue.free(member):
            member.connections -= 1

    def offer(self, member: Member) -> None:
        """It takes logins again: let those in who wait for it."""
        while not member.full and self.queue.free(member):
            member.connections += 1
