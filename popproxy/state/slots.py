"""Turns: so many at work, so many waiting, whoever has waited longest next."""

from __future__ import annotations

import asyncio
from collections import deque

from popproxy.errors import Unavailable


class Slots:
    """At most `limit` have a slot, at most `queue_limit` wait for one. `name` stands in messages."""

    def __init__(self, name: str, limit: int, queue_limit: int) -> None:
        self._name = name
        self._free = limit
        self.limit = limit
        self.queue_limit = queue_limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed: tuple[str, str] | None = None

    @property
    def waiting(self) -> int:
        """Those who have none yet."""
        return len(self._waiting)

    async def take(self, deadline: float) -> None:
        """Have a slot, `deadline` seconds from now at the latest; `give` it back.

        Raises Unavailable with reason ``queue_full`` or ``deadline``, or the one that `close` was given.
        """
        if self._closed is not None:
            raise Unavailable(*self._closed)
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self.queue_limit:
            raise Unavailable(f"{self._name}: {len(self._waiting)} questions are waiting already", "queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=deadline)
        except asyncio.CancelledError:
            if turn.done() and not turn.exception():
                self.give()  # it came too late for us
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
        if not turn.done():
            raise late(self._name, deadline)
        turn.result()

    def give(self) -> None:
        """Give a slot back: to whoever has waited longest."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1

    def close(self, message: str, reason: str) -> None:
        """Nobody gets a slot any more: Unavailable is raised, with these, where one is waited or asked for."""
        self._closed = message, reason
        while self._waiting:
            self._waiting.popleft().set_exception(Unavailable(message, reason))


def late(name: str, deadline: float) -> Unavailable:
    """What is raised when the deadline has passed."""
    return Unavailable(f"{name}: no answer within {deadline:g} s", "deadline")
