"""Orders of operators among replicas: given at one, in force at all, and kept by each for when others are away."""

from __future__ import annotations

import time
from pathlib import Path

from popproxy.state.order_file import FileOrders
from popproxy.state.orders import Closed, Hold, MemoryOrders, Move
from popproxy.state.shared_orders import SharedOrders
from tests.state.sharing import Workers, until


def seen(book: SharedOrders) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Who is held, who is moved, what is closed, after a look."""
    book.refresh()
    orders = book.orders
    held = [user for user in orders.holds if orders.hold(user) is not None]
    return sorted(held), sorted(orders.moves), sorted(orders.servers)


async def test_an_order_given_at_one_is_in_force_at_all() -> None:
    among = Workers()
    try:
        one, other = [SharedOrders(MemoryOrders(3600), await among.member()) for _ in range(2)]
        now = time.time()
        await one.change(lambda orders: orders.holding("alice", Hold(now)).moving("bob", Move(now, "new")))
        await one.change(lambda orders: orders.closing("new", "pop1:110", Closed(now, "drain")))
        everything = (["alice"], ["bob"], [("new", "pop1:110")])
        await until(lambda: seen(other) == everything)
        late = SharedOrders(MemoryOrders(3600), await among.member())
        await until(lambda: seen(late) == everything)
        await other.change(lambda orders: orders.released("alice", time.time()))
        await until(lambda: seen(one) == seen(late) == ([], *everything[1:]))
        assert one.orders.since("alice") > 0  # it is known when the hold has ended
        await late.change(lambda orders: orders.moving("bob", None).closing("new", "pop1:110", None))
        await until(lambda: seen(one) == seen(other) == ([], [], []))
    finally:
        await among.end()


async def test_what_was_kept_on_disk_stays_in_force_until_others_say_otherwise() -> None:
    among = Workers()
    try:
        own = MemoryOrders(3600)
        await own.change(lambda orders: orders.holding("alice", Hold(1.0)))
        one, other = SharedOrders(own, await among.member()), SharedOrders(MemoryOrders(3600), await among.member())
        assert seen(one)[0] == ["alice"]
        await other.change(lambda orders: orders.holding("bob", Hold(1.0)))
        await until(lambda: seen(one)[0] == ["bob"])
    finally:
        await among.end()


async def test_an_order_given_before_another_is_looked_at_does_not_hide_it() -> None:
    among = Workers()
    try:
        states = [await among.member() for _ in range(2)]
        one, other = [SharedOrders(MemoryOrders(3600), state) for state in states]
        await one.change(lambda orders: orders.holding("alice", Hold(1.0)))
        await until(lambda: len(states[1].notes("order")) == 2)
        await other.change(lambda orders: orders.holding("bob", Hold(1.0)))
        await until(lambda: seen(one)[0] == seen(other)[0] == ["alice", "bob"])
    finally:
        await among.end()


async def test_orders_that_cannot_be_kept_are_in_force_as_soon_as_they_can(tmp_path: Path) -> None:
    among = Workers()
    try:
        kept, away = tmp_path / "state", tmp_path / "away"
        kept.mkdir()
        states = [await among.member() for _ in range(2)]
        one, other = SharedOrders(MemoryOrders(3600), states[0]), SharedOrders(FileOrders(kept, 3600), states[1])
        kept.rename(away)
        await one.change(lambda orders: orders.holding("alice", Hold(1.0)))
        await until(lambda: seen(other)[0] == [] and other._complained)
        away.rename(kept)
        await until(lambda: seen(other)[0] == ["alice"])
    finally:
        await among.end()
