"""The workers of one configuration."""

from __future__ import annotations

from popproxy.app.generation import LONGEST_PAUSE, pause_after


def test_a_worker_that_does_not_stay_is_started_again_however_often_that_was() -> None:
    pauses = [pause_after(failures) for failures in range(5000)]
    assert pauses[:3] == [0.0, 0.0, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
