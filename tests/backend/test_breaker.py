"""A breaker opens, waits, has a trial, and closes."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from popproxy.backend.breaker import LONGEST, Breaker, Circuit


def opened(at: float = 100.0, failures: int = 3, retry: float = 5.0) -> Breaker:
    breaker = Breaker(failures, retry)
    assert [breaker.failed(at) for _ in range(failures)] == [False] * (failures - 1) + [True]
    return breaker


def test_failures_in_a_row_open_it_and_a_login_between_them_begins_the_row_again() -> None:
    breaker = Breaker(3, 5.0)
    for _ in range(10):
        assert not breaker.failed(0)
        assert not breaker.failed(0)
        assert not breaker.worked(0)
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.calm


def test_only_a_probe_leads_to_a_trial_and_only_a_login_ends_it_well() -> None:
    breaker = opened(100.0)
    assert breaker.probe_at == 105.0
    assert breaker.answered(106.0)
    assert (breaker.circuit, breaker.probe_at) == (Circuit.ON_TRIAL, inf)
    assert not breaker.answered(107.0)
    assert not breaker.worked(108.0), "its state was up already"
    assert (breaker.circuit, breaker.calm, breaker.closed_at) == (Circuit.CLOSED, True, 106.0)


def test_a_trial_that_fails_opens_it_for_twice_as_long() -> None:
    breaker = opened(0.0)
    waits = []
    for _ in range(8):
        waits.append(breaker.probe_at)
        assert breaker.answered(0.0)
        assert breaker.failed(0.0), "one failure is enough"
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]


def test_logins_that_fail_while_it_waits_do_not_put_off_the_probe() -> None:
    breaker = opened(100.0)
    assert not any(breaker.failed(now) for now in (100.5, 101.0, 104.9))
    assert breaker.probe_at == 105.0
    assert not breaker.failed(105.0)
    assert breaker.probe_at == 115.0


def test_a_login_that_gets_through_at_a_server_that_was_given_up_closes_it_at_once() -> None:
    breaker = opened(0.0)
    assert breaker.worked(1.0)
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.closed_at == 1.0
    again = [breaker.failed(2.0) for _ in range(3)]
    assert (again, breaker.probe_at) == ([False, False, True], 7.0)


@given(st.lists(st.sampled_from(["failed", "worked", "answered"]), max_size=60), st.integers(1, 5))
def test_whatever_happens(story: list[str], failures: int) -> None:
    breaker, now = Breaker(failures, 5.0), 0.0
    in_a_row = 0
    for event in story:
        now += 1.0
        before = breaker.circuit
        changed = getattr(breaker, event)(now)
        in_a_row = in_a_row + 1 if event == "failed" else 0 if event == "worked" else in_a_row
        was_down, is_down = before is Circuit.OPEN, breaker.circuit is Circuit.OPEN
        assert changed == (was_down != is_down), "told exactly when it goes down or comes up"
        assert (breaker.probe_at < inf) == is_down
        if is_down:
            assert 0 < breaker.probe_at - now <= 5.0 * LONGEST or event != "failed"
        if event == "worked":
            assert (breaker.circuit, breaker.calm) == (Circuit.CLOSED, True)
        if before is Circuit.CLOSED and in_a_row < failures:
            assert breaker.circuit is Circuit.CLOSED
        if before is Circuit.CLOSED:
            assert breaker.circuit is not Circuit.ON_TRIAL
