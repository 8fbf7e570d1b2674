"""The workers of one configuration."""

from __future__ import annotations

import pytest

from popproxy.app.generation import LONGEST_AFTER_KILL, LONGEST_PAUSE, WELL, Pauses


@pytest.mark.parametrize("served", [0.0, 0.6, 59.0])
def test_a_worker_that_does_not_stay_is_started_again_ever_more_rarely(served: float) -> None:
    pauses = Pauses()
    waited = [pauses.after(1, served, killed=False) for _ in range(5000)]
    assert waited[:3] == [0.0, 0.4, 0.8]
    assert waited == sorted(waited)
    assert waited[-1] == LONGEST_PAUSE
    assert pauses.after(2, served, killed=False) == 0.0, "another one has nothing to do with it"
    assert pauses.after(1, WELL, killed=False) == 0.0
    assert pauses.after(1, served, killed=False) == 0.4


def test_workers_that_are_killed_again_and_again_are_back_within_a_second() -> None:
    pauses = Pauses()
    assert max(pauses.after(1, 0.6, killed=True) for _ in range(50)) == LONGEST_AFTER_KILL
    assert pauses.after(1, 0.0, killed=True) == LONGEST_PAUSE, "at its start: nobody knows whether it would have stayed"
