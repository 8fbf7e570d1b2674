"""Users whom an operator holds: their logins wait at the door, or are sent away."""

from __future__ import annotations

import asyncio
from typing import Final

from popproxy.state.orders import OrderBook

MOST: Final = 1000
"""Logins of all users that wait at a time; one more is sent away."""
PAUSE: Final = 0.2
"""Seconds between two looks whether the hold is over, which another process may have ended."""


class Holding:
    """The door. `orders` says who is held and who is moved; a login waits for `seconds` at most."""

    def __init__(self, orders: OrderBook, seconds: float) -> None:
        self.book = orders
        self.waiting = 0
        self._seconds = seconds

    def held(self, user: str) -> bool:
        """Is the canonical `user` held?"""
        return self.book.orders.hold(user) is not None

    def since(self, user: str) -> float:
        """When the user's latest hold has ended (seconds since 1970), 0 if there was none lately."""
        return self.book.orders.since(user)

    async def passed(self, user: str) -> bool:
        """Wait for the end of the user's hold, if he is to wait. False if he is still held then."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._seconds
        if self.waiting >= MOST:
            return not self.held(user)
        self.waiting += 1
        try:
            while (hold := self.book.orders.hold(user)) is not None:
                if not hold.wait or loop.time() >= give_up:
                    return False
                await asyncio.sleep(PAUSE)
            return True
        finally:
            self.waiting -= 1
