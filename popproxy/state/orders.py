"""What operators have ordered until they say otherwise: users held, users moved, servers out of service.

A hold ends and is remembered for a while: what was known of the user's place before its end does not count any more,
because holds are there for moving mail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody logs in as this user from `since` to `until` (seconds since 1970; infinite: until released).

    `wait`: logins wait for the end, as long as they can; otherwise they are refused at once.
    """

    since: float
    until: float = inf
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Move:
    """The user's mail is here, whatever rules and directories say; `server` (host:port) is one of the pool's.

    `backend_user` is the user's name there, if it is not the one that rules and directories make.
    """

    since: float
    pool: str
    server: str | None = None
    backend_user: str | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """A server gets no logins: `state` is drain or maintenance."""

    since: float
    state: str


@dataclass(frozen=True, slots=True)
class Orders:
    """All of them at one moment. Users are canonical names; servers are (pool, host:port)."""

    holds: Mapping[str, Hold] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    servers: Mapping[tuple[str, str], Closed] = field(default_factory=dict)

    def hold(self, user: str) -> Hold | None:
        """The one that holds the user now."""
        found = self.holds.get(user)
        return found if found is not None and found.until > time.time() else None

    def since(self, user: str) -> float:
        """When the latest hold of the user has ended (seconds since 1970), 0 if there was none lately."""
        found = self.holds.get(user)
        return 0.0 if found is None or found.until > time.time() else found.until

    def overtake(self, before: Orders, user: str) -> bool:
        """Whether a login of the user that began under `before` must not go on under these.

        A hold that has come and gone meanwhile counts: the mail may be elsewhere since.
        """
        return self is not before and (
            self.hold(user) is not None
            or self.since(user) > before.since(user)
            or self.moves.get(user) != before.moves.get(user)
        )

    def holding(self, user: str, hold: Hold) -> Orders:
        """With this hold, whatever there was before."""
        return replace(self, holds={**self.holds, user: hold})

    def released(self, user: str, now: float) -> Orders:
        """Without the user's hold."""
        held = self.holds.get(user)
        return self if held is None else self.holding(user, replace(held, until=min(held.until, now)))

    def moving(self, user: str, move: Move | None) -> Orders:
        """With this move, or none."""
        moves = {name: one for name, one in self.moves.items() if name != user}
        return replace(self, moves=moves if move is None else {**moves, user: move})

    def closing(self, pool: str, server: str, closed: Closed | None) -> Orders:
        """With this server closed, or open."""
        servers = {key: one for key, one in self.servers.items() if key != (pool, server)}
        return replace(self, servers=servers if closed is None else {**servers, (pool, server): closed})

    def without_holds_before(self, moment: float) -> Orders:
        """Without those that ended before `moment`."""
        return replace(self, holds={user: hold for user, hold in self.holds.items() if hold.until >= moment})


class OrderBook(Protocol):
    """Where orders are kept. `orders` is what holds now, and costs nothing to look at."""

    @property
    def orders(self) -> Orders:
        """All of them."""
        ...

    @property
    def kept(self) -> bool:
        """They outlive a restart."""
        ...

    async def change(self, update: Callable[[Orders], Orders]) -> None:
        """Make `update` of what holds now. When this returns it is kept. Raises Unavailable: then nothing has changed.

        `update` may be called more than once.
        """
        ...

    def refresh(self) -> bool:
        """Look whether others have changed it; True if so."""
        ...


class MemoryOrders:
    """Kept by this process, until it ends. See OrderBook."""

    kept = False

    def __init__(self, remember: float) -> None:
        """`remember`: seconds for which holds that are over count (`Orders.since`)."""
        self.orders = Orders()
        self._remember = remember

    async def change(self, update: Callable[[Orders], Orders]) -> None:
        """See OrderBook."""
        self.orders = update(self.orders).without_holds_before(time.time() - self._remember)

    def refresh(self) -> bool:
        """See OrderBook."""
        return False
