"""The quick form of ``make restarts``."""

from __future__ import annotations

import pytest

from tests.endurance.restarts import run

pytestmark = pytest.mark.long


def test_reloads_and_deaths_of_workers_refuse_nobody() -> None:
    tally = run(reloads=4, kills=2)
    assert (tally.reloads, len(tally.missing), tally.refused) == (4, 2, 0)
