"""Credentials in users' names: for a short time, bounded in number, never up to the end of their tickets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from popproxy.kerberos.credential_cache import MARGIN, CredentialCache

DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_for_its_time_and_no_longer() -> None:
    clock = Clock()
    cache: CredentialCache[str] = CredentialCache(300, 10, clock)
    cache.put("alice", "hers", DAY)
    clock.now += 299
    assert cache.get("alice") == "hers"
    assert cache.get("bob") is None
    clock.now += 2
    assert cache.get("alice") is None
    assert len(cache) == 1
    cache.expire()
    assert len(cache) == 0


def test_never_up_to_the_end_of_the_ticket() -> None:
    clock = Clock()
    cache: CredentialCache[str] = CredentialCache(300, 10, clock)
    cache.put("alice", "hers", MARGIN + 100)
    cache.put("bob", "his", MARGIN)
    clock.now += 99
    assert cache.get("alice") == "hers"
    clock.now += 2
    assert cache.get("alice") is None
    assert cache.get("bob") is None, "it was never kept"


def test_what_is_pushed_out_is_the_oldest() -> None:
    cache: CredentialCache[int] = CredentialCache(300, 2)
    for number in range(3):
        cache.put(number, number, DAY)
    assert [cache.get(number) for number in range(3)] == [None, 1, 2]
    cache.put(1, 11, DAY)
    cache.put(3, 3, DAY)
    assert [cache.get(number) for number in range(4)] == [None, 11, None, 3]


def test_nothing_is_kept_where_that_is_off() -> None:
    for cache in (CredentialCache[str](0, 10), CredentialCache[str](300, 0)):
        cache.put("alice", "hers", DAY)
        assert cache.get("alice") is None
        assert len(cache) == 0


def test_dropped() -> None:
    cache: CredentialCache[str] = CredentialCache(300, 10)
    cache.put("alice", "hers", DAY)
    cache.drop("alice")
    cache.drop("bob")
    assert cache.get("alice") is None


@given(st.lists(st.tuples(st.sampled_from("pgdx"), st.integers(0, 5), st.integers(0, 400)), max_size=60))
def test_against_a_naive_one(actions: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    cache: CredentialCache[int] = CredentialCache(100, 3, clock)
    naive: list[tuple[int, int, float]] = []  # key, value, end
    for number, (action, key, amount) in enumerate(actions):
        if action == "p":
            naive = [one for one in naive if one[0] != key]
            if amount > MARGIN:
                naive = [*naive, (key, number, clock.now + min(100, amount - MARGIN))][-3:]
            cache.put(key, number, amount)
        elif action == "g":
            clock.now += amount / 10
            expected = next((value for one, value, end in naive if one == key and end > clock.now), None)
            assert cache.get(key) == expected
        elif action == "d":
            naive = [one for one in naive if one[0] != key]
            cache.drop(key)
        else:
            naive = [one for one in naive if one[2] > clock.now]
            cache.expire()
        assert len(cache) == len(naive) <= 3


def test_many_threads() -> None:
    cache: CredentialCache[int] = CredentialCache(300, 50)

    def work(seed: int) -> None:
        for number in range(500):
            key = (seed * 31 + number) % 80
            cache.put(key, key, DAY)
            assert cache.get(key) in (None, key)
            if number % 7 == 0:
                cache.drop(key)
            if number % 50 == 0:
                cache.expire()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(cache) <= 50
