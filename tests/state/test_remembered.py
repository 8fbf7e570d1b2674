"""What was right a moment ago: for so long and no longer, so many and no more, and never in clear."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from popproxy.state.remembered import Remembered
from popproxy.types import Secret
from tests.peers.canaries import canary


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def put(remembered: Remembered[str], user: str, password: str, *more: str, asked: float | None = None) -> None:
    digest = remembered.digest(user, Secret(password), *more)
    remembered.remember(digest, user, remembered.now() if asked is None else asked)


def get(remembered: Remembered[str], user: str, password: str, *more: str) -> str | None:
    return remembered.recall(remembered.digest(user, Secret(password), *more))


def test_the_time_begins_when_the_source_was_asked() -> None:
    clock = Clock()
    remembered = Remembered[str](30, clock=clock)
    clock.time += 10
    put(remembered, "alice", "a", asked=100.0)  # it took ten seconds to answer
    clock.time = 129.9
    assert get(remembered, "alice", "a") == "alice"
    clock.time = 130.0
    assert get(remembered, "alice", "a") is None


def test_looking_does_not_make_it_last() -> None:
    clock = Clock()
    remembered = Remembered[str](30, clock=clock)
    put(remembered, "alice", "a")
    for _ in range(31):
        get(remembered, "alice", "a")
        clock.time += 1
    assert get(remembered, "alice", "a") is None


def test_it_is_bounded_and_forgets() -> None:
    clock = Clock()
    remembered = Remembered[str](30, capacity=100, clock=clock)
    for number in range(1000):
        put(remembered, f"user{number}", "a")
        assert len(remembered) <= 100
    assert get(remembered, "user999", "a") == "user999"
    assert get(remembered, "user899", "a") is None
    clock.time += 31
    for number in range(60):
        put(remembered, f"other{number}", "a")
    assert len(remembered) == 60
    clock.time += 31
    put(remembered, "last", "a")
    assert len(remembered) <= 60


@given(st.tuples(*[st.text(max_size=3)] * 3), st.tuples(*[st.text(max_size=3)] * 3))
def test_only_the_same_is_the_same(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    remembered = Remembered[str](30)
    put(remembered, *one)
    assert (get(remembered, *other) is not None) == (one == other)


def test_neither_names_nor_passwords_are_kept() -> None:
    password = canary()
    remembered = Remembered[int](30)
    remembered.remember(remembered.digest("alice@example.com", Secret(password)), 1, remembered.now())
    kept = pickle.dumps([value for value in vars(remembered).values() if not callable(value)])
    assert password.encode() not in kept
    assert b"alice" not in kept


def test_another_process_has_another_key() -> None:
    assert Remembered[str](30).digest("a", Secret("b")) != Remembered[str](30).digest("a", Secret("b"))
