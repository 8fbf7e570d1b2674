"""A pool of threads whose calls ask a KDC, with the time that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from popproxy.errors import Unavailable
from popproxy.kerberos.delegation_failure import DelegationFailed
from popproxy.observe.metrics import Metrics
from popproxy.state.executors import BoundedExecutor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
OUTCOMES = ("answered", "unavailable")


class KdcExecutor(BoundedExecutor):
    """As its base; each call counts as `operation`, answered unless it was the KDC that did not answer."""

    def __init__(
        self, name: str, operation: str, threads: int, queue_limit: int, deadline: float, metrics: Metrics
    ) -> None:
        super().__init__(name, threads, queue_limit, deadline)
        self._operation = operation
        self._durations = metrics.kdc_duration
        for outcome in OUTCOMES:
            self._durations.expect((operation, outcome))
        metrics.watch_executor(name, self)

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """See BoundedExecutor."""
        started = time.monotonic()
        outcome = "answered"
        try:
            return await super().run(function, *args)
        except Unavailable:
            outcome = "unavailable"
            raise
        except DelegationFailed as error:
            outcome = "unavailable" if error.obstacle == "kdc" else "answered"
            raise
        finally:
            self._durations.observe((self._operation, outcome), time.monotonic() - started)
