"""Orders of operators: what they mean, and the file that keeps them."""

from __future__ import annotations

import asyncio
import json
import time
from math import inf
from pathlib import Path

import pytest

from popproxy.errors import ConfigError, Unavailable
from popproxy.state.order_file import FILE, FileOrders, decode, encode, read_orders
from popproxy.state.orders import Closed, Hold, MemoryOrders, Move, Orders

EVERYTHING = Orders(
    {"alice": Hold(1.5), "bob": Hold(2.0, 3.0, wait=False)},
    {"carol": Move(4.0, "new", "pop2.example.net:995", "c.jones"), "d\u00e4ve": Move(5.0, "new")},
    {("new", "pop1.example.net:995"): Closed(6.0, "drain")},
)


def test_what_is_written_is_what_is_read() -> None:
    assert decode(encode(EVERYTHING)) == EVERYTHING


def test_a_hold_ends_when_it_is_released_or_by_itself_and_is_remembered() -> None:
    now = time.time()
    held = Orders().holding("alice", Hold(now)).holding("bob", Hold(now, now + 60))
    assert held.hold("alice") is not None
    assert held.since("alice") == 0.0
    released = held.released("alice", now).released("nobody", now)
    assert released.hold("alice") is None
    assert released.hold("bob") is not None
    assert released.since("alice") == now
    over = Orders().holding("bob", Hold(now - 60, now - 5))
    assert (over.hold("bob"), over.since("bob")) == (None, now - 5)
    assert over.without_holds_before(now - 4).holds == {}
    assert over.without_holds_before(now - 6) == over
    assert held.without_holds_before(inf).holds.keys() == {"alice"}


@pytest.mark.long
async def test_every_process_sees_what_any_has_ordered(tmp_path: Path) -> None:
    first, second = FileOrders(tmp_path, 60), FileOrders(tmp_path, 60)
    move = Move(1.0, "new")
    await asyncio.gather(
        *(book.change(lambda orders, user=f"user{number}": orders.moving(user, move))  # type: ignore[misc]
          for number in range(20) for book in (first, second))
    )  # fmt: skip
    for book in (first, second):
        book.refresh()
        assert len(book.orders.moves) == 20
        assert not book.refresh()
    await second.change(lambda orders: orders.moving("user3", None))
    assert first.refresh()
    assert len(first.orders.moves) == 19
    assert FileOrders(tmp_path, 60).orders == first.orders
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FILE}.lock", FILE]


UNKNOWN = encode(EVERYTHING).decode().replace("drain", "up")
PARTS = '{"version": 1, "holds": {"a": {}}, "moves": {}, "servers": []}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', PARTS, UNKNOWN])
async def test_a_file_that_holds_no_orders_stops_the_start_and_changes_nothing_later(tmp_path: Path, text: str) -> None:
    book = FileOrders(tmp_path, 60)
    await book.change(lambda orders: orders.holding("alice", Hold(1.0)))
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match="does not hold orders"):
        read_orders(tmp_path)
    assert not book.refresh()
    assert book.orders.hold("alice") is not None
    with pytest.raises(Unavailable):
        await book.change(lambda orders: orders.released("alice", 2.0))
    assert (tmp_path / FILE).read_text() == text, "nobody's orders are overwritten"


async def test_a_directory_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        FileOrders(tmp_path / "nowhere", 60)
    book = FileOrders(tmp_path, 60)
    (tmp_path / FILE).mkdir()
    with pytest.raises(Unavailable, match="cannot be"):
        await book.change(lambda orders: orders)
    assert book.orders == Orders()


async def test_without_a_directory_orders_are_kept_in_memory() -> None:
    book = MemoryOrders(10)
    await book.change(lambda orders: orders.holding("alice", Hold(1.0, 2.0)).holding("bob", Hold(1.0)))
    assert book.orders.holds.keys() == {"bob"}
    assert not book.refresh()
    assert not book.kept


def test_the_file_can_be_read_by_people() -> None:
    assert json.loads(encode(EVERYTHING))["moves"]["carol"]["pool"] == "new"
