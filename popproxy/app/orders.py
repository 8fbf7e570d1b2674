"""The orders of operators in the running proxy: read at the start, and again when another process has changed them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from popproxy.backend.balancer import State
from popproxy.backend.pool import Backend, Pool
from popproxy.config.model import Config
from popproxy.state.order_file import FileOrders
from popproxy.state.orders import MemoryOrders, OrderBook
from popproxy.state.shared import SharedState
from popproxy.state.shared_orders import SharedOrders

LOOK = 0.5
"""Seconds between two looks at the file."""
_MARGIN = 3600.0


def open_orders(config: Config, state: SharedState) -> OrderBook:
    """Those of this host, or with `shared_state` of all replicas. Raises ConfigError for a file that cannot be used."""
    caches = [directory.cache for directory in config.directories.values()]
    remember = max([config.routing.cache + config.routing.stale, *caches]) + _MARGIN
    directory = config.process.state_directory
    own = MemoryOrders(remember) if directory is None else FileOrders(directory, remember)
    return own if config.shared_state is None else SharedOrders(own, state)


class OrderParts:
    """Sees to it that the pools' servers are in the states that were ordered."""

    def __init__(self, book: OrderBook, pools: Mapping[str, Pool], loop: asyncio.AbstractEventLoop) -> None:
        self._book = book
        self._pools = pools
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on."""
        self._apply()
        if self._book.kept:
            self._timer = self._loop.call_later(LOOK, self._look)

    def close(self) -> None:
        """No longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK, self._look)
        if self._book.refresh():
            self._apply()

    def _apply(self) -> None:
        for pool in self._pools.values():
            self.apply(pool, pool.backends)

    def apply(self, pool: Pool, backends: Sequence[Backend]) -> None:
        """What was ordered of these servers holds."""
        for backend in backends:
            closed = self._book.orders.servers.get((pool.name, backend.label))
            pool.order(backend, State.UP if closed is None else State(closed.state))
