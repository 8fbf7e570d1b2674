"""The quick forms of `make malformed`, `make slow` and `make soak`: that nothing is lost, not how fast it is."""

from __future__ import annotations

import pytest

from tests.endurance import malformed, slow, soak
from tests.endurance.__main__ import site

pytestmark = pytest.mark.long


async def test_nonsense_harms_nobody_else() -> None:
    async with site() as (proxy, doors):
        found = await malformed.flood(proxy, doors, 300, seed=1939)
    assert found.unhealthy == []
    assert found.healthy
    assert found.descriptors[1] <= found.descriptors[0]


@pytest.mark.parametrize("kind", ["endless line", "half a handshake", "reads no message"])
async def test_slow_clients_keep_nobody_waiting(kind: str) -> None:
    async with site() as (proxy, doors):
        found = await slow.crowd(proxy, doors[0], kind, 150, 2.0)
    assert found.failed == []
    assert found.logins


@pytest.mark.real
async def test_all_books_agree_after_a_load_with_faults() -> None:
    found = await soak.soak(minutes=0.1, seed=1939)
    assert found.lost == 0
    assert len(set(found.sessions)) == 1, found.sessions
    assert found.unmatched == {"twice on record": 0, "metric ended": 0}
