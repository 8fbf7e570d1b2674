from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from popproxy.state.executors import BoundedExecutor


@pytest.fixture
async def executor() -> AsyncIterator[BoundedExecutor]:
    pool = BoundedExecutor("hash", threads=2, queue_limit=10, deadline=60)
    yield pool
    pool.close()
