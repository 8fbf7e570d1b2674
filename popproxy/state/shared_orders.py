"""Operators' orders that replicas share: given at one of them, in force at all within a second.

Each replica has them in its own book, too, so that they are in force when it starts while the shared state is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from popproxy.errors import Unavailable
from popproxy.observe.logs import get_logger
from popproxy.state.order_file import decode, encode
from popproxy.state.orders import OrderBook, Orders
from popproxy.state.shared import SharedState

_KIND: Final = "order"
_USED: Final = "used"
"""A note that stays: there have been orders, and those that are not there any more are over."""

log = get_logger("orders")


class SharedOrders:
    """See OrderBook. `own` is this replica's."""

    def __init__(self, own: OrderBook, state: SharedState) -> None:
        self._own = own
        self._state = state
        self._seen: dict[str, str] = {}
        self._adopting: asyncio.Future[None] | None = None
        self._adopted = False
        self._changing = 0
        self._complained = False

    @property
    def orders(self) -> Orders:
        """See OrderBook."""
        return self._own.orders

    @property
    def kept(self) -> bool:
        """See OrderBook."""
        return True

    async def change(self, update: Callable[[Orders], Orders]) -> None:
        """See OrderBook. While the shared state is away, it is in force here, and told to the others afterwards."""
        while self._adopting is not None:
            await asyncio.wait((self._adopting,))
        before = dict(_parts(self._own.orders))
        self._changing += 1
        try:
            await self._own.change(update)
        finally:
            self._changing -= 1
        after = dict(_parts(self._own.orders))
        self._note(_USED, "")
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                self._note(key, after.get(key))

    def refresh(self) -> bool:
        """See OrderBook."""
        told = self._state.notes(_KIND)
        if _USED in told and told != self._seen and self._adopting is None and not self._changing:
            self._seen = dict(told)
            self._adopting = asyncio.ensure_future(self._adopt(self._seen))
        adopted, self._adopted = self._adopted, False
        return self._own.refresh() or adopted

    def _note(self, key: str, text: str | None) -> None:
        """Only this one is seen: others may have come since the latest look."""
        self._state.note(_KIND, key, text)
        if text is None:
            self._seen.pop(key, None)
        else:
            self._seen[key] = text

    async def _adopt(self, told: Mapping[str, str]) -> None:
        try:
            await self._own.change(lambda _: _whole(told))
            self._adopted, self._complained = True, False
        except Unavailable as error:
            self._seen = {}  # they are tried again
            if not self._complained:
                log.error("the orders of other replicas are not in force here", why=str(error))
            self._complained = True
        finally:
            self._adopting = None


def _parts(orders: Orders) -> Iterator[tuple[str, str]]:
    """Each order by itself."""
    for user, hold in orders.holds.items():
        yield f"hold\0{user}", encode(Orders(holds={user: hold})).decode()
    for user, move in orders.moves.items():
        yield f"move\0{user}", encode(Orders(moves={user: move})).decode()
    for (pool, server), closed in orders.servers.items():
        yield f"server\0{pool}\0{server}", encode(Orders(servers={(pool, server): closed})).decode()


def _whole(told: Mapping[str, str]) -> Orders:
    """All of them together. What a newer popproxy may say, and this one does not understand, is left out."""
    whole = Orders()
    for key, text in told.items():
        if key == _USED:
            continue
        try:
            one = decode(text.encode())
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        whole = Orders(
            {**whole.holds, **one.holds}, {**whole.moves, **one.moves}, {**whole.servers, **one.servers}
        )  # fmt: skip
    return whole
