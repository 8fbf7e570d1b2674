"""The commands ``backends list``, ``backends drain``, ``backends resume`` and ``backends maintenance``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from popproxy.admin.commands import Commands, Role
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.backend.balancer import State
from popproxy.backend.pool import Backend, Pool
from popproxy.errors import Unavailable
from popproxy.observe.metrics import Metrics
from popproxy.state.orders import Closed, OrderBook, Orders

ORDERS = {"drain": State.DRAIN, "maintenance": State.MAINTENANCE, "resume": State.UP}

_MERGED = {
    "backends": "rows pool server",
    "backends.state": "min",  # down before up, if the workers do not agree
    "backends.since": "max",
    "backends.why": "max",
    "backends.limit": "first",
    "backends.weight": "first",
}


class Change(Protocol):
    """When a server's state has changed, in seconds since 1970, and why."""

    @property
    def when(self) -> float:
        """Seconds."""
        ...

    @property
    def why(self) -> str:
        """In words."""
        ...


def add_backends(
    commands: Commands, pools: Mapping[str, Pool], latest: Callable[[Backend], Change | None], metrics: Metrics,
    book: OrderBook,
) -> None:  # fmt: skip
    """Add the commands; `book` keeps what they order."""

    async def listed() -> object:
        return {
            "backends": [
                _shown(pool, backend, latest(backend), metrics) for pool in pools.values() for backend in pool.backends
            ],
            "waiting": {name: len(pool.places.queue) for name, pool in pools.items() if pool.places is not None},
        }

    def order(state: State) -> Callable[..., object]:
        async def ordered(*, server: str, pool: str | None = None) -> object:
            found = find_server(pools, server, pool)
            closed = None if state is State.UP else Closed(time.time(), state.value)
            await change(book, lambda orders: _closing(orders, found, closed))
            for place, backend in found:
                place.order(backend, state)
            return {"backends": [_shown(place, backend, latest(backend), metrics) for place, backend in found]}

        return ordered

    commands.add("backends list", listed, Role.VIEWER, merged=_MERGED)
    for name, state in ORDERS.items():
        commands.add(f"backends {name}", order(state), merged=_MERGED)  # type: ignore[arg-type]


async def change(book: OrderBook, update: Callable[[Orders], Orders]) -> None:
    """Change the orders. Raises CommandFailed if they cannot be kept."""
    try:
        await book.change(update)
    except Unavailable as error:
        raise CommandFailed(Reason.REFUSED, str(error)) from None


def _closing(orders: Orders, servers: Sequence[tuple[Pool, Backend]], closed: Closed | None) -> Orders:
    for pool, backend in servers:
        orders = orders.closing(pool.name, backend.label, closed)
    return orders


def find_server(pools: Mapping[str, Pool], server: str, pool: str | None) -> list[tuple[Pool, Backend]]:
    """The server in every pool that has it, or in the one that is named. `server` may leave the port out."""
    if pool is not None and pool not in pools:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"there is no pool {pool}; there are {', '.join(pools)}")
    places = [(one, backend) for one in pools.values() if pool in (None, one.name) for backend in one.backends]
    wanted = server.lower()
    found = [place for place in places if wanted in (place[1].label.lower(), place[1].address.host.lower())]
    labels = list(dict.fromkeys(backend.label for _, backend in places))
    matched = {backend.label for _, backend in found}
    if not matched:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"there is no server {server}; there are {', '.join(labels)}")
    if len(matched) > 1:
        raise CommandFailed(Reason.BAD_ARGUMENTS, f"say which one: {', '.join(sorted(matched))}")
    return found


def _shown(pool: Pool, backend: Backend, change: Change | None, metrics: Metrics) -> dict[str, object]:
    member = backend.member
    return {
        "pool": pool.name,
        "server": backend.label,
        "state": member.state.value,
        "since": None if change is None else change.when,
        "why": "" if change is None else change.why,
        "sessions": metrics.backend_sessions[backend.label],
        "limit": member.limit,
        "weight": member.weight,
    }
