"""The pools of the running proxy: their servers are asked, and what changes is put on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from popproxy.backend.balancer import State
from popproxy.backend.checks import Checker
from popproxy.backend.dial import Dialer
from popproxy.backend.pool import Backend, Pool
from popproxy.observe.audit import AuditLog
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.types import Outcome, Secret

log = get_logger("backend")


@dataclass(frozen=True, slots=True)
class Change:
    """The latest of a server's state: when (seconds since 1970), and why."""

    when: float
    why: str


class PoolParts:
    """What keeps the pools going, beside the logins themselves."""

    def __init__(
        self, pools: Mapping[str, Pool], dialer: Dialer, passwords: Mapping[str, Secret], metrics: Metrics,
        audit: AuditLog, loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        self.pools = pools
        self._audit = audit
        self._metrics = metrics
        self._checker = Checker(dialer, loop, passwords)
        self._changes: dict[Backend, Change] = {}
        for pool in pools.values():
            pool.changed = self._changed
        metrics.watch_pools(self._states, self._waiting)

    def start(self) -> None:
        """Begin to ask servers."""
        self._checker.start(self.pools.values())

    def close(self) -> None:
        """Ask no more."""
        self._checker.close()

    def servers_changed(self, pool: Pool, new: Sequence[Backend]) -> None:
        """SRV records name other servers now."""
        for backend in new:
            self._metrics.expect_backend(backend.label)
        self._checker.update(pool, new)
        there = {backend for _, backend in self._backends()}
        self._changes = {backend: change for backend, change in self._changes.items() if backend in there}

    def latest(self, backend: Backend) -> Change | None:
        """The latest change of a server's state since the start."""
        return self._changes.get(backend)

    def _changed(self, pool: Pool, backend: Backend, why: str) -> None:
        state = backend.member.state
        self._changes[backend] = Change(time.time(), why)
        level = log.warning if state is State.DOWN else log.info
        level("a server's state has changed", pool=pool.name, backend=backend.label, state=state.value, why=why)
        self._audit.event(
            "backend_state", Outcome.FAILURE if state is State.DOWN else Outcome.SUCCESS,
            **{"popproxy.pool": pool.name, "popproxy.backend": backend.label, "popproxy.state": state.value,
               "event.reason": why},
        )  # fmt: skip
        self._checker.arrange(pool, backend)

    def _states(self) -> dict[tuple[str, ...], float]:
        return {
            (pool.name, backend.label, state.value): float(backend.member.state is state)
            for pool, backend in self._backends()
            for state in State
        }

    def _waiting(self) -> dict[str, float]:
        return {name: 0.0 if pool.places is None else len(pool.places.queue) for name, pool in self.pools.items()}

    def _backends(self) -> Iterable[tuple[Pool, Backend]]:
        return ((pool, backend) for pool in self.pools.values() for backend in pool.backends)
