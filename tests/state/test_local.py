"""The shared state of one process: counters that leak, marks that expire, leases, and bounds on all of them."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from popproxy.state import local
from popproxy.state.bounded import ExpiringMarks, LeakyCounters
from popproxy.state.local import LocalState
from popproxy.state.shared import Leak, SharedState


class Clock:
    """Seconds that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def state(clock: Clock) -> SharedState:
    return LocalState({"slow": Leak(0.1, 60), "fast": Leak(10, 60)}, {"known": 100.0}, clock)


def seen(shared: SharedState) -> list[float]:
    level = shared.level("slow", "a")
    assert level is not None
    return [level.value, level.age]


def test_a_counter_leaks_at_its_rate_and_is_forgotten_after_its_time(clock: Clock) -> None:
    shared = state(clock)
    assert shared.level("slow", "a") is None
    for _ in range(3):
        shared.add("slow", "a")
    assert seen(shared) == pytest.approx([3.0, 0.0])
    clock.now += 15
    assert seen(shared) == pytest.approx([1.5, 15.0])
    clock.now += 20
    assert seen(shared) == pytest.approx([0.0, 35.0])  # empty, but not forgotten
    clock.now += 26
    assert shared.level("slow", "a") is None


def test_kinds_and_keys_do_not_mix(clock: Clock) -> None:
    shared = state(clock)
    shared.add("slow", "a")
    assert shared.level("fast", "a") is None
    assert shared.level("slow", "b") is None
    assert [key for key, _ in shared.levels("slow")] == ["a"]
    assert (shared.tracked("slow"), shared.tracked("fast")) == (1, 0)


def test_a_counter_is_kept_while_it_holds_anything(clock: Clock) -> None:
    shared = state(clock)
    for _ in range(20):
        shared.add("slow", "a")
    clock.now += 150  # longer than it is kept unused, but it takes 200 s to leak
    level = shared.level("slow", "a")
    assert level is not None
    assert level.value == pytest.approx(5.0)


def test_a_cleared_counter_begins_anew(clock: Clock) -> None:
    shared = state(clock)
    shared.add("slow", "a")
    assert shared.clear("slow", "a")
    assert not shared.clear("slow", "a")
    assert shared.level("slow", "a") is None


async def test_a_mark_expires_and_can_be_set_again(clock: Clock) -> None:
    shared = state(clock)
    assert not await shared.marked("known", "a")
    shared.mark("known", "a")
    clock.now += 99
    assert await shared.marked("known", "a")
    shared.mark("known", "a")
    clock.now += 99
    assert await shared.marked("known", "a")
    clock.now += 1
    assert not await shared.marked("known", "a")


async def test_leases_are_taken_together_or_not_at_all(clock: Clock) -> None:
    shared = state(clock)
    first = await shared.acquire("user", [("", 3), ("address", 2)])
    second = await shared.acquire("user", [("", 3), ("address", 2)])
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert await shared.acquire("user", [("", 3), ("address", 2)]) == "address"
    third = await shared.acquire("user", [("", 3), ("elsewhere", 2)])  # the refused one has taken nothing
    assert not isinstance(third, str)
    assert await shared.acquire("user", [("", 3), ("elsewhere", 2)]) == ""
    first.release()
    first.release()
    fourth = await shared.acquire("user", [("", 3), ("address", 2)])
    assert not isinstance(fourth, str)
    for lease in (second, third, fourth):
        lease.release()


async def test_released_leases_leave_nothing_behind(clock: Clock) -> None:
    shared = LocalState({}, {}, clock)
    for number in range(100):
        lease = await shared.acquire(f"user {number}", [("", 1)])
        assert not isinstance(lease, str)
        lease.release()
    assert shared._leased == {}


# ---- bounds ----


def test_a_flood_of_new_keys_does_not_grow_the_table_or_wash_away_what_counts(clock: Clock) -> None:
    counters = LeakyCounters(Leak(1 / 60, 3600), 1000, clock)
    guessers = [f"guesser {number}" for number in range(50)]
    for _ in range(20):
        for guesser in guessers:
            counters.add(guesser)
    for number in range(50_000):
        clock.now += 0.001
        counters.add(f"passer-by {number}")
        assert len(counters) <= 1000
    kept = [counters.level(guesser) for guesser in guessers]
    assert all(level is not None and level.value > 10 for level in kept), kept


def test_a_table_full_of_guessers_still_takes_the_next_one(clock: Clock) -> None:
    counters = LeakyCounters(Leak(1 / 60, 3600), 100, clock)
    for number in range(300):
        for _ in range(5):
            counters.add(f"guesser {number}")
    assert len(counters) == 100
    assert counters.level("guesser 299") is not None


def test_what_is_forgotten_gives_its_place_back(clock: Clock) -> None:
    counters = LeakyCounters(Leak(10, 60), 1000, clock)
    for number in range(1000):
        counters.add(f"first {number}")
    clock.now += 120
    for number in range(600):
        counters.add(f"second {number}")
    assert len(counters) == 600


def test_marks_are_bounded_and_the_oldest_goes(clock: Clock) -> None:
    marks = ExpiringMarks(100.0, 10, clock)
    for number in range(25):
        clock.now += 1
        marks.set(str(number))
    assert len(marks) == 10
    assert [str(number) in marks for number in range(25)] == [False] * 15 + [True] * 10


def test_a_million_strangers_cost_no_more_memory_than_the_table_holds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: a tenth of the tables, filled six times over."""
    monkeypatch.setattr(local, "COUNTERS", local.COUNTERS // 10)
    monkeypatch.setattr(local, "MARKS", local.MARKS // 10)
    draw = random.Random(1939)
    tracemalloc.start()
    try:
        shared = LocalState({"account": Leak(0.1, 3600)}, {"seen": 86400.0}, clock)
        for _ in range(20_000):
            key = draw.randbytes(100).hex()  # long names, chosen by whoever floods
            shared.add("account", key)
            shared.mark("seen", key[:32])
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 4_000_000, f"{used} octets for a tenth of the tables"
