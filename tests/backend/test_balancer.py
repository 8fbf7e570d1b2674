"""Which server a login goes to: order, weights, hash; well, slow, down; drained; shared or not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.backend.balancer import Balancer, Member, Rules, State
from popproxy.backend.breaker import Circuit

USERS = [f"user{number}" for number in range(4000)]


def balancer(*weights: int, chance: Any = None, **rules: Any) -> Balancer:
    made = Rules(**rules)
    members = [Member(f"pop{number}:110", made, weight) for number, weight in enumerate(weights or (1, 1, 1))]
    return Balancer(members, made, chance or random.Random(1939).random)


def labels(balancer: Balancer, user: str = "alice", now: float = 1000.0, **named: Any) -> list[str]:
    choice = balancer.choose(user, now, **named)
    return [member.label[3] for member in (*choice.well, *choice.last)]


def down(member: Member, now: float = 0.0) -> None:
    while not member.breaker.failed(now):
        pass


def firsts(balancer: Balancer, now: float = 1000.0) -> dict[str, float]:
    """The share of users whose first server is this one."""
    count = Counter(labels(balancer, user, now)[0] for user in USERS)
    return {label: number / len(USERS) for label, number in count.items()}


# ---- in what order ----


def test_in_order() -> None:
    made = balancer()
    assert labels(made) == ["0", "1", "2"]
    down(made.members[0])
    assert labels(made) == ["1", "2", "0"], "what is down comes last, but a login must not fail that could succeed"


@pytest.mark.parametrize("choose", ["weights", "hash"])
def test_each_is_first_as_often_as_its_weight_says(choose: str) -> None:
    shares = firsts(balancer(1, 2, 5, 0, choose=choose))
    assert shares == {
        "0": pytest.approx(1 / 8, abs=0.02),
        "1": pytest.approx(2 / 8, abs=0.02),
        "2": pytest.approx(5 / 8, abs=0.02),
    }
    made = balancer(1, 1, 0, choose=choose)
    assert {labels(made, user)[-1] for user in USERS} == {"2"}, "weight 0 is what is left when no other works"


@pytest.mark.parametrize("choose", ["weights", "hash"])
def test_the_users_of_a_server_that_is_down_go_to_all_others(choose: str) -> None:
    made = balancer(2, 1, 1, choose=choose)
    down(made.members[0])
    assert firsts(made) == {"1": pytest.approx(0.5, abs=0.04), "2": pytest.approx(0.5, abs=0.04)}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=8, unique=True), st.text(max_size=30))
def test_hash_moves_only_the_users_of_a_server_that_is_taken_away(names: list[str], user: str) -> None:
    def order(some: list[str]) -> list[str]:
        rules = Rules("hash")
        members = [Member(name, rules) for name in some]
        return [member.label for member in Balancer(members, rules, random.random).choose(user, 0.0).well]

    before = order(names)
    assert before == order(sorted(names)) == order(sorted(names, reverse=True)), "whatever the configuration's order"
    for name in names:
        assert order([one for one in names if one != name]) == [one for one in before if one != name]


# ---- maildrops that are not shared ----


@given(st.sampled_from(["hash", "order", "weights"]), st.integers(0, 200), st.integers(0, 7), st.integers(0, 7))
def test_no_other_server_ever_where_maildrops_are_not_shared(choose: Any, user: int, dead: int, closed: int) -> None:
    made, reference = balancer(1, 1, 1, choose=choose, shared=False), balancer(1, 1, 1, choose=choose, shared=True)
    home = reference.choose(f"u{user}", 1000.0).well[0].label
    for bit, member in enumerate(made.members):
        if dead >> bit & 1:
            down(member)
        if closed >> bit & 1:
            member.order = State.DRAIN
    choice = made.choose(f"u{user}", 1000.0)
    assert choice.last == []
    assert len(choice.well) <= 1
    if choose != "weights":
        shut = next(member for member in made.members if member.label == home).order is State.DRAIN
        assert [member.label for member in choice.well] == ([] if shut else [home])


def test_what_a_directory_says_goes_before_the_hash() -> None:
    made = balancer(choose="hash", shared=False)
    for member in made.members:
        assert labels(made, named=member) == [member.label[3]]
    made = balancer(shared=True)
    assert labels(made, named=made.members[2]) == ["2", "0", "1"]


# ---- coming back ----


def test_a_server_on_trial_gets_one_login_at_a_time() -> None:
    made = balancer(slow_start=0.0)
    first = made.members[0]
    down(first, 0.0)
    first.breaker.answered(10.0)
    assert first.breaker.circuit is Circuit.ON_TRIAL
    assert labels(made, now=11.0) == ["0", "1", "2"]
    first.trial = True
    assert labels(made, now=11.0) == ["1", "2", "0"]
    first.trial = False
    first.breaker.worked(12.0)
    assert labels(made, now=12.0) == ["0", "1", "2"]


@pytest.mark.parametrize("choose", ["order", "weights", "hash"])
def test_slow_start(choose: str) -> None:
    made = balancer(choose=choose, slow_start=30.0)
    full = firsts(made)["0"]
    first = made.members[0]
    down(first, 0.0)
    first.breaker.worked(100.0)
    shares = [firsts(made, now)["0"] / full for now in (100.0, 115.0, 127.0, 130.0)]
    assert shares == pytest.approx([0.1, 0.5, 0.9, 1.0], abs=0.1)


def test_servers_that_were_never_down_start_at_once() -> None:
    assert firsts(balancer(slow_start=3600.0), now=0.0) == {"0": 1.0}


# ---- operators ----


def test_drained_servers_get_nothing_even_if_all_others_are_down() -> None:
    made = balancer()
    made.members[0].order = State.DRAIN
    made.members[1].order = State.MAINTENANCE
    down(made.members[2])
    assert labels(made) == ["2"]
    assert [member.state for member in made.members] == [State.DRAIN, State.MAINTENANCE, State.DOWN]
    made.members[2].order = State.DRAIN
    assert labels(made) == []
    made.members[2].order = State.UP
    assert made.members[2].state is State.DOWN, "the end of an order tells nothing about the server"


def test_servers_under_maintenance_are_not_asked() -> None:
    member = balancer().members[0]
    member.check_at = 50.0
    down(member, 0.0)
    assert member.probe_at == 5.0
    member.order = State.DRAIN
    assert member.probe_at == 5.0
    member.order = State.MAINTENANCE
    assert member.probe_at == float("inf")


@given(st.data())
def test_every_server_that_may_be_used_is_tried_once(data: st.DataObject) -> None:
    choose = data.draw(st.sampled_from(["order", "weights", "hash"]))
    weights = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    made = balancer(*weights, choose=choose, slow_start=10.0)
    now = 100.0
    for member in made.members:
        for event in data.draw(st.lists(st.sampled_from(["failed", "worked", "answered"]), max_size=6)):
            getattr(member.breaker, event)(now)
        member.trial = data.draw(st.booleans())
        member.order = data.draw(st.sampled_from([State.UP, State.UP, State.DRAIN, State.MAINTENANCE]))
    choice = made.choose("alice", now + data.draw(st.floats(0, 20)))
    tried = [*choice.well, *choice.last]
    assert len(tried) == len(set(tried))
    assert set(tried) == {member for member in made.members if member.order is State.UP}
    assert all(member.state is State.UP for member in choice.well)
    assert all(member.state is State.DOWN for member in choice.last)
